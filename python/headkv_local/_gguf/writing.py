"""Writing GGUF metadata: a file of its own, or into a copy of a model. A file appears whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .._core.gguf import SIDECAR, Gguf
from ..errors import ArgumentError

Value = int | float | str | npt.NDArray[np.floating] | npt.NDArray[np.uint32]

PREFIX = "headkv."


def write_metadata(path: Path, values: Mapping[str, Value]) -> None:
    """A GGUF file with these keys and no tensors. ArgumentError for an empty text: gguf leaves it out."""
    from gguf import GGUFValueType, GGUFWriter

    writer = GGUFWriter(path, SIDECAR)
    for key, value in values.items():
        if isinstance(value, str):
            if not value:
                raise ArgumentError(f"{key} must not be empty")
            writer.add_string(key, value)
        elif isinstance(value, np.ndarray):
            kind = GGUFValueType.FLOAT32 if value.dtype == np.float32 else GGUFValueType.UINT32
            writer.add_key_value(key, value.tolist(), GGUFValueType.ARRAY, kind)
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
