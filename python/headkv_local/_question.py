"""Which tokens of a prompt ask: their attention selects what is kept of the rest."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ._pieces import Pieces
from .errors import ArgumentError

_ENDING: Final = 32
"""Tokens after a question that the chat template may add: the message's end, the beginning of the answer."""

_OPENING: Final = 64
"""Tokens that a question before a document may take, where nobody says which part is which."""

_SHORTEST: Final = 16
"""Tokens, with those of a chat template, that a question has at least."""

_DOCUMENT: Final = "document"
_LINE_END: Final = re.compile(rb"\n\s*")
_MARK: Final = re.compile("[?\uff1f\u061f]")  # of a question: Latin and others, full width, Arabic


class Observers(NamedTuple):
    """Whose attention is recorded: the prompt's last tokens, and some that are read once more after it."""

    first: int
    """From this position to the prompt's end."""
    again: tuple[int, ...] = ()
    """Positions of a question that stood before what it asks about: it could not look at that."""


def observers(n_prompt: int, question: Sequence[slice], n_least: int) -> Observers:
    """Who observes a prompt of n_prompt tokens.

    question: parts of the prompt, in their order. n_least: last tokens that observe in any case, since some
    models ask there.
    """
    first = n_prompt - n_least
    again: list[int] = []
    for part in question:
        if part.stop >= n_prompt - _ENDING:
            first = min(first, part.start)
        else:
            again.extend(range(part.start, part.stop))
    return Observers(max(1, first), tuple(again))


def checked(question: slice | Sequence[slice] | None, n_prompt: int) -> tuple[slice, ...]:
    """The parts with their bounds in numbers. ArgumentError for what cannot be a question of this prompt."""
    if question is None:
        return ()
    parts = [question] if isinstance(question, slice) else list(question)
    found = sorted((_checked(part, n_prompt) for part in parts), key=lambda part: part.start)
    n_question = sum(part.stop - part.start for part in found)
    if n_question == 0:
        raise ArgumentError("the question is empty: it must have at least one token")
    if 2 * n_question > n_prompt:
        raise ArgumentError(
            f"the question of {n_question} tokens is longer than the document, the other "
            f"{max(0, n_prompt - n_question)} tokens of the prompt"
        )
    return tuple(found)


def _checked(part: Any, n_prompt: int) -> slice:
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
    return slice(start, stop)


def question_of(
    tokens: Sequence[int], piece: Callable[[int], bytes], messages: Sequence[Mapping[str, Any]], n_last: int
) -> tuple[slice, ...]:
    """Where the last user message asks, in the tokens of a prompt made of the messages.

    Of a message with parts that are marked as documents ("document": True), all other parts. Else the whole
    message if it has n_last tokens at most. A longer one holds a document: the last lines of it, as many as
    are whole within n_last tokens, and the first line if that is short, for a question may stand first. If
    only one of the two has a question mark, only that. Empty if the message is not found.
    """
    message = next((m for m in reversed(messages) if m.get("role") == "user"), None)
    content = message.get("content") if message else None
    if isinstance(content, str):
        content = [{"text": content}]
    parts = [p for p in content or () if isinstance(p.get("text"), str) and p["text"].strip()]
    prompt = Pieces(tokens, piece)
    found: list[slice] = []
    end = len(prompt.text)
    for part in reversed(parts):
        text = part["text"].strip().encode("utf-8", errors="ignore")
        start = prompt.text.rfind(text, 0, end)
        if start < 0:
            return ()
        if not part.get(_DOCUMENT):
            found.append(prompt.tokens_of(start, start + len(text)))
        end = start
    found.reverse()
    if any(part.get(_DOCUMENT) for part in parts) or not found:
        return tuple(found)
    whole = slice(found[0].start, found[-1].stop)
    if whole.stop - whole.start <= n_last:
        return (whole,)
    last = slice(ending(prompt, whole.stop, n_last), whole.stop)
    first = slice(whole.start, _end_of_line(prompt, whole.start))
    if first.stop - first.start > _OPENING or first.stop > last.start:
        return (last,)
    both = (first, last)
    asking = tuple(part for part in both if _MARK.search(prompt.text_of(part)))
    return asking or both


def ending(prompt: Pieces, end: int, n_last: int) -> int:
    """The first token of the lines that end before token `end` and are whole within n_last tokens.

    The first of n_last tokens, where no line begins among them early enough for as many as a question has.
    """
    start = max(0, end - n_last)
    line = _end_of_line(prompt, start)
    return line if start > 0 and end - line >= _SHORTEST else start


def _end_of_line(prompt: Pieces, token: int) -> int:
    """The first token after the line that a token is in."""
    match = _LINE_END.search(prompt.text, prompt.start_of(token))
    return prompt.n_tokens if match is None else prompt.tokens_of(match.start(), match.end()).stop
