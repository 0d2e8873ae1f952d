"""GGUF files as the native library sees them: the identity of weights, head scores, and metadata."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from ..errors import ScoresError
from .native import encoded, ffi, lib, model_id, text_of
from .native.head_scores import load_scores

__all__ = ["SIDECAR", "Gguf", "load_scores", "model_id"]

SIDECAR: Final = "headkv"  # architecture of a file of head scores: no model loader takes it for a model

_FLOAT, _STRING, _ARRAY = 6, 8, 9
_INTEGERS: Final = {0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 10: "u8", 11: "i8"}


class Gguf:
    """Metadata of a GGUF file that the native library has read before, and found nothing wrong with."""

    def __init__(self, path: str) -> None:
        without_tensors = ffi.new("struct gguf_init_params *", {"no_alloc": True})
        raw = lib.gguf_init_from_file(encoded(path), without_tensors[0])
        if not raw:
            raise ScoresError(f"{path} was changed while it was read")
        self._raw = ffi.gc(raw, lib.gguf_free)

    @property
    def data_offset(self) -> int:
        """Where the tensors' data begins."""
        return int(lib.gguf_get_data_offset(self._raw))

    def text(self, key: str) -> str | None:
        """None where the key is missing, or no text."""
        i = self._find(key)
        if i < 0 or lib.gguf_get_kv_type(self._raw, i) != _STRING:
            return None
        return text_of(lib.gguf_get_val_str(self._raw, i))

    def number(self, key: str) -> float | None:
        """None where the key is missing, or neither a whole number nor a float32."""
        i = self._find(key)
        if i >= 0 and lib.gguf_get_kv_type(self._raw, i) == _FLOAT:
            return float(np.frombuffer(ffi.buffer(lib.gguf_get_val_data(self._raw, i), 4), np.float32)[0])
        return next(iter(self.integers(key) or ()), None)

    def integers(self, key: str) -> list[int] | None:
        """A whole number, or an array of them; empty for what is neither, None where the key is missing."""
        i = self._find(key)
        if i < 0:
            return None
        kind, n = lib.gguf_get_kv_type(self._raw, i), 1
        read: Any = lib.gguf_get_val_data
        if kind == _ARRAY:
            kind, n, read = (
                lib.gguf_get_arr_type(self._raw, i),
                lib.gguf_get_arr_n(self._raw, i),
                lib.gguf_get_arr_data,
            )
        if kind not in _INTEGERS or n == 0:
            return []
        dtype = np.dtype(_INTEGERS[kind])
        raw = ffi.buffer(read(self._raw, i), n * dtype.itemsize)
        return [int(number) for number in np.frombuffer(raw, dtype)]

    def replace(self, prefix: str, other: Gguf) -> None:
        """Keys with that prefix are those of another file then, at the end."""
        for key in [key for key in self._keys() if key.startswith(prefix.encode())]:
            lib.gguf_remove_key(self._raw, key)
        for key in [key for key in other._keys() if not key.startswith(prefix.encode())]:
            lib.gguf_remove_key(other._raw, key)
        lib.gguf_set_kv(self._raw, other._raw)

    def to_bytes(self) -> bytes:
        """All that comes before the tensors' data, padded."""
        content = ffi.new("char[]", lib.gguf_get_meta_size(self._raw))
        lib.gguf_get_meta_data(self._raw, content)
        return bytes(ffi.buffer(content))

    def _find(self, key: str) -> int:
        return int(lib.gguf_find_key(self._raw, key.encode()))

    def _keys(self) -> Iterator[bytes]:
        for i in range(lib.gguf_get_n_kv(self._raw)):
            yield bytes(ffi.string(lib.gguf_get_key(self._raw, i)))
