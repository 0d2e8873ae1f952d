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
    "nextn_predict_layers",
    "embedding_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
)
_BESIDE: Final = 512 << 20  # at most beside what tokens take
_UNLIKE: Final = (
    "attention.causal",  # of models without a cache: it says no
    "attention.kv_lora_rank",
)

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
        values = {key: found.integers(f"{arch}.{key}") for key in (*_KEYS, *_UNLIKE)}
        return {
            key: value for key, value in values.items() if value or (value is not None and key in _UNLIKE)
        }
    return {}


def token_bytes(numbers: Numbers, type_k: int = _F16, type_v: int = _F16) -> int:
    """Full KV cache per token in bytes if all layers have one, 0 if the metadata does not tell."""
    n_draft = numbers.get("nextn_predict_layers", [0])[0]
    layers = max(0, numbers.get("block_count", [0])[0] - n_draft)
    heads = numbers.get("attention.head_count", [0])
    kv_heads = numbers.get("attention.head_count_kv", heads)
    n_kv_heads = sum(kv_heads[:layers]) if len(kv_heads) > 1 else layers * kv_heads[0]
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
    """Raise LoadMemoryError where a prompt that fills the context needs more than all memory there is.

    A system that promises more memory than it has, or a container's limit, would end the process once the
    cache is written to. Of a GPU only what is read layer by layer is counted, for which a context is small
    at first: of any other its driver says when it has no room.
    """
    by_layers = retention is not None and retention.by_layers
    found = gpus() if kwargs.get("n_gpu_layers") and kwargs.get("offload_kqv", True) else ()
    in_host, numbers = memory_total(), metadata(path)
    if in_host is None or (found and not by_layers) or any(key in numbers for key in _UNLIKE):
        return
    n_ctx = kwargs.get("n_ctx", 512) or numbers.get("context_length", [0])[0]
    types = (kwargs.get(name) for name in ("type_k", "type_v"))
    most = n_ctx * token_bytes(numbers, *(_F16 if kind is None else kind for kind in types))
    if retention is not None:  # kept rows, or an archive, and hidden states
        most = 2 * most + _BESIDE
    if not found and most <= in_host:  # without looking closer
        return
    totals = {gpu.name: gpu.bytes_total for gpu in found}
    with Estimator(path, retention, kwargs) as estimator:
        estimate = estimator.at(n_ctx)
    for device in estimate.devices:
        there = totals.get(device.name, in_host)
        needed = device.peak(estimate.order)
        if device.name not in totals:  # the system may drop weights; llama.cpp says where it cannot compute
            needed -= device.weights + device.compute
        if needed > there:
            advice = "make n_ctx smaller"
            if retention is not None and not (by_layers and retention.archive not in (None, "memory")):
                advice += ', or keep an archive in a file (Retention(archive="PATH"))'
            raise LoadMemoryError(
                f"Failed to create llama_context: {n_ctx} tokens take {_gib(needed)} of KV cache and what "
                f"goes with it on {device.name}, and this process may use {_gib(there)}: {advice}",
                setting="n_ctx",
            )


def _gib(n: float) -> str:
    return f"{n / 2**30:.1f} GiB"
