"""What a setting takes: from its text to a value, or why that is none."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable

from ..settings import INT32_MAX, OFF, UINT32_MAX
from .options import AUTO, MEMORY, expand


def text(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ArgumentTypeError("the text is not valid UTF-8") from None
    if not text.strip():
        raise ArgumentTypeError("the text is empty")
    return text


def archive(text: str) -> str:
    if not text:
        raise ArgumentTypeError("it is auto, memory, off, or the path of a file")
    return text if text in (AUTO, MEMORY, OFF) else expand(text)


def path(text: str) -> str:
    if text in ("", "-"):
        raise ArgumentTypeError("it is the path of a file")
    return expand(text)


def integer(low: int, high: int | None = None) -> Callable[[str], int]:
    wanted = f"a whole number from {low}" + (" up" if high is None else f" to {high}")

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise ArgumentTypeError(f"'{text}' is not {wanted}")
        return value

    return convert


def context(text: str) -> int | str:
    try:
        return AUTO if text == AUTO else integer(0, INT32_MAX)(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{error}, or {AUTO}") from None


def tokens(text: str) -> int:
    try:
        return integer(-1)(text) or integer(1)(text)
    except ArgumentTypeError:
        raise ArgumentTypeError(f"'{text}' is not a whole number from 1 up, or -1") from None


def seed(text: str) -> int | None:
    """None for a new one, which llama.cpp's programs call -1."""
    try:
        return None if text == "-1" else integer(0, UINT32_MAX)(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{error}, or -1") from None


def real(low: float, high: float = math.inf) -> Callable[[str], float]:
    wanted = f"a number from {low:g} " + ("up" if high == math.inf else f"to {high:g}")

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or not low <= value <= high:
            raise ArgumentTypeError(f"'{text}' is not {wanted}")
        return value

    return convert
