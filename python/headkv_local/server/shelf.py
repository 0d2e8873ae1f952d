"""The folder in which conversations are that no context holds: one session each."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import Llama
from ..errors import ArgumentError, Cancelled, HeadKVError, SessionError
from ..sessions import read_header
from .conversations import Conversation

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows: nobody looks whether two servers share a folder
    LOCK_EX = LOCK_NB = 0

    def flock(fd: Any, operation: int, /) -> None: ...  # type: ignore[misc]


_logger = logging.getLogger("headkv_local.server")

_SUFFIX = ".session"
_LOCK = "lock"


class Shelf:
    """folder: of one model, and of one server at a time. most, most_bytes: what may be in it."""

    def __init__(self, folder: Path, most: int, most_bytes: int) -> None:
        """Raises ArgumentError for a folder that cannot be used, or that another server uses."""
        self._most, self._most_bytes = most, most_bytes
        self.folder = folder
        self._lock = self._locked()
        for left in (*folder.glob("archive-*"), *folder.glob("headkv-*")):  # of a server that was killed
            with suppress(OSError):
                left.unlink()
        self._there = {one.name: one for one in self._found()}

    def close(self) -> None:
        os.close(self._lock)

    def renew(self) -> None:
        """Where the folder has gone meanwhile: make another one, and forget what is in it no more.

        Raises ArgumentError as the constructor does; nothing can be saved then.
        """
        try:
            if os.path.samestat(os.fstat(self._lock), os.stat(self.folder / _LOCK)):
                return
        except (FileNotFoundError, NotADirectoryError):
            pass
        except OSError:  # nobody can tell: what is saved next says why it cannot be
            return
        gone = [one for one in self if not os.path.exists(self._path(one))]
        for one in gone:
            one.saved = False
            del self._there[one.name]
        if gone:
            _logger.warning(
                "the sessions in %s cannot be had any more: what is not in the context is read anew",
                self.folder,
            )
        lock = self._locked()
        os.close(self._lock)
        self._lock = lock

    def _locked(self) -> int:
        """The folder's lock. Both are made where they are not there."""
        folder = self.folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror or error
            raise ArgumentError(f"sessions cannot be kept in {folder}: {reason}") from error
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise ArgumentError(
                f"another server keeps its sessions in {folder}: give this one another folder with --sessions"
            ) from error
        return lock

    @property
    def archive_file(self) -> str:
        """Where an archive of this process may be; its Llama makes it and takes it away."""
        return str(self.folder / f"archive-{os.getpid()}")

    def __iter__(self) -> Iterator[Conversation]:
        return iter(tuple(self._there.values()))

    def __len__(self) -> int:
        return len(self._there)

    def __contains__(self, one: Conversation) -> bool:
        return one.name in self._there

    @property
    def n_bytes(self) -> int:
        return sum(one.n_bytes for one in self)

    def _path(self, one: Conversation) -> Path:
        return self.folder / f"{one.name}{_SUFFIX}"

    def _found(self) -> Iterator[Conversation]:
        for path in self.folder.glob(f"*{_SUFFIX}"):
            try:
                header, found = read_header(path), path.stat()
                yield Conversation.from_json(
                    header.messages[0],
                    name=path.name.removesuffix(_SUFFIX),
                    retention=header.retention,
                    used=found.st_mtime,
                    n_bytes=found.st_size,
                )
            except (HeadKVError, OSError, LookupError, TypeError, ValueError, OverflowError) as error:
                _logger.warning("a conversation is left out, and will be read anew: %s", error)
                with suppress(OSError):
                    path.unlink()

    def save(self, llm: Llama, one: Conversation) -> bool:
        """What the context holds of it. False, and the log says why, if that cannot be.

        Cancelled leaves all as it is: the client for whom it has to make room has left.
        """
        try:
            self.renew()
            llm.save_session(self._path(one), messages=[one.to_json()])
            one.n_bytes = self._path(one).stat().st_size
        except Cancelled:
            raise
        except (HeadKVError, OSError) as error:
            _logger.warning("a conversation of %d tokens is not kept: %s", len(one.tokens), error)
            self.drop(one)
            return False
        one.saved = True
        self._there[one.name] = one
        self._trim()
        return one in self

    def load(self, llm: Llama, one: Conversation) -> bool:
        """Into the context. False, and it is gone and the log says why, if that cannot be."""
        try:
            llm.load_session(self._path(one))
        except (SessionError, OSError) as error:
            _logger.warning("a conversation of %d tokens is read anew: %s", len(one.tokens), error)
            self.drop(one)
            return False
        with suppress(OSError):  # for the next server; of a folder that cannot be written it reads too
            os.utime(self._path(one))
        return True

    def drop(self, one: Conversation) -> None:
        self._there.pop(one.name, None)
        with suppress(OSError):
            self._path(one).unlink(missing_ok=True)

    def _trim(self) -> None:
        """Those used longest ago go, until the rest is within the limits."""
        while len(self) > self._most or self.n_bytes > self._most_bytes:
            oldest = min(self._there.values(), key=lambda one: one.used)
            _logger.info("a conversation of %d tokens goes: there are newer ones", len(oldest.tokens))
            self.drop(oldest)
