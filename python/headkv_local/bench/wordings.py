"""Ways to ask: chat messages of a document and questions. Their sentences are in wording_texts_*.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from headkv_local import ArgumentError

from . import wording_texts_development, wording_texts_test
from .questions import Question

DEVELOPMENT = "development"
TEST = "test"
_DOCUMENT = "{document}"
_ASKED = (("{question}", "{stem}"), ("{second}",), ("{third}",))

Turns = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Wording:
    """turns: role and text, of which one holds {document}; the last one with a question asks what is to be
    answered.

    {question}, {second} and {third} are questions, {stem} is the first without its question mark,
    {second_answer} an answer, and {what} what the first asks for: a number or a thing.
    """

    name: str
    family: str
    set: str
    turns: Turns

    @property
    def n_asked(self) -> int:
        """Questions that the answer has to answer."""
        asked = (sum(any(mark in text for mark in marks) for marks in _ASKED) for _, text in self.turns)
        return [n for n in asked if n > 0][-1]

    @property
    def about_magic(self) -> bool:
        """Whether the question is the one about a "special magic number"."""
        return self.family == "ruler"

    def messages(self, document: str, questions: Sequence[Question]) -> list[dict[str, Any]]:
        """questions: as many as the wording takes, or more; the first is the one that {question} means.

        The message with the document has parts, of which the document is one.
        """
        words = _words(questions)
        return [{"role": role, "content": _content(text, document, words)} for role, text in self.turns]


PLAIN = Wording("plain", "plain", "plain", (("user", "{document}\n\nQuestion: {question}"),))
"""The one that figures in the docs were made with: no set, and no family, of its own."""


@cache
def catalogue() -> Mapping[str, Wording]:
    """All but PLAIN, by name, in a fixed order."""
    texts = ((DEVELOPMENT, wording_texts_development.TEXTS), (TEST, wording_texts_test.TEXTS))
    return {
        name: Wording(name, family, of_set, (("user", text),) if isinstance(text, str) else text)
        for of_set, families in texts
        for family, named in families.items()
        for name, text in named.items()
    }


def chosen(text: str) -> tuple[Wording, ...]:
    """ "plain", or names of sets and of wordings, separated by commas. Raises ArgumentError."""
    found: dict[str, Wording] = {}
    for name in text.split(","):
        of_name = [one for one in (PLAIN, *catalogue().values()) if name in (one.name, one.set)]
        if not of_name:
            near = get_close_matches(name, catalogue(), n=3, cutoff=0.3)
            hint = f"; names like it: {', '.join(near)}" if near else ""
            raise ArgumentError(f"{name!r} is no wording: plain, development, test, or a name{hint}")
        found.update((one.name, one) for one in of_name)
    if PLAIN.name in found and len(found) > 1:
        raise ArgumentError("the wording plain has a table of its own: it cannot be tried with others")
    return tuple(found.values())


def _words(questions: Sequence[Question]) -> dict[str, str]:
    first, second, third = (questions[min(i, len(questions) - 1)] for i in range(3))
    return {
        "question": first.text,
        "stem": first.text.rstrip("?"),
        "second": second.text,
        "third": third.text,
        "second_answer": f"{second.lead} {second.expected}.",
        "what": "number" if first.expected.isdecimal() else "thing",
    }


def _content(text: str, document: str, words: Mapping[str, str]) -> str | list[dict[str, Any]]:
    before, mark, after = text.partition(_DOCUMENT)
    if not mark:
        return text.format(**words)
    parts: list[dict[str, Any]] = []  # which are joined by a line break
    if before.strip():
        parts.append({"type": "text", "text": before.strip().format(**words) + "\n"})
    parts.append({"type": "text", "text": document + ("\n" if after.strip() else ""), "document": True})
    if after.strip():
        parts.append({"type": "text", "text": after.strip().format(**words)})
    return parts
