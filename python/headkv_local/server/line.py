"""The line in front of the model: one request after another, first come, first served."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from .errors import Refusal


class Line:
    """longest: requests that may wait. patience: seconds that one waits, None: any time."""

    def __init__(self, longest: int, patience: float | None) -> None:
        self._longest, self._patience = longest, patience
        self._lock = anyio.Lock()
        self._makes_way = False  # who has the turn ends for the one that comes next
        self.n_waiting = 0

    @property
    def busy(self) -> bool:
        return self._lock.locked()

    def require_room(self) -> None:
        if self.busy and self.n_waiting >= self._longest + self._makes_way:
            raise Refusal(
                429,
                f"{self.n_waiting} requests wait already: try again later",
                "queue_full",
                headers={"Retry-After": "1"},
            )

    @asynccontextmanager
    async def turn(self, makes_way: bool = False) -> AsyncIterator[None]:
        """Raises Refusal where too many wait, or after too long a time."""
        self.require_room()
        self.n_waiting += 1
        try:
            with anyio.fail_after(self._patience):
                await self._lock.acquire()
        except TimeoutError:
            raise Refusal(
                503,
                f"the request has waited for {self._patience:g} seconds, and another one still runs",
                "queue_timeout",
                headers={"Retry-After": "5"},
            ) from None
        finally:
            self.n_waiting -= 1
        self._makes_way = makes_way
        try:
            yield
        finally:
            self._makes_way = False
            self._lock.release()
