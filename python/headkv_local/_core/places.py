"""Where messages are in the tokens of a prompt that was made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .native.plan import Part
from .pieces import Pieces

ANSWER: Final = "assistant"
_DOCUMENT: Final = "document"

_BLANKS: Final = np.array([i for i in range(128) if chr(i).isspace()], dtype=np.uint8)
_WIDE: Final = re.compile(b"|".join(chr(i).encode() for i in range(128, 0x3001) if chr(i).isspace()))
"""Of Unicode's, as messages may begin and end with, which templates trim."""


class Places:
    """Where messages are in a prompt, whatever blanks a tokenizer or a template has added or left out."""

    def __init__(self, written: Pieces) -> None:
        self._written = written
        self._places = _no_blanks(written.text)
        """Of the bytes that are no blanks."""
        self._text = np.frombuffer(written.text, dtype=np.uint8)[self._places].tobytes()

    def parts(self, messages: Sequence[Mapping[str, Any]], turn: Sequence[int]) -> list[Part]:
        """The tokens of each part that asks of the messages of these numbers; none if one is not found."""
        end = self._end_of(messages, turn[-1])
        found: list[Part] = []
        for i in reversed(turn):
            parts = parts_of(messages[i])
            places, end = self._places_of(parts, end)
            for part, (start, stop) in reversed(list(zip(parts, places, strict=True))):
                if start == stop and may_ask(part):
                    return []
                if start < stop and may_ask(part):
                    found.insert(0, self._tokens_of(start, stop))
        return found

    def of_each(self, messages: Sequence[Mapping[str, Any]], last: int) -> list[list[Part]]:
        """The tokens of each part of the messages up to number `last`; none of one that is not found, nor of
        answers: templates leave these out, or what was thought before them."""
        end, found = self._end_of(messages, last), list[list[Part]]()
        for message in reversed(messages[: last + 1]):
            places: list[tuple[int, int]] = []
            if message.get("role") != ANSWER:
                places, end = self._places_of(parts_of(message), end)
            is_there = all(start < stop for start, stop in places)
            found.insert(0, [self._tokens_of(*place) for place in places] if is_there else [])
        return found

    def _end_of(self, messages: Sequence[Mapping[str, Any]], i: int) -> int:
        """Before which message i ends: where those after it begin."""
        end = len(self._text)
        for later in reversed(messages[i + 1 :]):
            _, end = self._places_of(parts_of(later), end)
        return end

    def _tokens_of(self, start: int, stop: int) -> Part:
        return Part(*self._written.tokens_of(int(self._places[start]), int(self._places[stop - 1]) + 1))

    def _places_of(self, parts: Sequence[Mapping[str, Any]], end: int) -> tuple[list[tuple[int, int]], int]:
        """Where the parts of a message begin and end, the last ones before `end`, and where the first one
        begins. Equal for one that is not found."""
        texts = [_bare(part["text"]) for part in parts]
        whole = self._before(b"".join(texts), end)
        if whole is not None:  # with nothing between them: a part's first word may go on from the one before
            bounds = [whole + sum(map(len, texts[:i])) for i in range(len(texts) + 1)]
            return list(pairwise(bounds)), whole
        found: list[tuple[int, int]] = []
        for text in reversed(texts):
            start = self._before(text, end)
            found.insert(0, (end, end) if start is None else (start, start + len(text)))
            end = found[0][0]
        return found, end

    def _before(self, text: bytes, end: int) -> int | None:
        """Where it begins, the last time before `end`; in a word of the template only if nowhere else."""
        if not text:  # of what UTF-8 cannot say
            return None
        last = start = self._text.rfind(text, 0, end)
        while start >= 0 and self._is_in_word(start, start + len(text)):
            start = self._text.rfind(text, 0, start + len(text) - 1)
        start = last if start < 0 else start
        return start if start >= 0 else None

    def _is_in_word(self, start: int, stop: int) -> bool:
        """Whether a word goes on before or after these bytes."""
        first, last = int(self._places[start]), int(self._places[stop - 1])
        text = self._written.text
        before, after = text[max(first - 1, 0) : first + 1], text[last : last + 2]
        return any(len(both) == 2 and both.isalnum() for both in (before, after))


def _bare(text: str) -> bytes:
    """Without blanks."""
    return _WIDE.sub(b"", text.encode("utf-8", errors="ignore")).translate(None, _BLANKS.tobytes())


def _no_blanks(text: bytes) -> npt.NDArray[np.intp]:
    """Where the bytes of a text are that are no blanks."""
    is_text = ~np.isin(np.frombuffer(text, dtype=np.uint8), _BLANKS)
    for blank in _WIDE.finditer(text):
        is_text[slice(*blank.span())] = False
    return np.flatnonzero(is_text)


def parts_of(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those of a message that hold a text."""
    content = message.get("content")
    if isinstance(content, str):
        content = [{"text": content}]
    parts = [part for part in content or () if isinstance(part, Mapping)]
    return [part for part in parts if isinstance(part.get("text"), str) and part["text"].strip()]


def may_ask(part: Mapping[str, Any]) -> bool:
    return not part.get(_DOCUMENT)
