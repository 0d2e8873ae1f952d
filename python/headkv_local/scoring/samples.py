"""What is asked while scoring: examples in haystacks, at spread depths. No model in here."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..bench import haystack
from ..bench.haystack import Count
from ..errors import ArgumentError
from .dataset import Example

_BLANK = "\n\n"


@dataclass(frozen=True)
class Plan:
    """One sample before its text is made.

    depth: share of the tokens before the first fact; the others follow at even distances, round the end.
    half: 0 or 1. Samples of different halves share no example, so that their scores can be compared.
    """

    example: Example
    length: int
    depth: float
    half: int
    seed: str


def plan(examples: Sequence[Example], n_samples: int, lengths: Sequence[int], seed: int) -> list[Plan]:
    """The same arguments give the same samples. Examples take turns in shuffled order, lengths too."""
    rng = random.Random(f"{seed}/{len(examples)}")
    order = list(examples)
    rng.shuffle(order)
    depths = [(i + 0.5) / n_samples for i in range(n_samples)]
    rng.shuffle(depths)  # so that depth, example and length do not go together
    plans: list[Plan] = []
    used: Counter[tuple[Example | int, int]] = Counter()  # each length, of each example and in each half
    for i, depth in enumerate(depths):
        example, half = order[i % len(order)], i % len(order) % 2
        length = min(lengths, key=lambda n, e=example, h=half: (used[e, n], used[h, n]))  # type: ignore[misc]
        used[example, length] += 1
        used[half, length] += 1
        plans.append(Plan(example, length, depth, half, seed=f"{seed}/{i}"))
    return plans


def content(plan: Plan, n_tokens: int, count: Count) -> str:
    """The user's message, of about n_tokens tokens: the haystack with all facts in it, and the question.

    Raises ArgumentError if n_tokens leaves no room for a haystack.
    """
    example, rng = plan.example, random.Random(plan.seed)
    question = f"Question: {example.question}"
    room = n_tokens - count(_BLANK.join([*example.facts, question]))
    if room < n_tokens // 4:
        raise ArgumentError(f"prompts of {plan.length} tokens leave no room for a haystack around the facts")
    start = rng.randrange(len(haystack.paragraphs()))
    try:
        parts = haystack.cut(room, count, start)
    except ValueError as error:
        raise ArgumentError(f"prompts of {plan.length} tokens cannot be made: {error}") from error
    return _BLANK.join([haystack.hide(parts, example.facts, plan.depth, count), question])
