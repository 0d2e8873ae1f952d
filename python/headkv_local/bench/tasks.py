"""Samples: a question, and a document with what it asks for. Pure text, no model in here."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import haystack
from .haystack import Count
from .haystack_kinds import KINDS
from .questions import TASKS, Maker, Question, magic


@dataclass(frozen=True)
class Sample:
    """A document with the question's facts in it, a share `depth` of its tokens before the first of them.

    others: questions whose facts are hidden there as well.
    """

    task: str
    document: str
    question: Question
    depth: float
    haystack: str = "prose"
    others: tuple[Question, ...] = ()

    @property
    def content(self) -> str:
        return f"{self.document}\n\nQuestion: {self.question.text}"


def samples(
    task: str, n_samples: int, n_tokens: int, count: Count, seed: int, kinds: Sequence[str] = ("prose",)
) -> list[Sample]:
    """Samples whose content has about n_tokens tokens, at evenly spread depths, kinds taking turns.

    kinds: of haystacks. The same arguments give the same samples. Raises ValueError if n_tokens leaves no
    room for a haystack.
    """
    return _made(task, n_samples, n_tokens, count, random.Random(f"{seed}/{task}/{n_tokens}"), kinds, ())


def wide_samples(
    task: str, n_samples: int, n_tokens: int, count: Count, seed: int | str, kinds: Sequence[str] = ("prose",)
) -> list[Sample]:
    """The same, with the facts of more questions in every document: the task's other kinds, then magic()."""
    rng = random.Random(f"{seed}/{task}/{n_tokens}/wide")
    return _made(task, n_samples, n_tokens, count, rng, kinds, (*TASKS[task], magic))


def right(question: Question, answer: str) -> bool:
    """Whether what is expected stands in the answer, and nothing that another fact says."""
    return found(question.expected, answer) and not any(found(wrong, answer) for wrong in question.wrong)


def n_right(asked: Sequence[Question], others: Sequence[Question], answer: str) -> int:
    """How many of the questions the answer answers: none if it says what answers one of the others."""
    if any(found(other.expected, answer) for other in others):
        return 0
    return sum(right(question, answer) for question in asked)


def found(expected: str, answer: str) -> bool:
    """Whether the expected string stands in the answer, in any case, and not as a part of a longer word."""
    letter = r"(?a:\w)"  # Chinese writes no spaces
    return re.search(rf"(?<!{letter}){re.escape(expected)}(?!{letter})", answer, re.IGNORECASE) is not None


def _made(
    task: str,
    n_samples: int,
    n_tokens: int,
    count: Count,
    rng: random.Random,
    kinds: Sequence[str],
    more: Sequence[Maker],
) -> list[Sample]:
    depths = [(i + 0.5) / n_samples for i in range(n_samples)]
    rng.shuffle(depths)  # so that depth and kind do not go together
    makers = TASKS[task]
    made: list[Sample] = []
    for i, depth in enumerate(depths):
        maker = makers[i % len(makers)]
        sample = None
        while sample is None:
            questions = (maker(rng), *(other(rng) for other in more if other is not maker))
            sample = _in_haystack(task, questions, depth, n_tokens, count, rng, kinds[i % len(kinds)])
        made.append(sample)
    return made


def _in_haystack(
    task: str,
    questions: Sequence[Question],
    depth: float,
    n_tokens: int,
    count: Count,
    rng: random.Random,
    kind: str,
) -> Sample | None:
    """None if anything but its own facts happens to say what a question expects."""
    hay = KINDS[kind]
    source = hay.blocks()
    start = rng.randrange(len(source))
    facts = [hay.dress(fact) for question in questions for fact in question.facts]
    first, *others = questions
    whole = Sample(task, "\n\n".join(facts), first, depth, kind, tuple(others))
    room = n_tokens - count(whole.content)
    if room < n_tokens // 4:
        raise ValueError(f"{n_tokens} tokens leave no room for a haystack around the question")
    parts = haystack.cut(room, count, start, source)
    for question in questions:
        foreign = [*parts, *(fact for other in questions if other is not question for fact in other.facts)]
        if any(found(said, text) for text in foreign for said in (question.expected, *question.wrong)):
            return None
    return replace(whole, document=hay.finish(haystack.hide(parts, facts, depth, count)))
