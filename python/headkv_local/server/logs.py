"""What the server logs: nothing without end that clients cause."""

from __future__ import annotations

import logging
import time
from typing import Final

_APART: Final = 60  # seconds
_NO_ROOM: Final = "socket.accept() out of system resource"  # as asyncio says it, thousands of times a second


class _Seldom(logging.Filter):
    """Of connections that cannot be taken, as where all files are in use: one sentence a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.getMessage().startswith(_NO_ROOM):
            return True
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _APART
        error = record.exc_info[1] if record.exc_info else None
        record.msg = f"new connections have to wait: {getattr(error, 'strerror', None) or error}"
        record.args, record.exc_info = (), None
        return True


_seldom: Final = _Seldom()


def configure(verbose: bool) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s")
    logging.getLogger("headkv_local.llama_cpp").propagate = False  # verbose prints it anyway
    logging.getLogger("headkv_local").setLevel(logging.INFO if verbose else logging.WARNING)
    of_asyncio = logging.getLogger("asyncio")
    of_asyncio.setLevel(logging.ERROR)  # it warns of every client that has left
    of_asyncio.addFilter(_seldom)
