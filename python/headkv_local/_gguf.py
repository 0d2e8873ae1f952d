"""Writing GGUF metadata: a file of its own, or into a copy of a model. A file appears whole or not at all."""

from __future__ import annotations

import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from . import _native
from ._ggml import Gguf
from .errors import ArgumentError, ScoresError, UnsupportedError

Value = int | float | str | npt.NDArray[np.float32]

ARCHITECTURE = "headkv"  # of a sidecar: no model loader takes it for a model
PREFIX = "headkv."

SPLIT = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")  # how llama.cpp names the files of a split model


def target(path: str | os.PathLike[str], *, force: bool, model: str | os.PathLike[str] | None = None) -> Path:
    """The path, if it may be written. model: what it must not replace, nor any part of."""
    name, found = os.fspath(path), Path(path)
    if not found.name:
        raise ArgumentError(f"{name!r} is no name for a file")
    if found.exists() and not found.is_file():
        raise ArgumentError(f"{name} is not a file: give another name")
    if found.exists() and not force:
        raise ArgumentError(f"{name} exists already: give another name, or force it")
    kept = [] if model is None or not found.exists() else parts(Path(model))
    if any(part.exists() and found.samefile(part) for part in kept):
        raise ArgumentError(f"{name} is the model itself, which would be lost: give another name")
    return found


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes path's place if all goes well, and is gone otherwise.

    An OSError meanwhile becomes one that names path, the temporary file means nothing to anybody.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix="headkv-", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            shutil.copymode(path, temporary) if path.exists() else temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error


def write_metadata(path: Path, values: Mapping[str, Value]) -> None:
    """A GGUF file with these keys and no tensors."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(path, ARCHITECTURE)
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, np.ndarray):
            writer.add_key_value(key, value.tolist(), GGUFValueType.ARRAY, GGUFValueType.FLOAT32)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, int(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def copy_with_metadata(source: Path, path: Path) -> None:
    """Copy a GGUF file, its keys under `headkv.` replaced by those in path. Streamed, whatever its size.

    Both are files that the native library has read before.
    """
    found = Gguf(str(source))
    start = found.data_offset
    found.replace(PREFIX, Gguf(str(path)))
    with source.open("rb") as old, path.open("wb") as new:
        new.write(found.to_bytes())
        old.seek(start)
        shutil.copyfileobj(old, new, 1 << 22)


def model_shape(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """(n_layer, n_head, n_head_kv) of a model, from its metadata.

    Raises ScoresError for what is no readable model, UnsupportedError where layers differ in their heads.
    """
    name = os.fspath(path)
    _native.model_id(name)  # finds whatever is wrong with the file
    found = Gguf(name)
    architecture = found.text("general.architecture")
    if architecture is None:
        raise ScoresError(f"{name} names no architecture: it is no model")

    def count(key: str) -> int | None:
        values = found.integers(f"{architecture}.{key}")
        if values is None:
            return None
        if len(set(values)) > 1:
            raise UnsupportedError(f"{name} has layers of different {architecture}.{key}")
        if not values or values[0] < 1:
            raise ScoresError(f"{name} has no usable {architecture}.{key}")
        return values[0]

    n_layer, n_head = count("block_count"), count("attention.head_count")
    if n_layer is None or n_head is None:
        raise ScoresError(f"{name} does not say how many layers and heads it has: it is no model")
    n_head_kv = count("attention.head_count_kv") or n_head
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
