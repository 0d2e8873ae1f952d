"""What messages say, and where that stands in a prompt made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .native.plan import Part
from .pieces import Pieces

_DOCUMENT: Final = "document"

_BLANKS: Final = np.array([i for i in range(128) if chr(i).isspace()], dtype=np.uint8)
_WIDE: Final = re.compile(b"|".join(chr(i).encode() for i in range(128, 0x3001) if chr(i).isspace()))
"""Of Unicode's, as messages may begin and end with, which templates trim."""


class Said:
    """Where messages are in a prompt, whatever blanks a tokenizer or a template has added or left out."""

    def __init__(self, written: Pieces) -> None:
        self._written = written
        self._places = _no_blanks(written.text)
        """Of the bytes that are no blanks."""
        self._text = np.frombuffer(written.text, dtype=np.uint8)[self._places].tobytes()

    def parts(self, messages: Sequence[Mapping[str, Any]], turn: Sequence[int]) -> list[Part]:
        """The tokens of each part that asks of the messages of these numbers; none if one is not found."""
        end = len(self._text)
        for later in reversed(messages[turn[-1] + 1 :]):
            _, end = self._places_of(parts_of(later), end)
        found: list[Part] = []
        for i in reversed(turn):
            parts = parts_of(messages[i])
            places, end = self._places_of(parts, end)
            for part, (start, stop) in reversed(list(zip(parts, places, strict=True))):
                if start == stop and asks_itself(part):
                    return []
                if start < stop and asks_itself(part):
                    place = int(self._places[start]), int(self._places[stop - 1]) + 1
                    found.insert(0, Part(*self._written.tokens_of(*place)))
        return found

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


def asks_itself(part: Mapping[str, Any]) -> bool:
    """Whether it is not marked as a document."""
    return not part.get(_DOCUMENT)
