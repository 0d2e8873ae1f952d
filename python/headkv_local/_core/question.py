"""Which tokens of a prompt ask: their attention selects what is kept of the rest."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from .pieces import Pieces

_ENDING: Final = 32
"""Tokens after a question that the chat template may add: the message's end, the beginning of the answer."""

_OPENING: Final = 64
"""Tokens that a question before a document may take, where nobody says which part is which."""

_MAYBE: Final = 0.1**4
"""Weight of tokens that a question may be in, beside those that look like one: as if they paid a tenth of the
attention, for the mean is of fourth powers. Where what looks like a question looks nowhere, they select."""

_DOCUMENT: Final = "document"
_MARK: Final = re.compile("[?\uff1f\u061f]")  # of a question: Latin and others, full width, Arabic


_logger = logging.getLogger("headkv_local")


class Part(NamedTuple):
    """Tokens of a prompt that ask, or may."""

    start: int
    stop: int
    weight: float = 1.0
    """Of each of them, in the mean of the observed attention."""

    @property
    def n(self) -> int:
        return self.stop - self.start


class Observers(NamedTuple):
    """Whose attention is recorded: the prompt's last tokens, and some that are read once more after it."""

    first: int
    """From this position to the prompt's end."""
    again: tuple[int, ...]
    """Positions of a question that stood before what it asks about: it could not look at that."""
    weights: npt.NDArray[np.float32]
    """Of all of these tokens, in their order."""

    def after(self, n_held: int, n_same: int, n_prompt: int) -> tuple[Observers, int]:
        """For layers that stay at n_held tokens or begin anew: who observes then, and how many stay.

        n_same: tokens that the prompt of n_prompt begins with and that are held.
        """
        late = self.weights[max(0, n_held - self.first) :]
        if n_held > n_same or n_held >= n_prompt or not late.any():
            return self, 0
        return self._replace(first=max(self.first, n_held), weights=late), n_held


def observers(n_prompt: int, question: Sequence[Part], n_least: int) -> Observers:
    """Who observes a prompt of n_prompt tokens.

    question: parts of the prompt, in their order. n_least: last tokens that observe in any case, since some
    models ask there.
    """
    border = n_prompt - _ENDING
    last: list[Part] = []
    again: tuple[int, ...] = ()
    for part in reversed(question):
        if part.stop >= border:
            last.append(part)
            border = part.start
        else:
            again = (*range(part.start, part.stop), *again)
    first = max(1, min([n_prompt - n_least, *(part.start for part in last)]))
    weights = np.ones(n_prompt - first + len(again), dtype=np.float32)
    for part in last:
        weights[max(0, part.start - first) : part.stop - first] = part.weight
    return Observers(first, again, weights)


def who_observes(
    prompt: Pieces,
    question: tuple[Part, ...],
    messages: Sequence[Mapping[str, Any]],
    n_last: int,
    n_least: int,
    n_ctx: int,
) -> Observers:
    """Those of a question, if one is told, else of what asks in the messages, else of the prompt's ending.

    n_last: last tokens that may ask. n_ctx: positions that the context has, also for what is read once more.
    """
    n_prompt = prompt.n_tokens
    question = question or question_of(prompt, messages, n_last) or ending(prompt, n_prompt, n_last)
    found, room = observers(n_prompt, question, n_least), n_ctx - n_prompt
    n_left_out = len(found.again) - room
    if n_left_out <= 0:
        return found
    _logger.warning(
        "no room for the question of %d tokens before the document: its last %d select",
        len(found.again),
        room,
    )
    weights = found.weights[: len(found.weights) - n_left_out]
    return found._replace(again=found.again[n_left_out:], weights=weights)


def checked(question: slice | Sequence[slice] | None, n_prompt: int) -> tuple[Part, ...]:
    """The parts with their bounds in numbers. ArgumentError for what cannot be a question of this prompt."""
    if question is None:
        return ()
    parts = [question] if isinstance(question, slice) else list(question)
    found = tuple(sorted(_checked(part, n_prompt) for part in parts))
    n_question = sum(part.n for part in found)
    if n_question == 0:
        raise ArgumentError("the question is empty: it must have at least one token")
    if 2 * n_question > n_prompt:
        raise ArgumentError(
            f"the question of {n_question} tokens is longer than the document, the other "
            f"{max(0, n_prompt - n_question)} tokens of the prompt"
        )
    return found


