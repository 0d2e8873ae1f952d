"""What a model's GGUF file says of its shape, and which files a split model has."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from .._core.gguf import Gguf, model_id
from ..errors import ScoresError

SPLIT = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")  # how llama.cpp names the files of a split model


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
    n_layer = n_blocks[0] - max(found.integers(f"{architecture}.nextn_predict_layers") or [0])
    if n_layer < 1:
        raise ScoresError(f"{name} has draft heads alone, and no layers")
    return n_layer


def n_parts(path: str | os.PathLike[str]) -> int:
    """How many files the model is split into. path: a file that the native library has read before."""
    return max(Gguf(os.fspath(path)).integers("split.count") or [1])


def parts(path: Path) -> list[Path]:
    """The files of a split model, by the names that llama.cpp gives them; of others the file itself."""
    match = SPLIT.fullmatch(path.name)
    if match is None:
        return [path]
    return sorted(path.parent.glob(f"{glob.escape(match[1])}-*-of-{match[2]}.gguf"))
