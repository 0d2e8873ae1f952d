"""What the cache held after a prompt was read, to start from again: one copy in host memory, no logits."""

from __future__ import annotations

import ctypes

import llama_cpp
import numpy as np
import numpy.typing as npt

from headkv_local import Llama, StateError

_SEQ = 0


class KeptState:
    """llama_cpp's own save_state() makes three copies, and a full cache of a long prompt takes gigabytes."""

    def __init__(self, llm: llama_cpp.Llama) -> None:
        size = llama_cpp.llama_state_seq_get_size(llm.ctx, _SEQ)
        self._tokens = llm.input_ids[: llm.n_tokens].copy()
        self._data: npt.NDArray[np.uint8] = np.empty(size, dtype=np.uint8)
        if llama_cpp.llama_state_seq_get_data(llm.ctx, self._pointer(), size, _SEQ) == 0:
            raise StateError("the cache's state could not be copied")

    def restore(self, llm: llama_cpp.Llama) -> None:
        """Into the context that it was taken of. The logits are not restored."""
        llm.reset()
        if llama_cpp.llama_state_seq_set_data(llm.ctx, self._pointer(), self._data.size, _SEQ) == 0:
            raise StateError("the cache's state could not be put back")
        llm.input_ids[: len(self._tokens)] = self._tokens
        llm.n_tokens = len(self._tokens)

    @classmethod
    def of_beginning(cls, llm: Llama, tokens: list[int]) -> KeptState:
        """Of the full cache behind these tokens, which are read."""
        llm.reset()
        llm.retention = None
        if tokens:
            llm.eval(tokens)
        return cls(llm)

    def _pointer(self) -> ctypes._Pointer[ctypes.c_uint8]:
        return self._data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
