"""Breaks streamed text between words at the edge of a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from prompt_toolkit.utils import get_cwidth

_FENCE: Final = re.compile(r"`{3,}(?=[^`]*$)|~{3,}")  # ```a``` is code within a line
_TAB: Final = 8
_WIDE: Final = 2
_EMOJI: Final = "\ufe0f"
_NOT_LAST: Final = tuple("「『（【〈《“‘\u200d")  # noqa: RUF001
_NOT_FIRST: Final = frozenset("、。，．：；！？」』）】〉》”’…ー々")  # noqa: RUF001


class Wrapper:
    """Text goes in as it comes, and comes out with line breaks where the terminal would break a word.

    A word is held back until it ends. Lines of a fenced code block, and words longer than a line, are left
    to the terminal: they can be copied as they are.

    columns: the width of the terminal now, None where there is none, and nothing is changed or held then.
    """

    def __init__(self, columns: Callable[[], int | None]) -> None:
        self._columns = columns
        self._column = 0
        self._blank = ""  # before the word
        self._word = ""
        self._line = ""  # as far as it may open or close a code block
        self._fence = ""  # of the code block that is open

    def feed(self, text: str) -> str:
        """What can be written now."""
        if self._columns() is None:
            return text
        return "".join(self._take(character) for character in text)

    def tick(self) -> str:
        """Nothing waits for the time to pass."""
        return ""

    def end(self) -> str:
        """What was held back."""
        rest = self._flush_word()
        fits = self._column + width_of(self._blank, self._column) < (self._columns() or 0)
        return rest + (self._flush_blank() if fits else "")

    def _take(self, c: str) -> str:
        if c == "\n":
            done = self._flush_word()
            self._blank = ""
            if fence := _FENCE.match(self._line):
                self._fenced(fence[0])
            self._column, self._line = 0, ""
            return done + c
        if self._line.startswith(("`", "~")) or (not self._line and not c.isspace()):
            self._line += c
        if self._fence:
            return self._flush_word() + self._flush_blank() + c
        if c in " \t":
            done = self._flush_word()
            self._blank += c
            return done
        # each wide character is a word of its own, with what may not be parted from it
        if self._word.endswith(_NOT_LAST):
            self._word += c
            return ""
        if get_cwidth(c) >= _WIDE and c not in _NOT_FIRST:
            done = self._flush_word()
            self._word = c
            return done
        ended_wide = self._word and get_cwidth(self._word[0]) >= _WIDE
        done = self._flush_word() if ended_wide and get_cwidth(c) == 1 and c not in _NOT_FIRST else ""
        self._word += c
        return done

    def _fenced(self, fence: str) -> None:
        """A line with this fence opens a block, or closes one that an equal or a shorter one has opened."""
        if not self._fence:
            self._fence = fence
        elif fence.startswith(self._fence) and self._line.rstrip() == fence:
            self._fence = ""

    def _flush_word(self) -> str:
        """The word with the blanks before it, or with a line break in their place."""
        if not self._word:
            return ""
        word, width = self._word, width_of(self._word)
        self._word = ""
        columns = max(self._columns() or 0, 2)
        edge = columns - 1  # a terminal may break the line at the last column
        blank = width_of(self._blank, self._column)
        if self._column > 0 and self._column + blank + width > edge and not (width > edge and blank == 0):
            self._blank, self._column = "", width % columns
            return "\n" + word
        text, self._blank = self._blank + word, ""
        self._column = (self._column + blank + width) % columns
        return text

    def _flush_blank(self) -> str:
        blank, self._blank = self._blank, ""
        self._column += width_of(blank, self._column)
        return blank


def width_of(text: str, column: int = 0) -> int:
    """Columns that `text` takes from `column` on, or fewer: what makes an emoji of a sign may widen it."""
    start = column
    for c in text:
        column += _TAB - column % _TAB if c == "\t" else max(get_cwidth(c), c == _EMOJI)
    return column - start
