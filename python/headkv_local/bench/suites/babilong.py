"""BABILong (Kuratov et al., 2024): facts of bAbI hidden in books. Files as the public set has them.

DIR/1k/qa1.jsonl or DIR/qa1/1k.json: input, question, target. Whether an answer is right is
the suite's own rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from headkv_local.errors import ArgumentError, DataError
from headkv_local.wording import shown

from .babilong_texts import introduction
from .item import Item
from .names import BABILONG, LENGTHS, TASKS
from .reading import first_file, require_folder, rows

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


def items(folder: Path, tasks: Sequence[str] | None, lengths: Sequence[object] | None) -> list[Item]:
    """All questions, length by length. tasks, lengths: without them all that are there.

    Raises ArgumentError as name_of() does, and DataError for what is not there, or has another schema.
    """
    wanted = [name_of(length) for length in lengths or ()]
    for task in tasks or (None,):
        there = lengths_in(folder, task)
        for length in wanted:
            if length not in there:
                raise DataError(
                    f"{folder} has no {task or 'questions'} of length {length}, only of {', '.join(there)}"
                )
    return [
        item
        for length in wanted or LENGTHS
        for task in tasks or TASKS[BABILONG]
        if (path := _path(folder, length, task)) is not None
        for item in _of_file(path, task, length)
    ]


def name_of(length: object) -> str:
    """What BABILong calls a length: "4k" of "4k", or of 4096 tokens. Raises ArgumentError for others."""
    for name, tokens in LENGTHS.items():
        if str(length) in (name, str(tokens)):
            return name
    raise ArgumentError(f"BABILong has no length {shown(length)}: {', '.join(LENGTHS)}")


def lengths_in(folder: Path, task: str | None) -> list[str]:
    """Those that have questions of a task, or of any. Raises DataError where none has."""
    require_folder(folder)
    tasks = TASKS[BABILONG] if task is None else (task,)
    there = [length for length in LENGTHS if any(_path(folder, length, one) for one in tasks)]
    if not there:
        raise DataError(f"{folder} has no {task or 'questions'}: {_LAYOUT}")
    return there


_LAYOUT = "BABILong is looked for in DIR/1k/qa1.jsonl or DIR/qa1/1k.json"


def _path(folder: Path, length: str, task: str) -> Path | None:
    names = ((length, task), (task, length))
    return first_file(*(folder / a / f"{b}{end}" for a, b in names for end in (".jsonl", ".json")))


def _of_file(path: Path, task: str, length: str) -> Iterator[Item]:
    labels = LABELS[task]
    for number, row in enumerate(rows(path)):
        question, target = row.filled("question").strip(), row.filled("target").strip()
        if not {one.strip() for one in target.split(",")} <= set(labels):
            row.refuse("target", f"must be of {', '.join(labels)}, not {target!r}")
        yield Item(
            task=task,
            length=length,
            number=number,
            before=introduction(task),
            document=row.filled("input"),
            after=f"\n\nQuestion: {question}",
            answers=(target,),
            metrics=("babilong",),
            max_tokens=20,
            question=question,
            classes=labels,
            chance=1 / len(labels),
        )
