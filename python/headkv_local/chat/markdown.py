"""Markdown shown while it comes: what changes is drawn again, the rest stays as it is."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

from headkv_local.chat.markup import blocks_of, lines_of
from headkv_local.chat.styled import rows_of

_LEAST: Final = 1 / 30  # seconds between two drawings
_SHARE: Final = 4  # of the time may be for one part of drawing


class Markdown:
    """Text goes in as it comes, and comes out as what a terminal has to be sent.

    A block (paragraph, list, table, code) is drawn again as it grows, from the first line that is another
    one; marks that are open yet are shown as they are. Once the next one begins it is final. Lines that
    have left the screen cannot be drawn again: the block is then repeated as it is now.

    size: columns and rows of the terminal now.
    """

    def __init__(self, size: Callable[[], os.terminal_size]) -> None:
        self._size = size
        self._source = ""  # of the block that grows
        self._shown: list[str] = []  # its lines
        self._next = 0.0  # when to draw again
        self._waiting = False

    def feed(self, text: str) -> str:
        self._source += text
        self._waiting = True
        return self.tick()

    def tick(self) -> str:
        """What waits to be drawn."""
        if not self._waiting or time.monotonic() < self._next:
            return ""
        return self._draw()

    def end(self) -> str:
        """What is left."""
        return self._draw()

    def _draw(self) -> str:
        start = time.monotonic()
        self._waiting = False
        columns, rows = self._size()
        columns = max(columns, 4)
        done = ""
        source = self._source.split("\n")
        first = self._final(source)
        if first > 0:
            end = first
            while end > 0 and not source[end - 1].strip(" \t"):
                end -= 1
            done = self._redraw(lines_of("\n".join(source[:end]), columns - 1), columns, rows)
            done += "\n" * (first - end + 1)
            self._source, self._shown = "\n".join(source[first:]), []
        done += self._redraw(lines_of(self._source, columns - 1), columns, rows)
        now = time.monotonic()
        self._next = now + max(_LEAST, _SHARE * (now - start))
        return done

    def _final(self, source: list[str]) -> int:
        """The line up to which blocks are final: a later one has begun.

        What half a line will be is not known: a * may become a list, or go on with the block before.
        """
        begun = blocks_of("\n".join(source[:-1]))
        return begun[-1][0] if len(begun) > 1 else 0

    def _redraw(self, lines: list[str], columns: int, rows: int) -> str:
        """From the lines that are shown, at whose end the cursor is, to these."""
        shown, self._shown = self._shown, lines
        same = 0
        while same < min(len(shown), len(lines)) and shown[same] == lines[same]:
            same += 1
        if same == len(shown) == len(lines):
            return ""
        if same == len(shown):
            return ("\n" if shown else "") + "\n".join(lines[same:])
        same = max(min(same, len(lines) - 1), 0)  # the cursor has to end on the last line
        up = sum(rows_of(line, columns) for line in shown[same:]) - 1
        if up >= rows:
            return "\n" + "\n".join(lines)
        return "\r" + (f"\x1b[{up}A" if up else "") + "\x1b[J" + "\n".join(lines[same:])
