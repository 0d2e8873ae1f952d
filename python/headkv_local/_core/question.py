"""Which tokens of a prompt ask: their attention selects what is kept of the rest."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from ..errors import ArgumentError
from ..messages import SYSTEM
from .native.plan import Part
from .native.plan import question as find_question
from .pieces import Pieces

_DOCUMENT: Final = "document"

_BLANKS: Final = np.frombuffer(b" \t\n\v\f\r", dtype=np.uint8)

_logger = logging.getLogger("headkv_local")


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


def question_of(
    prompt: Pieces, written: Pieces, messages: Sequence[Mapping[str, Any]], n_last: int
) -> tuple[Part, ...]:
    """Where the messages ask, in the tokens of a prompt made of them: the last user message that does, or
    else the last system message that does.

    prompt, written: what these tokens spell, without and with control tokens, which a text may be read as.

    Of a message with parts that are marked as documents ("document": True), all other parts ask; of those
    that are longer than n_last tokens, and of a message without such marks, what headkv_get_question() finds.
    One without such marks that is longer may be a document as a whole: what would ask if it were one asks
    too, if that is no longer. Empty if no message asks, or the one that does is not found.
    """
    of_user = [i for i, one in enumerate(messages) if one.get("role") == "user"]
    of_system = [i for i, one in enumerate(messages) if one.get("role") in SYSTEM]
    asking = [i for i in (*of_user[::-1], *of_system[::-1]) if any(map(_asks, _parts(messages[i])))]
    texts = _Texts(written)
    found = texts.parts(messages, asking[0]) if asking else []
    if asking and not found:
        _logger.warning("what asks is not in the prompt as it was written: the prompt's last tokens select")
    if not found:
        return ()
    if not all(map(_asks, _parts(messages[asking[0]]))):
        return tuple(asks for one in found for asks in find_question(prompt, one.start, one.stop, n_last))
    whole = Part(found[0].start, found[-1].stop)
    asks = find_question(_Bordered(prompt, found[1:]), whole.start, whole.stop, n_last)
    other = texts.parts(messages, asking[1]) if len(asking) > 1 and whole.n > n_last else []
    if other and other[-1].stop - other[0].start <= n_last:
        asks = (Part(other[0].start, other[-1].stop), *asks)
    return tuple(sorted(asks))


class _Texts:
    """Where messages are in a prompt, whatever blanks a tokenizer or a template has added or left out."""

    def __init__(self, written: Pieces) -> None:
        text = np.frombuffer(written.text, dtype=np.uint8)
        self._written = written
        self._places = np.flatnonzero(~np.isin(text, _BLANKS))
        """Of the bytes that are no blanks."""
        self._text = text[self._places].tobytes()

    def parts(self, messages: Sequence[Mapping[str, Any]], which: int) -> list[Part]:
        """The tokens of each part of a message that asks; none if one of them is not found."""
        end = len(self._text)
        for part in reversed([part for later in messages[which + 1 :] for part in _parts(later)]):
            end = self._before(part, end)[1]
        found: list[Part] = []
        for part in reversed(_parts(messages[which])):
            stop, end = self._before(part, end)
            if stop == end and _asks(part):
                return []
            if stop > end and _asks(part):
                place = int(self._places[end]), int(self._places[stop - 1]) + 1
                found.insert(0, Part(*self._written.tokens_of(*place)))
        return found

    def _before(self, part: Mapping[str, Any], end: int) -> tuple[int, int]:
        """Where it ends and begins, the last one before `end`; twice that if it is not found."""
        text = part["text"].encode("utf-8", errors="ignore").translate(None, _BLANKS.tobytes())
        start = self._text.rfind(text, 0, end)
        return (start + len(text), start) if start >= 0 else (end, end)


class _Bordered:
    """The text of a prompt, with a blank line before each of some parts, as templates may join them."""

    def __init__(self, prompt: Pieces, parts: Sequence[Part]) -> None:
        starts = [part.start for part in parts if part.start > 0]
        places = [int(prompt.ends[start - 1]) for start in starts]
        pieces = [prompt.text[a:b] for a, b in zip([0, *places], [*places, None], strict=True)]
        self.text = b"\n\n".join(pieces)
        self.ends = prompt.ends + 2 * np.searchsorted(starts, np.arange(prompt.n_tokens) + 1, "right")


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those of a message that hold a text."""
    content = message.get("content")
    if isinstance(content, str):
        content = [{"text": content}]
    parts = [part for part in content or () if isinstance(part, Mapping)]
    return [part for part in parts if isinstance(part.get("text"), str) and part["text"].strip()]


def _asks(part: Mapping[str, Any]) -> bool:
    return not part.get(_DOCUMENT)
