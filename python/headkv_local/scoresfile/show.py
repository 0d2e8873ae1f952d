"""What a file with head scores says: provenance, and a heat map of all heads in plain ASCII."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..scores import HeadScores, sidecar_path
from ..settings import given
from .files import Found
from .heads import Heads, of

SHADES = " .:-=+*#%@"
MIN_WIDTH = 40


def text(found: Found, width: int = 80, encoding: str = "utf-8") -> str:
    """For a terminal of that many columns, at least 40. encoding: what can be printed there."""
    width = max(width, MIN_WIDTH)
    lines = [*_facts(found, width), "", *heat_map(found.scores, width)]
    return "\n".join(line.encode(encoding, errors="backslashreplace").decode(encoding) for line in lines)


def document(found: Found) -> dict[str, Any]:
    """The same for --json, with all scores: (n_layer, n_head)."""
    scores = found.scores
    n_layer, n_head = scores.scores.shape
    return {
        "file": str(found.path),
        "beside_model": str(found.beside) if found.beside else None,
        "method": scores.method,
        "n_layer": n_layer,
        "layers": list(scores.layers or ()),
        "n_head": n_head,
        "n_head_kv": scores.n_head_kv,
        "layer_heads": None if (heads := of(scores)) is None else [list(one) for one in heads],
        "recommended": given(scores),
        "source": dict(scores.source),
        "scores": scores.scores.astype(float).tolist(),
        "curves": None if scores.curves is None else scores.curves.to_json(),
    }


def heat_map(scores: HeadScores, width: int) -> Iterator[str]:
    """One line per layer, one character per query head; wide models in several bands.

    Query heads of one GQA group stand together, of each layer its own where the file says them. A head's
    shade is the square root of its share of the largest score: a few heads usually have most of it, and the
    others would all look alike.
    """
    n_layer, n_head = scores.scores.shape
    each = [(one.query, one.query // one.kv) for one in of(scores) or ()]
    each = each or [(n_head, n_head // scores.n_head_kv)] * n_layer
    group = min(group for _, group in each)
    shades = _shades(scores.scores)
    layers = scores.layers or range(len(shades))
    margin = len(str(layers[-1])) + 3  # "29 |" and the other "|"
    for heads in _bands(n_head, group, width - margin):
        if len(heads) < n_head:
            yield f"query heads {heads.start} to {heads.stop - 1}"
        for layer, row, (n, own) in zip(layers, shades, each, strict=True):
            stop = min(heads.stop, n)
            within = range(own, stop, own) if group <= width - margin else ()
            borders = [heads.start, *(at for at in within if at > heads.start), stop]
            groups = [row[a:b] for a, b in pairwise(borders)]
            yield f"{layer:{margin - 3}} |{' '.join(groups)}|"
        yield ""
    largest = scores.scores.max()
    said = f"{group}" if len({own for _, own in each}) == 1 else "those"
    yield from textwrap.wrap(
        f"A row per layer, a column per query head, {said} of a KV head together. "
        f"Blank: 0; '{SHADES[1:]}': up to {largest:.4g}, by square root.",
        width,
    )


def printable(said: str) -> str:
    """A text out of a file, without what a terminal would obey."""
    return "".join(c if c.isprintable() else "?" for c in said)


def _facts(found: Found, width: int) -> Iterator[str]:
    scores = found.scores
    n_layer, n_head = scores.scores.shape
    facts = [("file", str(found.path))]
    if found.beside:
        of_sidecar = found.path == sidecar_path(found.beside)
        whose = "these scores are its sidecar's" if of_sidecar else "headkv-local brings these scores"
        facts.append(("beside" if of_sidecar else "for", f"{found.beside}: {whose}"))
    facts.append(("method", scores.method))
    facts.append(("shape", f"{n_layer} layers, {_counts(scores)}"))
    if scores.curves is not None:
        shares = ", ".join(f"{100 * share:.3g}%" for share in scores.curves.shares)
        facts.append(("curves", f"loss of each KV head at {shares} of the prompt beyond the window"))
    facts += [(name, f"{value:.6g}") for name, value in given(scores).items()]
    facts += [(f"source.{name}", str(value)) for name, value in scores.source.items()]
    indent = min(max(len(name) for name, _ in facts), 20) + 2
    for name, value in facts:
        label = printable(name).ljust(indent) if len(name) < indent else printable(name) + " "
        yield from textwrap.wrap(
            printable(value),
            width,
            initial_indent=label,
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )


def _counts(scores: HeadScores) -> str:
    """As "9 query heads, 3 KV heads", or from how few to how many layers have."""
    alike = Heads(scores.scores.shape[1], scores.n_head_kv)
    said = []
    for counts, what in zip(zip(*(of(scores) or [alike]), strict=True), ("query", "KV"), strict=True):
        least = f"{min(counts)} to " if min(counts) < max(counts) else ""
        said.append(f"{least}{max(counts)} {what} heads")
    return ", ".join(said)


def _shades(scores: npt.NDArray[np.float32]) -> list[str]:
    share = np.sqrt(scores.astype(np.float64) / scores.max())
    levels = np.where(scores > 0, np.clip(np.ceil(share * (len(SHADES) - 1)), 1, None), 0).astype(int)
    return ["".join(SHADES[level] for level in row) for row in levels]


def _bands(n_head: int, group: int, width: int) -> list[range]:
    """Query heads that fit into a line together, whole GQA groups if those are not too wide."""
    per_band = group * max((width + 1) // (group + 1), 1)
    per_band = min(per_band, width) if group > width else per_band
    return [range(at, min(at + per_band, n_head)) for at in range(0, n_head, per_band)]
