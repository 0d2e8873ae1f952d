"""The size of the context, where the command line leaves it open."""

from __future__ import annotations

import ctypes
import os

import llama_cpp

from headkv_local._logging import collected_errors
from headkv_local._machine import memory_total
from headkv_local.chat.options import MAX_CTX_BYTES
from headkv_local.chat.render import size
from headkv_local.errors import ArgumentError

FALLBACK_CTX = 4096  # for a file that does not say what it was trained for
_BYTES_PER_VALUE = 2  # the cache holds f16

_NAMES = (
    "context_length",
    "block_count",
    "embedding_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
)


def choose_context(path: bytes, wanted: int | None) -> int:
    """Context size for the model at `path`: `wanted` (0: what it was trained for), None: one that fits it.

    Raises ArgumentError if the machine has not the memory for `wanted`. A file that cannot be read is
    let through: loading it for real will say what is wrong.
    """
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True  # the metadata alone: no tensor is read
    with collected_errors():
        model = llama_cpp.llama_model_load_from_file(path, params)
    if model is None:
        return wanted or FALLBACK_CTX
    try:
        numbers = _numbers(model)
    finally:
        llama_cpp.llama_model_free(model)
    there = memory_total()
    if wanted is None:
        return default_context(numbers, None if there is None else there - os.path.getsize(path))
    wanted = wanted or numbers.get("context_length", 0) or FALLBACK_CTX
    # A system that promises more memory than it has would kill the process once the cache is written to.
    needed = wanted * token_bytes(numbers)
    if there is not None and needed > there:
        raise ArgumentError(
            f"{wanted} tokens take {size(needed)} of KV cache, and {size(there)} of memory may be used here: "
            "choose a smaller --ctx"
        )
    return wanted


def default_context(numbers: dict[str, int], free: int | None = None) -> int:
    """What the model was trained for, or as many tokens as MAX_CTX_BYTES of full cache hold.

    numbers: the model's metadata, by the names of the GGUF keys without their architecture. free: bytes of
    memory besides the weights, None where that is not known; the cache takes half of them at most.
    """
    trained, cost = numbers.get("context_length", 0), token_bytes(numbers)
    if trained <= 0 or cost <= 0:
        return FALLBACK_CTX
    most = MAX_CTX_BYTES if free is None else min(MAX_CTX_BYTES, free // 2)
    return max(min(trained, most // cost), 1)


def token_bytes(numbers: dict[str, int]) -> int:
    """Full KV cache per token in bytes, 0 if the metadata does not tell."""
    n_head = numbers.get("attention.head_count", 0)
    n_head_kv = numbers.get("attention.head_count_kv", n_head)
    d_head = numbers.get("embedding_length", 0) // max(n_head, 1)
    d_row = numbers.get("attention.key_length", d_head) + numbers.get("attention.value_length", d_head)
    return numbers.get("block_count", 0) * n_head_kv * d_row * _BYTES_PER_VALUE


def _numbers(model: llama_cpp.llama_model_p) -> dict[str, int]:
    """The integer values under the model's architecture. Lists (a value per layer) are left out."""
    arch = _value(model, "general.architecture")
    values = {name: _value(model, f"{arch}.{name}") for name in _NAMES}
    return {name: int(value) for name, value in values.items() if value.isdecimal()}


def _value(model: llama_cpp.llama_model_p, key: str) -> str:
    buffer = ctypes.create_string_buffer(128)
    length = llama_cpp.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer))
    return buffer.value.decode("utf-8", errors="replace") if length >= 0 else ""
