"""Files that commands write: no other one is lost, and each appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ._gguf.reading import parts
from .errors import ArgumentError, DataError

Name = str | os.PathLike[str]


def target(path: Name, *, force: bool, model: Name | None = None, inputs: Sequence[Name | None] = ()) -> Path:
    """The path, if it may be written. model, inputs: what it must not replace, nor any part of the model."""
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
    read = [one for one in inputs if one is not None and os.path.exists(one)]
    if found.exists() and any(found.samefile(one) for one in read):
        raise ArgumentError(f"{name} is what is read here, and would be lost: give another name")
    return found


def content(path: Name) -> bytes:
    """All of a file, or of a pipe.

    Raises DataError for a device, which may have no end; OSError that names what cannot be read.
    """
    if Path(path).is_char_device():
        raise DataError(f"{os.fspath(path)} is not a file")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


@contextmanager
def replacing(path: Path, *, private: bool = False) -> Iterator[Path]:
    """A temporary file that takes path's place if all goes well, and is gone otherwise.

    private: where there was none, only its owner may read it.
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
            if path.exists():
                shutil.copymode(path, temporary)
            elif not private:
                temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
