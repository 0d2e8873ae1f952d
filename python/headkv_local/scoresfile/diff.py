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


def compare(a: HeadScores, b: HeadScores, top: int | None = None) -> dict[str, Agreement]:
    """Agreement over "KV heads" and over "query heads": of all ranks, the top 10 %, and the top so many.

    Raises ArgumentError for files of different shapes, and for a top beyond the heads that there are.
    """
    shapes = [(*scores.scores.shape, scores.n_head_kv) for scores in (a, b)]
    if shapes[0] != shapes[1]:
        said = ["{} layers of {} query and {} KV heads".format(*shape) for shape in shapes]
        raise ArgumentError(f"the files are of models of different shapes: {said[0]}, and {said[1]}")
    if a.layers != b.layers:
        raise ArgumentError(f"the files are of different layers: {a.layers}, and {b.layers}")
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
    if top is not None and top > a.size:
        raise ArgumentError(f"--top must be at most the number of heads, {a.size}, not {top}")
    sizes = [max(1, round(a.size / 10)), *([] if top is None else [top])]
    return Agreement(a.size, spearman(a, b), [overlap(a, b, k) for k in sizes])


def text(agreements: dict[str, Agreement]) -> str:
    """A table with a column for each kind of head."""
    rows = [["", *agreements]]
    rows.append(["heads", *(str(x.n_heads) for x in agreements.values())])
    rows.append(["Spearman", *(_number(x.spearman) for x in agreements.values())])
    for i, name in enumerate(("top 10 %", "top")[: len(next(iter(agreements.values())).overlaps)]):
        rows.append([name, *(f"{x.overlaps[i].common} of {x.overlaps[i].k}" for x in agreements.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def document(agreements: dict[str, Agreement]) -> dict[str, Any]:
    """For --json."""
    return {
        kind.replace(" ", "_").lower(): {
            "heads": found.n_heads,
            "spearman": found.spearman,
            "overlaps": [x._asdict() for x in found.overlaps],
        }
        for kind, found in agreements.items()
    }


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
