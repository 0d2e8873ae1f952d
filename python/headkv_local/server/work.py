"""One request's work: it is done in the model's thread, and the event loop gets what it makes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from contextlib import closing
from typing import Any

from .. import CancelToken
from ..errors import Cancelled
from .errors import Refusal
from .line import Line

Job = Callable[["Work"], Generator[Any, None, None]]


class GaveWay(Exception):
    """Ends a stream for the request after it."""


class Work:
    """Runs from its making until its job ends or stop() is called; whoever waits behind it comes next then.

    job: a generator of what the client gets. It runs under a CancelToken, which stops decodes at once.
    limit: seconds that it may run, None: any time.
    makes_way: whether it is stopped as soon as other work comes.
    """

    def __init__(
        self, job: Job, line: Line, thread: Executor, limit: float | None, makes_way: bool = False
    ) -> None:
        self._job, self._line, self._thread, self._limit = job, line, thread, limit
        self.makes_way = makes_way
        self._token = CancelToken()
        self._loop = asyncio.get_running_loop()
        self._made: asyncio.Queue[Any] = asyncio.Queue()  # as long as an answer at most
        self._reason: Exception | None = None
        self.streams = False
        """Whether the client gets what is made piece by piece."""
        self._running = False
        self._task = asyncio.create_task(self._drive())
        self._task.add_done_callback(self._ended)

    async def _drive(self) -> None:
        async with self._line.turn(self.makes_way):
            self._running = True
            late = None if self._limit is None else self._loop.call_later(self._limit, self._too_late)
            try:
                await self._loop.run_in_executor(self._thread, self._run)
            finally:
                if late is not None:
                    late.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        end: BaseException | None
        if task.cancelled():  # while it waited
            end = self._reason or Refusal(503, "the request was cancelled")
        else:
            end = task.exception()
            if isinstance(end, Cancelled) and self._reason is not None:
                end = self._reason
        self._made.put_nowait(end or StopAsyncIteration())

    def _run(self) -> None:
        with self._token, closing(self._job(self)) as made:
            for item in made:
                self.tell(item)
                if self._token.cancelled and not self.gave_way:
                    raise Cancelled("cancelled")

    def tell(self, item: Any) -> None:
        """From the job: what the client gets next."""
        self._loop.call_soon_threadsafe(self._made.put_nowait, item)

    def _too_late(self) -> None:
        self.stop(
            Refusal(
                503, f"the request took longer than the {self._limit:g} seconds allowed", "request_timeout"
            )
        )

    def give_way(self) -> None:
        """A stream that runs ends as if it were complete, since another request has come."""
        if self._running and self.streams:
            self.stop(GaveWay())

    @property
    def gave_way(self) -> bool:
        return isinstance(self._reason, GaveWay)

    def stop(self, reason: Exception | None = None) -> None:
        """Any number of times, also when it has ended; in the event loop or in a signal handler."""
        self._reason = self._reason or reason
        self._token.cancel()
        if not self._running:
            self._task.cancel()

    async def next(self) -> Any:
        """What the job makes next. Raises what it raised, and StopAsyncIteration at its end."""
        item = await self._made.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def when_done(self, call: Callable[[Work], None]) -> None:
        """Once the model's thread is free of it."""
        self._task.add_done_callback(lambda _: call(self))
