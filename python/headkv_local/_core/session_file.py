"""Session files as bytes: a header, and sections with a checksum each. docs/sessions.md is the format."""

from __future__ import annotations

import json
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Final

from ..errors import ArgumentError, SessionError

VERSION: Final = 1
_MAGIC: Final = b"headkv session\n\0"
_START: Final = struct.Struct("<16sII")  # magic, version, bytes of the header
_SECTION: Final = struct.Struct("<8sQ")  # name, bytes of the section
_CHECKSUM: Final = struct.Struct("<I")
_MOST_HEADER: Final = 64 * 2**20
_PIECE: Final = 2**20
_LEAST: Final = _START.size + _CHECKSUM.size


class Writer:
    """Writes a session from its beginning to its end. Raises what the file raises."""

    def __init__(self, file: IO[bytes], header: Mapping[str, Any]) -> None:
        self._file = file
        try:
            text = json.dumps(header, allow_nan=False).encode("ascii")
        except (TypeError, ValueError, RecursionError) as error:
            raise ArgumentError(f"messages must be a list that JSON can hold: {error}") from error
        if len(text) > _MOST_HEADER:
            raise ArgumentError(f"messages and settings of {len(text)} bytes are more than {_MOST_HEADER}")
        start = _START.pack(_MAGIC, VERSION, len(text)) + text
        self._file.write(start + _CHECKSUM.pack(zlib.crc32(start)))

    def section(self, name: str, data: Any) -> None:
        """data: bytes, or an array of them."""
        with self.parts(name, memoryview(data).nbytes) as write:
            write(data)

    @contextmanager
    def parts(self, name: str, n_bytes: int) -> Iterator[Any]:
        """A section that is written by several calls of write(data), n_bytes in all."""
        start = _SECTION.pack(name.encode("ascii"), n_bytes)
        self._file.write(start)
        checksum = zlib.crc32(start)

        def write(data: Any) -> None:
            nonlocal checksum
            self._file.write(data)
            checksum = zlib.crc32(data, checksum)

        yield write
        self._file.write(_CHECKSUM.pack(checksum))


class SessionFile:
    """A session that is read. Raises SessionError for everything that is wrong with it."""

    def __init__(self, path: str, file: BufferedReader, names: Sequence[str]) -> None:
        self.path, self._file = path, file
        with self._explained():
            self._size = os.fstat(file.fileno()).st_size
            self.header = self._read_header()
            self._sections = dict(self._find_sections(names))

    def error(self, what: str) -> SessionError:
        return SessionError(f"the session {self.path} {what}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, SessionError):
                raise
            raise self.error(f"cannot be read: {_reason(error)}") from error

    def _bytes(self, n: int) -> bytes:
        data = self._file.read(n)
        if len(data) != n:
            raise self.error("is damaged: it has been cut short")
        return data

    def _read_header(self) -> dict[str, Any]:
        if self._size < _LEAST or self._bytes(len(_MAGIC)) != _MAGIC:
            raise self.error("is damaged or another file: it does not begin as a session does")
        self._file.seek(0)
        start = self._bytes(_START.size)
        _, version, n_header = _START.unpack(start)
        if version != VERSION:
            raise self.error(f"has format {version}, and this version of headkv-local reads {VERSION}")
        if n_header > min(_MOST_HEADER, self._size - _LEAST):
            raise self.error(f"is damaged: its header cannot have {n_header} bytes")
        text = self._bytes(n_header)
        self._check(zlib.crc32(text, zlib.crc32(start)), "header")
        try:
            header = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError, MemoryError) as error:
            raise self.error(f"has a header that is no JSON of ours: {error}") from error
        if not isinstance(header, dict):
            raise self.error("has a header that is no JSON object")
        return header

    def _find_sections(self, names: Sequence[str]) -> Iterator[tuple[str, tuple[int, int]]]:
        rest = list(names)
        while (offset := self._file.tell()) < self._size:
            name, n_bytes = _SECTION.unpack(self._bytes(_SECTION.size))
            text = name.rstrip(b"\0").decode("ascii", errors="replace")
            if text not in rest:
                raise self.error(f"is damaged: the section {text!r} is unknown, or not in its place")
            del rest[: rest.index(text) + 1]
            end = offset + _SECTION.size + n_bytes + _CHECKSUM.size
            if end > self._size:
                raise self.error("is damaged: it has been cut short")
            yield text, (offset, n_bytes)
            self._file.seek(end)

    def _check(self, checksum: int, what: str) -> None:
        if _CHECKSUM.unpack(self._bytes(_CHECKSUM.size))[0] != checksum:
            raise self.error(f"is damaged: the checksum of its {what} is wrong")

    def __contains__(self, name: str) -> bool:
        return name in self._sections

    def size(self, name: str) -> int:
        """Bytes of a section; 0 where it is missing."""
        return self._sections.get(name, (0, 0))[1]

    def verify(self) -> None:
        """All checksums."""
        room = memoryview(bytearray(_PIECE))
        for name, (_, n_bytes) in self._sections.items():
            with self.parts(name) as fill:
                for done in range(0, n_bytes, _PIECE):
                    fill(room[: n_bytes - done])

    def read(self, name: str) -> bytes | None:
        """A whole section, checked; None where it is missing."""
        if name not in self:
            return None
        data = bytearray(self.size(name))
        with self.parts(name) as fill:
            fill(data)
        return bytes(data)

    @contextmanager
    def parts(self, name: str) -> Iterator[Any]:
        """A section that is read by several calls of fill(buffer), whole and in order; then it is checked."""
        offset, n_bytes = self._sections[name]
        with self._explained():
            self._file.seek(offset)
            start = self._bytes(_SECTION.size)
        checksum = zlib.crc32(start)

        def fill(buffer: Any) -> None:
            nonlocal checksum
            with self._explained():
                if self._file.readinto(buffer) != memoryview(buffer).nbytes:
                    raise self.error("is damaged: it has been cut short")
            checksum = zlib.crc32(buffer, checksum)

        yield fill
        with self._explained():
            if self._file.tell() != offset + _SECTION.size + n_bytes:
                raise self.error(f"has a section {name!r} of another size than it must be")
            self._check(checksum, f"section {name!r}")


@contextmanager
def opened(path: str | os.PathLike[str], names: Sequence[str]) -> Iterator[SessionFile]:
    """names: of the sections that there may be, in their order."""
    name = os.fspath(path)
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):
            raise SessionError(f"the session {name} is not a file")
        file = Path(name).open("rb")  # noqa: SIM115 - closed below; its errors are not those of the body
    except (OSError, ValueError) as error:
        if isinstance(error, SessionError):
            raise
        raise SessionError(f"the session {name!r} cannot be opened: {_reason(error)}") from error
    with file:
        yield SessionFile(name, file, names)


def is_session(path: Path) -> bool:
    """Whether it begins as one."""
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")
