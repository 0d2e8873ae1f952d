"""The native surface: functions for those of headkv.h, which documents them. Here are those of a cache.

Through `lib` the functions of ggml can be called too that build_abi.py declares: libllama depends on it.

A context is the address of a llama_context, as llama_cpp hands it out. Every call that can fail goes
through _check(), which raises what the code stands for, with the library's own sentence.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from ...budgets import LayerShape, ModelShape
from ...errors import (
    ArchiveError,
    ArgumentError,
    Cancelled,
    HeadKVError,
    InternalError,
    LibraryConflictError,
    OutOfMemoryError,
    ScoresAbsentError,
    ScoresError,
    SessionError,
    StateError,
    UnsupportedError,
)
from .. import logging  # noqa: F401 - first of all, so that whatever the library says goes to logging
from ..library import library_path


class NativeStats(NamedTuple):
    """struct headkv_stats, field by field."""

    n_layer: int
    n_head_kv: int
    n_ctx: int
    n_tokens: int
    n_prompt: int
    n_kept: int
    bytes_full: int
    bytes_cells: int
    bytes_kept: int
    bytes_record: int
    bytes_peak: int
    t_select_us: int
    t_compact_us: int
    n_splits: int
    n_archived: int
    bytes_archive: int


def _open() -> tuple[Any, Any, dict[str, Callable[..., Any]]]:
    """The generated module's ffi, the library, and its functions by name."""
    path = library_path()
    abi = import_module(f"{__name__}._abi")
    ffi = abi.ffi
    try:
        lib = ffi.dlopen(str(path))  # the file that llama_cpp has loaded too: one library, one state
        functions = {name: getattr(lib, name) for name in abi.SURFACE}
    except (OSError, AttributeError, ffi.error) as error:
        raise LibraryConflictError(f"the native library {path} cannot be used: {error}") from error
    found, wanted = functions["headkv_abi_version"](), lib.HEADKV_ABI_VERSION
    if found != wanted:
        raise LibraryConflictError(
            f"the native library {path} has ABI {found}, this package needs ABI {wanted}: "
            "reinstall headkv-local"
        )
    lib.llama_backend_init()  # loads the CPU's code in a portable build; whoever comes first, it happens once
    return ffi, lib, functions


ffi, lib, _functions = _open()

_ERRORS: Final[dict[int, type[HeadKVError]]] = {
    lib.HEADKV_ERR_ARGUMENT: ArgumentError,
    lib.HEADKV_ERR_UNSUPPORTED: UnsupportedError,
    lib.HEADKV_ERR_STATE: StateError,
    lib.HEADKV_ERR_MEMORY: OutOfMemoryError,
    lib.HEADKV_ERR_INTERNAL: InternalError,
    lib.HEADKV_ERR_CANCELLED: Cancelled,
    lib.HEADKV_ERR_ARCHIVE: ArchiveError,
    lib.HEADKV_ERR_SESSION: SessionError,
    lib.HEADKV_ERR_FILE: ScoresError,
    lib.HEADKV_ERR_SCORES_ABSENT: ScoresAbsentError,
    lib.HEADKV_ERR_SCORES_VERSION: ScoresError,
    lib.HEADKV_ERR_SCORES_MISSING: ScoresError,
    lib.HEADKV_ERR_SCORES_TYPE: ScoresError,
    lib.HEADKV_ERR_SCORES_LENGTH: ScoresError,
    lib.HEADKV_ERR_SCORES_VALUE: ScoresError,
}

OBSERVE_OFF, OBSERVE_TOKENS = int(lib.HEADKV_OBSERVE_OFF), int(lib.HEADKV_OBSERVE_TOKENS)
OBSERVE_ROWS, OBSERVE_TAIL = int(lib.HEADKV_OBSERVE_ROWS), int(lib.HEADKV_OBSERVE_TAIL)


def _check(code: int) -> None:
    if code != lib.HEADKV_OK:
        text = last_error() or f"the native library returned {code} and no reason"
        raise _ERRORS.get(code, InternalError)(text)


def _call(name: str, ctx: int, *arguments: Any) -> None:
    _check(_functions[name](ffi.cast("struct llama_context *", ctx), *arguments))


