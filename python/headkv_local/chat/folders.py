"""Documents by path: a file, standard input, or all text files of a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from headkv_local.chat.documents import MAX_BYTES, STDIN, Document, DocumentError, read_document
from headkv_local.chat.options import expand
from headkv_local.chat.render import counted

_NAMED: Final = 5  # files that are left out, with their reasons


@dataclass(frozen=True)
class Found:
    """Documents in their order. notes: what their user should know. folder: whether the path is one."""

    documents: Sequence[Document]
    notes: Sequence[str]
    folder: bool = False


def read_documents(path: str) -> Found:
    """What `path` names, "-" for standard input. Raises DocumentError, also where nothing is in it.

    Of a folder: the files in it, then those of its folders, by name and with numbers by their value. Hidden
    ones are left out, and so is what is no text.
    """
    where = expand(path)
    if path == STDIN or not os.path.isdir(where):
        document = read_document(path)
        return Found([document], [f"{path}: {document.note}."] if document.note else [])
    documents, left_out, notes, total = [], [], [], 0
    for file in _files(where):
        try:
            documents.append(read_document(file))
        except DocumentError as error:
            left_out.append(f"{os.path.relpath(file, where)} ({error.reason})")
            continue
        total += len(documents[-1].text)
        if total > MAX_BYTES:
            raise DocumentError(
                f"the documents in '{path}' have more than {MAX_BYTES // 1024**2} MiB", "is too large"
            )
        if documents[-1].note:
            notes.append(f"{file}: {documents[-1].note}.")
    if left_out:
        more = [f"{len(left_out) - _NAMED} more"] * (len(left_out) > _NAMED)
        files = counted(len(left_out), "file")
        notes.append(f"{path}: {files} left out: {', '.join([*left_out[:_NAMED], *more])}.")
    if not documents:
        raise DocumentError(
            f"no document is in the folder '{path}'; {notes[-1]}"
            if notes
            else f"no document is in the folder '{path}'",
            "is empty",
        )
    return Found(documents, notes, folder=True)


def _files(folder: str) -> Iterator[str]:
    """Regular files, not those behind linked folders: these could lead back."""
    for at, folders, files in os.walk(folder):
        folders[:] = sorted((name for name in folders if not name.startswith(".")), key=_natural)
        for name in sorted((name for name in files if not name.startswith(".")), key=_natural):
            path = os.path.join(at, name)
            if os.path.isfile(path):
                yield path


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """part2 before part10."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.lower())
    return [(not part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
