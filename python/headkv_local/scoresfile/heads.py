"""How many heads each layer has: a text among what a file says of where its scores come from.

Rows of scores are as long as that of the layer with most heads. What stands behind a layer's own heads is no
head, and its KV heads have groups of its own size.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ..budgets import ModelShape
from ..scores import HeadScores

NAME = "layer_heads"

_LAYER = re.compile(r"([1-9][0-9]{0,3})/([1-9][0-9]{0,3})")


class Heads(NamedTuple):
    """Of a layer."""

    query: int
    kv: int


def told(shape: ModelShape) -> str:
    """Query and KV heads, "9/3" where all layers are alike, else "9/3,6/3,..." by layer."""
    counts = [f"{layer.n_head}/{layer.n_head_kv}" for layer in shape.layers]
    return counts[0] if len(set(counts)) == 1 else ",".join(counts)


def of(scores: HeadScores) -> list[Heads] | None:
    """Of each layer; None where the file does not say, or says what its scores cannot be of."""
    n_layer, n_head = scores.scores.shape
    found = [_LAYER.fullmatch(part) for part in str(scores.source.get(NAME, "")).split(",")]
    heads = [Heads(int(one[1]), int(one[2])) for one in found if one]
    if len(heads) != len(found) or len(heads) not in (1, n_layer):
        return None
    heads = heads * (n_layer // len(heads))
    most = (max(one.query for one in heads), max(one.kv for one in heads))
    if most != (n_head, scores.n_head_kv) or any(one.query % one.kv for one in heads):
        return None
    if any(scores.scores[i, one.query :].any() for i, one in enumerate(heads)):
        return None
    return heads
