"""What a server that was killed has left beside its sessions: its archive, and sessions half written."""

from __future__ import annotations

import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

_LEFT: Final = (
    (re.compile(r"archive-[0-9]+"), b"headkv archive\n\0"),
    (re.compile(r"headkv-[A-Za-z0-9]{6}"), b"headkv session\n\0"),  # where files need a name
)
"""Names, and what such files begin with, as native/src/rows and native/src/session write them."""


def remove_leftovers(folder: Path) -> None:
    """Whatever else is in the folder stays, also under such a name: it is somebody's."""
    for path in folder.glob("*-*"):
        for name, mark in _LEFT:
            if name.fullmatch(path.name):
                with suppress(OSError):
                    if _begins(path, mark):
                        path.unlink()


def _begins(path: Path, mark: bytes) -> bool:
    """Whether the file begins with the mark, or is cut short within it: it may have just been made."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return False
    with path.open("rb") as file:
        return mark.startswith(file.read(len(mark)))
