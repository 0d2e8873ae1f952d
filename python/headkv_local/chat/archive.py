"""Where the full rows of the chat's prompts are: in memory, in a file, or nowhere."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Final

from headkv_local.chat.model import ChatLlama
from headkv_local.chat.options import AUTO, MEMORY, Options
from headkv_local.defaults import cache_folder, find_room, load_with_room
from headkv_local.errors import ArchiveError
from headkv_local.settings import ALL, OFF

Put = Callable[[str | None], ChatLlama]
"""Makes a model with its archive there, as Retention takes it."""

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
    def is_named(self) -> bool:
        """Whether it is in a file that --archive names."""
        return self.where not in (None, MEMORY) and not self.own

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
        with _locked(os.path.dirname(self.where), fcntl.LOCK_SH):
            yield

    def give_up(self, reason: str) -> None:
        self.where, self.own, self.reason = None, False, reason


def load_with_archive(load: Put, options: Options) -> tuple[ChatLlama, Archive]:
    """A model whose prompts go where --archive says, or where there is room if it leaves that open.

    load: loads it. Raises what that raises; nothing of ours is left behind then.
    """
    _remove_left_over()
    if options.archive == AUTO and not _once(options):
        llm, archive = _with_room(load, options)
    else:
        where = None if options.archive in (OFF, AUTO) else options.archive
        llm, archive = load(where), Archive(where)
    if archive.where is not None and archive.where != MEMORY:
        _remove_when_killed(archive.where)
    return llm, archive


def retain(llm: ChatLlama, archive: Archive, options: Options) -> Archive:
    """Keep of the prompts to come what `options` say. Returns their archive: where --archive leaves it open,
    none while prompts choose for all questions, and one again after that.

    Raises ArgumentError, ArchiveError and StateError, and nothing is changed then.
    """
    if options.archive == AUTO and _once(options):
        archive = Archive(None)
    elif options.archive == AUTO and archive == Archive(None):
        where, reason = find_room(llm, _mover(options), _own_file)
        archive = _found(where, reason)
        if archive.own and archive.where is not None:
            _remove_when_killed(archive.where)
        return archive
    with archive.being_made():
        llm.retention = options.retention(archive.where)
    return archive


def move_archive(llm: ChatLlama, options: Options) -> Archive:
    """To where --archive says, before the first prompt; nowhere, with the reason, if that cannot be."""
    archive = Archive(options.archive)
    try:
        llm.retention = options.retention(archive.where)
    except ArchiveError as error:
        archive.give_up(str(error))
        llm.retention = options.retention()
    return archive


def _with_room(load: Put, options: Options) -> tuple[ChatLlama, Archive]:
    move = _mover(options)
    if options.budget is None:  # no archive yet: a context without room has none in another place either
        full = load(None)
        llm, where, reason = load_with_room(lambda _: full, move, _own_file)
    else:
        llm, where, reason = load_with_room(load, move, _own_file)
    return llm, _found(where, reason)


def _once(options: Options) -> bool:
    """Whether a prompt chooses for all questions to come."""
    return options.observe == ALL and options.reselect is not False


def _mover(options: Options) -> Callable[[ChatLlama, str | None], None]:
    def move(llm: ChatLlama, where: str | None) -> None:
        llm.retention = options.retention(where)

    return move


def _found(where: str | None, reason: str) -> Archive:
    return Archive(where, own=where not in (None, MEMORY), reason=reason)


@contextmanager
def _own_file() -> Iterator[str]:
    """In the cache folder, while it is made."""
    folder = cache_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = str(folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}")
    with Archive(path, own=True).being_made():
        yield path


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
    """Files whose owner has died without removing them: nobody holds their lock.

    Where one is being made now, which lasts as long as a model loads, another start removes them.
    """
    with suppress(OSError, RuntimeError), _locked(str(cache_folder()), fcntl.LOCK_EX | fcntl.LOCK_NB):
        for path in cache_folder().glob(f"{_PREFIX}*"):
            with suppress(OSError):
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(file)


@contextmanager
def _locked(folder: str, how: int) -> Iterator[None]:
    """Among processes that make files there (LOCK_SH) or remove them (LOCK_EX). As if alone where no locks
    are. Raises BlockingIOError with LOCK_NB.
    """
    try:
        file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            raise
        except OSError:
            pass
        yield
    finally:
        os.close(file)
