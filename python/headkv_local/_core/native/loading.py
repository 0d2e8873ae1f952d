"""Models and contexts that cannot be made: refused, where llama.cpp would end the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import _check, _functions


@contextmanager
def refusing() -> Iterator[None]:
    """What this thread makes meanwhile. Not to be nested."""
    _check(_functions["headkv_begin_refusing"](True))
    try:
        yield
    finally:
        _check(_functions["headkv_begin_refusing"](False))
