"""RULER (Hsieh et al., 2024). Its synthetic tasks are made on the spot: nothing is read, nothing is copied.

Needles, variables and counts are as there; sentences and filler are ours. A sample depends on the seed, the
task, the length and its number alone. No model in here: `count` gives the number of tokens of a text.
"""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path

from .. import haystack
from ..haystack import Count
from . import ruler_qa
from .item import Item
from .names import RULER, RULER_QA, TASKS
from .ruler_sample import Asked, filled

SYNTHETIC = tuple(task for task in TASKS[RULER] if task not in RULER_QA)
"""The tasks that are made."""

LENGTHS = (4096,)
"""Unless others are said."""

N_SAMPLES = 20
"""Of a task and length, unless it is said."""

_NOISE = "The lamp is lit. The door is shut. The clock ticks. Nobody comes, and nobody leaves."
_KEYED = re.compile(r"\b[a-z]{4,9}\b")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_NOISE_HAY, _PROSE_HAY, _NEEDLE_HAY = "noise", "prose", "needles"
_MOST_WORDS = 32  # of a piece of prose
_MANY = 4  # keys, values or queries where a task has several
_N_HOPS, _N_COMMON, _N_FREQUENT = 4, 10, 3


@dataclass(frozen=True)
class _Needles:
    """hay: what needles are hidden in; of _NEEDLE_HAY others of their kind. uuids: as values, not numbers.
    uuid_keys: as keys, not words."""

    hay: str
    uuids: bool = False
    uuid_keys: bool = False
    n_keys: int = 1
    n_values: int = 1
    n_asked: int = 1


_NIAH: Mapping[str, _Needles] = {
    "niah_single_1": _Needles(_NOISE_HAY),
    "niah_single_2": _Needles(_PROSE_HAY),
    "niah_single_3": _Needles(_PROSE_HAY, uuids=True),
    "niah_multikey_1": _Needles(_PROSE_HAY, n_keys=_MANY),
    "niah_multikey_2": _Needles(_NEEDLE_HAY),
    "niah_multikey_3": _Needles(_NEEDLE_HAY, uuids=True, uuid_keys=True),
    "niah_multivalue": _Needles(_PROSE_HAY, n_values=_MANY),
    "niah_multiquery": _Needles(_PROSE_HAY, n_keys=_MANY, n_asked=_MANY),
}


def items(
    tasks: Sequence[str] | None,
    lengths: Sequence[int],
    n_samples: int,
    seed: int,
    count: Count,
    n_template: int,
    data: Path | None = None,
    max_tokens: int | None = None,
) -> list[Item]:
    """n_samples of every length and task.

    A prompt, with the n_template tokens of a template, has its length together with the longest answer that
    it may get. max_tokens: of an answer, None for the suite's own. tasks: None for all, with those whose
    files are in the folder `data`, if there is one. Raises ArgumentError for a length that leaves no room,
    DataError for files that are missing or of another schema.
    """
    found = []
    for task, length, number, source in _wanted(tasks, lengths, n_samples, data):
        rng = random.Random(f"{seed}/ruler/{task}/{length}/{number}")
        asked = source.asked(number, seed, length, rng) if source else _made(task, length, rng, count)
        asked = replace(asked, max_tokens=max_tokens or asked.max_tokens)
        found.append(filled(asked, task, length, number, count, n_template))
    return found


def unmade(
    tasks: Sequence[str] | None, lengths: Sequence[int], n_samples: int, data: Path | None
) -> list[Item]:
    """What items() would make, without any text: for lengths that are too long anyway."""
    return [
        Item(task, str(length), number, "", "", "", (), (), 0)
        for task, length, number, _ in _wanted(tasks, lengths, n_samples, data)
    ]


def _wanted(
    tasks: Sequence[str] | None, lengths: Sequence[int], n_samples: int, data: Path | None
) -> Iterator[tuple[str, int, int, ruler_qa.Source | None]]:
    """Task, length and number of each sample, and the files' texts where it is made of these."""
    wanted = tuple(tasks or SYNTHETIC)
    of_files = [task for task in wanted if task in RULER_QA]
    sources: dict[str, ruler_qa.Source] = {}
    if data is not None and (of_files or not tasks):
        sources = ruler_qa.sources(data, of_files if tasks else None)
        wanted = wanted if tasks else (*wanted, *sources)
    for length in lengths:
        for task in wanted:
            source = sources.get(task)
            for number in range(min(n_samples, len(source.questions)) if source else n_samples):
                yield task, length, number, source


def _made(task: str, length: int, rng: random.Random, count: Count) -> Asked:
    if task in _NIAH:
        return _niah(_NIAH[task], length, rng, count)
    return {"vt": _variables, "cwe": _common, "fwe": _frequent}[task](length, rng)


