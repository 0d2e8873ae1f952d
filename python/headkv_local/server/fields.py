"""What stands in a field of the settings: as a flag, a variable and YAML write it."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ..settings import AUTO, INT32_MAX, OFF, fold_of, observe_of


def context_of(value: Any) -> int | str | None:
    if value is None or value == AUTO:
        return AUTO if value else None
    number = value.strip() if isinstance(value, str) else str(value)
    if isinstance(value, int | str) and number.isascii() and number.isdecimal() and int(number) <= INT32_MAX:
        return int(number)
    raise ValueError(f'it is a number of tokens, 0 or "{AUTO}", not {value!r}')


def _threads(value: Any) -> Any:
    """-1 is all, also as a text: stock knows the number alone."""
    return os.cpu_count() if str(value).strip() == "-1" else value


Threads = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_threads)]


def off_of(value: Any) -> Any:
    return OFF if value is False else value  # what YAML reads for: off


def written(value: Any) -> Any:
    return str(value) if type(value) is int else value  # bytes, which files have as a number


Size = Annotated[str, BeforeValidator(written)]


def _read_by(of_text: Callable[[object], int | str]) -> BeforeValidator:
    """A number of tokens, or a word in its place."""

    def read(value: Any) -> Any:
        try:
            return None if value is None else of_text(value)
        except ArgumentTypeError as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(read)


Fold = Annotated[int | str | None, _read_by(fold_of)]
Observe = Annotated[int | str | None, _read_by(observe_of)]
