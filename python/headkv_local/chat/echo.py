"""What is typed while an answer is written: not shown amid it, and there at the next prompt."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
from collections.abc import Iterator
from typing import Any

_hidden: int | None = None  # the terminal that does not show keys now


@contextlib.contextmanager
def hidden() -> Iterator[None]:
    """While inside, the terminal on standard input does not show what is typed. Ctrl-C and Ctrl-Z act."""
    global _hidden
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    before = signal.getsignal(signal.SIGTERM)

    def end(number: int, _: Any) -> None:
        restore()
        signal.signal(number, before)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)
    if _set_echo(terminal, False):
        _hidden = terminal
    try:
        yield
    finally:
        restore()
        signal.signal(signal.SIGTERM, before)


def restore() -> None:
    """Keys are shown again: for whoever ends the process amid an answer."""
    global _hidden
    terminal, _hidden = _hidden, None
    if terminal is not None:
        _set_echo(terminal, True)


def _set_echo(terminal: int, on: bool) -> bool:
    """Returns whether that changed anything."""
    try:
        mode = termios.tcgetattr(terminal)
        if bool(mode[3] & termios.ECHO) == on:
            return False
        mode[3] ^= termios.ECHO
        termios.tcsetattr(terminal, termios.TCSANOW, mode)
    except termios.error:  # it has hung up
        return False
    return True
