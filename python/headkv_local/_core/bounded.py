"""The layers of a model that are bounded already: those with a sliding window, and recurrent ones.

What is kept of a prompt is no matter of theirs, but they cannot go back as a KV cache of all positions can: a
window has forgotten what lay before it, and a recurrent state cannot take back a token.
"""

from __future__ import annotations

import ctypes

import llama_cpp
import numpy as np
import numpy.typing as npt

from ..errors import InternalError

Snapshot = npt.NDArray[np.uint8]

_PARTIAL = llama_cpp.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY  # of these layers alone
_SEQ = 0


class Bounded:
    """Of one context, as long as that lives."""

    def __init__(self, ctx: llama_cpp.llama_context_p, model: llama_cpp.llama_model_p) -> None:
        self._ctx, self._memory = ctx, llama_cpp.llama_get_memory(ctx)
        self.window = int(llama_cpp.llama_model_n_swa(model))
        """Tokens that a sliding window reaches back; 0 without one."""
        self.recurrent = bool(llama_cpp.llama_model_is_hybrid(model))

    def __bool__(self) -> bool:
        return self.recurrent or self.window > 0

    @property
    def n_held(self) -> int:
        """Tokens that the memory holds."""
        return int(llama_cpp.llama_memory_seq_pos_max(self._memory, _SEQ)) + 1

    def reaches(self, n_tokens: int) -> bool:
        """Whether sliding windows still hold what the token after the first n_tokens looks at.

        llama.cpp does not ask: it would go on without what is gone.
        """
        if self.window == 0:
            return True
        return bool(llama_cpp.llama_memory_seq_pos_min(self._memory, _SEQ) <= max(0, n_tokens - self.window))

    def snapshot(self) -> Snapshot:
        """What these layers hold now."""
        size = llama_cpp.llama_state_seq_get_size_ext(self._ctx, _SEQ, _PARTIAL)
        data = np.empty(size, dtype=np.uint8)
        written = llama_cpp.llama_state_seq_get_data_ext(self._ctx, _pointer(data), size, _SEQ, _PARTIAL)
        if written != size:
            raise InternalError("llama.cpp did not hand over the state of the model's bounded layers")
        return data

    def put_back(self, data: Snapshot) -> None:
        """Afterwards the tokens that came after the snapshot can be taken out of the KV cache."""
        taken = llama_cpp.llama_state_seq_set_data_ext(self._ctx, _pointer(data), len(data), _SEQ, _PARTIAL)
        if taken != len(data):
            raise InternalError("llama.cpp did not take back the state of the model's bounded layers")


def _pointer(data: Snapshot) -> ctypes.Array[ctypes.c_uint8]:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))  # type: ignore[return-value]
