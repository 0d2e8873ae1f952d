"""llama.cpp's context, as llama_cpp.Llama has made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import llama_cpp
import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, EncoderError
from .failures import unknown_token
from .lifetime import Closed, close_at_exit

_open: Final[set[Context]] = set()
"""So that none is freed before its Llama closes: of objects that refer to each other in a circle, the garbage
collector ends any first."""


class Context:
    """Of one Llama that is loaded, until that is closed."""

    def __init__(self, llm: llama_cpp.Llama) -> None:
        """llm: is not held here, for it has this, and is to be freed at once when nobody has it any more."""
        self._ctx, self._batch = llm._ctx, llm._batch
        self._is_recurrent = bool(llm._is_recurrent or llm._is_hybrid)
        self.n_ctx, self.n_batch, self.n_vocab = int(llm._n_ctx), int(llm.n_batch), int(llm._n_vocab)
        self.logits_all = bool(llm._logits_all)
        self._no_answer = ""
        if llm.model_params.vocab_only:
            self._no_answer = "the model was loaded with vocab_only, so it has no weights"
        elif llama_cpp.llama_model_has_encoder(llm._model.model):
            self._no_answer = "the model has an encoder"
        elif self._ctx.memory is None:
            self._no_answer = "the model keeps no cache"
        self.flash_attn = bool(llm.context_params.flash_attn_type)
        self.n_at_once = self.n_batch
        if self._ctx.memory is None or not llama_cpp.llama_get_causal_attn(self.pointer):
            self.n_at_once = min(self.n_batch, int(llm.context_params.n_ubatch))  # each looks at all others
        _open.add(self)
        close_at_exit(llm)

    def end(self) -> None:
        """It is freed."""
        self._ctx = self._batch = Closed()
        _open.discard(self)

    @property
    def pointer(self) -> llama_cpp.llama_context_p:
        return self._ctx.ctx

    def decode(self, tokens: Sequence[int], n_past: int) -> None:
        """Tokens after the first n_past, up to n_batch; what the cache holds after those is dropped."""
        self.cut(n_past)
        self._batch.set_batch(batch=tokens, n_past=n_past, logits_all=self.logits_all)
        self._ctx.decode(self._batch)

    def cut(self, n_tokens: int) -> bool:
        """Keep the first n_tokens in the cache. False, and nothing is done, where that cannot be."""
        return bool(self._ctx.kv_cache_seq_rm(-1, n_tokens, -1))

    def clear(self) -> None:
        memory = self._ctx.memory
        if memory is None:  # as embedding models may be
            return
        if self._is_recurrent:
            llama_cpp.llama_memory_clear(memory, True)
        self.cut(0)

    def wait(self) -> None:
        """Until all that was asked for is computed: a decode returns while a GPU is still at it."""
        llama_cpp.llama_synchronize(self._ctx.ctx)

    def logits(self) -> npt.NDArray[np.float32] | None:
        """llama.cpp's own of the token decoded last, (n_vocab,). It complains where there are none."""
        row = llama_cpp.llama_get_logits_ith(self._ctx.ctx, -1)
        return np.ctypeslib.as_array(row, (self.n_vocab,)) if row else None

    def all_logits(self, n: int) -> npt.NDArray[np.float32]:
        """llama.cpp's own of the n tokens in the batch decoded last, (n, n_vocab)."""
        rows: Any = llama_cpp.llama_get_logits(self._ctx.ctx)
        return np.ctypeslib.as_array(rows, (n, self.n_vocab))

    def require_generating(self, what: str = "") -> None:
        """Raise EncoderError where a decode would end the process, or find no cache. what: begins it."""
        if self._no_answer:
            raise EncoderError(f"{what}{self._no_answer}")

    def require_at_once(self, n_tokens: int, what: str) -> None:
        """ArgumentError for more tokens in a batch than llama.cpp takes: it would end the process."""
        if n_tokens > self.n_at_once:
            raise ArgumentError(
                f"{what} {n_tokens} tokens, and this model reads {self.n_at_once} at once, each of which "
                "looks at all others: make n_ubatch larger"
            )

    def require_known(self, tokens: Sequence[int] | npt.NDArray[np.int32]) -> None:
        """ArgumentError for tokens that the model does not have."""
        if len(tokens) > 0 and not (min(tokens) >= 0 and max(tokens) < self.n_vocab):
            bad = next(token for token in tokens if not 0 <= token < self.n_vocab)
            raise unknown_token(bad, self.n_vocab)
