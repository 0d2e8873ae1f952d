"""Budgets: how many KV cache entries every KV head may keep.

HeadKV (Fu et al., ICLR 2025, section 3.2) gives each head a base budget and shares the rest out by head
score. With alpha the observation window, b the mean budget, L layers of H KV heads and s the KV-head
scores normalised to sum 1:

    cap[l][h] = alpha + (b - alpha) * (1 - 1/beta) + s[l][h] * (b - alpha)/beta * L*H

Here no cap exceeds the prompt: what a head cannot use is shared out among those that still have room, so
the total is b*L*H, or the whole prompt where that is less.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import ArgumentError
from .settings import INT32_MAX

_UNITS: Final = {"kib": 2**10, "mib": 2**20, "gib": 2**30}
_BUDGET: Final = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(%|kib|mib|gib)\s*", re.IGNORECASE)


class LayerShape(NamedTuple):
    """A layer that retains: one whose attention reaches to all positions."""

    il: int
    """Its index in the model."""
    n_head: int
    """Query heads."""
    n_head_kv: int
    """KV heads."""
    row_bytes: int
    """Bytes of K and V of one entry of one KV head."""


class ModelShape(NamedTuple):
    """What budgets need to know about a model: its layers that retain.

    Arrays over KV heads are (n_layer, n_head_kv). Where layers differ, n_head and n_head_kv are those of the
    layer that has most, row_bytes is the mean over all KV heads, and what an array holds of KV heads that a
    layer does not have is 0.
    """

    n_layer: int
    n_head: int
    """Query heads per layer."""
    n_head_kv: int
    """KV heads per layer."""
    row_bytes: int
    """Bytes of K and V of one entry of one KV head."""
    layers: tuple[LayerShape, ...] = ()
    """The layers, in their order; empty: all are alike, and all of the model."""
    bounded_bytes: int = 0
    """What the other layers hold in any case: those with a sliding window, and recurrent ones."""

    @classmethod
    def of(cls, layers: Sequence[LayerShape]) -> ModelShape:
        n_heads = sum(layer.n_head_kv for layer in layers)
        return cls(
            len(layers),
            max(layer.n_head for layer in layers),
            max(layer.n_head_kv for layer in layers),
            sum(layer.n_head_kv * layer.row_bytes for layer in layers) // n_heads,
            tuple(layers),
        )

    @property
    def n_heads(self) -> int:
        """KV heads in all layers."""
        return int(self.heads.sum())

    @property
    def heads(self) -> npt.NDArray[np.bool_]:
        """Which KV heads there are, bool (n_layer, n_head_kv)."""
        counts = [layer.n_head_kv for layer in self.layers] or [self.n_head_kv] * self.n_layer
        return np.arange(self.n_head_kv) < np.asarray(counts)[:, None]

    def by_head(self, flat: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(n_heads, ...) -> (n_layer, n_head_kv, ...), 0 for KV heads that a layer does not have."""
        res = np.zeros((self.n_layer, self.n_head_kv, *flat.shape[1:]), dtype=flat.dtype)
        res[self.heads] = flat
        return res


@dataclass(frozen=True)
class Budget:
    """A parsed budget: mean entries per KV head, percent of the prompt, or bytes of kept rows."""

    kind: Literal["entries", "percent", "bytes"]
    amount: Fraction
    text: str
    unit: int = 1

    def total(self, shape: ModelShape, n_prompt: int, window: int) -> int:
        """Entries of all KV heads together for a prompt of n_prompt tokens, at most the whole prompt.

        A percentage is at least the window. Raises ArgumentError, with the smallest budget that works, if
        a number of bytes is less than that.
        """
        if self.kind == "entries":
            total = int(self.amount) * shape.n_heads
        elif self.kind == "percent":
            # a share of a short prompt may be less than a window: the window is kept then
            total = max(int(self.amount * n_prompt * shape.n_heads / 100), window * shape.n_heads)
        else:
            total = (int(self.amount) - shape.bounded_bytes) // shape.row_bytes
        if total < 0:
            raise ArgumentError(
                f"budget {self.text} is less than the {self._size(shape.bounded_bytes)} that layers with a "
                "sliding window or a recurrent state hold in any case; "
                f"the smallest budget that works is {self._smallest(shape, window)}"
            )
        if total < window * shape.n_heads:
            raise ArgumentError(
                f"budget {self.text} keeps {total / shape.n_heads:.3g} entries per KV head, less than the "
                f"window of {window}; "
                f"the smallest budget that works is {self._smallest(shape, window)}"
            )
        return min(total, n_prompt * shape.n_heads)

    def _smallest(self, shape: ModelShape, window: int) -> str:
        return f"'{self._size(shape.bounded_bytes + window * shape.n_heads * shape.row_bytes)}'"

    def _size(self, n_bytes: int) -> str:
        """In the unit of the budget, rounded up."""
        unit = next(name for name, size in _UNITS.items() if size == self.unit)
        return f"{ceil(Fraction(1000 * n_bytes, self.unit)) / 1000:.10g}{unit[0].upper()}iB"


