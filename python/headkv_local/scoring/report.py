"""What is said of a finished measurement."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..scoresfile.diff import spearman
from .run import Result

_TOP = 10


def text(result: Result) -> str:
    """How many samples counted, how well the two halves of them agree, and the strongest heads."""
    scores, tally = result.scores, result.tally
    values = scores.scores.astype(np.float64)
    lines = [f"method {scores.method}: {tally.n_counted} of {tally.done} samples counted"]
    if min(tally.counted) > 0:
        halves = [kv_heads(total, scores.n_head_kv) for total in tally.totals]
        rank_correlation = spearman(halves[0].ravel(), halves[1].ravel())
        agreement = "undefined" if rank_correlation is None else f"{rank_correlation:.3f}"
        lines.append(
            f"halves of {tally.counted[0]} and {tally.counted[1]} samples without a common example: "
            f"Spearman {agreement} over {halves[0].size} KV heads"
        )
    share = values / values.sum()
    order = np.argsort(-share, axis=None, kind="stable")[:_TOP]
    lines.append(f"strongest of {share.size} query heads (layer-head, share of all scores):")
    layers = scores.layers or range(len(values))
    named = (f"{layers[h // share.shape[1]]}-{h % share.shape[1]} {share.flat[h]:.1%}" for h in order)
    lines.append("  " + "  ".join(named))
    return "\n".join(lines)


def kv_heads(scores: npt.NDArray[np.float64], n_head_kv: int) -> npt.NDArray[np.float64]:
    """Sums over GQA groups: (n_layer, n_head) to (n_layer, n_head_kv)."""
    sums: npt.NDArray[np.float64] = scores.reshape(len(scores), n_head_kv, -1).sum(axis=2)
    return sums
