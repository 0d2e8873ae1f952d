"""A model and its contexts without memory for their tensors: llama.cpp counts what these would take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import llama_cpp

from ..errors import ArgumentError, LoadMemoryError
from ..machine import memory_free
from . import templates  # noqa: F401 - a chat template that is broken is no reason to fail here
from .load import explained_load_errors
from .native.archive import begin_small

_CELL_BYTES = 48  # of host memory: position, place in space, shift and sequences of a cell


class Unloaded(llama_cpp.Llama):  # type: ignore[misc]
    """A llama_cpp.Llama that is good for nothing else: its weights are nowhere."""

    def __init__(self, model_path: str, kwargs: dict[str, Any]) -> None:
        """kwargs: of llama_cpp.Llama."""
        self.batch: int = kwargs.get("n_batch", 512)  # llama_cpp's n_batch is cut to its context
        self.ubatch: int = min(self.batch, kwargs.get("n_ubatch", 512))
        adapter = kwargs.get("lora_path")
        self.is_mapped = bool(kwargs.get("use_mmap", True)) and not adapter
        self.adapter_bytes = os.path.getsize(adapter) if adapter else 0
        with explained_load_errors():
            super().__init__(
                model_path, **{**kwargs, "n_ctx": min(self.batch, 512), "lora_path": None, "verbose": False}
            )

    @property
    def model_params(self) -> llama_cpp.llama_model_params:
        """As llama_cpp's constructor makes them, but for what is loaded."""
        params = self._model_params
        params.no_alloc, params.load_mode = True, llama_cpp.LLAMA_LOAD_MODE_NONE
        return params

    @model_params.setter
    def model_params(self, params: llama_cpp.llama_model_params) -> None:
        self._model_params = params

    @property
    def logits_all(self) -> bool:
        return bool(self._logits_all)

    def n_key(self) -> int:
        """Floats of a query of one head, in the layers that retain."""
        told = self.metadata.get(f"{self.metadata['general.architecture']}.attention.key_length")
        if told is not None:
            return int(told)
        n_heads = int(llama_cpp.llama_model_n_head(self.model))
        return int(llama_cpp.llama_model_n_embd(self.model)) // max(1, n_heads)

    @contextmanager
    def sized(
        self, n_ctx: int, small: bool = False, one_output: bool = False, asked: int | None = None
    ) -> Iterator[int]:
        """A context of n_ctx positions.

        small: with the few cells that it has before a prompt that is read layer by layer, or after
        compaction. one_output: with room for the logits of one token, as it is when cells have changed.
        asked: positions that batches are cut to; None for n_ctx.
        """
        require_countable(n_ctx)
        params = type(self.context_params).from_buffer_copy(self.context_params)
        params.n_ctx = n_ctx
        most = asked or n_ctx
        params.n_batch, params.n_ubatch = min(most, self.batch), min(most, self.ubatch)
        if one_output:
            params.n_outputs_max = 1
        begin_small(small)
        try:
            with explained_load_errors():
                ctx = llama_cpp.llama_init_from_model(self.model, params)
                if not ctx:
                    raise ValueError("Failed to create llama_context")
        finally:
            begin_small(False)
        try:
            yield int(ctx)
        finally:
            llama_cpp.llama_free(ctx)


def require_countable(n_ctx: int) -> None:
    """Raise for a context whose cells alone, without what they hold, are more than there is memory."""
    if n_ctx < 1:
        raise ArgumentError(f"a context has at least 1 token, not {n_ctx}")
    free = memory_free()
    if free is not None and n_ctx * _CELL_BYTES > free:
        raise LoadMemoryError(
            f"Failed to create llama_context: no memory for a context of {n_ctx} tokens: make n_ctx smaller",
            setting="n_ctx",
        )
