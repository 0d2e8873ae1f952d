"""A llama_cpp.Llama that several threads can use: in turns, until it is closed or a call is cancelled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

import llama_cpp
from llama_cpp.llama_tokenizer import LlamaTokenizer

from ..errors import OutOfMemoryError, StateError, UnsupportedError
from . import native
from .cancel import CancelToken
from .turns import Turn, Turns


class _Closed:
    """Stands for a freed context, model or batch: llama_cpp would go on with a dangling pointer."""

    def __getattr__(self, name: str) -> NoReturn:
        raise StateError("this Llama has been closed")


class Context(llama_cpp.Llama):  # type: ignore[misc]
    """One call at a time uses the context, in whatever thread; close() ends it and waits for it."""

    _closed = True  # until the parent has something to close
    _freed = False
    _cancelled = False
    _cancellable = False  # whether the native library has been given the abort callback
    _token: CancelToken | None = None  # that the running call was begun under

    def _open(self) -> None:
        self._turns = Turns()
        self._closing = threading.RLock()  # held for moments, in which the context is not freed
        self._closed = False

    def close(self) -> None:
        """Free model and context. Every later call raises StateError; closing twice is fine.

        A call that runs in another thread is cancelled first, and waited for: an on_prefill callback must
        not wait in turn for the thread that closes. In a child made by fork() nothing is freed.
        """
        if "_closing" not in self.__dict__:
            return  # the constructor had nothing to close yet
        if self._turns.forked:
            self._abandon()
            return
        with self._closing:
            if not self._closed:
                self._closed = True
                self._stop()
        self._turns.close()
        with self._turns.entered(None, closing=True):
            if self._freed:
                return
            # what looks something up meanwhile finds these, not what is being freed
            model = self.__dict__.get("_model")
            self.__dict__.update(dict.fromkeys(("_ctx", "_model", "_batch", "tokenizer_"), _Closed()))
            if model is not None:
                model.vocab = _Closed()  # a tokenizer that was handed out holds it
            if "_stack" in self.__dict__:
                super().close()
            if model is not None:
                model.model = _Closed()
            self._freed = True

    def _abandon(self) -> None:
        """Free nothing: threads and device memory are the parent process's, and locks may never be opened."""
        self._closed = self._freed = True
        for owner in (self, *(self.__dict__.get(name) for name in ("_model", "_ctx", "_batch"))):
            for stack in ("_stack", "_exit_stack"):
                if stack in getattr(owner, "__dict__", {}):
                    vars(owner)[stack].pop_all()

    def cancel(self) -> None:
        """Make the call that runs now raise Cancelled; to be called from another thread, or a signal handler.

        It takes effect inside of the running decode, or before the next one where the model or the settings
        cannot be compacted. What was decoded until then stays in the KV cache. A request that nothing was
        stopped by is forgotten when the next prompt begins: a CancelToken remembers it.
        """
        with self._still():
            self._require_open()
            self._stop()

    def _still(self) -> AbstractContextManager[object]:
        """For moments, in which the context is not freed. A forked child has no other threads."""
        return nullcontext() if self._turns.forked else self._closing

    def _stop(self) -> None:
        self._cancelled = True
        if self._cancellable:
            native.cancel(self._address)

    def _make_cancellable(self) -> None:
        try:
            native.cancel_enable(self._address)
        except UnsupportedError:
            return
        self._cancellable = True

    def _stop_for(self, token: CancelToken) -> None:
        with self._closing:
            if self._token is token and not self._closed:
                self._stop()

    @contextmanager
    def _under(self, token: CancelToken | None) -> Iterator[None]:
        """Stop what is done meanwhile when the token says so, and do not begin if it has said so."""
        if token is None:
            yield
            return
        with self._closing:
            self._token = token
        token._begin(self)
        try:
            token._raise_if_cancelled()
            yield
        finally:
            token._end(self)
            with self._closing:
                self._token = None
                if token.cancelled:  # it was meant for nothing else
                    self._forget_cancel()

    @contextmanager
    def _using(self, turn: Turn | None = None, beside: bool = False) -> Iterator[None]:
        """Use the context, for a step of a turn or a call of its own.

        beside: the call goes on in what a stream of this thread has left there, and the stream after it.
        """
        if self._turns.inside:
            self._require_open()
            if turn is not None and turn is not self._turns.current:
                raise StateError("a generation cannot go on in a callback of the call that computes")
            yield
            return
        token = CancelToken.current() if turn is None else turn.token
        with self._turns.entered(turn, token) as displaced:
            self._require_open()
            try:
                with self._under(token):
                    if displaced is not None and not (beside and displaced.thread == threading.get_ident()):
                        self._set_aside(displaced)
                        self._turns.hold(None)
                    if turn is not None:
                        self._turns.hold(turn)
                        self._bring_back(turn)
                    yield
            except MemoryError as error:
                advised = _advise(error)
                if advised is error:
                    raise
                raise advised from error

    def _set_aside(self, turn: Turn) -> None:
        raise NotImplementedError

    def _bring_back(self, turn: Turn) -> None:
        raise NotImplementedError

    @property
    def _address(self) -> int:
        address: int = self._ctx.ctx
        return address

    def _require_open(self) -> None:
        if self._closed:
            raise StateError("this Llama has been closed")

    def _forget_cancel(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._cancelled = False
            if self._cancellable:
                native.cancel_clear(self._address)

    def _begin(self) -> None:
        """A prompt begins: requests to stop were meant for what came before, other than its own token's."""
        self._forget_cancel()
        if self._token is not None:
            self._token._raise_if_cancelled()

    def _has_tokenizer(self) -> bool:
        return bool(llama_cpp.llama_vocab_type(self._model.vocab) != llama_cpp.LLAMA_VOCAB_TYPE_NONE)

    def _require_tokenizer(self) -> None:
        """Where there is none, llama.cpp ends the process."""
        if isinstance(self.tokenizer_, LlamaTokenizer) and not self._has_tokenizer():
            raise UnsupportedError("the model has no tokenizer: prefill(), eval() and generate() take tokens")

    def tokenize(self, *args: Any, **kwargs: Any) -> list[int]:
        """As llama_cpp.Llama.tokenize(); from any thread."""
        with self._still():
            self._require_open()
            self._require_tokenizer()
            tokens: list[int] = super().tokenize(*args, **kwargs)
            return tokens

    def detokenize(self, *args: Any, **kwargs: Any) -> bytes:
        """As llama_cpp.Llama.detokenize(); from any thread."""
        with self._still():
            self._require_open()
            self._require_tokenizer()
            text: bytes = super().detokenize(*args, **kwargs)
            return text


def _advise(error: MemoryError) -> OutOfMemoryError:
    """The same error with what to change; an OutOfMemoryError in place of Python's own."""
    advised = error if isinstance(error, OutOfMemoryError) else OutOfMemoryError(*error.args)
    if advised.setting is None:
        advised.setting = "n_ctx"
        advised.args = (f"{error or 'Python has no memory'}: make n_ctx smaller",)
    return advised
