"""CacheStats from the native library's numbers, or from the model's shape where there are none."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import llama_cpp
import numpy as np
import numpy.typing as npt

from .._gguf.reading import VALUE_BYTES
from ..errors import ArgumentError, StateError, UnsupportedError
from ..stats import CacheStats, PromptRecord
from . import ggml, native
from .compactor import Compactor
from .prompts import PromptTracker


def stats(llm: llama_cpp.Llama, ctx: int, prompts: PromptTracker) -> CacheStats:
    """Of one moment, whatever other threads do."""
    while True:
        prompt = prompts.record
        try:
            found = _native_stats(ctx, prompt)
        except UnsupportedError:
            return _stock_stats(llm, prompt)
        if prompts.record is prompt:  # else another thread has begun or compacted one since
            return found


def mask(stats_now: Callable[[], CacheStats], compactor: Compactor) -> npt.NDArray[np.bool_]:
    """(n_layer, n_head_kv, n_prompt)"""
    while True:
        found = stats_now()
        if not found.compacted:
            heads = found.kept > 0  # there may be fewer in some layers
            return np.repeat(heads[..., None], found.prompt_tokens, axis=2)
        with suppress(StateError, ArgumentError):  # another thread has changed the cache since
            return compactor.mask()


def _native_stats(ctx: int, prompt: PromptRecord) -> CacheStats:
    """UnsupportedError for a context that can never be compacted."""
    shape = native.model_shape(ctx)
    numbers, kept = native.get_stats(ctx)
    compacted = numbers.n_prompt > 0
    if compacted:
        n_prompt = numbers.n_prompt
        n_tail = numbers.n_tokens - n_prompt
    else:
        n_prompt, n_tail = _divided(numbers.n_tokens, prompt)
        kept = np.where(shape.heads, np.int32(n_prompt), np.int32(0))
    return CacheStats(
        prompt_tokens=n_prompt,
        tail_tokens=n_tail,
        turn_tokens=_turn_end(n_prompt + n_tail, n_prompt, prompt),
        n_ctx=numbers.n_ctx,
        compacted=compacted,
        policy=prompt.policy if compacted else "full",
        scores_from=prompt.scores_from if compacted else None,
        kept=kept,
        row_bytes=shape.row_bytes,
        layers=shape.layers,
        full_bytes=numbers.bytes_full,
        resident_bytes=numbers.bytes_cells + numbers.bytes_kept + numbers.bytes_record,
        pool_bytes=numbers.bytes_kept,
        tail_bytes=numbers.bytes_cells if compacted else 0,
        peak_bytes=numbers.bytes_peak,
        prefill_seconds=prompt.prefill_seconds,
        select_seconds=numbers.t_select_us / 1e6 if compacted else 0.0,
        compact_seconds=numbers.t_compact_us / 1e6 if compacted else 0.0,
        devices=_devices(ctx),
        archive_bytes=numbers.bytes_archive,
        archive_tokens=numbers.n_archived,
        n_splits=numbers.n_splits,
    )


def _stock_stats(llm: llama_cpp.Llama, prompt: PromptRecord) -> CacheStats:
    """llama.cpp tells no sizes of its stock cache: computed for all layers at n_ctx cells."""
    model = llm.model
    n_layer = llama_cpp.llama_model_n_layer(model)
    n_head_kv = row_bytes = 0
    if n_layer > 0:  # else only the vocabulary is loaded: llama.cpp ends the process
        n_head_kv, row_bytes = llama_cpp.llama_model_n_head_kv(model), sum(_head_bytes(llm))
    full = n_layer * n_head_kv * row_bytes * llm.n_ctx()
    n_prompt, n_tail = _divided(llm.n_tokens, prompt)
    return CacheStats(
        prompt_tokens=n_prompt,
        tail_tokens=n_tail,
        turn_tokens=_turn_end(n_prompt + n_tail, n_prompt, prompt),
        n_ctx=llm.n_ctx(),
        compacted=False,
        policy="full",
        scores_from=None,
        kept=np.full((n_layer, n_head_kv), n_prompt, dtype=np.int32),
        row_bytes=row_bytes,
        full_bytes=full,
        resident_bytes=full,
        pool_bytes=0,
        tail_bytes=0,
        peak_bytes=full,
        prefill_seconds=prompt.prefill_seconds,
        select_seconds=0.0,
        compact_seconds=0.0,
        devices=_devices(llm.ctx),
    )


def _devices(ctx: int) -> tuple[str, ...]:
    """Names of the devices that hold the cache; the CPU's where there is none."""
    held = zip(ggml.device_names(), native.get_device_bytes(ctx), strict=True)
    return tuple(name for name, n_bytes in held if n_bytes > 0) or ("CPU",)


def _divided(n_tokens: int, prompt: PromptRecord) -> tuple[int, int]:
    """Tokens of the prompt and behind it."""
    n_prompt = n_tokens if prompt.n_tokens is None else min(prompt.n_tokens, n_tokens)
    return n_prompt, n_tokens - n_prompt


def _turn_end(n_tokens: int, n_prompt: int, prompt: PromptRecord) -> int:
    turns = prompt.turns_within(n_tokens)
    return turns[-1][0] if turns else n_prompt


def _head_bytes(llm: llama_cpp.Llama) -> tuple[int, int]:
    """Bytes of K and of V of one entry of one KV head."""
    n_head = max(llama_cpp.llama_model_n_head(llm.model), 1)
    default = llm.n_embd() // n_head
    key = llm.metadata.get("general.architecture", "") + ".attention.{}_length"

    def size(kind: str, ggml_type: int) -> int:
        return int(int(llm.metadata.get(key.format(kind), default)) * VALUE_BYTES[ggml_type])

    return size("key", llm.context_params.type_k), size("value", llm.context_params.type_v)
