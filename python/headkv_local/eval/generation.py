"""What a task asks of an answer: its generation_kwargs and --gen_kwargs, checked before a prompt is read."""

from __future__ import annotations

from typing import Any, Final

from lm_eval.models.utils import normalize_gen_kwargs

from headkv_local import ArgumentError

NOTHING_CUT: Final = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Sampling from all tokens."""

_WITHOUT: Final = {"num_beams": 1, "repetition_penalty": 1.0, "repeat_penalty": 1.0, "use_cache": True}
"""What would change answers with other values, which are not to be had here."""

_KNOWN: Final = ("until", "max_gen_toks", "do_sample", "temperature", *NOTHING_CUT)


def checked(given: dict[str, Any], usual_most: int) -> dict[str, Any]:
    """As normalize_gen_kwargs() has them. usual_most: tokens of an answer where the task says none.

    Raises ArgumentError for what would have no effect, and the results would say that it had.
    """
    try:
        found = dict(normalize_gen_kwargs(given, usual_most))
        numbers = {name: float(found[name]) for name in ("temperature", *NOTHING_CUT) if name in found}
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"generation_kwargs {given!r}: {error}") from None
    for name, value in found.items():
        if name not in _KNOWN and (name not in _WITHOUT or value != _WITHOUT[name]):
            known = ", ".join(_KNOWN)
            raise ArgumentError(f"generation_kwargs: {name}={value!r} has no effect here; known are {known}")
    if any(not isinstance(stop, str) for stop in found["until"] if stop is not None):
        raise ArgumentError(
            f"generation_kwargs: until must be a text or a list of texts, not {found['until']!r}"
        )
    if found["max_gen_toks"] < 1:
        raise ArgumentError(
            f"generation_kwargs: max_gen_toks must be at least 1, not {found['max_gen_toks']}"
        )
    for name, number in numbers.items():
        if not 0 <= number <= (1 if name in ("top_p", "min_p") else float("inf")):
            raise ArgumentError(f"generation_kwargs: {name} cannot be {found[name]!r}")
    return found
