"""Session files: what one says before its model is loaded."""

from __future__ import annotations

import os

from ._core import session_parts
from ._core.session_file import opened
from ._core.session_header import Header

__all__ = ["Header", "read_header"]


def read_header(path: str | os.PathLike[str]) -> Header:
    """Which model a session is of, its settings and its messages. Nothing else of the file is read.

    Raises SessionError for a file that is no session, or damaged where this stands.
    """
    with opened(path, session_parts.SECTIONS) as session, session_parts.explained(session):
        return Header.from_json(session.header)
