"""The folder in which conversations are that no context holds: one session each."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any, Final

from .. import Llama
from ..errors import ArgumentError, Cancelled, HeadKVError, SessionError
from ..models import model_id
from ..sessions import read_header
from .conversations import Conversation
from .leftovers import remove_leftovers

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows: nobody looks whether two servers share a folder
    LOCK_EX = LOCK_NB = 0

    def flock(fd: Any, operation: int, /) -> None: ...  # type: ignore[misc]


_logger = logging.getLogger("headkv_local.server")

_SUFFIX = ".session"
_OURS = f"{'[0-9a-f]' * 16}{_SUFFIX}"  # whatever else is in the folder stays as it is
_LOCK = "lock"
_TICK: Final = 0.001  # seconds between two uses, where the clock does not say so


class _NotOurs(Exception):
    """A session that no server has saved."""


class InUse(ArgumentError):
    """Another server has the folder."""


class Shelf:
    """folder: of one model, and of one server at a time. most, most_bytes: what may be in it.

    What it says of a conversation is what is in its file, whatever has become of it in the context since.
    What cannot be used now is left out: it stays in the folder, and goes before all others where room is
    needed.
    """

    def __init__(self, folder: Path, most: int, most_bytes: int) -> None:
        """Raises ArgumentError for a folder that cannot be used, or that another server uses."""
        self.most, self._most_bytes = most, most_bytes
        self.folder = folder
        self._lock = self._locked()
        remove_leftovers(folder)
        self._there: dict[str, Conversation] = {}
        self._left_out: dict[str, Conversation] = {}
        self._last_use = 0.0

    def find(self, llm: Llama) -> None:
        """What earlier servers have left for this model and its context."""
        model = _identity(llm)
        for path in self.folder.glob(_OURS):
            with suppress(OSError, _NotOurs):  # it goes meanwhile, or is somebody else's
                found = path.stat()
                file = Conversation(name=path.stem, used=found.st_mtime, n_bytes=found.st_size)
                try:
                    self._there[file.name] = _read(path, file, model, llm.n_ctx())
                except HeadKVError as error:
                    self._leave_out(file, error)
        self._last_use = max((one.used for one in self._files()), default=0.0)

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
        gone = [one for one in self._files() if not os.path.exists(self._path(one))]
        for one in gone:
            self.drop(one)
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
            raise InUse(
                f"another server keeps its sessions in {folder}: give this one another folder with --sessions"
            ) from error
        return lock

    @property
    def archive_file(self) -> str:
        """Where an archive of this process may be; its Llama makes it and takes it away."""
        return str(self.folder / f"archive-{os.getpid()}")

    def __iter__(self) -> Iterator[Conversation]:
        return iter(tuple(self._there.values()))

    def __contains__(self, one: Conversation) -> bool:
        return one.name in self._there

    @property
    def left_out(self) -> tuple[Conversation, ...]:
        """Those in the folder that cannot be used now."""
        return tuple(self._left_out.values())

    def _files(self) -> tuple[Conversation, ...]:
        return (*self.left_out, *self)

    @property
    def n_bytes(self) -> int:
        """Of all files."""
        return sum(one.n_bytes for one in self._files())

    def _path(self, one: Conversation) -> Path:
        return self.folder / f"{one.name}{_SUFFIX}"

    def save(self, llm: Llama, one: Conversation) -> bool:
        """What the context holds of it. False, and the log says why, if that cannot be: what was saved of it
        before stays, unless it is larger now than all may be.

        Cancelled leaves all as it is: the client for whom it has to make room has left.
        """
        try:
            self.renew()
            written = self._write(llm, one)
            n_bytes = self._path(one).stat().st_size
        except Cancelled:
            raise
        except (HeadKVError, OSError) as error:
            _logger.warning("a conversation of %d tokens is not kept: %s", len(one.tokens), error)
            return False
        if n_bytes > self._most_bytes:
            _logger.warning(
                "a conversation of %d tokens is not kept: its session of %d bytes is larger than all may be",
                len(one.tokens),
                n_bytes,
            )
            self.drop(one)
            return False
        one.saved = written is one or sizes_of(llm)[0] > self._most_bytes  # else another time it may be more
        self._stamp(one)
        self._there[one.name] = replace(written, saved=True, n_bytes=n_bytes)
        self._trim()
        return one in self

    def _write(self, llm: Llama, one: Conversation) -> Conversation:
        """Its session, and what is in that: not its archive, where that cannot be. But one that is there with
        an archive stays: what came since is soon read again."""
        try:
            self._require_small(llm)
            llm.save_session(self._path(one), messages=[one.to_json()])
            return one
        except Cancelled:
            raise
        except (HeadKVError, OSError) as error:
            if not one.archived or (one in self and self._there[one.name].archived):
                raise
            _logger.warning(
                "the archive of a conversation of %d tokens is not kept: %s", len(one.tokens), error
            )
        light = replace(one, archived=False)
        llm.save_session(self._path(one), light=True, messages=[light.to_json()])
        return light

    def _require_small(self, llm: Llama) -> None:
        """Raise SessionError for what would be written only to be removed: gigabytes, at each request."""
        n_bytes, _ = sizes_of(llm)
        if n_bytes > self._most_bytes:
            raise SessionError(f"its {n_bytes} bytes are more than all sessions may have")

    def load(self, llm: Llama, one: Conversation) -> Conversation | None:
        """Into the context, as it was saved. None if it is not here, or its session cannot be used: it is
        left out then, and the log says why.

        ArchiveError and other lacks of the context are raised: they are no fault of the session's.
        """
        if one not in self:
            return None
        try:
            llm.load_session(self._path(one))
        except SessionError as error:
            self._leave_out(one, error)
            return None
        return replace(self._there[one.name])

    def use(self, one: Conversation) -> None:
        """It is used now: here and after a restart others go before it, whatever the clock says."""
        one.used = self._last_use = max(time(), self._last_use + _TICK)
        if one in self:
            self._there[one.name].used = one.used
            self._stamp(one)

    def _stamp(self, one: Conversation) -> None:
        with suppress(OSError):  # a folder that cannot be written is read too
            os.utime(self._path(one), (one.used, one.used))

    def _leave_out(self, one: Conversation, error: Exception) -> None:
        """What is damaged for sure is removed: nobody can use it."""
        _logger.warning("a conversation is left out, and will be read anew: %s", error)
        path = self._path(one)
        if (isinstance(error, SessionError) and error.damaged) or not os.path.exists(path):
            self.drop(one)
        else:
            self._left_out[one.name] = self._there.pop(one.name, one)

    def drop(self, one: Conversation) -> None:
        self._there.pop(one.name, None)
        self._left_out.pop(one.name, None)
        with suppress(OSError):
            self._path(one).unlink(missing_ok=True)

    def keeps(self, one: Conversation, n_bytes: int, n_light: int) -> bool:
        """Whether a session of it would stay beside those that were used later: of n_bytes, or of n_light
        where that alone is too much."""
        n_bytes = n_light if n_bytes > self._most_bytes else n_bytes
        later = sum(other.n_bytes for other in self if other.used > one.used and other.name != one.name)
        return later + n_bytes <= self._most_bytes

    def _trim(self) -> None:
        """Those used longest ago go, until the rest has room; those that are left out first."""
        while self.n_bytes > self._most_bytes:
            oldest = min(self.left_out or self, key=lambda one: one.used)
            _logger.info("the session %s goes: there are newer ones", self._path(oldest))
            self.drop(oldest)


def sizes_of(llm: Llama) -> tuple[int, int]:
    """Bytes of what the context holds, with the rows in its archive, and without."""
    stats = llm.cache_stats()

    def rows(n_tokens: int) -> int:
        return stats.full_bytes * n_tokens // max(1, stats.n_ctx)

    if not stats.compacted:
        return rows(llm.n_tokens), rows(llm.n_tokens)
    kept = stats.kept_bytes + rows(stats.tail_tokens)
    return kept + rows(stats.archive_tokens), kept


def _identity(llm: Llama) -> str | None:
    """Of its weights. None where the file has gone: a session is compared when it is loaded, too."""
    try:
        return model_id(llm.model_path)
    except HeadKVError:
        return None


def _read(path: Path, file: Conversation, model: str | None, n_ctx: int) -> Conversation:
    """What a session says of its conversation. HeadKVError for one that cannot be used, or _NotOurs."""
    header = read_header(path)
    said = header.messages[0] if header.messages else None
    if not isinstance(said, dict) or "tokens" not in said:
        raise _NotOurs
    if model not in (None, header.model_id):
        raise SessionError(f"the session {path} is of the model {header.model_name}: their weights differ")
    if header.n_tokens > n_ctx:
        raise SessionError(
            f"the session {path} holds {header.n_tokens} tokens, and the context has room for {n_ctx}"
        )
    try:
        return Conversation.from_json(
            said, name=file.name, retention=header.retention, used=file.used, n_bytes=file.n_bytes
        )
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise SessionError(f"the session {path} is not one of this version: {error!r}") from error
