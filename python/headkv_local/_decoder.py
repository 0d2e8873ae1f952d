"""llama_cpp.Llama with an eval() that can be cancelled, and with errors that leave it usable."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import llama_cpp
import numpy as np
import numpy.typing as npt

from . import _native
from ._logging import collected_errors
from .errors import (
    ArgumentError,
    Cancelled,
    ContextFullError,
    HeadKVError,
    InternalError,
    OutOfMemoryError,
    StateError,
)

_TOO_LONG = re.compile(r"Requested tokens \((\d+)\) exceed context window of (\d+)")
_DECODE_FAILED = re.compile(r"llama_decode returned (-?\d+)")


class _Closed:
    """Stands for a freed context, model or batch: llama_cpp would go on with a dangling pointer."""

    def __getattr__(self, name: str) -> NoReturn:
        raise StateError("this Llama has been closed")


class Decoder(llama_cpp.Llama):  # type: ignore[misc]
    """Whatever goes wrong in eval(): n_tokens and the KV cache agree, and the next call works.

    One call at a time uses the context, in whatever thread; close() ends it and waits for it.
    """

    input_ids: npt.NDArray[np.intc]
    scores: npt.NDArray[np.single]

    _closed = True  # until the parent has something to close
    _freed = False
    _cancelled = False
    _cancellable = False  # whether the native library has been given the abort callback
    _completing = False  # whether the next generate() is that of a completion
    _cut_off = b""  # the answer that llama_cpp leaves out of a completion, for the context was full
    _n_logits = 0  # tokens that the last decode has left logits of

    def _open(self) -> None:
        self._calls = threading.RLock()  # held by the call that uses the context
        self._closing = threading.RLock()  # held for moments, in which the context is not freed
        self._closed = False

    def close(self) -> None:
        """Free model and context. Every later call raises StateError; closing twice is fine.

        A call that runs in another thread is cancelled first, and waited for: an on_prefill callback must
        not wait in turn for the thread that closes.
        """
        if "_closing" not in self.__dict__:
            return  # the constructor had nothing to close yet
        with self._closing:
            if not self._closed:
                self._closed = True
                self._stop()
        with self._calls:
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

    def cancel(self) -> None:
        """Make the call that runs now raise Cancelled; to be called from another thread, or a signal handler.

        It takes effect inside of the running decode, or before the next one where the model or the settings
        cannot be compacted. What was decoded until then stays in the KV cache. A request that nothing was
        stopped by is forgotten when the next prompt begins.
        """
        with self._closing:
            self._require_open()
            self._stop()

    def _stop(self) -> None:
        self._cancelled = True
        if self._cancellable:
            _native.cancel(self._address)

    @property
    def _address(self) -> int:
        address: int = self._ctx.ctx
        return address

    def _wait(self) -> None:
        """Until all that was asked for is computed: a decode returns while a GPU is still at it."""
        llama_cpp.llama_synchronize(self._ctx.ctx)

    def _logits(self) -> npt.NDArray[np.float32] | None:
        """llama.cpp's own logits of the token decoded last, (n_vocab,); None where there are none."""
        if self._n_logits == 0:  # llama.cpp would complain
            return None
        row = llama_cpp.llama_get_logits_ith(self._ctx.ctx, -1)
        return np.ctypeslib.as_array(row, (self._n_vocab,)) if row else None

    def _require_open(self) -> None:
        if self._closed:
            raise StateError("this Llama has been closed")

    def _forget_cancel(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._cancelled = False
            if self._cancellable:
                _native.cancel_clear(self._address)

    def _make_room(self) -> None:
        """llama.cpp rounds the context up; llama_cpp's own arrays of it become as long here."""
        n_ctx = self.n_ctx()
        self.input_ids = _lengthened(self.input_ids, n_ctx, self.n_tokens)
        if self._logits_all:
            self.scores = _lengthened(self.scores, n_ctx, self.n_tokens)

    def reset(self) -> None:
        """Forget all tokens. A compacted cache gets room again with the next prompt."""
        with self._calls:
            self._require_open()
            super().reset()
            if self._ctx.memory is not None:
                self._ctx.kv_cache_seq_rm(-1, 0, -1)

    def tokenize(self, *args: Any, **kwargs: Any) -> list[int]:
        """As llama_cpp.Llama.tokenize(); from any thread."""
        with self._closing:
            self._require_open()
            tokens: list[int] = super().tokenize(*args, **kwargs)
            return tokens

    def detokenize(self, *args: Any, **kwargs: Any) -> bytes:
        """As llama_cpp.Llama.detokenize(); from any thread."""
        with self._closing:
            self._require_open()
            text: bytes = super().detokenize(*args, **kwargs)
            return text

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """As llama_cpp.Llama.embed()."""
        with self._calls:
            self._require_open()
            return super().embed(*args, **kwargs)

    def _evaluate(self, tokens: Sequence[int], done: Callable[[int], None] = lambda n: None) -> None:
        """Evaluate in pieces of n_batch tokens. done: called with the size of each piece."""
        self._require_known(tokens)
        self._require_room(len(tokens))
        with self._in_step():
            for start in range(0, len(tokens), self.n_batch):
                if self._cancelled:
                    raise Cancelled("cancelled")
                piece = tokens[start : start + self.n_batch]
                self._n_logits = 0
                super().eval(piece)
                self._n_logits = len(piece) if self._logits_all else 1
                done(len(piece))

    def _require_known(self, tokens: Sequence[int]) -> None:
        if len(tokens) > 0 and not (min(tokens) >= 0 and max(tokens) < self._n_vocab):
            bad = next(token for token in tokens if not 0 <= token < self._n_vocab)
            raise ArgumentError(f"token {bad} is none of the model's: they go from 0 to {self._n_vocab - 1}")

    def sample(self, *args: Any, idx: int | None = None, **kwargs: Any) -> int:
        """As llama_cpp.Llama.sample(); StateError where there are no logits, which llama.cpp aborts on."""
        with self._calls:
            self._require_open()
            if self._requires_eval or (idx is not None and not 0 < self.n_tokens - idx <= self._n_logits):
                raise StateError(
                    f"there are no logits {'yet' if idx is None else f'of position {idx}'}: evaluate tokens "
                    "first, with logits_all=True for those of other tokens than the last one"
                )
            token: int = super().sample(*args, idx=idx, **kwargs)
            return token

    def _require_room(self, n_new: int) -> None:
        room = self._n_ctx
        if self.n_tokens + n_new > room:
            raise ContextFullError(
                f"the context of {room} tokens is full: it holds {self.n_tokens}, and {n_new} more do not fit"
            )

    def _truncate(self, n_tokens: int) -> bool:
        """Keep the first n_tokens. False, and nothing is done, if a part of a compacted prompt would go."""
        if not self._ctx.kv_cache_seq_rm(-1, n_tokens, -1):
            return False
        self.n_tokens = n_tokens
        self._requires_eval = True
        return True

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """If decoding fails, drop what n_tokens does not count, and say what went wrong."""
        try:
            with collected_errors() as lines:
                yield
        except BaseException as error:
            failed = _DECODE_FAILED.search(str(error)) if type(error) is RuntimeError else None
            raised = error if failed is None else self._explained(int(failed[1]), lines)
            if isinstance(raised, Cancelled):
                self._forget_cancel()
            if not self._truncate(self.n_tokens):
                self.reset()
            if raised is error:
                raise
            raise raised from error

    def _explained(self, code: int, lines: list[str]) -> HeadKVError:
        """What a failed llama_decode means, see llama.h."""
        if code == 2:
            return Cancelled("cancelled")
        reason = "; ".join(lines)
        if code != -1:  # -1: the batch was refused before our cache was asked
            reason = _native.last_error(self._address) or reason
        text = f"llama.cpp could not decode (code {code}): {reason or 'it gave no reason'}"
        if code == -1:
            return ArgumentError(text)
        if code == -2 or "memory" in reason:
            return OutOfMemoryError(text)
        if code == 1:
            return ContextFullError(text)
        return InternalError(text)

    def _create_completion(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        self._require_open()
        self._completing, self._cut_off = True, b""  # for the generate() that this calls
        try:
            for result in super()._create_completion(*args, **kwargs):
                if self._cut_off and not kwargs.get("stream"):
                    result["choices"][0]["text"] += self._cut_off.decode("utf-8", errors="ignore")
                yield result
        except ValueError as error:
            found = _TOO_LONG.search(str(error))
            if found is None:
                raise
            raise ContextFullError(
                f"the prompt of {found[1]} tokens and an answer do not fit into the context of {found[2]}"
            ) from error
        finally:
            self._completing, self._cut_off = False, b""


def _lengthened(array: Any, n: int, n_used: int) -> Any:
    """n rows, the first n_used those of the array. What is not used takes no memory yet."""
    if len(array) == n:
        return array
    longer = np.zeros((n, *array.shape[1:]), dtype=array.dtype)
    longer[:n_used] = array[:n_used]
    return longer
