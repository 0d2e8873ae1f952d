"""Writing GGUF metadata: a file of its own, or into a copy of a model. A file appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .._core.ggml import SIDECAR, Gguf
from ..errors import ArgumentError
from .reading import parts

Value = int | float | str | npt.NDArray[np.float32]

PREFIX = "headkv."


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

    writer = GGUFWriter(path, SIDECAR)
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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
