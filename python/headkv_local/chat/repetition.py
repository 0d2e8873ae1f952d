"""Tells an answer that repeats itself without end from one that has a reason to repeat something."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

# An answer is stopped when its last tokens are one unit over and over. How many tokens that takes: prose
# hardly repeats itself, while tables, code, lists, short lines and single words may, so they get more.
PROSE_TOKENS: Final = 320
OTHER_TOKENS: Final = 640
LEAST_UNITS: Final = 4
_LOOKED_AT: Final = 2048  # last tokens; a unit of up to a quarter of it is found
_SHORT_LINE: Final = 32  # tokens
_STEP: Final = 16  # tokens between two looks

_WORD: Final = re.compile(r"[^\W\d_]+")
_PROSE: Final = re.compile(r"[^\W\d_]|[\s.,;:!?'’。，、！？]")  # noqa: RUF001


@dataclass(frozen=True)
class Loop:
    """The end of an answer: `unit`, a text, over and over."""

    unit: str

    def cut(self, text: str) -> str:
        """`text`, an answer that ends in this loop, with the unit once."""
        n = len(self.unit)
        while n and len(text) >= 2 * n and text[-n:] == text[-2 * n : -n]:
            text = text[:-n]
        return text


class LoopDetector:
    """Looks at the tokens of one answer as they come.

    question: what is asked; a text in it that shall be said so and so many times may be.
    detokenize: the text of tokens.
    """

    def __init__(self, question: str, detokenize: Callable[[Sequence[int]], str]) -> None:
        self._question = question
        self._detokenize = detokenize
        self._tokens: list[int] = []

    def add(self, token: int) -> Loop | None:
        """The loop that the answer is in, None if there is none."""
        self._tokens.append(token)
        n = len(self._tokens)
        if n < PROSE_TOKENS or n % _STEP:
            return None
        found = periodic_end(self._tokens[-_LOOKED_AT:], PROSE_TOKENS)
        if found is None:
            return None
        length, period = found
        while length < n and self._tokens[-length - 1] == self._tokens[-length - 1 + period]:
            length += 1
        unit = self._detokenize(self._tokens[-period:])
        short_line = "\n" in unit and period < _SHORT_LINE
        if length < OTHER_TOKENS and (short_line or not _is_prose(unit)):
            return None
        if length // period <= self._asked_for(unit):
            return None
        return Loop(unit)

    def _asked_for(self, unit: str) -> int:
        """How often the question wants `unit`, 0 if it does not name it."""
        words = set(_WORD.findall(unit.lower()))
        if not words or not words <= set(_WORD.findall(self._question.lower())):
            return 0
        return max((int(number) for number in re.findall(r"\d{1,6}", self._question)), default=0)


def periodic_end(tokens: Sequence[int], least: int) -> tuple[int, int] | None:
    """The longest end of `tokens` that is one unit over and over: its length and the unit's.

    At least `least` tokens and LEAST_UNITS units; the last unit, from the front, may be incomplete.
    """
    backwards = tokens[::-1]
    border = [0] * (len(backwards) + 1)  # of each beginning: the longest one that is also its end (Knuth)
    found, k = None, 0
    for n in range(2, len(backwards) + 1):
        while k and backwards[n - 1] != backwards[k]:
            k = border[k]
        if backwards[n - 1] == backwards[k]:
            k += 1
        border[n] = k
        period = n - k
        if n >= least and n >= LEAST_UNITS * period:
            found = n, period
    return found


def _is_prose(unit: str) -> bool:
    """Whole words, more than two, with nothing but what sentences have between them."""
    if not unit.strip() or len(_PROSE.findall(unit)) < 0.95 * len(unit):
        return False
    # a script that has no blanks has no words to count
    return len(_WORD.findall(unit)) > 2 or (len(unit) > 5 and not unit.isascii() and " " not in unit)
