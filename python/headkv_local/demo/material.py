"""The document of the demo and the questions about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Question:
    text: str
    expected: str
    """Stands in a right answer."""


def document() -> str:
    return (files(__package__) / "document.txt").read_text(encoding="utf-8")


def questions() -> list[Question]:
    data = json.loads((files(__package__) / "questions.json").read_text(encoding="utf-8"))
    return [Question(entry["question"], entry["expected"]) for entry in data]
