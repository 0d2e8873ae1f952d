"""BABILong (Kuratov et al., 2024): facts of bAbI hidden in books. Files as the public set has them.

DIR/1k/qa1.jsonl or DIR/qa1/1k.json: input, question, target. Instructions and examples are ours; whether an
answer is right is the suite's own rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from headkv_local import ArgumentError

from .item import Item
from .names import BABILONG, LENGTHS, TASKS
from .reading import first_file, found_tasks, require_folder, rows

_ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_THINGS = ("apple", "football", "milk")
_YES_NO = ("no", "yes")

LABELS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4"), _ROOMS),
    "qa5": ("Bill", "Fred", "Jeff", "Mary", *_THINGS),
    "qa6": _YES_NO,
    "qa7": ("none", "one", "three", "two"),
    "qa8": (*_THINGS, "nothing"),
    "qa9": _YES_NO,
    "qa10": ("maybe", *_YES_NO),
}
"""What an answer can be."""

_HIDDEN = "The text below comes from books. Between its sentences stand short facts about {what}."
_WHAT: Mapping[str, tuple[str, str, str, str]] = {
    "qa1": (
        "where people go",
        "A person is where the last fact about that person says",
        "Ruth went to the cellar. Otto walked to the attic. Ruth moved to the garage.\n"
        "Question: Where is Ruth?",
        "garage",
    ),
    "qa2": (
        "where people go, and what they pick up and put down",
        "A thing is where the person is who carries it, or where it was put down",
        "Ruth went to the cellar. Ruth picked up the lamp. Ruth moved to the attic.\n"
        "Question: Where is the lamp?",
        "attic",
    ),
    "qa3": (
        "where people go, and what they pick up and put down",
        "Follow the thing from place to place with whoever carries it",
        "Ruth picked up the lamp. Ruth went to the cellar. Ruth moved to the attic.\n"
        "Question: Where was the lamp before the attic?",
        "cellar",
    ),
    "qa4": (
        "how places lie to each other",
        "Mind the direction that the question asks for",
        "The cellar is north of the attic. The garage is south of the attic.\n"
        "Question: What is north of the attic?",
        "cellar",
    ),
    "qa5": (
        "who gives what to whom",
        "The last such fact counts",
        "Ruth picked up the lamp. Ruth handed the lamp to Otto.\nQuestion: Who did Ruth give the lamp to?",
        "Otto",
    ),
    "qa6": (
        "where people go",
        "A person is where the last fact about that person says",
        "Ruth went to the cellar. Ruth moved to the attic.\nQuestion: Is Ruth in the cellar?",
        "no",
    ),
    "qa7": (
        "what people pick up, put down and give away",
        "Count what the person carries at the end",
        "Ruth picked up the lamp. Ruth picked up the coat. Ruth dropped the lamp.\n"
        "Question: How many objects is Ruth carrying?",
        "one",
    ),
    "qa8": (
        "what people pick up, put down and give away",
        "Name what the person carries at the end",
        "Ruth picked up the lamp. Ruth picked up the coat. Ruth dropped the lamp.\n"
        "Question: What is Ruth carrying?",
        "coat",
    ),
    "qa9": (
        "where people are, and where they are not any longer",
        "The last fact about a person counts",
        "Ruth is in the cellar. Ruth is no longer in the cellar.\nQuestion: Is Ruth in the cellar?",
        "no",
    ),
    "qa10": (
        "where people are, some of them only one place or another",
        "The last fact about a person counts",
        "Ruth is either in the cellar or the attic.\nQuestion: Is Ruth in the attic?",
        "maybe",
    ),
}
"""By task: what its facts are about, how to use them, and a small example with its answer."""


def items(folder: Path, tasks: Sequence[str] | None, lengths: Sequence[str] | None) -> list[Item]:
    """All questions, length by length. Raises ArgumentError for what is not there, or has another schema."""
    require_folder(folder)
    wanted = tuple(lengths or LENGTHS)
    there = [length for length in wanted if lengths or _has(folder, length)]
    if not there:
        raise ArgumentError(f"{folder} has no lengths: {_LAYOUT}")
    return [item for length in there for item in _of_length(folder, length, tasks)]


_LAYOUT = "BABILong is looked for in DIR/1k/qa1.jsonl or DIR/qa1/1k.json"


def _has(folder: Path, length: str) -> bool:
    return any(_path(folder, length, task) for task in TASKS[BABILONG])


def _path(folder: Path, length: str, task: str) -> Path | None:
    names = ((length, task), (task, length))
    return first_file(*(folder / a / f"{b}{end}" for a, b in names for end in (".jsonl", ".json")))


def _of_length(folder: Path, length: str, tasks: Sequence[str] | None) -> list[Item]:
    paths = found_tasks(
        folder, tuple(tasks or ()) or None, TASKS[BABILONG], lambda task: _path(folder, length, task), _LAYOUT
    )
    made = []
    for task, path in paths.items():
        what, how, example, answer = _WHAT[task]
        labels = LABELS[task]
        before = (
            f"{_HIDDEN.format(what=what)} {how}. Answer with one word.\n\nExample:\n{example}\n"
            f"Answer: {answer}\n\nText:\n"
        )
        for number, row in enumerate(rows(path)):
            question, target = row.filled("question").strip(), row.filled("target").strip()
            if not {one.strip() for one in target.split(",")} <= set(labels):
                row.refuse("target", f"must be of {', '.join(labels)}, not {target!r}")
            made.append(
                Item(
                    task=task,
                    length=length,
                    number=number,
                    before=before,
                    document=row.filled("input"),
                    after=f"\n\nQuestion: {question}",
                    answers=(target,),
                    metrics=("babilong",),
                    max_tokens=16,
                    question=question,
                    classes=labels,
                    chance=1 / len(labels),
                )
            )
    return made
