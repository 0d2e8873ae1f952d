"""A sample of RULER as long as a prompt and its answer are to be: as much filler as fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headkv_local import ArgumentError

from ..haystack import Count
from .item import Item

LEAST_SHARE = 0.9  # of its length, that a prompt has to have


@dataclass(frozen=True)
class Asked:
    """A sample without its filler. document: of so many units of filler. Others: as in Item."""

    document: Callable[[int], str]
    after: str
    lead: str
    answers: tuple[str, ...]
    max_tokens: int
    n_most: int = 1 << 22
    before: str = ""
    metric: str = "match_all"


def filled(asked: Asked, task: str, length: int, number: int, count: Count, n_template: int) -> Item:
    """length: of a prompt and its answer, as in the suite.

    Raises ArgumentError for a length that leaves no room, or that there is not enough filler for.
    """
    room = length - n_template - count(asked.before + asked.after + asked.lead) - asked.max_tokens
    n_units = _most(lambda n: count(asked.document(n)) <= room, asked.n_most)
    if n_units == 0:
        raise ArgumentError(f"prompts of {length} tokens leave no room for {task}")
    document = asked.document(n_units)
    if n_units == asked.n_most and (n_made := count(document)) < LEAST_SHARE * room:
        raise ArgumentError(
            f"prompts of {length} tokens cannot be made for {task}: its text has no more than {n_made} tokens"
        )
    return Item(
        task=task,
        length=str(length),
        number=number,
        before=asked.before,
        document=document,
        after=asked.after,
        answers=asked.answers,
        metrics=(asked.metric,),
        max_tokens=asked.max_tokens,
        question=asked.after.strip(),
        lead=asked.lead,
    )


def _most(fits: Callable[[int], bool], n_most: int) -> int:
    """The largest n up to n_most that fits, 0 if none does."""
    high = 1
    while high < n_most and fits(high):
        high *= 2
    low, high = high // 2, min(high, n_most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
