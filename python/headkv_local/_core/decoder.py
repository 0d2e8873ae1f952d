"""llama_cpp.Llama with an eval() that can be cancelled, and with errors that leave it usable."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from ..errors import (
    ArgumentError,
    BatchError,
    Cancelled,
    ContextFullError,
    DecodeMemoryError,
    HeadKVError,
    InternalError,
    StateError,
    UnsupportedError,
)
from ..machine import default_threads
from . import native
from .context import Context
from .logging import collected_errors
from .threads import FreeCores

_ONE_PART = 256  # cells of a full cache that one thread looks at alone, whatever their number
_DECODE_FAILED = re.compile(r"llama_decode returned (-?\d+)")


class Decoder(Context):
    """Whatever goes wrong in eval(): n_tokens and the KV cache agree, and the next call works."""

    input_ids: npt.NDArray[np.intc]
    scores: npt.NDArray[np.single]

    _n_logits = 0  # tokens that the last decode has left logits of
    _free_cores: FreeCores | None = None  # where the caller leaves the number of threads open

    def _choose_threads(self, kwargs: dict[str, Any]) -> None:
        """For llama_cpp's constructor, which would take half of the machine's CPUs."""
        if not kwargs.get("n_threads"):
            self._free_cores = FreeCores()
        for name in ("n_threads", "n_threads_batch"):
            kwargs[name] = kwargs.get(name) or default_threads()

    def _fit_threads(self) -> None:
        """Before a token is decoded. Not where the result would depend on it: flash attention over a longer
        full cache adds up as many parts as there are threads."""
        cores = self._free_cores
        if cores is None or cores.default == 1:
            return
        free = self.n_tokens < _ONE_PART or not self.context_params.flash_attn_type or self._compacted()
        n_threads = cores.threads() if free else cores.default
        llama_cpp.llama_set_n_threads(self._ctx.ctx, n_threads, self.n_threads_batch)

    def _compacted(self) -> bool:
        try:
            return native.get_stats(self._address)[0].n_prompt > 0
        except UnsupportedError:
            return False

    def _wait(self) -> None:
        """Until all that was asked for is computed: a decode returns while a GPU is still at it."""
        llama_cpp.llama_synchronize(self._ctx.ctx)

    def _logits(self) -> npt.NDArray[np.float32] | None:
        """llama.cpp's own logits of the token decoded last, (n_vocab,); None where there are none."""
        if self._n_logits == 0:  # llama.cpp would complain
            return None
        row = llama_cpp.llama_get_logits_ith(self._ctx.ctx, -1)
        return np.ctypeslib.as_array(row, (self._n_vocab,)) if row else None

    def _make_room(self) -> None:
        """llama.cpp rounds the context up; llama_cpp's own arrays of it become as long here."""
        n_ctx = self.n_ctx()
        self.input_ids = _lengthened(self.input_ids, n_ctx, self.n_tokens)
        if self._logits_all:
            self.scores = _lengthened(self.scores, n_ctx, self.n_tokens)

    def reset(self) -> None:
        """Forget all tokens. A compacted cache gets room again with the next prompt."""
        with self._using():
            super().reset()
            if self._ctx.memory is not None:
                self._ctx.kv_cache_seq_rm(-1, 0, -1)

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """As llama_cpp.Llama.embed()."""
        with self._using():
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
                if len(piece) == 1:
                    self._fit_threads()
                super().eval(piece)
                self._n_logits = len(piece) if self._logits_all else 1
                done(len(piece))

    def _require_known(self, tokens: Sequence[int]) -> None:
        if len(tokens) > 0 and not (min(tokens) >= 0 and max(tokens) < self._n_vocab):
            bad = next(token for token in tokens if not 0 <= token < self._n_vocab)
            raise ArgumentError(f"token {bad} is none of the model's: they go from 0 to {self._n_vocab - 1}")

    def sample(self, *args: Any, idx: int | None = None, **kwargs: Any) -> int:
        """As llama_cpp.Llama.sample(); StateError where there are no logits, which llama.cpp aborts on."""
        with self._using(beside=True):
            if self._requires_eval or (idx is not None and not 0 < self.n_tokens - idx <= self._n_logits):
                raise StateError(
                    f"there are no logits {'yet' if idx is None else f'of position {idx}'}: evaluate tokens "
                    "first, with logits_all=True for those of other tokens than the last one"
                )
            token: int = super().sample(*args, idx=idx, **kwargs)
            return token

    def _require_room(self, n_new: int) -> None:
        room, n_all = self._n_ctx, self.n_tokens + n_new
        if n_all > room:
            raise ContextFullError(
                f"the context of {room} tokens is full: it holds {self.n_tokens}, and {n_new} more do not "
                f"fit (Requested tokens ({n_all}) exceed context window of {room})"
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
            reason = native.last_error() or reason
        text = f"llama_decode returned {code}: {reason or 'llama.cpp gave no reason'}"
        if code == -1:
            return BatchError(text)
        if code == -2 or "memory" in reason:
            return DecodeMemoryError(text)
        if code == 1:
            return ContextFullError(text)
        return InternalError(text)


def _lengthened(array: Any, n: int, n_used: int) -> Any:
    """n rows, the first n_used those of the array. What is not used takes no memory yet."""
    if len(array) == n:
        return array
    longer = np.zeros((n, *array.shape[1:]), dtype=array.dtype)
    longer[:n_used] = array[:n_used]
    return longer
