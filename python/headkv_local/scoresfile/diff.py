"""How far two files with head scores agree."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..scores import HeadScores

Scores = npt.NDArray[np.float64]


class Overlap(NamedTuple):
    """Of the k heads with the highest scores in each file, how many are the same."""

    k: int
    common: int


class Agreement(NamedTuple):
    n_heads: int
    spearman: float | None
    """Rank correlation, None where all scores of a file are equal."""
    overlaps: list[Overlap]


class Move(NamedTuple):
    """A KV head, and its share of all scores in each file."""

    layer: int
    head: int
    a: float
    b: float


_MOST_MOVES = 6


def moves(a: HeadScores, b: HeadScores) -> list[Move]:
    """The KV heads whose shares differ most: up to 6 that have more in a, then as many that have more in b.

    The files are of the same shape and layers.
    """
    in_a, in_b = (by_kv_head(scores) / by_kv_head(scores).sum() for scores in (a, b))
    layers = a.layers or range(len(a.scores))
    found: list[Move] = []
    for gain in (in_a - in_b, in_b - in_a):
        most = np.argsort(-gain, kind="stable")[:_MOST_MOVES]
        heads = [divmod(int(i), a.n_head_kv) for i in most if gain[i] > 0]
        found += [
            Move(layers[il], head, *(float(x[il * a.n_head_kv + head]) for x in (in_a, in_b)))
            for il, head in heads
        ]
    return found


def compare(a: HeadScores, b: HeadScores, top: int | None = None) -> dict[str, Agreement]:
    """Agreement over "KV heads" and over "query heads": of all ranks, the top 10 %, and the top so many.

    Raises ArgumentError for files of different shapes, and for a top beyond the KV heads that there are.
    """
    shapes = [(*scores.scores.shape, scores.n_head_kv) for scores in (a, b)]
    if shapes[0] != shapes[1]:
        said = ["{} layers of {} query and {} KV heads".format(*shape) for shape in shapes]
        raise ArgumentError(f"the files are of models of different shapes: {said[0]}, and {said[1]}")
    if a.layers != b.layers:
        raise ArgumentError(f"the files are of different layers: {a.layers}, and {b.layers}")
    n_kv_heads = by_kv_head(a).size  # never more than query heads
    if top is not None and top > n_kv_heads:
        raise ArgumentError(f"--top must be at most the number of KV heads, {n_kv_heads}, not {top}")
    return {
        "KV heads": _agreement(by_kv_head(a), by_kv_head(b), top),
        "query heads": _agreement(by_query_head(a), by_query_head(b), top),
    }


def by_query_head(scores: HeadScores) -> Scores:
    """(n_layer * n_head,)"""
    return scores.scores.astype(np.float64).ravel()


def by_kv_head(scores: HeadScores) -> Scores:
    """(n_layer * n_head_kv,): sums over the GQA groups."""
    n_layer = scores.scores.shape[0]
    summed: Scores = scores.scores.astype(np.float64).reshape(n_layer, scores.n_head_kv, -1).sum(axis=2)
    return summed.ravel()


def ranks(values: Scores) -> Scores:
    """From 0 for the lowest; equal values share the mean of their ranks."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean: Scores = np.cumsum(counts) - (counts + 1) / 2
    return mean[group.ravel()]


def spearman(a: Scores, b: Scores) -> float | None:
    """Pearson's correlation of the ranks, None where one side has no order at all."""
    x, y = (ranks(values) - (values.size - 1) / 2 for values in (a, b))
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale > 0 else None


def overlap(a: Scores, b: Scores, k: int) -> Overlap:
    """Ties go to the lower head, in both."""
    tops = [set(np.argsort(-values, kind="stable")[:k].tolist()) for values in (a, b)]
    return Overlap(k, len(tops[0] & tops[1]))


def _agreement(a: Scores, b: Scores, top: int | None) -> Agreement:
    sizes = [max(1, round(a.size / 10)), *([] if top is None else [top])]
    return Agreement(a.size, spearman(a, b), [overlap(a, b, k) for k in sizes])


def text(agreements: dict[str, Agreement], moved: list[Move]) -> str:
    """A table with a column for each kind of head, and the KV heads that differ most."""
    rows = [["", *agreements]]
    rows.append(["heads", *(str(x.n_heads) for x in agreements.values())])
    rows.append(["Spearman", *(_number(x.spearman) for x in agreements.values())])
    for i, name in enumerate(("top 10 %", "top")[: len(next(iter(agreements.values())).overlaps)]):
        rows.append([name, *(f"{x.overlaps[i].common} of {x.overlaps[i].k}" for x in agreements.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
    said = [line.rstrip() for line in lines]
    for whose, chosen in (("A", [m for m in moved if m.a > m.b]), ("B", [m for m in moved if m.b > m.a])):
        if chosen:
            said.append(f"more in {whose} (layer-KV head, share in A and in B)")
            said += [f"  {f'{m.layer}-{m.head}':7} {m.a:6.1%} {m.b:6.1%}" for m in chosen]
    return "\n".join(said)


def document(agreements: dict[str, Agreement], moved: list[Move]) -> dict[str, Any]:
    """For --json."""
    return {"moves": [move._asdict() for move in moved]} | {
        kind.replace(" ", "_").lower(): {
            "heads": found.n_heads,
            "spearman": found.spearman,
            "overlaps": [x._asdict() for x in found.overlaps],
        }
        for kind, found in agreements.items()
    }


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
