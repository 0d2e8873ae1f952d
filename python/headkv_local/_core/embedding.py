"""Texts that are embedded: llama.cpp ends the process for some that llama_cpp hands on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import llama_cpp
import numpy as np

from .._gguf.reading import metadata
from ..errors import ArgumentError
from .context import Context

_SEQUENCES: Final = 256  # at most in a batch of llama_cpp's embeddings


def require_room_for_means(path: str, kwargs: dict[str, Any]) -> None:
    """ArgumentError for a ubatch of fewer tokens than sequences, whose means it is to have."""
    pooling = kwargs.get("pooling_type", llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED)
    if pooling == llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED:
        pooling = next(iter(metadata(path).get("pooling_type", [])), None)
    if not kwargs.get("embedding") or pooling != llama_cpp.LLAMA_POOLING_TYPE_MEAN:
        return
    n_ubatch, n_ctx = kwargs.get("n_ubatch", 512), kwargs.get("n_ctx", 512)
    least = min(kwargs.get("n_batch", 512), _SEQUENCES)
    if isinstance(n_ctx, int | np.integer) and n_ctx > 0:
        least = min(least, n_ctx)
    if n_ubatch < least:
        raise ArgumentError(
            f"n_ubatch must be at least {least} for embeddings that are means, not {n_ubatch}"
        )


@contextmanager
def embeddable(llm: llama_cpp.Llama, context: Context, given: Any) -> Iterator[str | list[Any]]:
    """What is given, of which llama_cpp makes batches meanwhile that llama.cpp takes.

    Raises ArgumentError for an input without tokens, over which llama_cpp writes where it must not, and for
    one of more tokens than are read at once, EncoderError for a model that makes no embeddings.
    """
    if llm.model_params.vocab_only or (
        llama_cpp.llama_model_has_decoder(llm._model.model) and llm._ctx.memory is not None
    ):
        context.require_generating("no text can be embedded: ")
    texts = [given] if isinstance(given, str) else list(given)
    if not texts:
        raise ArgumentError("input is an empty list: there is nothing to embed")
    for i, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            continue  # llama_cpp says what it is
        n_tokens = len(llm.tokenize(text.encode("utf-8")))
        if n_tokens == 0:
            raise ArgumentError(f"input {i} has no tokens: there is nothing to embed")
        if context.n_at_once < context.n_batch:  # llama_cpp would cut it off
            context.require_at_once(n_tokens, f"input {i} has")
    if llm.context_params.embeddings:
        llm.reset()  # the first batch clears the cache, and llama_cpp forgets the tokens only after the last
    n_batch, llm.n_batch = llm.n_batch, min(llm.n_batch, context.n_at_once)
    try:
        yield given if isinstance(given, str) else texts
    finally:
        llm.n_batch = n_batch
