"""Examples for scoring: facts to hide in a text, a question, and the answer. JSON Lines, no model in here."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ..bench.suites.reading import require_whole, unique
from ..errors import DataError
from ..files import content

Kind = Literal["r", "r2", "icl", "truth"]

_FILES: Mapping[str, str] = {
    "r": "plain.jsonl",
    "r2": "reasoning.jsonl",
    "icl": "in-context.jsonl",
    "truth": "truthfulness.jsonl",
}
KINDS = tuple(_FILES)
_FOLDER = Path(__file__).parent / "examples"
_TEXTS = ("pattern", "lang", "question", "answer")
_KEYS = {"kind", "facts", "needle", *_TEXTS}


@dataclass(frozen=True)
class Example:
    """What kind of heads an answer takes.

    kind: "r" (the fact is the answer), "r2" (the answer takes a reasoning step from the facts), "icl"
        (in-context learning: the facts are examples of a rule that nobody states), "truth" (truthfulness:
        some of the facts are said to be wrong, or come from somebody who cannot know).

    facts: all that is hidden in the text. needle: indices of those that the answer needs. where: file and
    line, for errors; no part of what an example is.
    """

    kind: str
    pattern: str
    lang: str
    facts: tuple[str, ...]
    needle: tuple[int, ...]
    question: str
    answer: str
    where: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True)
class Dataset:
    """Examples of one kind or several. name, whose: of their file; digest: SHA-256 of them, in hex."""

    name: str
    whose: str
    examples: tuple[Example, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(repr(self.examples).encode()).hexdigest()

    def of(self, kinds: Sequence[Kind]) -> Dataset:
        """Those of these kinds. Raises DataError for a kind that has none."""
        examples: list[Example] = []
        for kind in kinds:
            found = [example for example in self.examples if example.kind == kind]
            if not found:
                raise DataError(f"{self.name} holds no examples of the kind {kind!r}")
            examples += found
        return replace(self, examples=tuple(examples))


def own(*kinds: Kind) -> Dataset:
    """The project's examples of these kinds."""
    paths = [_FOLDER / _FILES[kind] for kind in kinds]
    examples = tuple(example for path in paths for example in read(path))
    return Dataset(", ".join(path.name for path in paths), "headkv-local's", examples)


def theirs(path: str | os.PathLike[str]) -> Dataset:
    """All examples of a user's file, which is read once: it may be a pipe.

    Raises DataError that names file and line for a line that is no example, and for a file without any;
    OSError for a file that cannot be read.
    """
    examples = tuple(read(path))
    if not examples:
        raise DataError(f"{os.fspath(path)} holds no examples")
    return Dataset(Path(path).name, "the user's", examples)


def split(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Those to measure on, and every fourth, held out to choose settings on; none of fewer than four.

    The same seed gives the same ones; of each kind and pattern as many as there are.
    """
    order = list(examples)
    random.Random(f"{seed}/held out").shuffle(order)
    order.sort(key=lambda example: (example.kind, example.pattern))  # stable: shuffled within each
    held_out = order[3::4]
    left = set(held_out)
    return [example for example in examples if example not in left], held_out


def read(path: str | os.PathLike[str]) -> list[Example]:
    """All examples of a file, of any kind, without empty lines. Raises as theirs(), also for one twice."""
    examples: dict[Example, int] = {}  # and their lines
    for number, line in enumerate(content(path).split(b"\n"), start=1):
        if line.strip():
            try:
                example = _example(
                    json.loads(line.decode("utf-8-sig"), object_pairs_hook=unique),
                    f"{os.fspath(path)}, line {number}",
                )
                if example in examples:  # it could be measured on and held out
                    raise ValueError(f"the same example stands in line {examples[example]}")
                examples[example] = number
            except (ValueError, RecursionError) as error:  # of JSON and UTF-8 too
                raise DataError(f"{os.fspath(path)}, line {number}: {error}") from error
    return list(examples)


def _example(fields: Any, where: str) -> Example:
    if not isinstance(fields, dict):
        raise ValueError("an example must be a JSON object")
    if fields.keys() != _KEYS:
        wrong = sorted(fields.keys() ^ _KEYS)
        raise ValueError(f"{wrong[0]!r} is {'unknown' if wrong[0] in fields else 'missing'}")
    if fields["kind"] not in tuple(_FILES):
        raise ValueError(f"'kind' must be one of {', '.join(map(repr, _FILES))}, not {fields['kind']!r}")
    for key in _TEXTS:
        if not isinstance(fields[key], str) or not fields[key].strip():
            raise ValueError(f"{key!r} must be a text that is not empty")
        _whole(key, fields[key])
    if fields["question"] != fields["question"].strip():  # which chat templates cut off
        raise ValueError(f"'question' must not begin or end with blanks: {fields['question']!r}")
    facts = _facts(fields["facts"], fields["question"])
    needle = fields["needle"]
    if not isinstance(needle, list) or not needle or not all(type(i) is int for i in needle):
        raise ValueError("'needle' must be a list of indices of facts, with at least one")
    if min(needle) < 0 or max(needle) >= len(facts) or len(set(needle)) < len(needle):
        raise ValueError(f"'needle' must hold different indices from 0 to {len(facts) - 1}, not {needle}")
    texts = {key: fields[key] for key in _TEXTS}
    return Example(facts=facts, needle=tuple(needle), kind=fields["kind"], where=where, **texts)


def _facts(facts: Any, question: str) -> tuple[str, ...]:
    if not isinstance(facts, list) or not facts:
        raise ValueError("'facts' must be a list with at least one text")
    for fact in facts:
        if not isinstance(fact, str) or not fact.strip():
            raise ValueError("every one of 'facts' must be a text that is not empty")
        if " ".join(fact.split()) != fact:
            raise ValueError(f"a fact must be one line, with single spaces: {fact!r}")
        _whole("facts", fact)
    all_of_them = "\n".join([question, *facts])
    for fact in facts:
        if all_of_them.count(fact) > 1:
            raise ValueError(f"a fact must not stand in another one or in the question: {fact!r}")
    return tuple(facts)


def _whole(key: str, text: str) -> None:
    try:
        require_whole(text)
    except ValueError as error:
        raise ValueError(f"{key!r} {error}") from error
