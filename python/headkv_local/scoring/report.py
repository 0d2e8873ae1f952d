"""What is said of a finished measurement."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..scoresfile.diff import spearman
from .attention import by_kv_head
from .held_out import BETAS, BUDGETS, MOST
from .run import Result

_TOP = 10


def text(result: Result) -> str:
    """How many samples counted, how well the two halves of them agree, and the strongest heads."""
    scores, shape, tally = result.scores, result.shape, result.tally
    values = scores.scores.astype(np.float64)
    lines = [f"method {scores.method}: {tally.n_counted} of {tally.done} samples counted"]
    if min(tally.counted) > 0:
        by_head = [_falls(total) if scores.curves else by_kv_head(total, shape) for total in tally.totals]
        rank_correlation = spearman(*(half[shape.heads] for half in by_head))
        agreement = "undefined" if rank_correlation is None else f"{rank_correlation:.3f}"
        lines.append(
            f"halves of {tally.counted[0]} and {tally.counted[1]} samples without a common example: "
            f"Spearman {agreement} over {shape.n_heads} KV heads"
        )
    if "measured" in scores.source:
        expected = "attention" if scores.source["base"] != "100%" else "the mean of all"
        lines.append(
            f"as measured: {scores.source['measured']} of the falls, by points; the rest as {expected} has it"
        )
    lines += _of_beta(result)
    share = values / values.sum()
    heads = [(row, head) for row, layer in enumerate(shape.layers) for head in range(layer.n_head)]
    strongest = sorted(heads, key=lambda head: -share[head])[:_TOP]
    lines.append(f"strongest of {len(heads)} query heads (layer-head, share of all scores):")
    named = (f"{shape.layers[row].il}-{head} {share[row, head]:.1%}" for row, head in strongest)
    lines.append("  " + "  ".join(named))
    return "\n".join(lines)


def _of_beta(result: Result) -> list[str]:
    choice = result.choice
    if choice is None:
        return []
    losses = "  ".join(f"{beta:g} {loss:.4f}" for beta, loss in zip(BETAS, choice.losses, strict=True))
    lines = [
        f"beta {choice.beta:g}, by {choice.n_samples} samples of {choice.n_examples} held-out examples: the "
        f"flattest within a standard error of the least loss, and within {MOST:g} of it",
        f"  loss in nats per answer token at {' and '.join(BUDGETS)}: equal budgets {choice.uniform:.4f}",
        f"  by beta: {losses}",
    ]
    if not choice.pays:
        lines.append("  equal budgets did best: these scores have not paid there")
    return lines


def _falls(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How much entries lower the loss: (n_layer, n_head_kv, n_points) to (n_layer, n_head_kv)."""
    falls: npt.NDArray[np.float64] = losses[..., 0] - losses[..., -1]
    return falls
