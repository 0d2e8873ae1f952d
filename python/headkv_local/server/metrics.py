"""What is going on, as Prometheus reads it. The event loop does not wait for the model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import HeadKVError
from .served import Served
from .service import Service

Samples = list[tuple[Mapping[str, Any], float]]
Memory = dict[str, Any]


def memory_of(llm: Served) -> Memory:
    """In bytes and tokens. May wait while the model makes tokens of a text: not for the event loop.

    Raises StateError where another model takes its place.
    """
    stats, keeper = llm.cache_stats(), llm.keeper
    return {
        "resident_bytes": stats.resident_bytes,
        "kept_bytes": stats.kept_bytes,
        "archive_bytes": stats.archive_bytes,
        "peak_bytes": stats.peak_bytes,
        "full_bytes": stats.full_bytes,
        "prompt_tokens": stats.prompt_tokens,
        "tail_tokens": stats.tail_tokens,
        "archive_tokens": stats.archive_tokens,
        "kept_share": stats.kept_share,
        "compacted": stats.compacted,
        "conversations": 0 if keeper is None else keeper.n_kept,
        "aside_bytes": 0 if keeper is None else keeper.aside_bytes,
        "sessions_bytes": 0 if keeper is None else keeper.n_bytes,
    }


async def exposition(service: Service) -> str:
    """In the text format 0.0.4."""
    loaded = await asyncio.to_thread(_loaded, service)
    return "".join(_family(*family) for family in _families(service, loaded))


def _loaded(service: Service) -> tuple[str, Memory] | None:
    """The name and the memory of the loaded model; None without one."""
    name, llm = service.models.name, service.models.loaded
    if name is None or llm is None:
        return None
    try:
        return name, memory_of(llm)
    except HeadKVError:  # another model takes its place
        return None


def _families(service: Service, loaded: tuple[str, Memory] | None) -> Iterator[tuple[str, str, str, Samples]]:
    if loaded is not None:
        name, memory = loaded
        of = {"model": name}
        kinds = ("resident", "kept", "archive", "peak", "full")
        yield (
            "headkv_cache_bytes",
            "gauge",
            "K and V of the conversation in the context: held now, kept of its prompt, in the archive (with "
            "the rows of those that wait in memory), the most at once, and what a full cache takes.",
            [(of | {"kind": kind}, memory[f"{kind}_bytes"]) for kind in kinds],
        )
        parts = ("prompt", "tail", "archive")
        yield (
            "headkv_context_tokens",
            "gauge",
            "Tokens of the conversation in the context: of its prompt, after it, and in the archive.",
            [(of | {"part": part}, memory[f"{part}_tokens"]) for part in parts],
        )
        yield "headkv_kept_share", "gauge", "Share of the prompt that is kept.", [(of, memory["kept_share"])]
        yield (
            "headkv_conversations",
            "gauge",
            "Conversations, in the context, in memory and in sessions.",
            [(of, memory["conversations"])],
        )
        yield (
            "headkv_aside_bytes",
            "gauge",
            "Conversations that wait in memory, with their rows in the archive.",
            [(of, memory["aside_bytes"])],
        )
        yield "headkv_sessions_bytes", "gauge", "All sessions.", [(of, memory["sessions_bytes"])]
    yield (
        "headkv_responses_total",
        "counter",
        "Answers by path and status; 499: the client had left.",
        [({"path": path, "status": status}, n) for (path, status), n in sorted(service.responses.items())],
    )
    yield (
        "headkv_tokens_total",
        "counter",
        "Tokens of prompts that were held already (cached) or read, and of answers.",
        [({"kind": kind}, service.tokens[kind]) for kind in ("cached", "read", "generated")],
    )
    yield "headkv_requests_waiting", "gauge", "Requests in the line.", [({}, service.line.n_waiting)]
    yield "headkv_requests_running", "gauge", "Requests that are computed.", [({}, float(service.line.busy))]
    yield (
        "headkv_ready",
        "gauge",
        "Whether the first model is loaded.",
        [({}, float(service.ready))],
    )
    yield "headkv_start_time_seconds", "gauge", "When the server began.", [({}, service.started)]


def _family(name: str, kind: str, told: str, samples: Samples) -> str:
    lines = [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        shown = ",".join(f'{key}="{_escaped(str(text))}"' for key, text in labels.items())
        lines.append(f"{name}{{{shown}}} {value:.17g}" if shown else f"{name} {value:.17g}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