def _checked(part: Any, n_prompt: int) -> Part:
    if not isinstance(part, slice) or part.step not in (None, 1):
        raise ArgumentError(f"a question must be a slice of the prompt's tokens, not {part!r}")
    try:
        start, stop, _ = part.indices(n_prompt)
        given = [0 if bound is None else bound.__index__() for bound in (part.start, part.stop)]
    except (TypeError, AttributeError) as error:
        raise ArgumentError(f"a question must have whole numbers as its bounds, not {part!r}") from error
    if any(not -n_prompt <= bound <= n_prompt for bound in given):
        raise ArgumentError(f"the question, {part!r}, is not inside the prompt of {n_prompt} tokens")
    if stop <= start:
        raise ArgumentError("the question is empty: it must have at least one token")
    return Part(start, stop)


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """ArgumentError for what are no chat messages: mappings, with a text or a list of parts as content."""
    if isinstance(messages, str | Mapping) or not all(isinstance(m, Mapping) for m in messages):
        raise ArgumentError(f"messages must be a list of chat messages, not {messages!r}")
    for message in messages:
        parts = message.get("content") or ()
        if not isinstance(parts, str | list | tuple) or not all(isinstance(p, str | Mapping) for p in parts):
            raise ArgumentError(f"a message's content must be a text or a list of parts, not {parts!r}")
    return messages


def question_of(prompt: Pieces, messages: Sequence[Mapping[str, Any]], n_last: int) -> tuple[Part, ...]:
    """Where the last user message asks, in the tokens of a prompt made of the messages.

    Of a message with parts that are marked as documents ("document": True), all other parts. Else the whole
    message if it has n_last tokens at most. A longer one holds a document: its last n_last tokens may ask,
    and its first lines if they are short, for a question may stand first. If only one of the two has a
    question mark, it asks. Empty if the message is not found.
    """
    message = next((m for m in reversed(messages) if m.get("role") == "user"), None)
    content = message.get("content") if message else None
    if isinstance(content, str):
        content = [{"text": content}]
    parts = [p for p in content or () if isinstance(p.get("text"), str) and p["text"].strip()]
    found: list[Part] = []
    end = len(prompt.text)
    for part in reversed(parts):
        text = part["text"].strip().encode("utf-8", errors="ignore")
        start = prompt.text.rfind(text, 0, end)
        if start < 0:
            return ()
        if not part.get(_DOCUMENT):
            found.insert(0, Part(*prompt.tokens_of(start, start + len(text))))
        end = start
    if any(part.get(_DOCUMENT) for part in parts) or not found:
        return tuple(found)
    whole = Part(found[0].start, found[-1].stop)
    if whole.n <= n_last:
        return (whole,)
    last = ending(prompt, whole.stop, n_last)
    first = _opening(prompt, whole.start, min(whole.start + _OPENING, whole.stop - n_last))
    if first is None:
        return last
    asks_first, asks_last = (_has_mark(prompt, part) for part in (first, last[-1]))
    if asks_last and not asks_first:
        return last
    if asks_first != asks_last or len(last) == 1:
        return (first, Part(last[0].start, whole.stop, _MAYBE))
    return (first, *last)


def _opening(prompt: Pieces, start: int, end: int) -> Part | None:
    """The first line, if it ends before token `end`; with those up to the first with a question mark."""
    first, stop = None, start
    while (stop := prompt.end_of_line(stop)) <= end:
        part = Part(start, stop)
        if _has_mark(prompt, part):
            return part
        first = first or part
    return first


def ending(prompt: Pieces, end: int, n_last: int) -> tuple[Part, ...]:
    """Of the n_last tokens before token `end`: what may ask, and what asks. In one, where nothing tells.

    What asks are the last lines with a question mark, one after the other, and what follows them; without any
    mark the last line, if it is short.
    """
    start = max(0, end - n_last)
    lines = [start]
    while (line := prompt.end_of_line(lines[-1])) < end:
        lines.append(line)
    marked = [_has_mark(prompt, Part(*line)) for line in zip(lines, [*lines[1:], end], strict=True)]
    if True in marked:
        i = len(marked) - 1 - marked[::-1].index(True)
        while i > 0 and marked[i - 1]:
            i -= 1
        asks = lines[i]
    elif len(lines) > 1 and end - lines[-1] <= _OPENING:
        asks = lines[-1]
    else:
        return (Part(start, end),)
    return (Part(start, asks, _MAYBE), Part(asks, end)) if asks > start else (Part(start, end),)


def _has_mark(prompt: Pieces, part: Part) -> bool:
    return _MARK.search(prompt.text_of(part.start, part.stop)) is not None
