"""Texts that JSON can write and UTF-8 cannot."""

from __future__ import annotations


def require_whole(text: str) -> None:
    """Raises ValueError for a text with half of a surrogate pair, which is no character and has no tokens."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"holds half of a character, {text[error.start]!a}") from error
