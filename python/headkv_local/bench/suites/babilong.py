"""BABILong (Kuratov et al., 2024): facts of bAbI hidden in books. Files as the public set has them.

DIR/1k/qa1.jsonl or DIR/qa1/1k.json: input, question, target. Whether an answer is right is
the suite's own rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from headkv_local.errors import DataError

from .babilong_texts import introduction
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


def items(folder: Path, tasks: Sequence[str] | None, lengths: Sequence[str] | None) -> list[Item]:
    """All questions, length by length. Raises DataError for what is not there, or has another schema."""
    return [item for length in lengths or lengths_in(folder) for item in _of_length(folder, length, tasks)]


def lengths_in(folder: Path) -> list[str]:
    """Those that are there. Raises DataError where none is."""
    require_folder(folder)
    there = [length for length in LENGTHS if any(_path(folder, length, task) for task in TASKS[BABILONG])]
    if not there:
        raise DataError(f"{folder} has no lengths: {_LAYOUT}")
    return there


_LAYOUT = "BABILong is looked for in DIR/1k/qa1.jsonl or DIR/qa1/1k.json"


def _path(folder: Path, length: str, task: str) -> Path | None:
    names = ((length, task), (task, length))
    return first_file(*(folder / a / f"{b}{end}" for a, b in names for end in (".jsonl", ".json")))


def _of_length(folder: Path, length: str, tasks: Sequence[str] | None) -> list[Item]:
    paths = found_tasks(
        folder, tuple(tasks or ()) or None, TASKS[BABILONG], lambda task: _path(folder, length, task), _LAYOUT
    )
    made = []
    for task, path in paths.items():
        labels = LABELS[task]
        for number, row in enumerate(rows(path)):
            question, target = row.filled("question").strip(), row.filled("target").strip()
            if not {one.strip() for one in target.split(",")} <= set(labels):
                row.refuse("target", f"must be of {', '.join(labels)}, not {target!r}")
            made.append(
                Item(
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
            )
    return made
