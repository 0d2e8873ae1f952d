"""Samples: a question, and a document with what it asks for. Pure text, no model in here."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from . import haystack
from .haystack import Count
from .questions import TASKS, Question


@dataclass(frozen=True)
class Sample:
    """A document with the question's facts in it, a share `depth` of its tokens before the first of them."""

    task: str
    document: str
    question: Question
    depth: float

    @property
    def content(self) -> str:
        return f"{self.document}\n\nQuestion: {self.question.text}"


def samples(task: str, n_samples: int, n_tokens: int, count: Count, seed: int) -> list[Sample]:
    """Samples whose content has about n_tokens tokens, at evenly spread depths, kinds taking turns.

    The same arguments give the same samples. Raises ValueError if n_tokens leaves no room for a haystack.
    """
    rng = random.Random(f"{seed}/{task}/{n_tokens}")
    depths = [(i + 0.5) / n_samples for i in range(n_samples)]
    rng.shuffle(depths)  # so that depth and kind do not go together
    makers = TASKS[task]
    made: list[Sample] = []
    for i, depth in enumerate(depths):
        sample = None
        while sample is None:
            sample = _in_haystack(task, makers[i % len(makers)](rng), depth, n_tokens, count, rng)
        made.append(sample)
    return made


def right(question: Question, answer: str) -> bool:
    """Whether what is expected stands in the answer, and nothing that another fact says."""
    return found(question.expected, answer) and not any(found(wrong, answer) for wrong in question.wrong)


def found(expected: str, answer: str) -> bool:
    """Whether the expected string stands in the answer, in any case, and not as a part of a longer word."""
    return re.search(rf"(?<!\w){re.escape(expected)}(?!\w)", answer, re.IGNORECASE) is not None


def _in_haystack(
    task: str, question: Question, depth: float, n_tokens: int, count: Count, rng: random.Random
) -> Sample | None:
    """None if the haystack happens to say by itself what is expected."""
    start = rng.randrange(len(haystack.paragraphs()))
    room = n_tokens - count(Sample(task, "\n\n".join(question.facts), question, depth).content)
    if room < n_tokens // 4:
        raise ValueError(f"{n_tokens} tokens leave no room for a haystack around the question")
    parts = haystack.cut(room, count, start)
    if any(found(said, part) for part in parts for said in (question.expected, *question.wrong)):
        return None
    return Sample(task, haystack.hide(parts, question.facts, depth, count), question, depth)
