"""What a model's GGUF file says of its shape, and which files a split model has."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from .._core.gguf import Gguf, model_id
from ..errors import ScoresError, UnsupportedError

SPLIT = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")  # how llama.cpp names the files of a split model


def model_shape(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """(n_layer, n_head, n_head_kv) of a model, from its metadata. Draft heads behind its layers do not count.

    Raises ScoresError for what is no readable model, UnsupportedError where layers differ in their heads.
    """
    name = os.fspath(path)
    model_id(name)  # finds whatever is wrong with the file
    found = Gguf(name)
    architecture = found.text("general.architecture")
    if architecture is None:
        raise ScoresError(f"{name} names no architecture: it is no model")

    def count(key: str, n_layer: int | None = None) -> int | None:
        values = found.integers(f"{architecture}.{key}")
        if values is None:
            return None
        values = values[:n_layer]
        if len(set(values)) > 1:
            raise UnsupportedError(f"{name} has layers of different {architecture}.{key}")
        if not values or values[0] < 1:
            raise ScoresError(f"{name} has no usable {architecture}.{key}")
        return values[0]

    n_layer = count("block_count")
    if n_layer is not None:
        n_layer -= max(found.integers(f"{architecture}.nextn_predict_layers") or [0])
        if n_layer < 1:
            raise ScoresError(f"{name} has draft heads alone, and no layers")
    n_head = count("attention.head_count", n_layer)
    if n_layer is None or n_head is None:
        raise ScoresError(f"{name} does not say how many layers and heads it has: it is no model")
    n_head_kv = count("attention.head_count_kv", n_layer) or n_head
    if n_head % n_head_kv != 0:
        raise ScoresError(f"{name} has {n_head} query heads, which its {n_head_kv} KV heads do not divide")
    return n_layer, n_head, n_head_kv


def n_parts(path: str | os.PathLike[str]) -> int:
    """How many files the model is split into. path: a file that the native library has read before."""
    return max(Gguf(os.fspath(path)).integers("split.count") or [1])


def parts(path: Path) -> list[Path]:
    """The files of a split model, by the names that llama.cpp gives them; of others the file itself."""
    match = SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    return sorted(path.parent.glob(f"{glob.escape(match[1])}-*-of-{match[2]}.gguf"))
