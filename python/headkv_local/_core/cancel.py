"""CancelToken: a request to stop that may come before the work has begun."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar, Token
from typing import Protocol

from ..errors import Cancelled


class _Stoppable(Protocol):
    def _stop_for(self, token: CancelToken) -> None: ...


_current: ContextVar[CancelToken | None] = ContextVar("headkv_cancel_token", default=None)


class CancelToken:
    """Stops the calls that were begun under it, and no others.

        stop = CancelToken()

        def work():                                  # in a thread of its own
            with stop:
                return llm.create_chat_completion(messages)

        stop.cancel()                                # at any time, also before the thread has begun

    The calls raise Cancelled, also those to come: a token is for one piece of work and is not used again.
    A stream belongs to the token that it was begun under.
    """

    def __init__(self) -> None:
        self._cancelled = False
        self._at_work: list[_Stoppable] = []
        self._before: list[Token[CancelToken | None]] = []

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Ask for the stop; from any thread or a signal handler, any number of times."""
        self._cancelled = True  # first: who begins now sees it, who has begun is in the list
        for llm in tuple(self._at_work):
            llm._stop_for(self)

    def __enter__(self) -> CancelToken:
        self._before.append(_current.set(self))
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ValueError):  # left in another context than entered, as generators may be
            _current.reset(self._before.pop())

    @staticmethod
    def current() -> CancelToken | None:
        """The token that calls of this thread or task are begun under."""
        return _current.get()

    def _begin(self, llm: _Stoppable) -> None:
        self._at_work.append(llm)

    def _end(self, llm: _Stoppable) -> None:
        self._at_work.remove(llm)

    def _raise_if_cancelled(self) -> None:
        if self._cancelled:
            raise Cancelled("cancelled")
