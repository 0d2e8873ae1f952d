"""What is said of a finished measurement."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..scoresfile.diff import spearman
from .held_out import BETAS, BUDGETS
from .run import Result

_TOP = 10


def text(result: Result) -> str:
    """How many samples counted, how well the two halves of them agree, and the strongest heads."""
    scores, tally = result.scores, result.tally
    values = scores.scores.astype(np.float64)
    lines = [f"method {scores.method}: {tally.n_counted} of {tally.done} samples counted"]
    by_half = [
        mean_falls(total) if scores.curves else kv_heads(total, scores.n_head_kv) for total in tally.totals
    ]
    if min(tally.counted) > 0:
        rank_correlation = spearman(by_half[0].ravel(), by_half[1].ravel())
        agreement = "undefined" if rank_correlation is None else f"{rank_correlation:.3f}"
        lines.append(
            f"halves of {tally.counted[0]} and {tally.counted[1]} samples without a common example: "
            f"Spearman {agreement} over {by_half[0].size} KV heads"
        )
    if "measured" in scores.source:
        expected = "attention" if scores.source["base"] != "100%" else "the mean of all"
        lines.append(
            f"as measured: {scores.source['measured']} of the falls, by points; the rest as {expected} has it"
        )
    lines += _of_beta(result)
    share = values / values.sum()
    order = np.argsort(-share, axis=None, kind="stable")[:_TOP]
    lines.append(f"strongest of {share.size} query heads (layer-head, share of all scores):")
    layers = scores.layers or range(len(values))
    named = (f"{layers[h // share.shape[1]]}-{h % share.shape[1]} {share.flat[h]:.1%}" for h in order)
    lines.append("  " + "  ".join(named))
    return "\n".join(lines)


def _of_beta(result: Result) -> list[str]:
    choice = result.choice
    if choice is None:
        return []
    losses = "  ".join(f"{beta:g} {loss:.4f}" for beta, loss in zip(BETAS, choice.losses, strict=True))
    lines = [
        f"beta {choice.beta:g}, by {choice.n_samples} samples of {choice.n_examples} held-out examples",
        f"  loss in nats per answer token at {' and '.join(BUDGETS)}: equal budgets {choice.uniform:.4f}",
        f"  by beta: {losses}",
    ]
    if not choice.pays:
        lines.append("  equal budgets did best: these scores have not paid there")
    return lines


def mean_falls(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How much entries lower the loss: (n_layer, n_head_kv, n_points) to (n_layer, n_head_kv)."""
    falls: npt.NDArray[np.float64] = losses[..., 0] - losses[..., -1]
    return falls


def kv_heads(scores: npt.NDArray[np.float64], n_head_kv: int) -> npt.NDArray[np.float64]:
    """Sums over GQA groups: (n_layer, n_head) to (n_layer, n_head_kv)."""
    sums: npt.NDArray[np.float64] = scores.reshape(len(scores), n_head_kv, -1).sum(axis=2)
    return sums
