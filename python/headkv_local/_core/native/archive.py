"""Prompts that are read with an archive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import Plan, _call, _check, _functions, encoded, ffi, lib

ORDER_TOKENS, ORDER_LAYERS = int(lib.HEADKV_ORDER_TOKENS), int(lib.HEADKV_ORDER_LAYERS)


class Prompt(NamedTuple):
    """What to read, with what the context holds before it."""

    tokens: Sequence[int]
    n_past: int
    first: int  # position of the first observed token
    weights: npt.NDArray[np.float32]  # of each observed one
    again: Sequence[int] = ()  # tokens that are read once more, as the last observed ones
    again_at: Sequence[int] = ()  # their positions
    n_draft: int = 0  # tokens of a draft of the answer, which select
    logits: bool = False  # of every token, to be read while progress is told
    order: int = ORDER_TOKENS
    panel: int = 0


def prefill(ctx: int, prompt: Prompt, plan: Plan, progress: Callable[[int, int], None]) -> None:
    """Read, select anew, compact. progress: called as (done, total); what it raises ends the reading."""
    raw_plan, _kept = plan.struct(ctx)
    given = (prompt.tokens, prompt.again, prompt.again_at)
    tokens, again, again_at = (np.ascontiguousarray(x, dtype=np.int32) for x in given)
    weights = np.ascontiguousarray(prompt.weights, dtype=np.float32)
    raised: list[BaseException] = []

    def on_progress(_: Any, done: int, total: int) -> None:
        if not raised:
            progress(done, total)

    def on_error(_kind: Any, error: BaseException, _trace: Any) -> None:
        """Also of a signal that came meanwhile: its handler runs before the first line of on_progress()."""
        raised.append(error)
        _call("headkv_cancel", ctx)

    callback = ffi.callback("void(void *, int32_t, int32_t)", on_progress, onerror=on_error)
    raw = ffi.new("struct headkv_prompt *")
    raw.tokens, raw.n_tokens = ffi.from_buffer("int32_t[]", tokens), tokens.size
    raw.n_past, raw.order, raw.panel, raw.first = prompt.n_past, prompt.order, prompt.panel, prompt.first
    raw.weights, raw.n_weights = ffi.from_buffer("float[]", weights), weights.size
    raw.again, raw.n_again = ffi.from_buffer("int32_t[]", again), again.size
    raw.n_draft, raw.logits = prompt.n_draft, prompt.logits
    raw.again_at = ffi.from_buffer("int32_t[]", again_at)
    raw.progress = callback
    sizes = (ffi.sizeof("struct headkv_prompt"), ffi.sizeof("struct headkv_plan"))
    try:
        _call("headkv_prefill", ctx, raw, sizes[0], raw_plan, sizes[1])
    finally:
        if raised:
            _call("headkv_cancel_clear", ctx)
            raise raised[0]


def set_archive(ctx: int, where: str | None) -> None:
    """where: "memory", the path of a file, or None for no archive."""
    kinds = {None: lib.HEADKV_ARCHIVE_NONE, "memory": lib.HEADKV_ARCHIVE_MEMORY}
    path = ffi.NULL if where in kinds else encoded(str(where))
    _call("headkv_set_archive", ctx, kinds.get(where, lib.HEADKV_ARCHIVE_FILE), path)


def hold(ctx: int) -> int:
    """The archived rows of the compacted prompt stay, under a number above 0; 0 where there are none."""
    number = ffi.new("int32_t *")
    _call("headkv_hold_archived", ctx, number)
    return int(number[0])


def restore(ctx: int, number: int) -> None:
    """Rows that are held are those of the compacted prompt again."""
    _call("headkv_restore_archived", ctx, number)


def release(ctx: int, number: int) -> None:
    _call("headkv_release_archived", ctx, number)


def begin_small(on: bool) -> None:
    """Whether caches that this thread makes have few cells until their first prompt comes."""
    _check(_functions["headkv_begin_small"](on))
