"""Runs one answer in a thread of its own, so that Ctrl-C is seen while a batch is computed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Generic, TypeVar

from headkv_local import CancelToken
from headkv_local.chat import echo
from headkv_local.chat.turn import Event

T = TypeVar("T")

TICK_SECONDS = 0.5
_IMPATIENT = 3  # that many Ctrl-C leave at once, should stopping ever hang


class _End:
    """Marks the end of the events."""


class Job(Generic[T]):
    """`work` in a thread. It is handed this job, to emit events; what it calls of a Llama can be stopped."""

    def __init__(self, work: Callable[[Job[T]], T]) -> None:
        self._work = work
        self._token = CancelToken()
        self._events: SimpleQueue[Event | _End] = SimpleQueue()
        self._interrupts = 0
        self._error: BaseException | None = None
        self._result: T | None = None
        self._thread = threading.Thread(target=self._run, name="answer", daemon=True)

    def emit(self, event: Event) -> None:
        """For the worker: show this."""
        self._events.put(event)

    def stop(self) -> None:
        """For any thread: what the worker calls of a Llama, now or later, raises Cancelled."""
        self._token.cancel()

    def run(self, show: Callable[[Event | None], None]) -> T:
        """Start, show every event in this thread (None: time has passed), return the result.

        Ctrl-C stops the worker and is not raised. What the worker or `show` raises is raised, but never
        before the worker has ended: nothing may close the model under it.
        """
        with interrupts(self._interrupted):
            self._thread.start()
            try:
                while not isinstance(event := self._next(), _End):
                    show(event)
            except BaseException:
                self.stop()
                raise
            finally:
                self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def _interrupted(self) -> None:
        self._interrupts += 1
        if self._interrupts >= _IMPATIENT:
            echo.restore()
            os._exit(130)
        self.stop()

    def _next(self) -> Event | _End | None:
        try:
            return self._events.get(timeout=TICK_SECONDS)
        except Empty:
            return None

    def _run(self) -> None:
        try:
            with self._token:
                self._result = self._work(self)
        except BaseException as error:
            self._error = error
        finally:
            self._events.put(_End())


def interrupts(handle: Callable[[], None] | None) -> AbstractContextManager[None]:
    """While inside, Ctrl-C calls `handle` instead of raising KeyboardInterrupt. None: it raises that."""

    def call(_signal: int, _frame: FrameType | None) -> None:
        if handle is not None:
            handle()

    return on_interrupt(signal.default_int_handler if handle is None else call)


@contextmanager
def on_interrupt(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    """While inside, this is done at Ctrl-C; nothing in a job that was started with it ignored."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
