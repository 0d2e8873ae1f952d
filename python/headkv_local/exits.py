"""What commands end with."""

from __future__ import annotations

import os
import sys
from typing import Final

from .errors import ArgumentError, DataError

OK: Final = 0
FAILED: Final = 1
MISUSED: Final = 2
INTERRUPTED: Final = 130
TERMINATED: Final = 143


class Terminated(KeyboardInterrupt):
    """By SIGTERM, as batch systems end what takes too long: what was measured is worth its table then too."""


def open_streams() -> None:
    """Standard streams that were closed are nobody's now: a model, a session or a socket would take their
    numbers, and llama.cpp's log would be written there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free


def say_no_more() -> None:
    """Whoever read standard output has seen enough. Python flushes it once more at the end."""
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def interrupted(interrupt: KeyboardInterrupt) -> int:
    """Say that a command of `headkv` is interrupted, and the code that it ends with."""
    print("headkv: interrupted", file=sys.stderr)
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED


def told(error: Exception, command: str = "headkv") -> int:
    """Say on standard error why a command ends, and the code that it ends with."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:  # without Python's "[Errno 2]"
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    print(f"{command}: {text}", file=sys.stderr)
    return code_of(error)


def code_of(error: Exception) -> int:
    """Options that cannot be used are wrong usage, also where only the model shows that they cannot."""
    return MISUSED if isinstance(error, ArgumentError) and not isinstance(error, DataError) else FAILED