def _niah(kind: _Needles, length: int, rng: random.Random, count: Count) -> Asked:
    what = "uuid" if kind.uuids else "number"

    def value() -> str:
        return _uuid(rng) if kind.uuids else str(rng.randrange(10**6, 10**7))

    make = _uuid if kind.uuid_keys else _pair
    keys = _keys(make, rng, kind.n_keys)
    values = {key: [value() for _ in range(kind.n_values)] for key in keys}
    needles = [_needle(what, key, one) for key in keys for one in values[key]]
    rng.shuffle(needles)
    if kind.hay == _NOISE_HAY:
        hay = [_NOISE] * (length // 8)
    elif kind.hay == _NEEDLE_HAY:
        hay = [_needle(what, key, value()) for key in _keys(make, rng, length // 8, keys)]
    else:
        hay = _sentences(length, rng, count)
    depths = [rng.random() for _ in needles]
    asked = keys[: kind.n_asked]
    named = asked[0] if len(asked) == 1 else f"{', '.join(asked[:-1])} and {asked[-1]}"
    several = kind.n_values > 1 or len(asked) > 1
    return Asked(
        document=lambda n: " ".join(_spread(hay[:n], needles, depths)),
        after=(
            f"\n\nWhat are all the special magic {what}s for {named} that the text gives?"
            if several
            else f"\n\nWhat is the special magic {what} for {named} that the text gives?"
        ),
        lead=(
            f"The special magic {what}s for {named} are"
            if several
            else f"The special magic {what} for {named} is"
        ),
        answers=tuple(one for key in asked for one in values[key]),
        max_tokens=128,
        n_most=len(hay),
    )


def _needle(what: str, key: str, value: str) -> str:
    return f"A special magic {what} for {key} is: {value}."


def _variables(length: int, rng: random.Random) -> Asked:
    """One chain: a value, and names that are set to each other."""
    names: list[str] = []
    while len(names) <= _N_HOPS:
        name = "".join(rng.choice(_LETTERS.upper()) for _ in range(5))
        if name not in names:
            names.append(name)
    value = str(rng.randrange(10000, 100000))
    steps = [f"VAR {names[0]} = {value}."]
    steps += [f"VAR {b} = VAR {a}." for a, b in pairwise(names)]
    depths = sorted(rng.random() for _ in steps)
    return Asked(
        document=lambda n: " ".join(_spread([_NOISE] * n, steps, depths)),
        after=(
            f"\n\nWhich variables in the text have the value {value}? Some get it from others. Name them all."
        ),
        lead=f"{len(names)} variables have the value {value}. They are:",
        answers=tuple(names),
        max_tokens=30,
    )


def _common(length: int, rng: random.Random) -> Asked:
    """A list in which ten words stand more often than others: of the vocabulary, then made-up ones."""
    n_often, n_seldom = (30, 3) if length >= 4096 else (6, 1)
    words = list(vocabulary())
    rng.shuffle(words)
    often, others = words[:_N_COMMON], words[_N_COMMON:]
    order = rng.random()
    others += _keys(
        _made_up, rng, max(0, length // 2 - len(others)), words
    )  # a word and its number: two tokens

    def document(n: int) -> str:
        listed = often * n_often + others[:n] * n_seldom
        random.Random(order).shuffle(listed)
        return " ".join(f"{i}. {word}" for i, word in enumerate(listed, 1))

    return Asked(
        document=document,
        after=f"\n\nWhich {_N_COMMON} words stand most often in this list?",
        lead=f"The {_N_COMMON} words that stand most often in the list are:",
        answers=tuple(often),
        max_tokens=120,
        n_most=len(others),
    )


def _frequent(length: int, rng: random.Random) -> Asked:
    """Made-up words that get rarer with the square of their rank. The first is dots, and not asked for."""
    words = ["...", *_keys(_made_up, rng, max(length // 50, 16) - 1)]
    weights = [rank**-2.0 for rank in range(1, len(words) + 1)]
    order = rng.random()

    def document(n: int) -> str:
        scale = n * 10 / sum(weights)
        listed = [
            word for word, weight in zip(words, weights, strict=True) for _ in range(round(scale * weight))
        ]
        random.Random(order).shuffle(listed)
        return " ".join(listed)

    return Asked(
        document=document,
        after=f"\n\nWhich {_N_FREQUENT} words stand most often in this text? Leave out the dots.",
        lead=f"The {_N_FREQUENT} words that stand most often are:",
        answers=tuple(words[1 : _N_FREQUENT + 1]),
        max_tokens=50,
    )


@cache
def vocabulary() -> tuple[str, ...]:
    """Short words of the haystack's prose, in the order of the alphabet; none begins another."""
    words = sorted(set(_KEYED.findall(" ".join(haystack.paragraphs()))))
    return tuple(a for a, b in zip(words, [*words[1:], ""], strict=True) if not b.startswith(a))


def _keys(
    make: Callable[[random.Random], str], rng: random.Random, n: int, others: Sequence[str] = ()
) -> list[str]:
    """Different ones, none among the others."""
    found = dict.fromkeys(others)
    while len(found) < len(others) + n:
        found.setdefault(make(rng))
    return list(found)[len(others) :]


def _pair(rng: random.Random) -> str:
    words = vocabulary()
    return f"{rng.choice(words)}-{rng.choice(words)}"


def _made_up(rng: random.Random) -> str:
    return "".join(rng.choice(_LETTERS) for _ in range(6))


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _sentences(length: int, rng: random.Random, count: Count) -> list[str]:
    """Of the haystack's prose, over and over where it is shorter, as the suite has its essays. What goes on
    without an end is cut, so that prompts come near to their length."""
    paragraphs = haystack.paragraphs()
    start = rng.randrange(len(paragraphs))
    again = 1 + length // len(paragraphs)  # each has a token at least
    parts = haystack.cut(length, count, start, paragraphs * again)
    words = [one.split(" ") for part in parts for one in re.split(r"(?<=[.?!]) (?=[A-Z])", part)]
    return [" ".join(one[i : i + _MOST_WORDS]) for one in words for i in range(0, len(one), _MOST_WORDS)]


def _spread(filler: Sequence[str], needles: Sequence[str], depths: Sequence[float]) -> list[str]:
    """The filler with each needle before the unit at its depth; at the same place in their order."""
    places = sorted((int(depth * len(filler)), i) for i, depth in enumerate(depths))
    out, at = [], 0
    for place, i in places:
        out += [*filler[at:place], needles[i]]
        at = place
    return [*out, *filler[at:]]
