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
    have left the screen cannot be drawn again: where one of them is another one, the block is repeated. A
    block of several lines, such as a table, goes on as it is written, and is repeated when it is final.

    size: columns and rows of the terminal now.
    """

    def __init__(self, size: Callable[[], os.terminal_size]) -> None:
        self._size = size
        self._source = ""  # of the block that grows
        self._shown: list[str] = []  # its lines
        self._as_written = False  # a line that has left the screen would be another one
        self._n_shown = 0  # whole lines of the source that are shown
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
        return self._draw(final=False)

    def end(self) -> str:
        """What is left."""
        return self._draw(final=True)

    def _draw(self, final: bool) -> str:
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
            done = self._redraw("\n".join(source[:end]), columns, rows, final=True)
            done += "\n" * (first - end + 1)
            source = source[first:]
            self._source, self._shown, self._n_shown = "\n".join(source), [], 0
        if final or not self._as_written:
            done += self._redraw(self._source, columns, rows, final)
        if self._as_written:
            done += self._new_lines(source)
        self._n_shown = len(source) - 1
        now = time.monotonic()
        self._next = now + max(_LEAST, _SHARE * (now - start))
        return done

    def _final(self, source: list[str]) -> int:
        """The line up to which blocks are final: a later one has begun.

        What half a line will be is not known: a * may become a list, or go on with the block before.
        """
        begun = blocks_of("\n".join(source[:-1]))
        return begun[-1][0] if len(begun) > 1 else 0

    def _new_lines(self, source: list[str]) -> str:
        """Of a block that is shown as it is written; whole ones, for half a line may begin another block."""
        return "".join(f"\n{line}" for line in source[self._n_shown : -1] if line.strip(" \t"))

    def _redraw(self, source: str, columns: int, rows: int, final: bool) -> str:
        """From the lines that are shown, at whose end the cursor is, to those of the block."""
        lines = lines_of(source, columns - 1)
        shown, self._shown = self._shown, lines
        if self._as_written:
            self._as_written = False
            return "\n" + "\n".join(lines)
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
            self._as_written = not final and "\n" in source.strip("\n")
            return "" if self._as_written else "\n" + "\n".join(lines)
        # tmux takes clearing from its first row on for a new page, and keeps a copy of what stood there
        clear = f"\x1b[{up}A\x1b[K\x1b[B\x1b[J\x1b[A" if up else "\x1b[K"
        return f"\r{clear}" + "\n".join(lines[same:])
