"""What plans are made of: budgets, where sentences end, and what asks. headkv-plan.h has what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ...budgets import ModelShape
from ...curves import Curves
from ...errors import ArgumentError
from ...settings import INT32_MAX
from . import _check, _functions, ffi

_INT64_MAX = 2**63 - 1


class Keep(NamedTuple):
    """struct headkv_retention."""

    budget: int | str
    """Mean entries per KV head, a percentage, or a size."""
    beta: float
    window: int
    kernel: int
    sinks: int
    observe: int
    draft: int
    scores: npt.NDArray[np.float64] | Curves | None = None
    """(n_layer, n_head) or (n_layer, n_head_kv); or curves in their place."""

    def struct(self) -> tuple[Any, Any]:
        """The struct, and what it points to."""
        raw = ffi.new("struct headkv_retention *")
        raw.beta, raw.window, raw.kernel = self.beta, self.window, self.kernel
        raw.sinks, raw.observe, raw.draft = self.sinks, self.observe, self.draft
        text = ffi.NULL
        if isinstance(self.budget, str):
            if "\0" in self.budget:
                raise ArgumentError(f"budget cannot hold a zero byte: {self.budget!r}")
            text = ffi.new("char[]", self.budget.encode(errors="replace"))
        else:
            raw.entries = max(-_INT64_MAX, min(self.budget, _INT64_MAX))
        scores, losses, shares = ffi.NULL, ffi.NULL, ffi.NULL
        if isinstance(self.scores, Curves):
            losses = ffi.from_buffer("float[]", self.scores.losses)
            shares = ffi.from_buffer("float[]", self.scores.shares)
            raw.n_rows, raw.n_cols, raw.n_points = self.scores.losses.shape
        elif self.scores is not None:
            flat = np.ascontiguousarray(self.scores, dtype=np.float64)
            scores = ffi.from_buffer("double[]", flat)
            raw.n_rows, raw.n_cols = flat.shape
        raw.budget, raw.scores, raw.losses, raw.shares = kept = text, scores, losses, shares
        return raw, kept


def check(keep: Keep) -> None:
    """ArgumentError for what can never work, whatever the model and the prompt."""
    raw, _kept = keep.struct()
    _check(_functions["headkv_check_retention"](raw, ffi.sizeof("struct headkv_retention")))


def _layers_of(shape: ModelShape) -> Any:
    """struct headkv_layer of each layer that retains."""
    alike = [(il, shape.n_head, shape.n_head_kv, shape.row_bytes) for il in range(shape.n_layer)]
    return ffi.new("struct headkv_layer[]", list(shape.layers or alike))


def get_caps(keep: Keep, shape: ModelShape, n_prompt: int) -> npt.NDArray[np.int32]:
    """(n_layer, n_head_kv), 0 for KV heads that a layer does not have."""
    if n_prompt > INT32_MAX:
        raise ArgumentError(f"n_prompt must be at most {INT32_MAX}, not {n_prompt}")
    raw, _kept = keep.struct()
    layers, caps = _layers_of(shape), np.empty(shape.n_heads, dtype=np.int32)
    pointer = ffi.from_buffer("int32_t[]", caps, require_writable=True)
    size, n_layers, n_bytes = ffi.sizeof("struct headkv_retention"), len(layers), shape.bounded_bytes
    get = _functions["headkv_get_caps"]
    _check(get(raw, size, layers, n_layers, n_bytes, n_prompt, pointer, caps.size))
    return shape.by_head(caps)


def match_scores(scored: Sequence[int], n_head: int, n_head_kv: int, shape: ModelShape) -> list[int]:
    """Which rows of scores are of the layers that a model retains. scored: the layers that they are of.

    n_head, n_head_kv: of the layer that has most. ScoresError for those of another model, with both values.
    """
    layers, of = _layers_of(shape), ffi.new("int32_t[]", list(scored))
    rows = ffi.new("int32_t[]", len(layers))
    _check(_functions["headkv_match_scores"](of, len(of), n_head, n_head_kv, layers, len(layers), rows))
    return list(rows)


class Text(Protocol):
    """The text of tokens, and bytes up to the end of each token's, int64 (n_tokens,)."""

    text: bytes
    ends: npt.NDArray[np.int64]


def _text_of(text: Text) -> tuple[Any, int, Any]:
    raw = ffi.new("struct headkv_text *")
    kept = ffi.from_buffer("char[]", text.text), ffi.from_buffer("int64_t[]", text.ends)
    raw.bytes, raw.ends = kept
    raw.n_bytes, raw.n_tokens = len(text.text), len(text.ends)
    return raw, ffi.sizeof("struct headkv_text"), kept


def sentence_ends(text: Text) -> npt.NDArray[np.uint8]:
    """1 for the last token of every sentence and of every line, else 0: (n_tokens,)."""
    raw, size, _kept = _text_of(text)
    ends = np.empty(len(text.ends), dtype=np.uint8)
    pointer = ffi.from_buffer("uint8_t[]", ends, require_writable=True)
    _check(_functions["headkv_get_sentences"](raw, size, pointer, ends.size))
    return ends


class Part(NamedTuple):
    """Tokens of a prompt that ask, or may: struct headkv_part."""

    start: int
    stop: int
    weight: float = 1.0
    """Of each of them, in the mean of the observed attention."""

    @property
    def n(self) -> int:
        return self.stop - self.start


def question(text: Text, start: int, stop: int, n_last: int) -> tuple[Part, ...]:
    """What asks in a message of the tokens from start on and before stop.

    start -1: in what ends before stop, of which nobody says where it begins.
    """
    raw, size, _kept = _text_of(text)
    parts, n = ffi.new("struct headkv_part[8]"), ffi.new("size_t *", 8)
    _check(_functions["headkv_get_question"](raw, size, start, stop, n_last, parts, n))
    return tuple(Part(parts[i].start, parts[i].stop, parts[i].weight) for i in range(n[0]))


class Observers(NamedTuple):
    """Whose attention is recorded: the prompt's last tokens, and some that are read once more after it."""

    first: int
    """From this position to the prompt's end."""
    again: tuple[int, ...]
    """Positions of a question that stood before what it asks about: it could not look at that."""
    weights: npt.NDArray[np.float32]
    """Of all of these tokens, in their order."""
    n_left_out: int
    """Tokens that should be read once more, and that there is no room for."""
    n_stay: int
    """Tokens that stay of those that were to, or 0."""


def observers(
    asking: Sequence[Part], n_prompt: int, n_least: int, n_room: int = INT32_MAX, n_stay: int = 0
) -> Observers:
    """Who observes a prompt of n_prompt tokens.

    n_room: tokens that may be read once more. n_stay: tokens that layers hold which cannot go back.
    """
    parts, res = ffi.new("struct headkv_part[]", list(asking)), ffi.new("struct headkv_observers *")
    size = ffi.sizeof("struct headkv_observers")
    arguments = (parts, len(parts), n_prompt, n_least, n_room, n_stay, res, size)
    get = _functions["headkv_get_observers"]
    _check(get(*arguments))  # how many
    again, weights = np.empty(res.n_again, dtype=np.int32), np.empty(res.n_weights, dtype=np.float32)
    res.again = ffi.from_buffer("int32_t[]", again, require_writable=True)
    res.weights = ffi.from_buffer("float[]", weights, require_writable=True)
    _check(get(*arguments))
    return Observers(res.first, tuple(again.tolist()), weights, res.n_left_out, res.n_stay)
