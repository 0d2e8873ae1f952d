"""Where things stand in a GGUF file that the native library has read before, and found nothing wrong with.

gguf-py's reader makes an array of every token of the vocabulary, which takes seconds; a copy needs to know
where keys begin and end, and the shape of a model no more than three numbers.
"""

from __future__ import annotations

import mmap
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from .errors import ScoresError

HEADER_SIZE: Final = 24  # magic, version, number of tensors, number of keys

_DEFAULT_ALIGNMENT: Final = 32
_STRING, _ARRAY = 8, 9
_FORMATS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Key(NamedTuple):
    start: int
    end: int
    value: Any
    """A number, a text, a list of numbers; None for a list of texts."""


@dataclass(frozen=True)
class Layout:
    n_tensors: int
    keys: dict[str, Key]
    infos_end: int
    """Where the descriptions of the tensors end; those of the keys end at keys_end."""

    @property
    def keys_end(self) -> int:
        return max((key.end for key in self.keys.values()), default=HEADER_SIZE)

    def aligned(self, offset: int) -> int:
        """Where the tensors' data begins if their descriptions end at offset."""
        given = self.keys.get("general.alignment")
        alignment: int = given.value if given else _DEFAULT_ALIGNMENT
        return -(-offset // alignment) * alignment


def layout(path: Path) -> Layout:
    """Raises OSError if the file cannot be read, ScoresError if it is not the one that was checked."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Walker(data).walk()
        except (struct.error, KeyError, ValueError) as error:
            raise ScoresError(f"{path} was changed while it was read") from error


class _Walker:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 8

    def walk(self) -> Layout:
        n_tensors, n_keys = self._numbers("Q", 2)
        keys: dict[str, Key] = {}
        for _ in range(n_keys):
            start, name = self._at, self._text()
            value = self._value()
            keys[name] = Key(start, self._at, value)
        for _ in range(n_tensors):
            self._text()
            (n_dims,) = self._numbers("I")
            self._at += 8 * n_dims + 4 + 8  # shape, type, offset
        return Layout(n_tensors, keys, self._at)

    def _value(self) -> Any:
        (kind,) = self._numbers("I")
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._numbers(_FORMATS[kind])[0]
        (kind,) = self._numbers("I")
        (n,) = self._numbers("Q")
        if kind != _STRING:
            return list(self._numbers(_FORMATS[kind], n))
        for _ in range(n):
            self._skip_text()
        return None

    def _numbers(self, kind: str, n: int = 1) -> tuple[Any, ...]:
        numbers = struct.Struct(f"={n}{kind}")
        found = numbers.unpack_from(self._data, self._at)
        self._at += numbers.size
        return found

    def _skip_text(self) -> None:
        self._at += 8 + int.from_bytes(self._data[self._at : self._at + 8], sys.byteorder)

    def _text(self) -> str:
        start = self._at + 8
        self._skip_text()
        return self._data[start : self._at].decode("utf-8", errors="replace")
