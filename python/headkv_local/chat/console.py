"""Where the chat writes: the answer to standard output, everything else to standard error."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Literal, TextIO

from headkv_local.chat.render import join, strip_control

_SIZE = os.terminal_size((80, 24))  # of a terminal that does not tell
_DIM, _RED, _PLAIN = "\x1b[2m", "\x1b[31m", "\x1b[0m"


class OutputError(Exception):
    """Standard output cannot be written, for another reason than a reader that left."""


def wants_color(choice: Literal["auto", "always", "never"], env: Mapping[str, str], tty: bool) -> bool:
    """An explicit choice wins; otherwise colours need a terminal that knows them and no NO_COLOR."""
    if choice != "auto":
        return choice == "always"
    return tty and not env.get("NO_COLOR") and env.get("TERM") != "dumb"


class Console:
    """The two output streams of one run. A stream that the caller closed is written to nowhere.

    BrokenPipeError is let through: it ends the run quietly.
    """

    def __init__(self, color: Literal["auto", "always", "never"] = "auto") -> None:
        self.out: TextIO | None = sys.stdout
        self.err: TextIO | None = sys.stderr
        for stream in (self.out, self.err):
            # A terminal that cannot show a character gets a question mark, not an exception.
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        self.out_tty = self.out is not None and self.out.isatty()
        self.err_tty = self.err is not None and self.err.isatty()
        self.color = wants_color(color, os.environ, self.err_tty)
        self._warned: set[str] = set()
        self._waiting: list[str] = []

    @property
    def width(self) -> int | None:
        """Columns of the terminal behind standard error, None where there is none."""
        return _size(self.err).columns if self.err_tty else None

    def answer_width(self) -> int | None:
        """Columns of the terminal behind standard output, None where there is none."""
        return _size(self.out).columns if self.out_tty else None

    def answer_size(self) -> os.terminal_size:
        """Columns and rows of that terminal."""
        return _size(self.out)

    def printable(self, text: str) -> str:
        """A piece of an answer, for a terminal without what could steer it."""
        return strip_control(text) if self.out_tty else text

    def answer(self, text: str) -> None:
        """Write what comes of printable(), or was made of it, at once."""
        if not text:
            return
        if self.out is None:
            raise OutputError("standard output is closed")
        try:
            self.out.write(text)
            self.out.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write the answer: {error.strerror or error}") from error

    @property
    def renders(self) -> bool:
        """Whether standard output is a terminal on which lines can be drawn again."""
        return self.out_tty and os.environ.get("TERM", "dumb") != "dumb"

    @property
    def unicode(self) -> bool:
        """Whether standard output can show every character."""
        return self.out is not None and (self.out.encoding or "").lower().replace("-", "") == "utf8"

    def erase_line(self) -> None:
        """Empty the terminal line that a progress bar stood on."""
        if self.err_tty:
            self.raw("\r\x1b[K")

    def raw(self, text: str) -> None:
        """Write text that has its own escape sequences to standard error. Where that cannot be, as on a full
        disk, nothing more goes there: the answer is worth more than what is said about it.
        """
        try:
            if self.err is not None:
                self.err.write(text)
                self.err.flush()
        except BrokenPipeError:
            raise
        except OSError:
            self.err = None

    def hint(self, text: str) -> None:
        """Show a line on the terminal behind standard error, until erase_line()."""
        if self.width is not None:
            text = text[: self.width - 1]
            self.raw("\r\x1b[K" + (f"{_DIM}{text}{_PLAIN}" if self.color else text))

    def note(self, text: str) -> None:
        """Write lines of prose to standard error."""
        self._message(self._wrap(text), _DIM)

    def warn(self, text: str) -> None:
        """For any thread: a note, once. From other ones than the main thread it waits for warnings()."""
        if text in self._warned:
            return
        self._warned.add(text)
        if threading.current_thread() is threading.main_thread():
            self.note(text)
        else:
            self._waiting.append(text)

    def warnings(self) -> None:
        """Write those that wait."""
        while self._waiting:
            self.note(self._waiting.pop(0))

    @property
    def warned(self) -> bool:
        """Whether some wait."""
        return bool(self._waiting)

    def figures(self, parts: Iterable[str]) -> None:
        """Write one line of figures, broken between two of them where the terminal is narrow."""
        self._message(join(parts, self.width), _DIM)

    def error(self, text: str) -> None:
        """Write an error sentence to standard error."""
        self._message(self._wrap(f"error: {text}"), _RED)

    def _wrap(self, text: str) -> str:
        if self.width is None:
            return text
        from headkv_local.chat.wrap import Wrapper  # takes prompt_toolkit, which --help goes without

        # A terminal that is too narrow for words breaks them itself.
        columns = max(self.width, 11)
        wrappers = ((Wrapper(lambda: columns), line) for line in text.split("\n"))
        return "\n".join(wrapper.feed(line) + wrapper.end() for wrapper, line in wrappers)

    def _message(self, text: str, style: str) -> None:
        # also in a pipe, which may end in a terminal: names out of files are in it
        text = strip_control(text)
        if self.color:
            text = f"{style}{text}{_PLAIN}"
        self.raw(text + "\n")


def _size(stream: TextIO | None) -> os.terminal_size:
    try:
        found = os.get_terminal_size(stream.fileno()) if stream else _SIZE
    except OSError:
        found = _SIZE
    return found if found.columns and found.lines else _SIZE
