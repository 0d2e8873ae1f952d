"""What commands end with."""

from __future__ import annotations

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
