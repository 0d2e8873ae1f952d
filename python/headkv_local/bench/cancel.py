"""How long a call goes on after cancel(): while a prompt is read, and while an answer is generated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from statistics import median
from typing import Any, Literal

from headkv_local import Cancelled, Llama

from .contexts import Setup, check_length, n_ctx_for, open_headkv, require_compacted
from .orders import MEMORY, NONE, Way, ways_of
from .text import text_tokens
from .timing import nearest_rank

READING, GENERATING = "reading", "generating"


@dataclass(frozen=True)
class Settings:
    orders: tuple[Literal["tokens", "layers"], ...] = ("tokens", "layers")
    archives: tuple[str, ...] = (NONE, MEMORY)
    prompt_tokens: tuple[int, ...] = (2000,)
    budget: int | str = 128
    cancels: int = 200
    """That stopped something, of each kind of work."""
    answer_tokens: int = 64
    seed: int = 0


@dataclass
class Figures:
    """Of one kind of work in one way of reading."""

    n_prompt: int
    way: Way
    doing: str
    whole: float
    """Seconds of the work, where nobody cancels it."""
    n_steps: int
    """Batches of tokens, or tokens, that the work takes."""
    moments: list[float] = field(default_factory=list)
    """Seconds from the beginning of the work to each cancel()."""
    latencies: list[float] = field(default_factory=list)
    """Seconds from each cancel() to the call's return."""

    @property
    def step(self) -> float:
        """Seconds of a batch, or of a token, on average."""
        return self.whole / self.n_steps

    @property
    def summary(self) -> dict[str, float]:
        found = self.latencies
        return {"median": median(found), "p99": nearest_rank(found, 0.99), "max": max(found)}

    def as_dict(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.n_prompt,
            "doing": self.doing,
            "order": self.way.order,
            "archive": self.way.archive,
            "whole_seconds": self.whole,
            "step_seconds": self.step,
            "latency_seconds": self.summary | {"n": len(self.latencies)},
            "cancels": [list(pair) for pair in zip(self.moments, self.latencies, strict=True)],
        }


def run(
    setup: Setup, settings: Settings, tell: Callable[[str], None] = lambda _: None
) -> Iterator[list[Figures]]:
    """What each prompt length shows in all ways, when it is there.

    Raises ArgumentError for lengths that cannot be measured, UnsupportedError for layers of a model whose
    graph cannot be cut.
    """
    for n_prompt in settings.prompt_tokens:
        found: list[Figures] = []
        for way in ways_of(settings.orders, settings.archives):
            found += _measure(setup, settings, n_prompt, way, tell)
        yield found


def _measure(
    setup: Setup, settings: Settings, n_prompt: int, way: Way, tell: Callable[[str], None]
) -> list[Figures]:
    n_all = n_prompt + settings.answer_tokens + 1
    with way.retention(settings.budget) as retention, open_headkv(setup, n_ctx_for(n_all), retention) as llm:
        check_length(llm, n_all)
        tokens = text_tokens(llm, n_prompt)

        def begin_reading() -> Callable[[], object]:
            llm.reset()
            return lambda: llm.prefill(tokens)

        def begin_answer() -> Callable[[], object]:
            answer = llm.generate(tokens, temp=0.0)
            next(answer)  # with what of the prompt is to be read
            return lambda: list(islice(answer, settings.answer_tokens))

        found = []
        for doing, begin, n_steps in (
            (READING, begin_reading, -(-n_prompt // setup.n_batch)),
            (GENERATING, begin_answer, settings.answer_tokens),
        ):
            tell(f"prompt {n_prompt}, {way.label}, {doing}: {settings.cancels} cancels")
            _timed(begin())  # what is done once only
            figures = Figures(n_prompt, way, doing, _timed(begin()), n_steps)
            require_compacted(llm.cache_stats(), settings.budget, n_prompt)
            _cancel_at_random(llm, begin, figures, settings)
            found.append(figures)
        return found


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _cancel_at_random(
    llm: Llama, begin: Callable[[], Callable[[], object]], figures: Figures, settings: Settings
) -> None:
    """Add a moment and a latency for each cancel; one that comes when the work has ended does not count."""
    random = Random(settings.seed)
    while len(figures.latencies) < settings.cancels:
        moment = random.uniform(0.0, figures.whole)
        latency = _latency(llm, begin(), moment)
        if latency is not None:
            figures.moments.append(moment)
            figures.latencies.append(latency)


def _latency(llm: Llama, work: Callable[[], object], moment: float) -> float | None:
    """Seconds from a cancel() at that moment to the work's end; None where it had ended before."""
    asked = 0.0

    def ask() -> None:
        nonlocal asked
        asked = time.perf_counter()
        llm.cancel()

    other = threading.Timer(moment, ask)
    other.start()
    try:
        work()
    except Cancelled:
        return time.perf_counter() - asked
    finally:
        other.cancel()
        other.join()
    return None
