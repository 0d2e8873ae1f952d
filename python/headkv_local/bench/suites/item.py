"""One question of a suite, before any model: its texts, its answers, how an answer is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Item:
    """The prompt is before + document + after, put into the chat template, and lead.

    length: what the suite calls its length, "" where it has none. number: among those of task and length,
    from 0 on. marks: whether it is known which part is the document, and so which tokens ask. chat: False for
    texts that a model is to continue, without a template. lead: the beginning of the answer. metrics: names
    in `metrics.METRICS`, the first is the score. classes: what an answer can be. stop: text that ends an
    answer. chance: the score of who guesses.
    """

    task: str
    length: str
    number: int
    before: str
    document: str
    after: str
    answers: tuple[str, ...]
    metrics: tuple[str, ...]
    max_tokens: int
    question: str = ""
    classes: tuple[str, ...] = ()
    marks: bool = True
    chat: bool = True
    lead: str = ""
    stop: str = ""
    chance: float = 0.0

    @property
    def text(self) -> str:
        return f"{self.before}{self.document}{self.after}"

    @property
    def key(self) -> tuple[str, str, int]:
        return self.task, self.length, self.number


ANSWER_LINES: Final = "\n"
"""The stop of tasks whose answer is one line."""
