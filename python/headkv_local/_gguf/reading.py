"""What a model's GGUF file says of its shape and its cache, and which files a split model has."""

from __future__ import annotations

import glob
import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

from .._core.gguf import Gguf, model_id
from ..errors import HeadKVError, ScoresError

SPLIT = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")  # how llama.cpp names the files of a split model

F16: Final = 1
VALUE_BYTES: Final = {
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
    "pooling_type",
)
UNLIKE: Final = (
    "attention.causal",  # of models without a cache: it says no
    "attention.kv_lora_rank",
)
"""Keys of models whose cache is not what token_bytes() counts."""

Numbers = dict[str, list[int]]


def metadata(path: str) -> Numbers:
    """Whole numbers under the model's architecture, by key without it; one, or one per layer.

    Empty for a file that cannot be read: loading it for real says what is wrong.
    """
    with suppress(OSError, ValueError):  # the latter of what is no name for a file
        status = os.stat(path)
        return _metadata(path, status.st_size, status.st_mtime_ns)
    return {}


@lru_cache(maxsize=4)  # asked for by tools that choose a context, and again when the model is loaded
def _metadata(path: str, size: int, changed: int) -> Numbers:
    with suppress(HeadKVError, OSError):
        model_id(path)  # finds whatever is wrong with the file
        found = Gguf(path)
        arch = found.text("general.architecture")
        values = {key: found.integers(f"{arch}.{key}") for key in (*_KEYS, *UNLIKE)}
        return {key: value for key, value in values.items() if value or (value is not None and key in UNLIKE)}
    return {}


def token_bytes(numbers: Numbers, type_k: int = F16, type_v: int = F16) -> int:
    """Full KV cache per token in bytes if all layers have one, 0 if the metadata does not tell."""
    layers = max(0, _n_layers(numbers.get("block_count", [0]), numbers.get("nextn_predict_layers")))
    heads = numbers.get("attention.head_count", [0])
    kv_heads = numbers.get("attention.head_count_kv", heads)
    n_kv_heads = sum(kv_heads[:layers]) if len(kv_heads) > 1 else layers * kv_heads[0]
    d_head = [numbers.get("embedding_length", [0])[0] // max(*heads, 1)]
    d_k, d_v = (numbers.get(f"attention.{name}_length", d_head)[0] for name in ("key", "value"))
    return int(n_kv_heads * (d_k * VALUE_BYTES[type_k] + d_v * VALUE_BYTES[type_v]))


def n_layers(path: str | os.PathLike[str]) -> int:
    """See models.n_layers()."""
    name = os.fspath(path)
    model_id(name)  # finds whatever is wrong with the file
    found = Gguf(name)
    architecture = found.text("general.architecture")
    if architecture is None:
        raise ScoresError(f"{name} names no architecture: it is no model")
    key = f"{architecture}.block_count"
    n_blocks = found.integers(key)
    if n_blocks is None:
        raise ScoresError(f"{name} does not say how many layers it has: it is no model")
    if not n_blocks or n_blocks[0] < 1:
        raise ScoresError(f"{name} has no usable {key}")
    n_layer = _n_layers(n_blocks, found.integers(f"{architecture}.nextn_predict_layers"))
    if n_layer < 1:
        raise ScoresError(f"{name} has draft heads alone, and no layers")
    return n_layer


def _n_layers(n_blocks: list[int], n_draft: list[int] | None) -> int:
    """Draft heads stand behind a model's layers, and do not count."""
    return n_blocks[0] - (n_draft or [0])[0]


def n_parts(path: str | os.PathLike[str]) -> int:
    """How many files the model is split into. path: a file that the native library has read before."""
    return max(Gguf(os.fspath(path)).integers("split.count") or [1])


def parts(path: Path) -> list[Path]:
    """The files of a split model, by the names that llama.cpp gives them; of others the file itself."""
    match = SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    return sorted(path.parent.glob(f"{glob.escape(match[1])}-*-of-{match[2]}.gguf"))
