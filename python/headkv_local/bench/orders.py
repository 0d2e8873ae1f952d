"""A prompt read in the order of tokens and layer by layer, with an archive or none: time and bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import llama_cpp

from headkv_local import CacheStats, Retention

from . import orders_memory
from .contexts import Setup, check_length, n_ctx_for, open_headkv, require_compacted
from .text import text_tokens
from .timing import in_turns, quartiles

ARCHIVES = NONE, MEMORY, FILE = "none", "memory", "file"


@dataclass(frozen=True)
class Settings:
    orders: tuple[Literal["tokens", "layers"], ...]
    archives: tuple[str, ...] = ARCHIVES
    prompt_tokens: tuple[int, ...] = (6000,)
    budgets: tuple[int | str, ...] = (128,)
    repeat: int = 3
    own_process: bool = True
    """Whether memory is measured again in a process for each way."""


class Way(NamedTuple):
    order: Literal["tokens", "layers"]
    archive: str

    @property
    def label(self) -> str:
        return self.order if self.archive == NONE else f"{self.order}, {self.archive}"

    @contextmanager
    def retention(self, budget: int | str) -> Iterator[Retention]:
        """With an archive in a file of its own in the folder for temporary files, if in one."""
        with TemporaryDirectory(prefix="headkv-bench-") as folder:
            where = {NONE: None, MEMORY: MEMORY, FILE: str(Path(folder) / "archive")}[self.archive]
            yield Retention(budget=budget, scores="uniform", order=self.order, archive=where)


def ways_of(orders: Iterable[Literal["tokens", "layers"]], archives: Iterable[str]) -> list[Way]:
    return [Way(order, archive) for archive in archives for order in orders]


USUAL = Way("tokens", NONE)
"""What the others are compared with."""


@dataclass
class Figures:
    """Of one way. Seconds to the first token's logits, an entry per pass; stats of the last pass."""

    n_prompt: int
    budget: int | str
    way: Way
    stats: CacheStats
    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    """Of all threads."""
    memory: orders_memory.Memory | None = None

    def as_dict(self, usual: Figures | None) -> dict[str, Any]:
        stats = self.stats
        return {
            "prompt_tokens": self.n_prompt,
            "budget": self.budget,
            "order": self.way.order,
            "archive": self.way.archive,
            "seconds": {"wall": self.wall, "processor": self.processor},
            "samples": {"wall": quartiles(self.wall), "processor": quartiles(self.processor)},
            "of_usual": None if usual is None else self.compared(usual),
            "cache": {
                "devices": stats.devices,
                "full_bytes": stats.full_bytes,
                "peak_bytes": stats.peak_bytes,
                "resident_bytes": stats.resident_bytes,
                "kept_bytes": stats.kept_bytes,
                "kept_share": stats.kept_share,
                "archive_bytes": stats.archive_bytes,
                "archive_tokens": stats.archive_tokens,
            },
            "own_process": None if self.memory is None else asdict(self.memory),
        }

    def compared(self, usual: Figures) -> dict[str, Any]:
        """Quotients to the usual way: of times pass by pass, of the bytes of K and V at the peak."""
        pairs = {"wall": (self.wall, usual.wall), "processor": (self.processor, usual.processor)}
        times = {
            name: [one / other for one, other in zip(*both, strict=True)] for name, both in pairs.items()
        }
        found: dict[str, Any] = {
            name: {"median": median(values), "least": min(values), "most": max(values)}
            for name, values in times.items()
        }
        return {**found, "peak_bytes": self.stats.peak_bytes / usual.stats.peak_bytes}


def usual_of(results: Sequence[Figures]) -> Figures | None:
    """The usual way of one prompt and budget, where it was measured."""
    return next((one for one in results if one.way == USUAL), None)


def run(
    setup: Setup, settings: Settings, tell: Callable[[str], None] = lambda _: None
) -> Iterator[list[Figures]]:
    """The ways of each prompt length and budget when they are there.

    Raises ArgumentError for lengths that cannot be measured, UnsupportedError for layers of a model whose
    graph cannot be cut.
    """
    for n_prompt in settings.prompt_tokens:
        for budget in settings.budgets:
            yield _measure(setup, settings, n_prompt, budget, tell)


def _measure(
    setup: Setup, settings: Settings, n_prompt: int, budget: int | str, tell: Callable[[str], None]
) -> list[Figures]:
    ways = ways_of(settings.orders, settings.archives)
    what = f"prompt {n_prompt}, budget {budget}"
    tell(f"{what}: once to warm up")
    _timed(setup, n_prompt, budget, ways[0])
    found: dict[Way, Figures] = {}
    for i in range(settings.repeat):
        for way in in_turns(ways, i):
            tell(f"{what}: pass {i + 1} of {settings.repeat}, {way.label}")
            wall, processor, stats = _timed(setup, n_prompt, budget, way)
            one = found.setdefault(way, Figures(n_prompt, budget, way, stats))
            one.stats = stats
            one.wall.append(wall)
            one.processor.append(processor)
    for way in ways if settings.own_process else ():
        tell(f"{what}: memory of {way.label}, in a process of its own")
        found[way].memory = orders_memory.measure_apart(setup, n_prompt, budget, way)
    return [found[way] for way in ways]


def _timed(setup: Setup, n_prompt: int, budget: int | str, way: Way) -> tuple[float, float, CacheStats]:
    """Wall and processor seconds of reading, selecting and compacting, in a context that is made for it."""
    with way.retention(budget) as retention, open_headkv(setup, n_ctx_for(n_prompt), retention) as llm:
        check_length(llm, n_prompt)
        tokens = text_tokens(llm, n_prompt)
        wall, processor = time.perf_counter(), time.process_time()
        llm.prefill(tokens)
        llama_cpp.llama_synchronize(llm.ctx)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        stats = llm.cache_stats()
        require_compacted(stats, budget, n_prompt)
        return wall, processor, stats
