"""A prompt that is read: struct headkv_reading, which headkv-plan.h documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _call, ffi, lib, model_shape
from .plan import Keep, Part

ORDERS: Final = {
    "tokens": int(lib.HEADKV_ORDER_TOKENS),
    "layers": int(lib.HEADKV_ORDER_LAYERS),
    None: int(lib.HEADKV_ORDER_ANY),
}


class Reading(NamedTuple):
    """All tokens of a prompt, those that the context holds too."""

    tokens: Sequence[int]
    n_held: int
    """So many of the first ones the context holds."""
    n_new: int
    """So many of the last ones came with this turn: others do not ask, unless that is told."""
    question: Sequence[Part] = ()
    """What asks; empty: not told."""
    order: int = ORDERS[None]
    panel: int = 0
    logits: bool = False
    """Of every token, to be read while progress is told."""


class ReadInfo(NamedTuple):
    """Of struct headkv_read_info."""

    n_past: int
    """Tokens that stay, and are not read."""
    n_again: int
    """Tokens of a question, or of the whole prompt, that are read once more."""
    n_left_out: int
    """Tokens that would be, and that there is no room for."""
    order: int


def read(
    ctx: int,
    reading: Reading,
    keep: Keep,
    caps: npt.NDArray[np.int32],
    progress: Callable[[int, int, ReadInfo], None],
) -> ReadInfo:
    """Find out what asks, read, select from all of the prompt, compact.

    caps: (n_layer, n_head_kv), in place of a budget and scores. progress: called as (done, total, info), with
    0 first; what it raises ends the reading.
    """
    tokens = np.ascontiguousarray(reading.tokens, dtype=np.int32)
    flat = np.ascontiguousarray(caps[model_shape(ctx).heads], dtype=np.int32)
    info = ffi.new("struct headkv_read_info *")
    raised: list[BaseException] = []

    def on_progress(_: Any, done: int, total: int) -> None:
        if not raised:
            progress(done, total, _info_of(info))

    def on_error(_kind: Any, error: BaseException, _trace: Any) -> None:
        """Also of a signal that came meanwhile: its handler runs before the first line of on_progress()."""
        raised.append(error)
        _call("headkv_cancel", ctx)

    callback = ffi.callback("void(void *, int32_t, int32_t)", on_progress, onerror=on_error)
    raw, parts = ffi.new("struct headkv_reading *"), ffi.new("struct headkv_part[]", list(reading.question))
    raw.tokens, raw.n_tokens = ffi.from_buffer("int32_t[]", tokens), tokens.size
    raw.n_held, raw.n_new, raw.logits = reading.n_held, reading.n_new, reading.logits
    raw.question, raw.n_question = parts, len(parts)
    raw.order, raw.panel, raw.progress = reading.order, reading.panel, callback
    retention, _kept = keep.struct()
    retention.caps, retention.n_caps = ffi.from_buffer("int32_t[]", flat), flat.size
    sizes = [ffi.sizeof(f"struct headkv_{name}") for name in ("reading", "retention", "read_info")]
    try:
        _call("headkv_read", ctx, raw, sizes[0], retention, sizes[1], info, sizes[2])
    finally:
        if raised:
            _call("headkv_cancel_clear", ctx)
            raise raised[0]
    return _info_of(info)


def _info_of(raw: Any) -> ReadInfo:
    return ReadInfo(raw.n_past, raw.n_again, raw.n_left_out, raw.order)
