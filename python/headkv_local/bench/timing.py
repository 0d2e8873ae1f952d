"""Timing on a noisy machine: contexts take turns in short blocks, and medians are taken over single steps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TypeVar

import llama_cpp

BLOCK = 8
"""Decode steps per turn. The first one finds the caches as another context left them and is not counted."""

Times = dict[str, list[float]]
T = TypeVar("T")


def timed_eval(llm: llama_cpp.Llama, tokens: Sequence[int]) -> float:
    """Seconds until the tokens are evaluated, on whatever device."""
    started = time.perf_counter()
    llm.eval(tokens)
    llama_cpp.llama_synchronize(llm.ctx)
    return time.perf_counter() - started


def prefill_in_turns(llms: Mapping[str, llama_cpp.Llama], tokens: Sequence[int], n_batch: int) -> Times:
    """Seconds per batch, the contexts taking turns batch by batch in changing order."""
    times: Times = {name: [] for name in llms}
    for turn, start in enumerate(range(0, len(tokens), n_batch)):
        for name in in_turns(list(llms), turn):
            times[name].append(timed_eval(llms[name], tokens[start : start + n_batch]))
    return times


def decode_in_turns(llms: Mapping[str, llama_cpp.Llama], tokens: Sequence[int]) -> Times:
    """Seconds per token, the contexts taking turns block by block in changing order."""
    times: Times = {name: [] for name in llms}
    for turn, start in enumerate(range(0, len(tokens), BLOCK)):
        for name in in_turns(list(llms), turn):
            steps = [timed_eval(llms[name], [token]) for token in tokens[start : start + BLOCK]]
            times[name].extend(steps[1:] or steps)
    return times


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles, as the benches report them."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "median": median(ordered),
        "q1": ordered[round(last * 0.25)],
        "q3": ordered[round(last * 0.75)],
        "n": len(ordered),
    }


def nearest_rank(values: Sequence[float], share: float) -> float:
    """The least of the values that no more than 1 - share of them exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def in_turns(things: Sequence[T], turn: int) -> list[T]:
    """The same things, beginning with another one at each turn."""
    return [*things[turn % len(things) :], *things[: turn % len(things)]]
