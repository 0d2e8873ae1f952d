"""What earlier turns of a conversation asked and answered: it counts less than what they are about."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from .native.plan import Part
from .native.plan import question as find_question
from .pieces import Pieces
from .places import ANSWER, Places, may_ask, parts_of
from .question import turns_that_ask

_N_ANSWER: Final = 4  # times n_last tokens: a longer answer may be what a later turn is about
_REFERS: Final = 16  # tokens of a question that may be about the answer before it: "Are you sure?"
_SHORT: Final = 4  # n_last over so many: tokens that ask without a question mark too

_MARK: Final = re.compile("[?？؟՞፧;\u037e]")  # noqa: RUF001
_LINE: Final = re.compile(rb"\S[^\n]*")


def earlier_of(
    prompt: Pieces, written: Pieces, messages: Sequence[Mapping[str, Any]], n_last: int, asks: Sequence[Part]
) -> tuple[Part, ...]:
    """Tokens of what was asked and answered before the turn that asks: `asks`, of question_of().

    Answers, with what the template puts around them; and of user messages what is very short, or short and
    has a question mark, or stands with one beside a document. Empty where no message holds a document: then
    nothing else can be lost for them. Empty for a very short question too.
    """
    asking = turns_that_ask(messages)
    if not asking or all(one.get("role") != ANSWER for one in messages):
        return ()
    most = max((part.weight for part in asks), default=0.0)
    if sum(part.n for part in asks if part.weight == most) <= _REFERS:
        return ()
    last = asking[0][0]
    found = Places(written).of_each(messages, last)
    told = list(zip(messages, found, strict=False))
    if not any(_holds_document(message, parts, n_last) for message, parts in told):
        return ()
    asked = [one for message, parts in told[:-1] for one in _that_ask(prompt, message, parts, n_last)]
    others = [i for i, (message, _) in enumerate(told) if message.get("role") != ANSWER]
    between = [(found[i], found[j]) for i, j in pairwise(others) if j > i + 1]
    answers = [Part(before[-1].stop, after[0].start) for before, after in between if before and after]
    return tuple(sorted([*asked, *(part for part in answers if 0 < part.n <= _N_ANSWER * n_last)]))


def _holds_document(message: Mapping[str, Any], found: Sequence[Part], n_last: int) -> bool:
    if message.get("role") == "user":
        return any(not may_ask(part) for part in parts_of(message)) or any(part.n > n_last for part in found)
    return message.get("role") in ("tool", "function")


def _that_ask(
    prompt: Pieces, message: Mapping[str, Any], found: Sequence[Part], n_last: int
) -> Iterator[Part]:
    if message.get("role") != "user" or not found:
        return
    for part, place in zip(parts_of(message), found, strict=True):
        if not may_ask(part):
            continue
        if place.n > n_last:
            cut = _Cut(prompt, place)
            for one in find_question(cut, 0, place.n, n_last):
                if one.weight == 1.0 and one.n != n_last:
                    yield from _marked_lines(prompt, Part(place.start + one.start, place.start + one.stop))
        elif _SHORT * place.n <= n_last or any(_marked_lines(prompt, place)):
            yield place


def _marked_lines(prompt: Pieces, part: Part) -> Iterator[Part]:
    cut = _Cut(prompt, part)
    for line in _LINE.finditer(cut.text):
        if _MARK.search(line[0].decode("utf-8", errors="ignore")):
            yield Part(*prompt.tokens_of(cut.first + line.start(), cut.first + line.end()))


class _Cut:
    """The text of some tokens of a prompt, alone."""

    def __init__(self, prompt: Pieces, part: Part) -> None:
        self.first = int(prompt.ends[part.start - 1]) if part.start > 0 else 0
        self.text = prompt.text[self.first : int(prompt.ends[part.stop - 1])]
        self.ends = prompt.ends[part.start : part.stop] - self.first
