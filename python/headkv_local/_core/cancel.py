"""CancelToken: a request to stop that may come before the work has begun."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

from ..errors import Cancelled


class _Stoppable(Protocol):
    def _stop_for(self, token: CancelToken) -> None: ...


# a context of its own for each thread and task
_entered: ContextVar[tuple[CancelToken, ...]] = ContextVar("headkv_cancel_tokens", default=())


class CancelToken:
    """Stops the calls that were begun under it, and no others.

        stop = CancelToken()

        def work():                                  # in a thread of its own
            with stop:
                return llm.create_chat_completion(messages)

        stop.cancel()                                # at any time, also before the thread has begun

    The calls raise Cancelled, also those to come: a token is for one piece of work and is not used again.
    Where several are entered, one inside of the other, calls are begun under all of them. A stream belongs
    to those that it was begun under.
    """

    def __init__(self) -> None:
        self._cancelled = False
        self._at_work: list[_Stoppable] = []

    @property
    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> None:
        """Ask for the stop; from any thread or a signal handler, any number of times."""
        self._cancelled = True  # first: who begins now sees it, who has begun is in the list
        for llm in tuple(self._at_work):
            llm._stop_for(self)

    def __enter__(self) -> CancelToken:
        _entered.set((*_entered.get(), self))
        return self

    def __exit__(self, *_: object) -> None:
        entered = list(_entered.get())
        if self in entered:  # else it is left in another context than entered, as generators may be
            entered.remove(self)
            _entered.set(tuple(entered))

    @staticmethod
    def entered() -> tuple[CancelToken, ...]:
        """The tokens that calls of this thread or task are begun under."""
        return _entered.get()

    def _begin(self, llm: _Stoppable) -> None:
        self._at_work.append(llm)

    def _end(self, llm: _Stoppable) -> None:
        if llm in self._at_work:  # else an interrupt came before _begin()
            self._at_work.remove(llm)

    def _raise_if_cancelled(self) -> None:
        if self._cancelled:
            raise Cancelled("cancelled")


def raise_if_cancelled() -> None:
    """Between parts of a long piece of work: raises Cancelled where a token that it was begun under is."""
    for token in CancelToken.entered():
        token._raise_if_cancelled()
