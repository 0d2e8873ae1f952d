"""Settings in variables of the environment: one that nobody reads is refused, and a near name is told."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from .errors import ArgumentError


def require_known(variables: Iterable[str], prefix: str, known: Collection[str]) -> None:
    """Raise ArgumentError for a variable with `prefix` that has none of the `known` names behind it."""
    for variable in variables:
        name = variable.removeprefix(prefix)
        if name != variable and name not in known:
            raise ArgumentError(
                f"the environment has {variable}, which is no setting{meant(name, known, prefix)}"
            )


def meant(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence about a name that is none: the known one that is nearest, or ""."""
    close = difflib.get_close_matches(name, known, 1)
    return f"; is {prefix}{close[0]} meant?" if close else ""
