"""The native surface: one function here for each of headkv.h, which documents what they do.

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

from .._library import library_path
from ..errors import (
    ArgumentError,
    HeadKVError,
    InternalError,
    LibraryConflictError,
    OutOfMemoryError,
    ScoresAbsentError,
    ScoresError,
    StateError,
    UnsupportedError,
)

SURFACE: Final = (
    "headkv_abi_version",
    "headkv_last_error",
    "headkv_supported",
    "headkv_configure",
    "headkv_set_budgets",
    "headkv_reserve",
    "headkv_observe",
    "headkv_set_sentences",
    "headkv_compact",
    "headkv_get_attention",
    "headkv_get_rows",
    "headkv_get_kept",
    "headkv_get_mask",
    "headkv_get_stats",
    "headkv_get_device_bytes",
    "headkv_device_count",
    "headkv_device_name",
    "headkv_device_description",
    "headkv_get_device",
    "headkv_cuda_archs",
    "headkv_cancel",
    "headkv_cancel_clear",
    "headkv_scores_load",
    "headkv_scores_free",
    "headkv_scores_get_info",
    "headkv_scores_get",
    "headkv_scores_key",
    "headkv_scores_text",
    "headkv_model_id",
)


class NativeStats(NamedTuple):
    """struct headkv_stats, field by field."""

    n_layer: int
    n_head: int
    n_head_kv: int
    n_ctx: int
    n_prompt: int
    n_kept: int
    n_live: int
    row_bytes: int
    bytes_full: int
    bytes_live: int
    bytes_pool: int
    bytes_obs: int
    bytes_peak: int
    t_select_us: int
    t_compact_us: int
    n_splits: int


class Device(NamedTuple):
    """struct headkv_device and its texts."""

    name: str
    description: str
    is_gpu: bool
    bytes_free: int
    bytes_total: int


def _open() -> tuple[Any, Any, dict[str, Callable[..., Any]]]:
    """The generated module's ffi, the library, and its functions by name."""
    path = library_path()
    ffi = import_module(f"{__name__}._abi").ffi
    try:
        lib = ffi.dlopen(str(path))  # the file that llama_cpp has loaded too: one library, one state
        functions = {name: getattr(lib, name) for name in SURFACE}
    except (OSError, AttributeError, ffi.error) as error:
        raise LibraryConflictError(f"the native library {path} cannot be used: {error}") from error
    found, wanted = functions["headkv_abi_version"](), lib.HEADKV_ABI_VERSION
    if found != wanted:
        raise LibraryConflictError(
            f"the native library {path} has ABI {found}, this package needs ABI {wanted}: "
            "reinstall headkv-local"
        )
    return ffi, lib, functions


_ffi, _lib, _functions = _open()

_ERRORS: Final[dict[int, type[HeadKVError]]] = {
    _lib.HEADKV_ERR_ARGUMENT: ArgumentError,
    _lib.HEADKV_ERR_UNSUPPORTED: UnsupportedError,
    _lib.HEADKV_ERR_STATE: StateError,
    _lib.HEADKV_ERR_MEMORY: OutOfMemoryError,
    _lib.HEADKV_ERR_INTERNAL: InternalError,
    _lib.HEADKV_ERR_FILE: ScoresError,
    _lib.HEADKV_ERR_SCORES_ABSENT: ScoresAbsentError,
    _lib.HEADKV_ERR_SCORES_VERSION: ScoresError,
    _lib.HEADKV_ERR_SCORES_MISSING: ScoresError,
    _lib.HEADKV_ERR_SCORES_TYPE: ScoresError,
    _lib.HEADKV_ERR_SCORES_LENGTH: ScoresError,
    _lib.HEADKV_ERR_SCORES_VALUE: ScoresError,
}

OBSERVE_OFF, OBSERVE_WINDOW, OBSERVE_ROWS = (
    int(_lib.HEADKV_OBSERVE_OFF),
    int(_lib.HEADKV_OBSERVE_WINDOW),
    int(_lib.HEADKV_OBSERVE_ROWS),
)


def _check(code: int, ctx: int) -> None:
    if code != _lib.HEADKV_OK:
        text = last_error(ctx) or f"the native library returned {code} and no reason"
        raise _ERRORS.get(code, InternalError)(text)


def _call(name: str, ctx: int, *arguments: Any) -> None:
    _check(_functions[name](_ffi.cast("struct llama_context *", ctx), *arguments), ctx)


