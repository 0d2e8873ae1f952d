"""Writing GGUF metadata: a file of its own, or into a copy of a model. A file appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from . import _native
from ._gguf_layout import layout
from .errors import ArgumentError, ScoresError, UnsupportedError

Value = int | float | str | npt.NDArray[np.float32]

ARCHITECTURE = "headkv"  # of a sidecar: no model loader takes it for a model
PREFIX = "headkv."

_COUNTS = struct.Struct("<QQ")  # tensors, keys
_COUNTS_AT = 8  # behind magic and version


def target(path: str | os.PathLike[str], *, force: bool, model: str | os.PathLike[str] | None = None) -> Path:
    """The path, if it may be written. model: a file that it must not replace."""
    name, found = os.fspath(path), Path(path)
    if not found.name:
        raise ArgumentError(f"{name!r} is no name for a file")
    if found.exists() and not found.is_file():
        raise ArgumentError(f"{name} is not a file: give another name")
    if found.exists() and not force:
        raise ArgumentError(f"{name} exists already: give another name, or force it")
    if model is not None and found.exists() and Path(model).exists() and found.samefile(model):
        raise ArgumentError(f"{name} is the model itself, which would be lost: give another name")
    return found


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file that takes path's place if all goes well, and is gone otherwise.

    An OSError meanwhile becomes one that names path, the temporary file means nothing to anybody.
    """
    try:
        with _temporary(path.parent) as temporary:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            shutil.copymode(path, temporary) if path.exists() else temporary.chmod(0o666 & ~_umask())
            named = temporary if temporary.parent == path.parent else _given_a_name(temporary, path)
            try:
                named.replace(path)
            except OSError:
                named.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error


@contextmanager
def _temporary(folder: Path) -> Iterator[Path]:
    """A file in that folder's file system; where there is a way to, one without a name, so that a process
    that is killed leaves nothing behind.
    """
    try:
        handle = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    except (AttributeError, OSError):  # not Linux; or the file system has no such files
        named_handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
        os.close(named_handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)
        return
    try:
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


def _given_a_name(temporary: Path, path: Path) -> Path:
    """The unnamed file, complete by now, beside path: a link cannot replace what is there."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        named = path.with_name(f"{path.name}.{os.getpid()}.part")
        named.unlink(missing_ok=True)  # of an earlier process that was killed between linking and renaming
        os.link(temporary, named.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
        return named
    finally:
        os.close(folder)


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


def copy_with_metadata(source: Path, path: Path, values: Mapping[str, Value]) -> None:
    """Copy a GGUF file with its keys under `headkv.` replaced by these. Streamed, whatever its size.

    source: a file that the native library has read before.
    """
    with _temporary(Path(tempfile.gettempdir())) as added:
        write_metadata(added, values)
        content = added.read_bytes()
        new_keys = [
            content[key.start : key.end]
            for name, key in layout(added).keys.items()
            if name.startswith(PREFIX)
        ]

    found = layout(source)
    kept = [key for name, key in found.keys.items() if not name.startswith(PREFIX)]
    with source.open("rb") as old, path.open("wb") as new:
        new.write(old.read(_COUNTS_AT))
        new.write(_COUNTS.pack(found.n_tensors, len(kept) + len(new_keys)))
        for key in kept:
            _copy(old, new, key.start, key.end - key.start)
        new.writelines(new_keys)
        _copy(old, new, found.keys_end, found.infos_end - found.keys_end)
        if found.n_tensors > 0:
            new.write(bytes(found.aligned(new.tell()) - new.tell()))
            old.seek(found.aligned(found.infos_end))
            shutil.copyfileobj(old, new, 1 << 22)


def model_shape(path: str | os.PathLike[str]) -> tuple[int, int, int]:
    """(n_layer, n_head, n_head_kv) of a model, from its metadata.

    Raises ScoresError for what is no readable model, UnsupportedError where layers differ in their heads.
    """
    name = os.fspath(path)
    _native.model_id(name)  # finds whatever is wrong with the file
    keys = layout(Path(path)).keys
    architecture = keys["general.architecture"].value if "general.architecture" in keys else None
    if not isinstance(architecture, str):
        raise ScoresError(f"{name} names no architecture: it is no model")

    def count(key: str) -> int | None:
        if f"{architecture}.{key}" not in keys:
            return None
        value = keys[f"{architecture}.{key}"].value
        numbers = set(value) if isinstance(value, list) else {value}
        if len(numbers) > 1:
            raise UnsupportedError(f"{name} has layers of different {architecture}.{key}")
        number = numbers.pop() if numbers else None
        if type(number) is not int or number < 1:
            raise ScoresError(f"{name} has no usable {architecture}.{key}")
        return number

    n_layer, n_head = count("block_count"), count("attention.head_count")
    if n_layer is None or n_head is None:
        raise ScoresError(f"{name} does not say how many layers and heads it has: it is no model")
    n_head_kv = count("attention.head_count_kv") or n_head
    if n_head % n_head_kv != 0:
        raise ScoresError(f"{name} has {n_head} query heads, which its {n_head_kv} KV heads do not divide")
    return n_layer, n_head, n_head_kv


def _copy(old: BinaryIO, new: BinaryIO, offset: int, size: int) -> None:
    old.seek(offset)
    while size > 0:
        block = old.read(min(size, 1 << 22))
        if not block:
            raise ScoresError("the model file is shorter than its metadata says")
        new.write(block)
        size -= len(block)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
