"""Session files: what one says before its model is loaded."""

from __future__ import annotations

import os

from ._core.session_header import Header
from ._core.sessions import opened

__all__ = ["Header", "read_header"]


def read_header(path: str | os.PathLike[str]) -> Header:
    """Which model a session is of, its settings and its messages. Nothing else of the file is read.

    Raises SessionError for a file that is no session, or damaged where this stands.
    """
    with opened(path) as (_, header):
        return header