def parse_budget(budget: object, window: int) -> Budget:
    """Read a budget: an int >= window, "5%" of the prompt (at most 100%), or "64MiB" (also KiB, GiB)."""
    if isinstance(budget, int | np.integer) and not isinstance(budget, bool):
        if not window <= budget <= INT32_MAX:
            raise ArgumentError(
                f"budget must be at least the window of {window} entries per KV head, not {budget}"
            )
        return Budget("entries", Fraction(int(budget)), str(budget))
    match = _BUDGET.fullmatch(budget) if isinstance(budget, str) else None
    if match is None:
        raise ArgumentError(
            "budget must be an int (mean entries per KV head), a percentage of the prompt such as '5%' "
            f"or a size of what is kept such as '64MiB', not {budget!r}"
        )
    amount, unit = Fraction(match[1]), match[2].lower()
    if amount == 0:
        raise ArgumentError(f"budget must be more than nothing, not {budget!r}")
    if unit != "%":
        return Budget("bytes", amount * _UNITS[unit], repr(budget), _UNITS[unit])
    if amount > 100:
        raise ArgumentError(f"budget must be at most '100%' of the prompt, not {budget!r}")
    return Budget("percent", amount, repr(budget))


def kv_head_scores(scores: npt.NDArray[np.float64], shape: ModelShape) -> npt.NDArray[np.float64]:
    """Score per KV head, summing to 1: (n_layer, n_head) or (n_layer, n_head_kv) -> (n_layer, n_head_kv).

    Scores of query heads are summed over the GQA group. In a layer with fewer heads the first ones count.
    """
    by_query_head, by_kv_head = (shape.n_layer, shape.n_head), (shape.n_layer, shape.n_head_kv)
    if scores.shape not in (by_query_head, by_kv_head):
        raise ArgumentError(
            f"scores must have the shape {by_query_head} (query heads) or {by_kv_head} (KV heads) for "
            f"this model, not {scores.shape}"
        )
    scaled = scores / scores.max()  # the sum of very large scores would overflow
    grouped = np.zeros(by_kv_head)
    for i, row in enumerate(grouped):
        n_head, n_head_kv = shape.layers[i][1:3] if shape.layers else (shape.n_head, shape.n_head_kv)
        found = scaled[i, : n_head_kv if scores.shape == by_kv_head else n_head]
        row[:n_head_kv] = found.reshape(n_head_kv, -1).sum(axis=1)
    if not grouped.any():
        raise ArgumentError("scores must not be 0 for all KV heads of this model")
    normalised: npt.NDArray[np.float64] = grouped / grouped.sum()
    return normalised


def uniform_caps(total: int, shape: ModelShape, n_prompt: int) -> npt.NDArray[np.int32]:
    """The same share for every KV head; what does not divide evenly goes to the first ones."""
    return _rounded(np.full(shape.n_heads, total / shape.n_heads), total, n_prompt, shape)


def headkv_caps(
    total: int, scores: npt.NDArray[np.float64], beta: float, window: int, shape: ModelShape, n_prompt: int
) -> npt.NDArray[np.int32]:
    """Caps by the formula above; monotone in score, their sum is exactly total.

    scores: (n_layer, n_head_kv), sum 1. total: entries of all KV heads, from window to n_prompt for each.
    """
    mean = total / shape.n_heads
    base = window + (mean - window) * (1 - 1 / beta)
    shares = _poured(total - base * shape.n_heads, scores[shape.heads], n_prompt - base)
    return _rounded(base + shares, total, n_prompt, shape)


def _poured(pool: float, weights: npt.NDArray[np.float64], room: float) -> npt.NDArray[np.float64]:
    """Share pool out in proportion to weights, at most room each (water-filling)."""
    order = np.argsort(-weights, kind="stable")
    heaviest = weights[order]
    rest = np.append(np.cumsum(heaviest[::-1])[::-1], 0.0)  # rest[k]: weight of all but the k heaviest
    shares = np.empty_like(weights)
    for n_full in range(len(weights)):
        left = pool - n_full * room
        if rest[n_full] <= 0:  # only heads of no weight have room left
            shares[order[n_full:]] = left / (len(weights) - n_full)
            break
        if heaviest[n_full] / rest[n_full] * left <= room:
            shares[order[n_full:]] = heaviest[n_full:] / rest[n_full] * left
            break
        shares[order[n_full]] = room
    return shares


def _rounded(
    exact: npt.NDArray[np.float64], total: int, n_prompt: int, shape: ModelShape
) -> npt.NDArray[np.int32]:
    """Integers with the sum total: rounded down, then one more for the largest remainders.

    Ties go to the lower (layer, head), so that the same budget gives the same caps everywhere.
    """
    exact = np.clip(exact, 0, n_prompt)
    caps = np.floor(exact).astype(np.int64)
    remainder = np.where(caps < n_prompt, exact - caps, -1.0)
    caps[np.argsort(-remainder, kind="stable")[: total - int(caps.sum())]] += 1
    return shape.by_head(caps.astype(np.int32))
