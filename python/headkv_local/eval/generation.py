"""What a task asks of an answer: its generation_kwargs and --gen_kwargs, checked before a prompt is read."""

from __future__ import annotations

from sys import float_info
from typing import Any, Final

from lm_eval.models.utils import normalize_gen_kwargs

from headkv_local import ArgumentError

NOTHING_CUT: Final = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Sampling from all tokens."""

_WITHOUT: Final = {"num_beams": 1, "repetition_penalty": 1.0, "repeat_penalty": 1.0, "use_cache": True}
"""What would change answers with other values, which are not to be had here."""

_KNOWN: Final = ("until", "max_gen_toks", "do_sample", "temperature", *NOTHING_CUT)


def checked(given: dict[str, Any], usual_most: int) -> dict[str, Any]:
    """As normalize_gen_kwargs() has them, numbers as numbers. usual_most: tokens of an answer where the task
    says none.

    Raises ArgumentError for what would have no effect, and the results would say that it had.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if not isinstance(given.get("do_sample", False), bool):
        raise ArgumentError(f"generation_kwargs: do_sample must be true or false, not {given['do_sample']!r}")
    try:
        found = dict(normalize_gen_kwargs(given, usual_most))
        found |= {name: _number(name, found[name]) for name in ("temperature", *NOTHING_CUT) if name in found}
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"generation_kwargs {given!r}: {error}") from None
    for name, value in found.items():
        if name not in _KNOWN and (name not in _WITHOUT or value != _WITHOUT[name]):
            known = ", ".join(_KNOWN)
            raise ArgumentError(f"generation_kwargs: {name}={value!r} has no effect here; known are {known}")
    found["until"] = [stop for stop in found["until"] if stop is not None]
    if any(not isinstance(stop, str) for stop in found["until"]):
        raise ArgumentError(
            f"generation_kwargs: until must be a text or a list of texts, not {given['until']!r}"
        )
    if found["max_gen_toks"] < 1:
        raise ArgumentError(
            f"generation_kwargs: max_gen_toks must be at least 1, not {found['max_gen_toks']}"
        )
    return found


def _number(name: str, value: Any) -> float:
    """A top_k below 0 cuts nothing, as 0."""
    number = float(value)
    if name == "top_k" and number.is_integer():
        return max(int(number), 0)
    most = 1.0 if name in ("top_p", "min_p") else float_info.max
    if name == "top_k" or not 0 <= number <= most:
        raise ValueError(f"{name} cannot be {value!r}")
    return number
