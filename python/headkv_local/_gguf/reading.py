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
    found, architecture = _metadata(name)
    n_layer = _n_layers(found, architecture, name)
    n_head = _count(found, f"{architecture}.attention.head_count", name, n_layer)
    if n_head is None:
        raise _no_shape(name)
    n_head_kv = _count(found, f"{architecture}.attention.head_count_kv", name, n_layer) or n_head
    if n_head % n_head_kv != 0:
        raise ScoresError(f"{name} has {n_head} query heads, which its {n_head_kv} KV heads do not divide")
    return n_layer, n_head, n_head_kv


def n_layers(path: str | os.PathLike[str]) -> int:
    """See models.n_layers()."""
    name = os.fspath(path)
    return _n_layers(*_metadata(name), name)


def _n_layers(found: Gguf, architecture: str, name: str) -> int:
    n_layer = _count(found, f"{architecture}.block_count", name)
    if n_layer is None:
        raise _no_shape(name)
    n_layer -= max(found.integers(f"{architecture}.nextn_predict_layers") or [0])
    if n_layer < 1:
        raise ScoresError(f"{name} has draft heads alone, and no layers")
    return n_layer


def _metadata(name: str) -> tuple[Gguf, str]:
    """And the architecture."""
    model_id(name)  # finds whatever is wrong with the file
    found = Gguf(name)
    architecture = found.text("general.architecture")
    if architecture is None:
        raise ScoresError(f"{name} names no architecture: it is no model")
    return found, architecture


def _count(found: Gguf, key: str, name: str, n_layer: int | None = None) -> int | None:
    """A number, or that of each of the first n_layer layers, which have to be alike."""
    values = found.integers(key)
    if values is None:
        return None
    values = values[:n_layer]
    if len(set(values)) > 1:
        raise UnsupportedError(f"{name} has layers of different {key}")
    if not values or values[0] < 1:
        raise ScoresError(f"{name} has no usable {key}")
    return values[0]


def _no_shape(name: str) -> ScoresError:
    return ScoresError(f"{name} does not say how many layers and heads it has: it is no model")


def n_parts(path: str | os.PathLike[str]) -> int:
    """How many files the model is split into. path: a file that the native library has read before."""
    return max(Gguf(os.fspath(path)).integers("split.count") or [1])


def parts(path: Path) -> list[Path]:
    """The files of a split model, by the names that llama.cpp gives them; of others the file itself."""
    match = SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    return sorted(path.parent.glob(f"{glob.escape(match[1])}-*-of-{match[2]}.gguf"))
