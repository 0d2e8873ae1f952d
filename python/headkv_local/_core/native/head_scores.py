"""Head scores as the native library reads them from a GGUF file."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...curves import Curves
from . import _check, _functions, encoded, ffi, text_of


class RawScores(NamedTuple):
    """Head scores as a GGUF file holds them; what the file does not recommend is negative."""

    scores: npt.NDArray[np.float32]  # (n_layer, n_head)
    layers: tuple[int, ...]  # of the model, that the rows are of
    n_head_kv: int
    recommended: dict[str, Any]  # beta, window, kernel, sinks
    texts: dict[str, str]  # headkv.method, headkv.source.*
    curves: Curves | None


def _curves_of(raw: Any, shape: tuple[int, int, int]) -> Curves | None:
    """shape: (n_layer, n_head_kv, n_points)."""
    if shape[2] == 0:
        return None
    shares, losses = np.empty(shape[2], dtype=np.float32), np.empty(shape, dtype=np.float32)
    pointers = [ffi.from_buffer("float[]", array, require_writable=True) for array in (shares, losses)]
    get = _functions["headkv_scores_get_curves"]
    _check(get(raw, pointers[0], shares.size, pointers[1], losses.size))
    return Curves(shares, losses)


def load_scores(path: str) -> RawScores:
    handle = ffi.new("struct headkv_scores **")
    _check(_functions["headkv_scores_load"](encoded(path), handle))
    raw = ffi.gc(handle[0], _functions["headkv_scores_free"])
    info = ffi.new("struct headkv_scores_info *")
    _check(_functions["headkv_scores_get_info"](raw, info, ffi.sizeof("struct headkv_scores_info")))
    scores = np.empty((int(info.n_layer), int(info.n_head)), dtype=np.float32)
    _check(_functions["headkv_scores_get"](raw, ffi.from_buffer("float[]", scores), scores.size))
    layers = np.empty(len(scores), dtype=np.int32)
    _check(_functions["headkv_scores_get_layers"](raw, ffi.from_buffer("int32_t[]", layers), layers.size))
    return RawScores(
        scores=scores,
        layers=tuple(map(int, layers)),
        n_head_kv=int(info.n_head_kv),
        recommended={
            "beta": float(info.beta),
            "window": int(info.window),
            "kernel": int(info.kernel),
            "sinks": int(info.sinks),
        },
        texts={
            text_of(_functions["headkv_scores_key"](raw, i)): text_of(
                _functions["headkv_scores_text"](raw, i)
            )
            for i in range(int(info.n_texts))
        },
        curves=_curves_of(raw, (int(info.n_layer), int(info.n_head_kv), int(info.n_points))),
    )
