"""Who may use the context: one generation after another, in whatever threads."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Final

from ..errors import StateError
from .cancel import CancelToken
from .native.plan import Part

PATIENCE: Final = 1.0
"""Seconds after which a stream that nobody takes tokens from makes way; it goes on where it was, later."""

_TICK: Final = 0.1


class Turn:
    """One generation, from its first token to its end. Between its steps it is a suspended generator."""

    def __init__(self, question: tuple[Part, ...] = (), messages: Sequence[Mapping[str, Any]] = ()) -> None:
        self.tokens = CancelToken.entered()
        self.n_stable: int | None = None  # tokens of its prompt that later turns begin with; None: all
        self.question = question  # tokens of its prompt that ask; empty: not told
        self.messages = messages  # that its prompt was made of; empty: not known
        self.echoes_logprobs = False  # whether logits of each token of its prompt are needed
        self.echoes_whole = False  # which are told of with the answer's, at its end
        self.rewritten = False  # whether later turns begin with less than its messages
        self.prompt: Sequence[int] = ()  # tokens of a completion
        self.answer: list[int] = []  # behind these, so far
        self.cut_off = b""  # the answer that llama_cpp leaves out of a completion, for the context was full
        self.aside: Any = None  # what the context held for it, while others use that
        self.lost = False  # there was no memory to set it aside
        self.thread = 0  # that took its last token
        self.stepped = 0.0  # when

    def n_compacted(self, n_prompt: int) -> int:
        """Tokens of its prompt of n_prompt that are compacted, as later turns begin with them."""
        return n_prompt if self.n_stable is None or self.n_stable <= 0 else self.n_stable


class Turns:
    """Hands out the context.

    A call waits while another thread computes, and while another thread takes tokens from a stream. It does
    not wait for a stream that its own thread takes tokens from, nor for one that nobody has taken tokens
    from for PATIENCE seconds: nobody may ever do it again, or only when this call has returned. Such a
    stream is displaced: the caller sets aside what it needs to go on.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        # its own thread may take it again: see leave(). Entered and left in C, where no interrupt comes
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[object] = deque()  # first come, first served
        self._running: int | None = None  # the thread that computes
        self.current: Turn | None = None  # whose step that is, if it is one
        self._holder: Turn | None = None  # whose tokens the context holds
        self._closed = self._waking = False

    @property
    def forked(self) -> bool:
        """Whether this is a child of the process that the threads of llama.cpp live in."""
        return os.getpid() != self._pid

    def require_own_process(self) -> None:
        if self.forked:
            raise StateError(
                f"this Llama belongs to process {self._pid} and cannot be used in its child {os.getpid()}: "
                'load the model there, or start processes by "spawn"'
            )

    @property
    def held(self) -> bool:
        """Whether what the context holds is of a turn that has not ended."""
        return self._holder is not None

    @property
    def inside(self) -> bool:
        """Whether this thread computes already: what it calls is a part of that."""
        return self._running == threading.get_ident() and not self.forked

    @contextmanager
    def entered(
        self, turn: Turn | None, tokens: tuple[CancelToken, ...] = (), closing: bool = False
    ) -> Iterator[Turn | None]:
        """Use the context; turn: whose step this is, None for a call of its own. Yields who is displaced.

        tokens: each ends the waiting too.
        """
        self.require_own_process()
        if self.inside:
            yield None
            return
        me = threading.get_ident()
        try:  # an interrupt may come at any moment
            with self._lock:
                self._wait(me, turn, tokens, closing)
                self._running, self.current = me, turn
            yield self._holder if self._holder is not turn else None
        finally:
            with self._lock:
                if self._running == me:
                    self._running = self.current = None
                    if turn is not None and self._holder is turn:
                        turn.thread, turn.stepped = me, monotonic()
                    self._wake()

    def _wait(self, me: int, turn: Turn | None, tokens: tuple[CancelToken, ...], closing: bool) -> None:
        place = object()
        try:
            self._waiting.append(place)
            while True:
                if self._closed and not closing:
                    raise StateError("this Llama has been closed")
                for token in tokens:
                    token._raise_if_cancelled()
                holder, patience = self._holder, float("inf")
                if self._running is None:
                    if closing or (holder in (None, turn) and self._waiting[0] is place):
                        return
                    if holder is not None and (holder is turn or holder.thread == me):
                        return
                    if holder is not None and self._waiting[0] is place:
                        patience = holder.stepped + PATIENCE - monotonic()
                        if patience <= 0:
                            return
                if tokens:  # whose cancel() may be called by a signal handler, which cannot wake
                    patience = min(patience, _TICK)
                self._changed.wait(None if patience == float("inf") else patience)
        finally:
            if place in self._waiting:  # not if interrupted at once
                self._waiting.remove(place)
            self._wake()

    def _wake(self) -> None:
        """Under the lock, but the garbage collector may bring the same thread here again from within."""
        if not self._waking:
            self._waking = True
            try:
                self._changed.notify_all()
            finally:
                self._waking = False

    def hold(self, turn: Turn | None) -> None:
        """For those inside: from now on the context holds the tokens of this turn; None: of no turn."""
        with self._lock:
            self._holder = turn

    def leave(self, turn: Turn) -> None:
        """The turn has ended. May be called at any moment, by the garbage collector too."""
        turn.aside = None
        if self.forked:  # another thread may have held the lock
            return
        with self._lock:
            if self._holder is turn:
                self._holder = None
                self._wake()

    def idle(self, seconds: float) -> bool:
        """Whether nobody computes, at the latest after that time."""
        with self._lock:
            return self._changed.wait_for(lambda: self._running is None, seconds)

    def close(self) -> None:
        """Those who wait, and those who come, get StateError."""
        with self._lock:
            self._closed = True
            self._wake()