def _filled(name: str, ctx: int, ctype: str, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    _call(name, ctx, _ffi.from_buffer(ctype, array, require_writable=True), array.size)
    return array


def abi_version() -> int:
    return int(_functions["headkv_abi_version"]())


def last_error(ctx: int) -> str:
    text = _functions["headkv_last_error"](_ffi.cast("struct llama_context *", ctx))
    return bytes(_ffi.string(text)).decode("utf-8", errors="replace") if text else ""


def supported(ctx: int) -> None:
    _call("headkv_supported", ctx)


def configure(ctx: int, window: int, kernel: int, sinks: int) -> None:
    _call("headkv_configure", ctx, window, kernel, sinks)


def set_budgets(ctx: int, caps: npt.NDArray[np.int32]) -> None:
    """caps: (n_layer, n_head_kv)."""
    flat = np.ascontiguousarray(caps, dtype=np.int32)
    _call("headkv_set_budgets", ctx, _ffi.from_buffer("int32_t[]", flat), flat.size)


def reserve(ctx: int, n: int) -> None:
    """Room in the cache for a prompt of n tokens."""
    _call("headkv_reserve", ctx, n)


def observe(ctx: int, what: int) -> None:
    """what: OBSERVE_OFF, OBSERVE_WINDOW or OBSERVE_ROWS."""
    _call("headkv_observe", ctx, what)


def set_sentences(ctx: int, ends: npt.NDArray[np.uint8]) -> None:
    """ends: (n_prompt,), not 0 for the last position of a sentence."""
    flat = np.ascontiguousarray(ends, dtype=np.uint8)
    _call("headkv_set_sentences", ctx, _ffi.from_buffer("uint8_t[]", flat), flat.size)


def compact(ctx: int, seq: int = 0) -> None:
    _call("headkv_compact", ctx, seq)


def get_attention(ctx: int) -> npt.NDArray[np.float32]:
    """(n_layer, n_head_kv, n_prompt), n_prompt being all tokens of the live cache."""
    stats = get_stats(ctx)
    shape = (stats.n_layer, stats.n_head_kv, stats.n_live)
    return _filled("headkv_get_attention", ctx, "float[]", np.empty(shape, dtype=np.float32))


def get_rows(ctx: int) -> npt.NDArray[np.float32]:
    """(n_layer, n_head, n_tokens in the cache): what the last decoded token attended to."""
    stats = get_stats(ctx)
    rows = np.empty((stats.n_layer, stats.n_head, stats.n_live), dtype=np.float32)
    for layer in range(stats.n_layer):
        _call("headkv_get_rows", ctx, layer, _ffi.from_buffer("float[]", rows[layer]), rows[layer].size)
    return rows


def get_kept(ctx: int) -> npt.NDArray[np.int32]:
    """(n_layer, n_head_kv)."""
    stats = get_stats(ctx)
    shape = (stats.n_layer, stats.n_head_kv)
    return _filled("headkv_get_kept", ctx, "int32_t[]", np.empty(shape, dtype=np.int32))


def get_mask(ctx: int) -> npt.NDArray[np.bool_]:
    """(n_layer, n_head_kv, n_prompt)."""
    stats = get_stats(ctx)
    shape = (stats.n_layer, stats.n_head_kv, stats.n_prompt)
    return _filled("headkv_get_mask", ctx, "uint8_t[]", np.empty(shape, dtype=np.uint8)).astype(np.bool_)


def get_stats(ctx: int) -> NativeStats:
    stats = _ffi.new("struct headkv_stats *")
    _call("headkv_get_stats", ctx, stats, _ffi.sizeof("struct headkv_stats"))
    return NativeStats(*(int(getattr(stats, field)) for field in NativeStats._fields))


def device_names() -> list[str]:
    return [_text(_functions["headkv_device_name"](i)) for i in range(_functions["headkv_device_count"]())]


def devices() -> list[Device]:
    """What this build can compute on, the CPU among them; the memory as the drivers report it now."""
    found = []
    for i, name in enumerate(device_names()):
        raw = _ffi.new("struct headkv_device *")
        _check(_functions["headkv_get_device"](i, raw, _ffi.sizeof("struct headkv_device")), 0)
        description = _text(_functions["headkv_device_description"](i))
        found.append(Device(name, description, bool(raw.is_gpu), int(raw.bytes_free), int(raw.bytes_total)))
    return found


def cuda_archs() -> str:
    return _text(_functions["headkv_cuda_archs"]())


def get_device_bytes(ctx: int) -> list[int]:
    """Bytes of the KV cache on each of devices()."""
    n_bytes = np.zeros(_functions["headkv_device_count"](), dtype=np.int64)
    pointer = _ffi.from_buffer("int64_t[]", n_bytes, require_writable=True)
    code = _functions["headkv_get_device_bytes"](
        _ffi.cast("struct llama_context *", ctx), pointer, n_bytes.size
    )
    _check(code, 0)  # contexts that are not ours keep no error
    return [int(n) for n in n_bytes]


def cancel(ctx: int) -> None:
    _call("headkv_cancel", ctx)


def cancel_clear(ctx: int) -> None:
    _call("headkv_cancel_clear", ctx)


class RawScores(NamedTuple):
    """Head scores as a GGUF file holds them; what the file does not recommend is negative."""

    scores: npt.NDArray[np.float32]  # (n_layer, n_head)
    n_head_kv: int
    recommended: dict[str, Any]  # beta, window, kernel, sinks
    texts: dict[str, str]  # headkv.method, headkv.source.*


def load_scores(path: str) -> RawScores:
    handle = _ffi.new("struct headkv_scores **")
    _check(_functions["headkv_scores_load"](_path(path), handle), 0)
    raw = _ffi.gc(handle[0], _functions["headkv_scores_free"])
    info = _ffi.new("struct headkv_scores_info *")
    _check(_functions["headkv_scores_get_info"](raw, info, _ffi.sizeof("struct headkv_scores_info")), 0)
    scores = np.empty((int(info.n_layer), int(info.n_head)), dtype=np.float32)
    _check(_functions["headkv_scores_get"](raw, _ffi.from_buffer("float[]", scores), scores.size), 0)
    return RawScores(
        scores=scores,
        n_head_kv=int(info.n_head_kv),
        recommended={
            "beta": float(info.beta),
            "window": int(info.window),
            "kernel": int(info.kernel),
            "sinks": int(info.sinks),
        },
        texts={
            _text(_functions["headkv_scores_key"](raw, i)): _text(_functions["headkv_scores_text"](raw, i))
            for i in range(int(info.n_texts))
        },
    )


def model_id(path: str) -> str:
    """Identity of a model file's weights, the same with and without embedded scores."""
    text = _ffi.new("char[64]")
    _check(_functions["headkv_model_id"](_path(path), text, 64), 0)
    return _text(text)


def _path(path: str) -> bytes:
    if "\0" in path:
        raise ArgumentError(f"a file name cannot hold a zero byte: {path!r}")
    return os.fsencode(path)


def _text(chars: Any) -> str:
    return bytes(_ffi.string(chars)).decode("utf-8", errors="replace")
