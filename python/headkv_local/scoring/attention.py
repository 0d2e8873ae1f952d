"""The score's arithmetic: attention of a head that lands on the needle, and answers that count."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from ..bench.suites.metrics import overlap
from ..budgets import ModelShape

RIGHT_ABOVE = 0.5  # token F1


def needle_share(
    rows: npt.NDArray[np.float32], needle: npt.NDArray[np.int64], n_prompt: int
) -> npt.NDArray[np.float64]:
    """Sum over i in top-k(a) with i in needle of a[i] / k, k = needle positions: (n_layer, n_head).

    rows: attention of one token, (n_layer, n_head, tokens in the cache); only the first n_prompt count.
    This is the inner sum of the head score of HeadKV-R2 (arXiv 2410.19258, section 3.2). HeadKV's own code
    divides it by the number of the answer's tokens as well.
    """
    k = len(needle)
    prompt = rows[..., :n_prompt]
    top = np.argpartition(prompt, n_prompt - k, axis=-1)[..., n_prompt - k :]
    in_needle = np.isin(top, needle)
    weights = np.take_along_axis(prompt, top, axis=-1).astype(np.float64)
    share: npt.NDArray[np.float64] = np.where(in_needle, weights, 0.0).sum(axis=-1) / k
    return share


def token_f1(answer: str, gold: str) -> float:
    """Harmonic mean of precision and recall of the answer's words, in any case and order; 0 to 1."""
    return overlap(*(re.findall(r"\w+", text.casefold()) for text in (answer, gold)))


def by_kv_head(scores: npt.NDArray[np.float64], shape: ModelShape) -> npt.NDArray[np.float64]:
    """Sums over GQA groups: (n_layer, n_head) to (n_layer, n_head_kv), 0 for KV heads that are not there."""
    res = np.zeros((shape.n_layer, shape.n_head_kv))
    for row, found, layer in zip(res, scores, shape.layers, strict=True):
        row[: layer.n_head_kv] = found[: layer.n_head].reshape(layer.n_head_kv, -1).sum(axis=1)
    return res
