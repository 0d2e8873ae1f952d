"""Budgets from curves: entries go where the next one lowers the loss most, until the budget is spent.

As with head scores (budgets.py), an equal base comes first: a share 1 - 1/beta of what a KV head has beyond
the window. The rest is water-filling. Each curve is replaced by its lower convex hull, which takes measuring
noise for what it is: a loss that rises with the budget becomes level, and a step becomes the slope across it.
On hulls the greedy order is the optimum.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .budgets import ModelShape
from .curves import Curves
from .errors import ArgumentError

Ints = npt.NDArray[np.int64]


class _Slope(NamedTuple):
    """A straight piece of a hull: of one KV head, from `start` entries to `stop`."""

    steepness: float  # how much the loss falls, per byte
    head: int
    start: int
    stop: int


def curve_caps(
    equal: npt.NDArray[np.int32],
    curves: Curves,
    beta: float,
    window: int,
    shape: ModelShape,
    n_prompt: int,
) -> npt.NDArray[np.int32]:
    """Entries to keep per KV head, int32 (n_layer, n_head_kv), from window to n_prompt each.

    equal: what each would keep if budgets were equal, in the same form. The caps take the same bytes, or,
    where the rows of layers differ in size, up to one row fewer. The same arguments give the same caps.
    Raises ArgumentError for curves of another shape than the model's.
    """
    if curves.losses.shape[:2] != (shape.n_layer, shape.n_head_kv):
        raise ArgumentError(
            f"curves must be of {(shape.n_layer, shape.n_head_kv)} (layers, KV heads) for this model, not of "
            f"{curves.losses.shape[:2]}"
        )
    sizes = _row_bytes(shape)
    base = window + int((equal[shape.heads].mean() - window) * (1 - 1 / beta))
    caps = np.full(shape.n_heads, base, dtype=np.int64)
    left = int(sizes @ equal[shape.heads]) - int(sizes @ caps)
    at = window + np.rint(curves.shares.astype(np.float64) * (n_prompt - window)).astype(np.int64)
    for slope in sorted(_slopes(at, curves.losses[shape.heads], sizes), key=_steepest_first):
        n = min(slope.stop - max(slope.start, int(caps[slope.head])), left // int(sizes[slope.head]))
        if n > 0:
            caps[slope.head] += n
            left -= n * int(sizes[slope.head])
    _level(caps, left, sizes, n_prompt)
    return shape.by_head(caps.astype(np.int32))


def hull(at: Ints, losses: npt.NDArray[np.floating]) -> tuple[Ints, npt.NDArray[np.float64]]:
    """The lower convex hull of a curve, up to its lowest point: budgets (m,), ascending, and losses (m,).

    at, losses: (n_points,); budgets may be equal where a prompt is short.
    """
    points: list[tuple[int, float]] = []
    for x, y in sorted(zip(at.tolist(), losses.tolist(), strict=True)):
        if points and points[-1][0] == x:
            continue  # the lowest of those with this budget is there
        while len(points) > 1 and _turns_up(points[-2], points[-1], (x, y)):
            points.pop()
        points.append((x, y))
    lowest = min(range(len(points)), key=lambda i: points[i][1])
    xs, ys = zip(*points[: lowest + 1], strict=True)
    return np.array(xs, dtype=np.int64), np.array(ys, dtype=np.float64)


def _turns_up(a: tuple[int, float], b: tuple[int, float], c: tuple[int, float]) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def _slopes(at: Ints, losses: npt.NDArray[np.floating], sizes: Ints) -> list[_Slope]:
    """losses: (n_heads, n_points)"""
    found = []
    for head, row in enumerate(losses):
        xs, ys = hull(at, row)
        fall = (ys[:-1] - ys[1:]) / ((xs[1:] - xs[:-1]) * sizes[head])
        found += [_Slope(float(fall[i]), head, int(xs[i]), int(xs[i + 1])) for i in range(len(fall))]
    return found


def _steepest_first(slope: _Slope) -> tuple[float, int, int]:
    """Ties go to the lower (layer, head)."""
    return -slope.steepness, slope.head, slope.start


def _level(caps: Ints, left: int, sizes: Ints, n_prompt: int) -> None:
    """Spend what no curve asks for: the smallest caps are raised, all to one level."""

    def cost(level: int) -> int:
        return int(sizes @ np.maximum(np.minimum(level, n_prompt) - caps, 0))

    low, high = 0, n_prompt  # the highest level that can be paid
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= left else (low, middle - 1)
    left -= cost(low)
    np.maximum(caps, low, out=caps)
    for head in np.flatnonzero((caps == low) & (caps < n_prompt)):
        if sizes[head] <= left:
            caps[head] += 1
            left -= int(sizes[head])


def _row_bytes(shape: ModelShape) -> Ints:
    """Of each KV head."""
    if not shape.layers:
        return np.full(shape.n_heads, shape.row_bytes, dtype=np.int64)
    return np.repeat([layer.row_bytes for layer in shape.layers], [layer.n_head_kv for layer in shape.layers])
