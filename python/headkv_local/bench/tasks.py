"""What is asked of a model: a fact, the question for it and the answer. Pure text, no model in here."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from . import haystack
from .haystack import Count

_PLACES = (
    "boat house",
    "old mill",
    "observatory",
    "north gate",
    "wine cellar",
    "archive",
    "greenhouse",
    "bakery",
)
_TOWNS = ("Velmora", "Ostrand", "Kirnach", "Talbeck", "Morwick", "Sandholm", "Quillport", "Ardenfield")
_PEOPLE = ("Marta", "Tobias", "Ilse", "Ruben", "Farida", "Anselm", "Noemi", "Gregor")


@dataclass(frozen=True)
class Fact:
    kind: str
    sentence: str
    question: str
    expected: str


@dataclass(frozen=True)
class Sample:
    """A document with a fact in it, about `depth` of its tokens before the fact."""

    document: str
    fact: Fact
    depth: float

    @property
    def content(self) -> str:
        return f"{self.document}\n\nQuestion: {self.fact.question}"


FactMaker = Callable[[random.Random, str], Fact]
"""Makes a fact from a random generator and a five-digit number."""


def access_code(rng: random.Random, number: str) -> Fact:
    what = f"access code of the {rng.choice(_PLACES)} in {rng.choice(_TOWNS)}"
    return Fact("code", f"The {what} is {number}.", f"What is the {what}?", number)


def locker(rng: random.Random, number: str) -> Fact:
    who = rng.choice(_PEOPLE)
    return Fact(
        "locker", f"The locker number of {who} is {number}.", f"What is the locker number of {who}?", number
    )


def ticket(rng: random.Random, number: str) -> Fact:
    town = rng.choice(_TOWNS)
    return Fact(
        "ticket",
        f"The winning ticket of the lottery in {town} was number {number}.",
        f"What was the number of the winning ticket of the lottery in {town}?",
        number,
    )


NEEDLES: tuple[FactMaker, ...] = (access_code, locker, ticket)


def needle_samples(
    n_samples: int, n_tokens: int, count: Count, seed: int, makers: tuple[FactMaker, ...] = NEEDLES
) -> list[Sample]:
    """Samples whose content has about n_tokens tokens, at evenly spread depths, kinds taking turns.

    The same arguments give the same samples. Raises ValueError if n_tokens leaves no room for a haystack.
    """
    rng = random.Random(f"{seed}/{n_tokens}")
    depths = [(i + 0.5) / n_samples for i in range(n_samples)]
    rng.shuffle(depths)  # so that depth and kind do not go together
    return [
        _in_haystack(makers[i % len(makers)], depth, n_tokens, count, rng) for i, depth in enumerate(depths)
    ]


def found(expected: str, answer: str) -> bool:
    """Whether the expected string stands in the answer, in any case, and not as a part of a longer word."""
    return re.search(rf"(?<!\w){re.escape(expected)}(?!\w)", answer, re.IGNORECASE) is not None


def _in_haystack(maker: FactMaker, depth: float, n_tokens: int, count: Count, rng: random.Random) -> Sample:
    start = rng.randrange(len(haystack.paragraphs()))
    number = str(rng.randrange(10000, 100000))
    fact = maker(rng, number)
    room = n_tokens - count(Sample(fact.sentence, fact, depth).content)
    if room < n_tokens // 4:
        raise ValueError(f"{n_tokens} tokens leave no room for a haystack around the question")
    parts = haystack.cut(room, count, start)
    if any(number in part for part in parts):
        return _in_haystack(maker, depth, n_tokens, count, rng)
    return Sample(haystack.insert(parts, fact.sentence, depth, count), fact, depth)
