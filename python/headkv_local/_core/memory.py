"""What a context would take, from the model's metadata, before anything is loaded."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from ..devices import gpus
from ..errors import HeadKVError, LoadMemoryError
from ..machine import memory_total
from ..retention import Retention
from ..settings import AUTO
from .estimate import Estimator
from .gguf import Gguf, model_id
from .room import largest_context

_F16: Final = 1
_BYTES: Final = {
    0: 4.0,
    1: 2.0,
    30: 2.0,
    8: 34 / 32,
    6: 22 / 32,
    7: 24 / 32,
    2: 18 / 32,
    3: 20 / 32,
    20: 18 / 32,
}
"""Bytes per value of the cache's types, by ggml's numbers."""

_KEYS: Final = (
    "context_length",
    "block_count",
    "embedding_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
)
_UNLIKE: Final = (
    "attention.causal",  # of models without a cache: it says no
    "attention.kv_lora_rank",
)
_BOUNDED: Final = ("attention.sliding_window", "ssm.conv_kernel", "wkv.head_size")
_OTHER_CACHES: Final = (*_UNLIKE, *_BOUNDED)

Numbers = dict[str, list[int]]


def metadata(path: str) -> Numbers:
    """Whole numbers under the model's architecture, by key without it; one, or one per layer.

    Empty for a file that cannot be read: loading it for real says what is wrong.
    """
    with suppress(OSError):
        status = os.stat(path)
        return _metadata(path, status.st_size, status.st_mtime_ns)
    return {}


@lru_cache(maxsize=4)  # asked for by tools that choose a context, and again when the model is loaded
def _metadata(path: str, size: int, changed: int) -> Numbers:
    with suppress(HeadKVError, OSError):
        model_id(path)  # finds whatever is wrong with the file
        found = Gguf(path)
        arch = found.text("general.architecture")
        values = {key: found.integers(f"{arch}.{key}") for key in (*_KEYS, *_OTHER_CACHES)}
        return {
            key: value
            for key, value in values.items()
            if value or (value is not None and key in _OTHER_CACHES)
        }
    return {}


def token_bytes(numbers: Numbers, type_k: int = _F16, type_v: int = _F16) -> int:
    """Full KV cache per token in bytes if all layers have one, 0 if the metadata does not tell."""
    layers = numbers.get("block_count", [0])[0]
    heads = numbers.get("attention.head_count", [0])
    kv_heads = numbers.get("attention.head_count_kv", heads)
    n_kv_heads = sum(kv_heads) if len(kv_heads) > 1 else layers * kv_heads[0]
    d_head = [numbers.get("embedding_length", [0])[0] // max(*heads, 1)]
    d_k, d_v = (numbers.get(f"attention.{name}_length", d_head)[0] for name in ("key", "value"))
    return int(n_kv_heads * (d_k * _BYTES[type_k] + d_v * _BYTES[type_v]))


def with_context(path: str, retention: Retention | None, kwargs: dict[str, Any]) -> dict[str, Any]:
    """kwargs, with a number for n_ctx="auto". LoadMemoryError for one that is too large."""
    if kwargs.get("n_ctx") == AUTO:
        with Estimator(path, retention, kwargs) as estimator:
            return kwargs | {"n_ctx": largest_context(estimator)}
    refuse_too_large(path, retention, kwargs)
    return kwargs


def refuse_too_large(path: str, retention: Retention | None, kwargs: dict[str, Any]) -> None:
    """Raise LoadMemoryError for a KV cache that is larger than all memory that this process may use.

    With an archive in a file, one layer of it has to fit.

    A system that promises more memory than it has, or a container's limit, would end the process once the
    cache is written to. What may be on a GPU is left to llama.cpp: its driver says when it has no room.
    """
    there = memory_total()
    on_gpu = kwargs.get("n_gpu_layers") and kwargs.get("offload_kqv", True) and gpus()
    if there is None or on_gpu:
        return
    numbers = metadata(path)
    if any(key in numbers for key in _UNLIKE):
        return
    n_ctx = kwargs.get("n_ctx", 512) or numbers.get("context_length", [0])[0]
    types = (kwargs.get(name) for name in ("type_k", "type_v"))
    needed = n_ctx * token_bytes(numbers, *(_F16 if kind is None else kind for kind in types))
    n_layer = numbers.get("block_count", [1])[0]
    advice = "make n_ctx smaller"
    if retention is not None:
        if retention.by_layers and retention.archive not in (None, "memory"):
            needed, n_layer = needed // n_layer, 1
        else:
            advice += ', or keep an archive in a file (Retention(archive="PATH"))'
    if needed > there and any(key in numbers for key in _BOUNDED):  # it is less, but of one layer at least
        needed //= n_layer
        if needed <= there:
            with Estimator(path, retention, kwargs) as estimator:
                needed = estimator.at(n_ctx).cache_full
    if needed > there:
        raise _too_large(
            f"{n_ctx} tokens take {_gib(needed)} of KV cache, and this process may use {_gib(there)}: "
            f"{advice}"
        )


def _too_large(reason: str) -> LoadMemoryError:
    error = LoadMemoryError(f"Failed to create llama_context: {reason}")
    error.setting = "n_ctx"
    return error


def _gib(n: float) -> str:
    return f"{n / 2**30:.1f} GiB"
