"""The archive: full K and V rows of prompts, and what stands beside those of the compacted one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import _call, _check, _functions, encoded, ffi, lib, model_shape

_N_CHUNK = 256  # positions whose rows are in memory at once

Part = npt.NDArray[np.uint8]


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


def get_end(ctx: int) -> Part:
    """What stands beside the rows."""
    size = ffi.new("size_t *")
    _call("headkv_get_archived_end", ctx, ffi.NULL, size)
    data = np.empty(size[0], dtype=np.uint8)
    _call("headkv_get_archived_end", ctx, ffi.from_buffer(data, require_writable=True), size)
    return data


def set_end(ctx: int, data: Part) -> None:
    """The rows that were set count from now on; if this fails, all stays as it was."""
    _call("headkv_set_archived_end", ctx, ffi.from_buffer(data), len(data))


class Chunk(NamedTuple):
    """Rows of some positions, (bytes,): of one layer after the other, K of all positions, then V."""

    first: int
    n: int
    rows: Part


class ArchivedRows:
    """All rows of a compacted prompt of n tokens, chunk by chunk; all chunks have the same memory."""

    def __init__(self, ctx: int, n: int) -> None:
        layers = model_shape(ctx).layers
        self._ctx, self.n_tokens = ctx, n
        self._sizes = [layer.n_head_kv * layer.row_bytes for layer in layers]  # of one position

    @property
    def n_bytes(self) -> int:
        return self.n_tokens * sum(self._sizes)

    def chunks(self) -> Iterator[Chunk]:
        """Empty ones, one after the other."""
        room = np.empty(min(self.n_tokens, _N_CHUNK) * sum(self._sizes), dtype=np.uint8)
        for first in range(0, self.n_tokens, _N_CHUNK):
            n = min(_N_CHUNK, self.n_tokens - first)
            yield Chunk(first, n, room[: n * sum(self._sizes)])

    def get(self, chunk: Chunk) -> None:
        """Fill it from the archive."""
        self._each("headkv_get_archived", chunk)

    def set(self, chunk: Chunk) -> None:
        """Put it into the archive."""
        self._each("headkv_set_archived", chunk)

    def _each(self, name: str, chunk: Chunk) -> None:
        start = 0
        for layer, size in enumerate(self._sizes):
            rows = chunk.rows[start : start + chunk.n * size]
            start += rows.size
            pointer = ffi.from_buffer(rows, require_writable=True)
            _call(name, self._ctx, layer, chunk.first, chunk.n, pointer, rows.size)
