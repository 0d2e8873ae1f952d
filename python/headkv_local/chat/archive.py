"""Where the full rows of the chat's prompts are: in memory, in a file, or nowhere."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Final

from headkv_local import Llama
from headkv_local.chat.options import AUTO, MEMORY, OFF, Options
from headkv_local.defaults import archive_fits, cache_folder
from headkv_local.errors import ArchiveError, UnsupportedError

_PREFIX: Final = "archive-"
_files: Final[list[str]] = []  # of this process, also those of models before


@dataclass
class Archive:
    """The archive of one chat.

    where: "memory", the path of a file, or None for no archive.
    own: whether the file is one of ours, in the cache folder.
    reason: why there is none, "" if nobody wants one.
    """

    where: str | None
    own: bool = False
    reason: str = ""

    @property
    def told(self) -> str:
        """For the user, where one was wanted and there is none."""
        return f"The chat goes on without an archive: {self.reason}."

    @contextmanager
    def being_made(self) -> Iterator[None]:
        """Until the file is made and locked: no other process may take it for one that was left."""
        if not self.own or self.where is None:
            yield
            return
        with _alone_in(os.path.dirname(self.where)):
            yield

    def give_up(self, reason: str) -> None:
        self.where, self.own, self.reason = None, False, reason


def open_archive(llm: Llama, options: Options) -> Archive:
    """Have the prompts of `llm` go where --archive says, or where there is room if it leaves that open.

    Raises ArchiveError for a file that was named and cannot be made.
    """
    _remove_left_over()
    archive = Archive(None)
    try:
        archive = _choose(llm, options.archive)
        if archive.where != MEMORY:  # as which it was loaded
            with archive.being_made():
                llm.retention = options.retention(archive.where)
    except (ArchiveError, OSError, RuntimeError) as error:
        if options.archive != AUTO:
            raise
        archive.give_up(str(error))
        llm.retention = options.retention()
    if archive.where is not None and archive.where != MEMORY:
        _remove_when_killed(archive.where)
    return archive


def _choose(llm: Llama, wanted: str) -> Archive:
    """May make the cache folder. Raises OSError if that cannot be, RuntimeError where there is no home."""
    if wanted == OFF:
        return Archive(None)
    if wanted != AUTO:
        return Archive(wanted)
    try:
        if archive_fits(llm):
            return Archive(MEMORY)
    except UnsupportedError:  # the full cache is all that it can have
        return Archive(None)
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Archive(str(folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"), own=True)


def _remove_when_killed(path: str) -> None:
    """Have the file go also when a signal ends the process: where its terminal is closed, for example."""
    _files.append(path)

    def end(number: int, _: FrameType | None) -> None:
        for file in _files:
            with suppress(OSError):
                os.unlink(file)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    for number in (signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end)


def _remove_left_over() -> None:
    """Files whose owner has died without removing them: nobody holds their lock."""
    with suppress(OSError, RuntimeError), _alone_in(str(cache_folder())):
        for path in cache_folder().glob(f"{_PREFIX}*"):
            with suppress(OSError):
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(file)


@contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """Among processes that make or remove files there; where there are no locks, as if alone."""
    try:
        file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
