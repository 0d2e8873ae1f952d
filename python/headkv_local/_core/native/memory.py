"""What a context takes, on which device."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import _call, _filled, ffi, get_numbers, lib


class Bytes(NamedTuple):
    """struct headkv_memory, one number per device in ggml's order: int64 (n_device,)."""

    weights: npt.NDArray[np.int64]
    packed: npt.NDArray[np.int64]  # of these
    cache: npt.NDArray[np.int64]
    compute: npt.NDArray[np.int64]


def get_memory(ctx: int) -> Bytes:
    """Of the thread that uses the context."""
    raw = ffi.new("struct headkv_memory[]", lib.ggml_backend_dev_count())
    _call("headkv_get_memory", ctx, raw, ffi.sizeof("struct headkv_memory"), len(raw))
    return Bytes(
        np.array([x.bytes_weights for x in raw], dtype=np.int64),
        np.array([x.bytes_packed for x in raw], dtype=np.int64),
        np.array([x.bytes_cache for x in raw], dtype=np.int64),
        np.array([x.bytes_compute for x in raw], dtype=np.int64),
    )


def get_panel(ctx: int) -> tuple[int, int]:
    """Tokens of a panel, where nothing says how many, and bytes of one token's hidden states.

    Of the thread that uses the context.
    """
    n_tokens, row_bytes = ffi.new("int32_t *"), ffi.new("int64_t *")
    _call("headkv_get_panel", ctx, n_tokens, row_bytes)
    return n_tokens[0], row_bytes[0]


def get_layer_devices(ctx: int) -> npt.NDArray[np.int32]:
    """Of each layer that retains, the number of its device: (n_layer,)."""
    numbers = np.empty(get_numbers(ctx).n_layer, dtype=np.int32)
    return _filled("headkv_get_layer_devices", ctx, "int32_t[]", numbers)
