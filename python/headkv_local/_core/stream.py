"""What a generator in the model's thread yields, taken on an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Final

from ..errors import StateError
from .turns import PATIENCE

AHEAD: Final = 64
"""Items that the generator may be ahead of who takes them."""

Work = Callable[[Any], None]


class Stream:
    """Items of begin(llm), made ahead of time.

    The model's thread makes items until there is no room for more, waits for a second, and then turns to
    other work; it comes back when items have been taken.
    """

    def __init__(
        self,
        begin: Callable[[Any], Any],
        step: Callable[[Work], None],
        submit: Callable[[Callable[[], None]], Future[None]],
    ) -> None:
        """step: calls work(llm), in the model's thread. submit: has that thread call something."""
        self._begin, self._step, self._submit = begin, step, submit
        self._steps: Iterator[Any] | None = None
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._changed = threading.Condition()  # guards what follows
        self._items: deque[Any] = deque()
        self._at_work = self._ended = False
        self._error: BaseException | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Any:
        while True:
            with self._changed:
                if not (self._at_work or self._ended) and len(self._items) < AHEAD:
                    self._resume()
                if self._items:
                    self._changed.notify()
                    return self._items.popleft()
                if self._ended:
                    if self._error is not None:
                        raise self._error
                    raise StopAsyncIteration
                self._news.clear()
            await self._news.wait()

    def close(self) -> None:
        """No more is taken. The generator ends in its own thread: stop what it computes before."""
        with self._changed:
            ended, self._ended = self._ended, True
            self._changed.notify()
        if not ended:
            with suppress(RuntimeError):  # the thread has ended
                self._submit(self._end_steps)

    def _resume(self) -> None:
        self._at_work = True
        try:
            self._submit(self._pump)
        except RuntimeError:
            self._at_work, self._ended = False, True
            self._error = StateError("this Llama has been closed")

    def _pump(self) -> None:
        try:
            self._step(self._fill)
        except BaseException as error:  # raised where it is awaited
            self._end(error)
        with self._changed:
            self._at_work = False
        self._tell()

    def _fill(self, llm: Any) -> None:
        if self._steps is None:
            self._steps = iter(self._begin(llm))
        for item in self._steps:
            with self._changed:
                self._items.append(item)
                self._tell()
                has_room = self._changed.wait_for(
                    lambda: self._ended or len(self._items) < AHEAD, timeout=PATIENCE
                )
                if self._ended or not has_room:
                    return
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._ended, self._error = True, error
        self._tell()

    def _end_steps(self) -> None:
        close = getattr(self._steps, "close", None)
        if close is not None:
            close()

    def _tell(self) -> None:
        with suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._news.set)