def _filled(name: str, ctx: int, ctype: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    _call(name, ctx, ffi.from_buffer(ctype, array, require_writable=True), array.size)
    return array


def last_error() -> str:
    """Of this thread's last call."""
    return text_of(_functions["headkv_last_error"]())


def supported(ctx: int) -> None:
    _call("headkv_supported", ctx)


def reserve(ctx: int, n: int) -> None:
    """Room in the cache for a prompt of n tokens."""
    _call("headkv_reserve", ctx, n)


def observe(
    ctx: int, what: int, first: int = 0, n: int = 0, weights: npt.NDArray[np.float32] | None = None
) -> None:
    """what: OBSERVE_OFF, OBSERVE_ROWS, or OBSERVE_TOKENS or OBSERVE_TAIL: n from position `first` on.

    weights: (n,), each from 0 to 1; None: all are 1.
    """
    flat = ffi.NULL
    if weights is not None:
        flat = ffi.from_buffer("float[]", np.ascontiguousarray(weights, dtype=np.float32))
    _call("headkv_observe", ctx, what, first, n, flat, ffi.NULL, 0)


def get_observe_limit(ctx: int, n_tokens: int) -> int:
    """How many observed tokens to decode at once where n_tokens are in the cache then."""
    limit = ffi.new("int32_t *")
    _call("headkv_get_observe_limit", ctx, n_tokens, limit)
    return int(limit[0])


class Plan(NamedTuple):
    """What to keep of a prompt: struct headkv_plan."""

    caps: npt.NDArray[np.int32]  # (n_layer, n_head_kv)
    window: int
    kernel: int
    first_tokens: int
    ends: npt.NDArray[np.uint8] | None = None  # (n_prompt,), not 0 for the last position of a sentence
    pooled: bool = False

    def struct(self, ctx: int) -> tuple[Any, Any]:
        """The struct, and what it points to."""
        heads = model_shape(ctx).heads
        if np.shape(self.caps) != heads.shape:
            raise ArgumentError(f"caps must have the shape {heads.shape}, not {np.shape(self.caps)}")
        caps = np.ascontiguousarray(np.asarray(self.caps)[heads], dtype=np.int32)
        ends = np.ascontiguousarray(() if self.ends is None else self.ends, dtype=np.uint8)
        raw = ffi.new("struct headkv_plan *")
        raw.window, raw.kernel, raw.first_tokens = self.window, self.kernel, self.first_tokens
        raw.caps, raw.n_caps = ffi.from_buffer("int32_t[]", caps), caps.size
        raw.ends = ffi.NULL if self.ends is None else ffi.from_buffer("uint8_t[]", ends)
        raw.n_ends, raw.pooled = ends.size, self.pooled
        return raw, (caps, ends)


def compact(ctx: int, plan: Plan) -> None:
    raw, _kept = plan.struct(ctx)
    _call("headkv_compact", ctx, raw, ffi.sizeof("struct headkv_plan"))


def get_attention(ctx: int) -> npt.NDArray[np.float32]:
    """(n_layer, n_head_kv, n_prompt), n_prompt being all tokens in the cache."""
    shape, n_tokens = model_shape(ctx), get_numbers(ctx).n_tokens
    flat = np.empty((shape.n_heads, n_tokens), dtype=np.float32)
    return shape.by_head(_filled("headkv_get_attention", ctx, "float[]", flat))


def get_rows(ctx: int) -> npt.NDArray[np.float32]:
    """(n_layer, n_head, n_tokens in the cache): what the last decoded token attended to."""
    shape, n_tokens = model_shape(ctx), get_numbers(ctx).n_tokens
    rows = np.zeros((shape.n_layer, shape.n_head, n_tokens), dtype=np.float32)
    for i, layer in enumerate(shape.layers):
        row = rows[i, : layer.n_head]
        _call("headkv_get_rows", ctx, i, ffi.from_buffer("float[]", row, require_writable=True), row.size)
    return rows


def get_mask(ctx: int) -> npt.NDArray[np.bool_]:
    """(n_layer, n_head_kv, n_prompt)."""
    shape, n_prompt = model_shape(ctx), get_numbers(ctx).n_prompt
    flat = np.empty((shape.n_heads, n_prompt), dtype=np.uint8)
    return shape.by_head(_filled("headkv_get_mask", ctx, "uint8_t[]", flat).astype(np.bool_))


def get_numbers(ctx: int) -> NativeStats:
    stats = ffi.new("struct headkv_stats *")
    _call("headkv_get_stats", ctx, stats, ffi.sizeof("struct headkv_stats"), ffi.NULL, 0)
    return _numbers_of(stats)


def get_stats(ctx: int) -> tuple[NativeStats, npt.NDArray[np.int32]]:
    """The numbers, and the entries kept per KV head, (n_layer, n_head_kv), of one moment."""
    shape = model_shape(ctx)
    stats = ffi.new("struct headkv_stats *")
    kept = np.empty(shape.n_heads, dtype=np.int32)
    pointer = ffi.from_buffer("int32_t[]", kept, require_writable=True)
    _call("headkv_get_stats", ctx, stats, ffi.sizeof("struct headkv_stats"), pointer, kept.size)
    return _numbers_of(stats), shape.by_head(kept)


def _numbers_of(stats: Any) -> NativeStats:
    return NativeStats(*(int(getattr(stats, field)) for field in NativeStats._fields))


def model_shape(ctx: int) -> ModelShape:
    """The layers that retain."""
    layers = ffi.new("struct headkv_layer[]", get_numbers(ctx).n_layer)
    _call("headkv_get_layers", ctx, layers, len(layers))
    return ModelShape.of([LayerShape(x.il, x.n_head, x.n_head_kv, x.row_bytes) for x in layers])


def get_device_bytes(ctx: int) -> list[int]:
    """Bytes of the KV cache on each device, in ggml's order."""
    n_bytes = np.zeros(lib.ggml_backend_dev_count(), dtype=np.int64)
    return [int(n) for n in _filled("headkv_get_device_bytes", ctx, "int64_t[]", n_bytes)]


def cancel_enable(ctx: int) -> None:
    _call("headkv_cancel_enable", ctx)


def cancel(ctx: int) -> None:
    _call("headkv_cancel", ctx)


def cancel_clear(ctx: int) -> None:
    _call("headkv_cancel_clear", ctx)


def model_id(path: str) -> str:
    """Identity of a model's weights, the same with and without embedded scores, split and in one file."""
    text = ffi.new("char[64]")
    _check(_functions["headkv_model_id"](encoded(path), text, 64))
    return text_of(text)


def encoded(path: str) -> bytes:
    if "\0" in path:
        raise ArgumentError(f"a file name cannot hold a zero byte: {path!r}")
    try:
        return os.fsencode(path)
    except UnicodeEncodeError as error:
        raise ArgumentError(f"a file name cannot hold half a character: {path!r}") from error


def text_of(chars: Any) -> str:
    return bytes(ffi.string(chars)).decode("utf-8", errors="replace")
