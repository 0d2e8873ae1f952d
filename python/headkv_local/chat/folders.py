"""Documents by path: a file, standard input, or all text files of a folder."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from headkv_local.chat.documents import STDIN, Document, DocumentError, read_document
from headkv_local.chat.options import expand

_NAMED: Final = 5  # files and folders that are left out, with their reasons
_MOST_PASSED = 10_000  # files and folders that are no documents: nobody waits for the end of a disk
_MADE_UP: Final = ("/proc", "/sys", "/dev")  # file systems without files of anybody


@dataclass(frozen=True)
class Found:
    """Documents in their order. notes: what their user should know. folder: whether the path is one.

    Those of a folder are read as they are asked for, so that nobody has to read more than there is room for.
    Its notes are there after the last one.
    """

    documents: Iterable[Document]
    notes: Sequence[str]
    folder: bool = False


def read_documents(path: str) -> Found:
    """What `path` names, "-" for standard input. Raises DocumentError, also where nothing is in it.

    Of a folder: the files in it, then those of its folders, by name and with numbers by their value. Hidden
    ones are left out, and so is what is no text. What DocumentError says of it comes from its documents.
    """
    where = expand(path)
    if path == STDIN or not os.path.isdir(where):
        document = read_document(path)
        return Found([document], [f"{path}: {document.note}."] if document.note else [])
    notes: list[str] = []
    return Found(_in_folder(path, where, notes), notes, folder=True)


def _in_folder(path: str, where: str, notes: list[str]) -> Iterator[Document]:
    left_out: list[str] = []

    def leave_out(entry: str, reason: str) -> None:
        left_out.append(f"{os.path.relpath(entry, where)} ({reason})")

    passed, is_empty = 0, True
    for entry, is_file in _entries(where, leave_out):
        document = None
        if is_file:
            try:
                document = read_document(entry)
            except DocumentError as error:
                leave_out(entry, error.reason)
        if document is None:
            passed += 1
            if passed > _MOST_PASSED:
                raise DocumentError(
                    f"the folder '{path}' has more than {_MOST_PASSED:,} files and folders that are no "
                    "documents: name a part of it",
                    "is too large",
                )
            continue
        if document.note:
            notes.append(f"{entry}: {document.note}.")
        is_empty = False
        yield document
    if left_out:
        more = [f"{len(left_out) - _NAMED} more"] * (len(left_out) > _NAMED)
        notes.append(f"{path}: {len(left_out)} left out: {', '.join([*left_out[:_NAMED], *more])}.")
    if is_empty:
        told = f"; {notes[-1]}" if notes else ""
        raise DocumentError(f"no document is in the folder '{path}'{told}", "is empty")


def _entries(folder: str, leave_out: Callable[[str, str], None]) -> Iterator[tuple[str, bool]]:
    """The folders and the rest in them; whether it is a file that can be read.

    Not behind linked folders, which could lead back, and nothing that the system makes up: that may wait, or
    have no end. leave_out: takes what cannot be read, and the reason.
    """
    made_up = {_device(path) for path in _MADE_UP if os.path.ismount(path)}

    def cannot_be_read(error: OSError) -> None:
        leave_out(str(error.filename), f"cannot be read: {error.strerror or error}")

    for at, folders, files in os.walk(folder, onerror=cannot_be_read):
        if _device(at) in made_up:
            folders.clear()
            continue
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=_natural)
        yield at, False
        for name in sorted((name for name in files if not name.startswith(".")), key=_natural):
            path = os.path.join(at, name)
            reason = _not_opened(path, made_up)
            if reason is not None:
                leave_out(path, reason)
            yield path, reason is None


def _not_opened(path: str, made_up: Collection[int]) -> str | None:
    """Why it is no file to be read; None where it is one."""
    try:
        found = os.stat(path)
    except OSError as error:  # of a link that leads nowhere, for example
        return f"cannot be read: {error.strerror or error}"
    if found.st_dev in made_up:
        return "is made up by the system"
    return None if stat.S_ISREG(found.st_mode) else "is a pipe, a socket or a device"


def _device(path: str) -> int:
    """-1 for what is not there."""
    try:
        return os.stat(path).st_dev
    except OSError:
        return -1


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """part2 before part10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.lower())
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
