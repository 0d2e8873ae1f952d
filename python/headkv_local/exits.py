"""What commands end with."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, TextIO

from .errors import ArgumentError, DataError

OK: Final = 0
FAILED: Final = 1
MISUSED: Final = 2
HUNG_UP: Final = 129
INTERRUPTED: Final = 130
TERMINATED: Final = 143


class Terminated(KeyboardInterrupt):
    """By SIGTERM, as batch systems end what takes too long: what was measured is worth its table then too."""

    code = TERMINATED


class HungUp(Terminated):
    """By SIGHUP: the terminal is gone, the figures need not be."""

    code = HUNG_UP


@contextmanager
def interrupting() -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt meanwhile, once, unless somebody handles or ignores them already."""
    ends: dict[int, type[Terminated]] = {signal.SIGTERM: Terminated}
    if hasattr(signal, "SIGHUP"):
        ends[signal.SIGHUP] = HungUp
    before = {number: signal.SIG_DFL for number in ends if signal.getsignal(number) is signal.SIG_DFL}
    if not before or threading.current_thread() is not threading.main_thread():
        yield
        return

    mine = os.getpid()

    def end(number: int, _: FrameType | None) -> None:
        if os.getpid() != mine:  # in a child made by fork(), whose own business it is
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for one in before:  # of a session that ends several may come; a second SIGTERM ends at once
            then = signal.SIG_DFL if number == signal.SIGTERM else pass_over
            signal.signal(one, then if one == signal.SIGTERM else signal.SIG_IGN)
        raise ends[number]

    def pass_over(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def open_streams() -> None:
    """Standard streams that were closed are nobody's now: a model, a session or a socket would take their
    numbers, and llama.cpp's log would be written there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free


def print_any_letter() -> None:
    """Of letters that standard output cannot encode their codes are printed: no figures are lost for one."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="backslashreplace")


def is_nobody_there(error: OSError) -> bool:
    """Whether a stream could not be written because its reader, or its terminal, is gone."""
    return isinstance(error, BrokenPipeError) or error.errno == errno.EIO


class Output(io.TextIOBase):
    """A stream whose reader may have seen enough: then the rest is said to nobody, unless it is needed."""

    def __init__(self, stream: TextIO, *, needed: bool) -> None:
        self._stream, self._needed = stream, needed
        self.is_closed = False

    def write(self, text: str) -> int:
        self._do(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._do(self._stream.flush)

    def _do(self, what: Callable[[], object]) -> None:
        if self.is_closed:
            return
        try:
            what()
        except OSError as error:
            if self._needed or not is_nobody_there(error):
                raise
            self.is_closed = True


def say_no_more() -> None:
    """Whoever read standard output has seen enough. Python flushes it once more at the end."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def interrupted(interrupt: KeyboardInterrupt, command: str = "headkv") -> int:
    """Say that a command is interrupted, and the code that it ends with."""
    _tell(f"{command}: interrupted")
    return interrupt.code if isinstance(interrupt, Terminated) else INTERRUPTED


def told(error: Exception, command: str = "headkv") -> int:
    """Say on standard error why a command ends, and the code that it ends with."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:  # without Python's "[Errno 2]"
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    _tell(f"{command}: {text}")
    return code_of(error)


def _tell(text: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        print(text, file=sys.stderr)


def code_of(error: Exception) -> int:
    """Options that cannot be used are wrong usage, also where only the model shows that they cannot."""
    return MISUSED if isinstance(error, ArgumentError) and not isinstance(error, DataError) else FAILED
