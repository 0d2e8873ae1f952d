"""Who uses a context, and until when: in turns, until it is closed or a call is cancelled."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from time import monotonic
from typing import Any, Final, NoReturn
from weakref import WeakSet

from ..errors import Cancelled, StateError, UnsupportedError
from . import native
from .cancel import CancelToken
from .failures import advised
from .turns import Turn, Turns


class Closed:
    """Stands for a freed context, model or batch: llama_cpp would go on with a dangling pointer."""

    def __getattr__(self, name: str) -> NoReturn:
        raise StateError("this Llama has been closed")


Switch = Callable[[Any, Turn], None]

_PATIENCE: Final = 2.0
"""Seconds that the end of the process waits for calls of threads that it does not wait for otherwise."""

_llamas: Final[WeakSet[Any]] = WeakSet()
_adding: Final = threading.Lock()


def close_at_exit(llm: Any) -> None:
    """When Python ends, it empties modules and ends objects in any order: a context before its Llama."""
    with _adding:
        _llamas.add(llm)


@atexit.register
def _close_all() -> None:
    """One that cannot be closed in time, or at all, is left as it is, and the others are closed."""
    with _adding:
        open_now = tuple(_llamas)
    failed: BaseException | None = None
    for llm in open_now:
        llm._lifetime.stop()
    deadline = monotonic() + _PATIENCE
    for llm in open_now:
        try:
            if llm._lifetime.is_left_by(deadline):
                llm.close()
                continue
        except BaseException as error:  # it is told of once the others are closed
            failed = failed or error
        llm._abandon()
    if failed is not None:
        raise failed


class Lifetime:
    """One call at a time uses the context, in whatever thread; the end waits for it."""

    def __init__(self, set_aside: Switch, bring_back: Switch) -> None:
        """set_aside, bring_back: called with a user and a turn, to take what the context holds of the turn
        out of it, or to put it there again."""
        self._set_aside, self._bring_back = set_aside, bring_back
        self.turns = Turns()
        # held for moments; its own thread may take it again. Entered and left in C, where no interrupt comes
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._still: dict[object, int] = {}  # the thread of each still()
        self.cancelled = False
        self._closed = self._freeing = self._freed = self._abandoned = False
        self._alone = False
        self._tokens: tuple[CancelToken, ...] = ()  # that the running call was begun under
        self._ctx: int | None = None  # which has the native library's abort callback

    def make_cancellable(self, ctx: int) -> None:
        """Where that can be: a running decode is stopped then, else only the next one."""
        try:  # gives the context its abort callback
            native.cancel_enable(ctx)
        except UnsupportedError:
            return
        self._ctx = ctx

    def require_open(self) -> None:
        if self._closed:
            raise StateError("this Llama has been closed")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """A native call that calls back: the context is in the middle of something meanwhile."""
        before, self._alone = self._alone, True
        try:
            yield
        finally:
            self._alone = before

    @contextmanager
    def ended(self) -> Iterator[bool]:
        """Cancel the call that runs, wait for it, let no other in. Whether all is still to be freed.

        StateError in the middle of a call of this thread: in what it calls back, or in a signal's handler.
        """
        if self._freeing and self.turns.inside:  # in the middle of this
            yield False
            return
        with self._lock:
            if self.turns.inside or threading.get_ident() in self._still.values():
                raise StateError("this Llama cannot be closed in the middle of a call that needs it")
        self.stop()
        with self.turns.entered(None, closing=True):
            with self._lock:
                self._changed.wait_for(lambda: not self._still)
            self._freeing = True
            yield not self._freed
            self._freed = True

    @property
    def abandoned(self) -> bool:
        """Whether nothing is freed: in a child made by fork(), whose locks may never be opened, or where the
        process ends in the middle of a call."""
        return self._abandoned or self.turns.forked

    def abandon(self) -> None:
        self._closed = self._freed = self._abandoned = True

    def stop(self) -> None:
        """Cancel the call that runs, and let no other begin."""
        if self.abandoned:
            return
        with self._lock:
            if not self._closed:
                self._closed = True
                self._stop()
        self.turns.close()

    def is_left_by(self, deadline: float) -> bool:
        """Whether nobody is in a call any more, by that time of the monotonic clock."""
        if self.abandoned:
            return True
        with self._lock:
            still = self._changed.wait_for(lambda: not self._still, max(0.0, deadline - monotonic()))
        return still and self.turns.idle(max(0.0, deadline - monotonic()))

    def cancel(self) -> None:
        with nullcontext() if self.turns.forked else self._lock:  # a child has no other threads
            self.require_open()
            self._stop()

    @contextmanager
    def still(self) -> Iterator[None]:
        """The context is not freed meanwhile, beside whatever call. StateError where it is closed.

        However long it takes, cancel() does not wait for it.
        """
        if self.turns.forked:  # a child has no other threads, and none that opens a lock
            self.require_open()
            yield
            return
        mine, me = object(), threading.get_ident()
        try:  # an interrupt may come at any moment
            with self._lock:
                self.require_open()
                self._still[mine] = me
            yield
        finally:
            with self._lock:
                self._still.pop(mine, None)
                self._changed.notify_all()

    def _stop(self) -> None:
        self.cancelled = True
        if self._ctx is not None:
            native.cancel(self._ctx)

    def _stop_for(self, token: CancelToken) -> None:
        with self._lock:
            if token in self._tokens and not self._closed:
                self._stop()

    def forget_cancel(self) -> None:
        with self._lock:
            if self._closed:
                return
            self.cancelled = False
            if self._ctx is not None:
                native.cancel_clear(self._ctx)

    def begin(self) -> None:
        """A prompt begins: requests to stop were meant for what came before, other than its own tokens'."""
        self.forget_cancel()
        for token in self._tokens:
            token._raise_if_cancelled()

    @contextmanager
    def cancellable(self) -> Iterator[None]:
        """Work of its own, which a cancel ends. One that came before was meant for what came before: a stream
        that goes on afterwards still gets it."""
        pending = self.cancelled and self.turns.held
        self.begin()
        try:
            yield
        except Cancelled:
            self.forget_cancel()
            raise
        finally:
            with self._lock:
                if pending and self.turns.held and not self._closed:  # it may have ended meanwhile
                    self._stop()

    @contextmanager
    def stopping(self, ctx: Any) -> Iterator[None]:
        """Work that llama_cpp does batch by batch: a cancel ends it before the next one. ctx: llama_cpp's."""
        decode = ctx.decode

        def unless_cancelled(batch: Any) -> None:
            if self.cancelled:
                raise Cancelled("cancelled")
            decode(batch)

        with self.cancellable():
            ctx.decode = unless_cancelled
            try:
                yield
            finally:
                del ctx.decode  # the class has it

    @contextmanager
    def _under(self, tokens: tuple[CancelToken, ...]) -> Iterator[None]:
        """Stop what is done meanwhile when one of them says so, and do not begin if it has said so."""
        try:  # an interrupt may come at any moment
            with self._lock:
                self._tokens = tokens
            for token in tokens:
                token._begin(self)
            for token in tokens:
                token._raise_if_cancelled()
            yield
        finally:
            for token in tokens:
                token._end(self)
            with self._lock:
                self._tokens = ()
                if any(token.cancelled for token in tokens):  # it was meant for nothing else
                    self.forget_cancel()

    @contextmanager
    def used(self, user: Any, turn: Turn | None = None, beside: bool = False) -> Iterator[None]:
        """Use the context, for a step of a turn or a call of its own.

        user: whose context it is, for set_aside() of another turn and bring_back() of this one.
        beside: the call goes on in what a stream of this thread has left there, and the stream after it.
        """
        if self.turns.inside:
            self.require_open()
            if self._alone:
                raise StateError("the context cannot be used in a callback of the call that computes")
            if turn is not None and turn is not self.turns.current:
                raise StateError("a generation cannot go on in a callback of the call that computes")
            yield
            return
        tokens = CancelToken.entered() if turn is None else turn.tokens
        with self.turns.entered(turn, tokens) as displaced:
            self.require_open()
            try:
                with self._under(tokens) if tokens else nullcontext():
                    if displaced is not None and not (beside and displaced.thread == threading.get_ident()):
                        self._set_aside(user, displaced)
                        self.turns.hold(None)
                    if turn is not None:
                        self.turns.hold(turn)
                        self._bring_back(user, turn)
                    yield
            except MemoryError as error:
                explained = advised(error)
                if explained is error:
                    raise
                raise explained from error
