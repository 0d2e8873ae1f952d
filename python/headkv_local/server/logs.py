"""What the server logs: nothing without end that clients cause."""

from __future__ import annotations

import logging
import time
from typing import Final

_APART: Final = 60  # seconds
_NO_ROOM: Final = "socket.accept() out of system resource"  # as asyncio says it, thousands of times a second
_OF_CLIENTS: Final = (
    _NO_ROOM,
    "Invalid HTTP request",
    "Unsupported upgrade request",
    "No supported WebSocket library",
)


class _Seldom(logging.Filter):
    """Of what clients cause as often as they like, such as connections without end: one sentence a minute."""

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.getMessage()
        kind = next((one for one in _OF_CLIENTS if said.startswith(one)), None)
        if kind is None:
            return True
        now = time.monotonic()
        if now < self._next.get(kind, now):
            return False
        self._next[kind] = now + _APART
        if kind == _NO_ROOM:
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
    logging.getLogger("uvicorn.error").addFilter(_seldom)
