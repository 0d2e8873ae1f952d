"""How sentences for people say values and sizes."""

from __future__ import annotations


def shown(value: object, most: int = 40) -> str:
    """A value in one line, cut where its repr has more characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def size(n_bytes: float) -> str:
    """Bytes with a binary unit and three significant digits: 0 B, 12.5 KiB, 188 MiB."""
    value = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 999.5 or unit == "GiB":
            break
        value /= 1024
    digits = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f} {unit}"
