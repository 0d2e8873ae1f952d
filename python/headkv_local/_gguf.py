"""Writing GGUF metadata: a file of its own, or into a copy of a model. A file appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .errors import ArgumentError, ScoresError

Value = int | float | str | npt.NDArray[np.float32]

ARCHITECTURE = "headkv"  # of a sidecar: no model loader takes it for a model
PREFIX = "headkv."

_COUNTS = struct.Struct("<QQ")  # tensors, keys
_COUNTS_AT = 8  # behind magic and version


def target(path: str | os.PathLike[str], *, force: bool) -> Path:
    """The path, if it may be written."""
    if Path(path).exists() and not force:
        raise ArgumentError(f"{os.fspath(path)} exists already: give another name, or force it")
    return Path(path)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside path that takes its place if all goes well, and is removed otherwise."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
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
    """Copy a GGUF file with its keys under `headkv.` replaced by these. Streamed, whatever its size."""
    added = path.with_name(path.name + ".keys")
    try:
        write_metadata(added, values)
        new_keys = [_bytes_of(added, f) for name, f in _fields(added).items() if name.startswith(PREFIX)]
    finally:
        added.unlink(missing_ok=True)

    reader = _reader(source)
    fields = {name: f for name, f in reader.fields.items() if not name.startswith("GGUF.")}
    kept = [f for name, f in fields.items() if not name.startswith(PREFIX)]
    keys_end = max(f.offset + _size(f) for f in fields.values())
    infos_end = max((t.field.offset + _size(t.field) for t in reader.tensors), default=keys_end)

    with source.open("rb") as old, path.open("wb") as new:
        new.write(old.read(_COUNTS_AT))
        new.write(_COUNTS.pack(len(reader.tensors), len(kept) + len(new_keys)))
        for f in kept:
            _copy(old, new, f.offset, _size(f))
        for key in new_keys:
            new.write(key)
        _copy(old, new, keys_end, infos_end - keys_end)
        if reader.tensors:
            new.write(bytes(-new.tell() % reader.alignment))
            old.seek(reader.data_offset)
            shutil.copyfileobj(old, new, 1 << 22)


def _reader(path: Path) -> Any:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ScoresError(f"{path} cannot be read as a GGUF file: {error}") from error
    if reader.byte_order != "I":
        raise ScoresError(f"{path} is of another byte order than this machine")
    return reader


def _fields(path: Path) -> dict[str, Any]:
    return dict(_reader(path).fields)


def _size(field: Any) -> int:
    return sum(int(part.nbytes) for part in field.parts)


def _bytes_of(path: Path, field: Any) -> bytes:
    with path.open("rb") as file:
        file.seek(field.offset)
        return file.read(_size(field))


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
