"""Numbers in a model's metadata that llama.cpp takes, and ends the process by when it computes with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .._gguf.reading import metadata
from ..errors import ModelError
from .gguf import Gguf

_EPSILONS: Final = tuple(
    f"attention.{kind}_epsilon" for kind in ("layer_norm", "layer_norm_rms", "group_norm")
)
_ROTATED: Final = ("rope.dimension_count", "rope.dimension_count_swa")  # in pairs


def require_computable(path: str, overrides: Mapping[str, Any]) -> None:
    """Raise ModelError for such a number in a model's file, or in the kv_overrides that hold before it."""
    if not metadata(path):  # loading it for real says what is wrong
        return
    found = Gguf(path)
    architecture = found.text("general.architecture")

    def require(key: str, fits: bool, number: float, what: str) -> None:
        if not fits:
            raise ModelError(f"Failed to load model from file: {path}: {key} must be {what}, not {number:g}")

    for name in (*_EPSILONS, *_ROTATED, "full_attention_interval"):
        key = f"{architecture}.{name}"
        number = overrides.get(key, found.number(key))
        if not isinstance(number, int | float):
            continue
        if name in _EPSILONS:
            require(key, 0 <= number < float("inf"), number, "finite and not negative")
        elif name in _ROTATED:
            require(key, number % 2 == 0, number, "even")
        else:
            require(key, number >= 1, number, "at least 1")
