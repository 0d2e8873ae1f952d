"""What a Llama will take: llama.cpp counts what it makes, the layers' shapes tell what is added to that.

Bytes are int64 (n_device,), in ggml's order of devices.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

import llama_cpp
import numpy as np
import numpy.typing as npt

from ..budgets import ModelShape
from ..errors import ArgumentError
from ..memory import DeviceMemory, MemoryEstimate
from ..retention import Retention
from ..settings import ALL
from . import ggml
from .load import arguments_of, refuse_what_cannot_be
from .native import memory as native
from .settle import settle, shape_of
from .unloaded import Unloaded

Bytes = npt.NDArray[np.int64]
Order = Literal["tokens", "layers"]

# as native/src has them: headkv-prefill.cpp, headkv-prefill-draft.cpp, headkv-read.cpp, headkv-resize.cpp,
# headkv-archive.h, headkv-observer.h, llama-kv-cache-headkv.h
_DRAFT: Final = 64  # entries more of each head while a draft is made
_PIECE: Final = 2048  # tokens of a prompt that are read once more at a time
_ROOM: Final = 128  # tokens of a prompt that is read once more need as much, at least
_GAP: Final = 16  # tokens before an observed one that do not count for it
_QUESTIONS: Final = 4  # that a draft answers, at most
_TAIL: Final = 128  # cells right after compaction; a power of two times as many where the window needs them
_BLOCK: Final = 256  # positions that archives and cells for a prompt are multiples of
_SMALL: Final = 8  # cells before the first prompt, where that gets its own


class _Rows(NamedTuple):
    """What tokens take in the layers that retain; arrays are (n_layer,)."""

    devices: npt.NDArray[np.int32]
    n_heads: npt.NDArray[np.int64]  # KV heads
    n_query_heads: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]  # bytes of one entry of one KV head
    rooms: npt.NDArray[np.int64]  # the place of its cells where layers take turns
    reader: int  # the device that reads layer by layer: that of all of them, else the host

    @classmethod
    def of(cls, shape: ModelShape, devices: npt.NDArray[np.int32]) -> _Rows:
        il, n_query_heads, n_heads, sizes = np.array(shape.layers).T
        alone = (devices == devices[0]).all()
        reader = int(devices[0]) if alone else ggml.host()
        return cls(devices, n_heads, n_query_heads, sizes, il % (1 if reader == ggml.host() else 2), reader)

    def _by_device(self, per_layer: npt.NDArray[np.int64]) -> Bytes:
        res = on_host(0)
        np.add.at(res, self.devices, per_layer)
        return res

    def cells(self, n: int) -> Bytes:
        return self._by_device(n * self.n_heads * self.sizes)

    def cells_in_turns(self, n: int) -> Bytes:
        """Of the largest layer of each room."""
        res = on_host(0)
        for room in set(self.rooms.tolist()):
            most, here = on_host(0), self.rooms == room
            np.maximum.at(most, self.devices[here], (n * self.n_heads * self.sizes)[here])
            res += most
        return res

    def records(self, n_cells: int) -> Bytes:
        """Of observed attention: a float for each cell and KV head."""
        return self._by_device(4 * n_cells * self.n_heads)

    def queries(self, n: int, n_key: int) -> Bytes:
        """Of n tokens that ask: floats, n_key for each query head."""
        return self._by_device(4 * n * self.n_query_heads * n_key)

    def kept(self, caps: npt.NDArray[np.int32], window: int) -> Bytes:
        """caps: (n_layer, n_head_kv). With the tables of where heads begin; the window is in cells."""
        n_rows = caps.sum(axis=1, dtype=np.int64) - window * self.n_heads
        return self._by_device(n_rows * self.sizes + 4 * (self.n_heads + 1))


class Estimator:
    """Of one model and its settings, for any size of the context."""

    def __init__(
        self, model_path: str | os.PathLike[str], retention: Retention | None, kwargs: dict[str, Any]
    ) -> None:
        refuse_what_cannot_be(model_path, retention, kwargs)
        self.retention, self._settled = retention, False  # with its scores once at() was called
        self.order: Order = "layers" if retention is not None and retention.by_layers else "tokens"
        self._model = Unloaded(os.fspath(model_path), arguments_of(retention, kwargs))
        self.trained = int(llama_cpp.llama_model_n_ctx_train(self._model.model))

    def __enter__(self) -> Estimator:
        return self

    def __exit__(self, *_: object) -> None:
        self._model.close()

    def shape(self) -> ModelShape:
        """The layers that retain."""
        with self._model.sized(self._model.ubatch) as ctx:
            return shape_of(ctx)

    def at(self, n_ctx: int, n_prompt: int | None = None) -> MemoryEstimate:
        """n_ctx: 0 for what the model was trained for. n_prompt: None for all of the context."""
        asked = n_ctx or self.trained
        with self._model.sized(asked) as ctx:
            made, n_ctx = native.get_memory(ctx), int(llama_cpp.llama_n_ctx(ctx))
            n_prompt = n_ctx if n_prompt is None else n_prompt
            if not 1 <= n_prompt <= n_ctx:
                raise ArgumentError(f"n_prompt must be from 1 to {n_ctx}, not {n_prompt}")
            if self._model.is_mapped:  # the file is held beside what has another form
                made = made._replace(weights=made.weights + made.packed)
            if self.retention is not None:
                shape, devices = shape_of(ctx), native.get_layer_devices(ctx)
        fixed = made.weights + self._beside(n_ctx)
        parts = {"weights": made.weights, "cache_full": made.cache}
        if self.retention is None:
            held = fixed + made.cache + made.compute
            parts |= {"cache_compacted": made.cache, "peak_tokens": held, "answering": held}
            parts |= {"compute": made.compute, "compute_compacted": made.compute}
            return _estimate(n_ctx, n_prompt, self.order, parts)
        if not self._settled:  # its scores are loaded, once for all sizes
            self.retention = settle(self.retention, shape, self._model.model_path)[0]
            self._settled = True
        kept = self.retention
        reading = _Reading(
            self._model, kept, shape, _Rows.of(shape, devices), made, fixed, n_ctx, asked, n_prompt
        )
        return _estimate(n_ctx, n_prompt, self.order, parts | reading.parts())

    def _beside(self, n_ctx: int) -> Bytes:
        """In host memory: logits, llama.cpp's and llama_cpp's own, and an adapter."""
        n_rows = n_ctx + min(n_ctx, self._model.batch) if self._model.logits_all else 1
        return on_host(4 * n_rows * self._model.n_vocab() + self._model.adapter_bytes)


class _Reading:
    """A prompt that is read, and compacted as a retention says."""

    def __init__(
        self,
        model: Unloaded,
        kept: Retention,
        shape: ModelShape,
        rows: _Rows,
        made: native.Bytes,
        fixed: Bytes,
        n_ctx: int,
        asked: int,
        n_prompt: int,
    ) -> None:
        """made: the context in the order of tokens, before a prompt. fixed: held beside it all the time.
        asked: as n_ctx was before it was rounded up: batches have no more tokens."""
        n_ubatch = min(asked, model.ubatch)
        self._kept, self._rows, self._made, self._n_ctx = kept, rows, made, n_ctx
        with model.sized(n_ctx, small=True, asked=asked) as ctx:
            small = native.get_memory(ctx)
            n_panel, row = native.get_panel(ctx)
        n_more = n_ctx - _SMALL
        # a draft head has cells too in some models
        self._idle = np.maximum(0, made.cache - small.cache - rows.cells(n_more)) // n_more
        self._at_first = small.compute + self._cells(_SMALL)
        self._bounded = made.cache - self._cells(n_ctx)
        self._fixed = fixed + self._bounded
        self._copies = on_host(2 * int(self._bounded.sum()))  # to go back to, and of the prompt's end
        self._is_recurrent = bool(llama_cpp.llama_model_is_hybrid(model.model))

        with model.sized(n_ctx, small=True, one_output=True, asked=asked) as ctx:
            compute_small = native.get_memory(ctx).compute
        caps = kept.caps_for(shape, n_prompt)
        self._fits = bool((caps[shape.heads] >= n_prompt).all())  # and is kept whole
        n_room = n_ctx - n_prompt
        rereads = kept.observe == ALL and not self._fits and n_room >= min(_ROOM, n_prompt)
        self._n_draft = 0 if rereads else kept.draft
        self._reads_behind = rereads or self._n_draft > 0
        n_piece = min(n_prompt, n_room, _PIECE) if rereads else 0
        self._n_cells = min(n_ctx, _padded(n_prompt + n_piece))
        # in graphs that record it: which of the cells near them count for which of its tokens
        near = 4 * min(n_piece, n_ubatch) * (self._n_cells - n_prompt + _GAP)
        self._recording = on_device(near, rows.reader)
        n_most = max(self._n_cells, n_ubatch)  # a context has as many at least, to have batches of that size
        with model.sized(n_most, one_output=True, asked=asked) as ctx:
            fitted = native.get_memory(ctx).compute
        mask = 2 * n_ubatch * (n_most - self._n_cells)  # f16, of cells that are not there
        self._compute_fitted = np.maximum(0, fitted - mask)

        n_tail = _TAIL
        while n_tail < kept.window:
            n_tail *= 2
        n_tail = min(n_tail, n_ctx - n_prompt + kept.window)
        self._tail = self._cells(n_tail)
        mask = 2 * n_ubatch * max(0, n_tail - _SMALL)  # f16, of the tail's other cells
        self._compute_after = np.where(compute_small > 0, compute_small + mask, 0)
        self._pool = rows.kept(caps, kept.window)
        more = np.where(shape.heads, np.minimum(caps + _DRAFT, n_prompt), 0) if self._n_draft > 0 else caps
        self._pool_drafted = rows.kept(more, kept.window)
        self._asked = rows.queries(_QUESTIONS * self._n_draft, model.n_key())
        self._archived = on_host(int(rows.cells(_padded(n_prompt)).sum()))
        n_panel = kept.panel or n_panel
        n_again = (n_piece - 1) // n_panel * n_panel if rereads else 0  # rows of the last panel are not kept
        self._archived_most = on_host(int(rows.cells(_padded(n_prompt + n_again)).sum()))
        self._hidden = on_device(row * min(n_panel, n_prompt), rows.reader)

    def _cells(self, n: int) -> Bytes:
        """Of all layers of the cache, also those that do not retain."""
        cells: Bytes = self._rows.cells(n) + n * self._idle
        return cells

    def parts(self) -> dict[str, Bytes]:
        """The fields of DeviceMemory that a retention has to do with."""
        reads_fitted = self._kept.archives
        compute = self._compute_fitted if reads_fitted else self._made.compute
        archive = on_host(0)
        if self._fits:
            cache = self._cells(self._n_cells) + self._bounded if reads_fitted else self._made.cache
            after = compute
        else:
            cache, after = self._pool + self._tail + self._bounded, self._compute_after
            if self._kept.archive == "memory":
                archive = self._archived + on_host(int(self._bounded.sum()))
        answering = self._fixed - self._bounded + cache + after + archive
        return {
            "cache_compacted": cache,
            "compute": compute,
            "compute_compacted": after,
            "hidden": self._hidden if self._kept.by_layers and not self._fits else on_host(0),
            "archive": archive,
            "peak_tokens": np.maximum(self._peak("tokens"), answering),
            "peak_layers": np.maximum(self._peak("layers"), answering),
            "answering": answering,
        }

    def _peak(self, order: Order) -> Bytes:
        fitted = order == "layers" or self._kept.archive is not None  # cells, to the prompt
        if not fitted:
            whole: Bytes = self._fixed + self._made.compute + self._recording
            whole += self._made.cache - self._bounded
            if not self._fits:
                whole += self._rows.records(self._n_cells) + self._pool_drafted + self._tail + self._asked
                # windows go back by themselves, but not from what is read behind them
                whole += self._copies if self._is_recurrent else self._copies // 2 * self._reads_behind
            return whole
        if self._fits:
            return self._at_most(self._compute_fitted + self._cells(self._n_cells))
        records = self._rows.records(self._n_cells)
        if order == "layers":
            cells, records = self._rows.cells_in_turns(self._n_cells), records + self._hidden
        else:
            cells = self._cells(self._n_cells)
        held = self._compute_fitted + self._recording + self._cells(_SMALL) + self._copies
        read = cells + np.maximum(records, self._pool)
        drafted = records + self._pool_drafted + self._asked
        drafted += self._cells(self._kept.window + _QUESTIONS * self._n_draft)
        held += np.maximum(read, drafted) if self._n_draft > 0 else read
        if self._kept.archive in (None, "memory"):  # None: until the prompt has been read
            held += self._archived_most
        return self._at_most(held)

    def _at_most(self, held: Bytes) -> Bytes:
        """Of what is held before a prompt and what is held while it is read."""
        most: Bytes = self._fixed + np.maximum(self._at_first, held)
        return most


def on_device(n: int, device: int) -> Bytes:
    """n bytes in its memory, none in others."""
    res = np.zeros(len(ggml.device_names()), dtype=np.int64)
    res[device] = n
    return res


def on_host(n: int) -> Bytes:
    return on_device(n, ggml.host())


def _padded(n: int) -> int:
    return -(-n // _BLOCK) * _BLOCK


def _estimate(n_ctx: int, n_prompt: int, order: Order, parts: Mapping[str, Bytes]) -> MemoryEstimate:
    """parts: by the fields of DeviceMemory."""
    devices = tuple(
        DeviceMemory(name=name, **{field: int(n[i]) for field, n in parts.items()})
        for i, name in enumerate(ggml.device_names())
        if any(n[i] > 0 for n in parts.values())
    )
    return MemoryEstimate(devices=devices, n_ctx=n_ctx, n_prompt=n_prompt, order=order)
