"""Needles found with the full cache and with budgets: one prefill per sample, every policy from its state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

from headkv_local import ArgumentError, Llama

from . import report
from .contexts import Setup, check_length, greedy, n_ctx_for, open_headkv, text_of
from .policies import Policy
from .prompts import chat_tokens, plain_tokens
from .tasks import Sample, found, needle_samples

_TEMPLATE_ROOM = 256  # context for what the chat template adds, and for the answer
_HEADER = ("prompt", "policy", "found", "share", "95 % interval", "kept of prompt", "kept K/V", "cache")


@dataclass(frozen=True)
class Settings:
    lengths: tuple[int, ...] = (1400, 4000)
    n_samples: int = 12
    seed: int = 0
    max_tokens: int = 24
    plain: bool = False


@dataclass(frozen=True)
class Outcome:
    """One sample under one policy."""

    length: int
    """The prompt length that was asked for."""
    policy: str
    kind: str
    depth: float
    prompt_tokens: int
    expected: str
    answer: str
    found: bool
    kept_share: float
    kept_bytes: int
    """K and V rows of the prompt that are kept."""
    resident_bytes: int
    seconds: float
    """From the restored state to the answer's end."""


def run(
    setup: Setup, settings: Settings, policies: Sequence[Policy], tell: Callable[[str], None] = lambda _: None
) -> list[Outcome]:
    """Every sample of every length under every policy.

    Raises ArgumentError for lengths that the model or the haystack does not have.
    """
    outcomes = []
    with open_headkv(setup, n_ctx_for(max(settings.lengths) + settings.max_tokens + _TEMPLATE_ROOM)) as llm:
        check_length(llm, max(settings.lengths) + settings.max_tokens)
        for length in settings.lengths:
            samples = _samples(llm, length, settings)
            for i, sample in enumerate(samples):
                tell(f"prompt {length}: sample {i + 1} of {len(samples)}")
                outcomes.extend(_try_all(llm, sample, length, settings, policies))
    return outcomes


def summary(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """One entry per length and policy, in the order in which they were tried."""
    groups: dict[tuple[int, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.length, outcome.policy), []).append(outcome)
    return [_line(length, policy, group) for (length, policy), group in groups.items()]


def table(lines: Iterable[dict[str, Any]]) -> str:
    rows = [
        (
            str(line["length"]),
            line["policy"],
            f"{line['found']}/{line['total']}",
            f"{line['share']:.0%}",
            f"{line['wilson_95'][0]:.0%} to {line['wilson_95'][1]:.0%}",
            f"{line['kept_share']:.1%}",
            report.mebibytes(line["kept_bytes"]),
            report.mebibytes(line["resident_bytes"]),
        )
        for line in lines
    ]
    return report.table(_HEADER, rows)


def document(
    setup: Setup, settings: Settings, lines: list[dict[str, Any]], outcomes: Iterable[Outcome]
) -> dict[str, Any]:
    """What --json writes."""
    return {
        "bench": "needles",
        "environment": report.environment(),
        "setup": asdict(setup),
        "settings": asdict(settings),
        "summary": lines,
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def _samples(llm: Llama, length: int, settings: Settings) -> list[Sample]:
    template = len(_prompt(llm, "", settings))
    try:
        return needle_samples(settings.n_samples, length - template, lambda s: _count(llm, s), settings.seed)
    except ValueError as error:
        raise ArgumentError(f"prompts of {length} tokens cannot be made: {error}") from error


def _prompt(llm: Llama, content: str, settings: Settings) -> list[int]:
    return (plain_tokens if settings.plain else chat_tokens)(llm, content)


def _try_all(
    llm: Llama, sample: Sample, length: int, settings: Settings, policies: Sequence[Policy]
) -> list[Outcome]:
    tokens = _prompt(llm, sample.content, settings)
    window = max((p.retention.window for p in policies if p.retention is not None), default=1)
    if len(tokens) <= window:
        raise ArgumentError(f"a prompt of {len(tokens)} tokens is not longer than the window of {window}")
    llm.reset()
    llm.retention = None
    llm.eval(tokens[:-window])
    state = llm.save_state()
    outcomes = []
    for policy in policies:
        started = time.perf_counter()
        llm.reset()  # a compacted cache gets its full size back
        llm.load_state(state)
        llm.retention = policy.retention
        llm.prefill(tokens)
        stats = llm.cache_stats()
        answer = text_of(llm, greedy(llm, settings.max_tokens))
        outcomes.append(
            Outcome(
                length=length,
                policy=policy.name,
                kind=sample.fact.kind,
                depth=sample.depth,
                prompt_tokens=len(tokens),
                expected=sample.fact.expected,
                answer=answer,
                found=found(sample.fact.expected, answer),
                kept_share=stats.kept_share,
                kept_bytes=int(stats.kept.sum()) * stats.row_bytes,
                resident_bytes=stats.resident_bytes,
                seconds=time.perf_counter() - started,
            )
        )
    return outcomes


def _line(length: int, policy: str, group: list[Outcome]) -> dict[str, Any]:
    hits = sum(outcome.found for outcome in group)
    return {
        "length": length,
        "policy": policy,
        "found": hits,
        "total": len(group),
        "share": hits / len(group),
        "wilson_95": report.wilson(hits, len(group)),
        "prompt_tokens": mean(outcome.prompt_tokens for outcome in group),
        "kept_share": mean(outcome.kept_share for outcome in group),
        "kept_bytes": mean(outcome.kept_bytes for outcome in group),
        "resident_bytes": mean(outcome.resident_bytes for outcome in group),
        "seconds": mean(outcome.seconds for outcome in group),
    }


def _count(llm: Llama, text: str) -> int:
    return len(llm.tokenize(text.encode(), add_bos=False, special=False))
