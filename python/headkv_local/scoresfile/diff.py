"""How far two files with head scores agree."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError
from ..scores import HeadScores
from .heads import Heads, of

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
_KV_HEADS = "KV heads"
_UNKNOWN = (
    "KV heads are unknown: layers seem to differ in their heads, and the files do not say how. What is zero "
    "in both at the end of a layer is left out."
)


def moves(a: HeadScores, b: HeadScores) -> list[Move]:
    """The KV heads whose shares differ most: up to 6 that have more in a, then as many that have more in b.

    The files are of the same shape and layers. None at all where nobody knows how many heads each layer has.
    """
    heads = _heads_of(a, b)
    if heads is None:
        return []
    in_a, in_b = (by_kv_head(scores, heads) / scores.scores.sum(dtype=np.float64) for scores in (a, b))
    layers = a.layers or range(len(a.scores))
    named = [(layers[i], head) for i, one in enumerate(heads) for head in range(one.kv)]
    found: list[Move] = []
    for gain in (in_a - in_b, in_b - in_a):
        most = np.argsort(-gain, kind="stable")[:_MOST_MOVES]
        chosen = [(*named[i], float(in_a[i]), float(in_b[i])) for i in most if gain[i] > 0]
        found += [Move(*one) for one in chosen]
    return found


def compare(a: HeadScores, b: HeadScores, top: int | None = None) -> dict[str, Agreement]:
    """Agreement over "KV heads" and over "query heads": of all ranks, the top 10 %, and the top so many.

    Without the KV heads where layers seem to differ in their heads, and the files do not say how: a group of
    the largest layer, or more, is zero in both at the end of a row. That is left out.

    Raises ArgumentError for files of different shapes, and for a top beyond the KV heads that there are.
    """
    shapes = [(*scores.scores.shape, scores.n_head_kv) for scores in (a, b)]
    if shapes[0] != shapes[1]:
        said = ["{} layers of {} query and {} KV heads".format(*shape) for shape in shapes]
        raise ArgumentError(f"the files are of models of different shapes: {said[0]}, and {said[1]}")
    if a.layers != b.layers:
        raise ArgumentError(f"the files are of different layers: {a.layers}, and {b.layers}")
    heads = _heads_of(a, b)
    lengths = _lengths(a, b) if heads is None else [one.query for one in heads]
    n_heads, what = sum(lengths), "query"
    if heads is not None:  # never more than query heads
        n_heads, what = sum(one.kv for one in heads), "KV"
    if top is not None and top > n_heads:
        raise ArgumentError(f"--top must be at most the number of {what} heads, {n_heads}, not {top}")
    found = {}
    if heads is not None:
        found[_KV_HEADS] = _agreement(by_kv_head(a, heads), by_kv_head(b, heads), top)
    found["query heads"] = _agreement(by_query_head(a, lengths), by_query_head(b, lengths), top)
    return found


def by_query_head(scores: HeadScores, lengths: Sequence[int]) -> Scores:
    """(n_heads,). lengths: query heads of each layer."""
    rows = scores.scores.astype(np.float64)
    return np.concatenate([row[:n] for row, n in zip(rows, lengths, strict=True)])


def by_kv_head(scores: HeadScores, heads: Sequence[Heads]) -> Scores:
    """(n_heads,): sums over the GQA groups, each as large as its layer has them."""
    rows = scores.scores.astype(np.float64)
    return np.concatenate(
        [row[: one.query].reshape(one.kv, -1).sum(axis=1) for row, one in zip(rows, heads, strict=True)]
    )


def _heads_of(a: HeadScores, b: HeadScores) -> list[Heads] | None:
    """Of each layer, as the files say, or as all rows seem to be. Raises ArgumentError where they differ."""
    said = [one for one in (of(a), of(b)) if one is not None]
    if len(said) == 2 and said[0] != said[1]:
        raise ArgumentError("the files are of models whose layers have different heads")
    if said:
        return said[0]
    n_layer, n_head = a.scores.shape
    if _lengths(a, b) != [n_head] * n_layer:
        return None
    return [Heads(n_head, a.n_head_kv)] * n_layer


def _lengths(a: HeadScores, b: HeadScores) -> list[int]:
    """Query heads of each layer, where no file says: without a group, or more, that is zero in both."""
    n_head = a.scores.shape[1]
    there = [np.flatnonzero(row) for row in a.scores + b.scores]
    lengths = [int(found[-1]) + 1 if found.size else 0 for found in there]
    return [n if n_head - n >= n_head // a.n_head_kv else n_head for n in lengths]


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
    if _KV_HEADS not in agreements:
        said += textwrap.wrap(_UNKNOWN, 80)
    return "\n".join(said)


def document(agreements: dict[str, Agreement], moved: list[Move]) -> dict[str, Any]:
    """For --json. kv_heads: null where nobody knows them."""
    return {"moves": [move._asdict() for move in moved], "kv_heads": None} | {
        kind.replace(" ", "_").lower(): {
            "heads": found.n_heads,
            "spearman": found.spearman,
            "overlaps": [x._asdict() for x in found.overlaps],
        }
        for kind, found in agreements.items()
    }


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
