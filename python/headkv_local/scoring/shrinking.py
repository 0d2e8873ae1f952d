"""Curves from few samples: what was measured and what is expected, each as far as it is sound.

Losses of single samples are noisy, and there are many KV heads: the one with the steepest curve would owe it
to luck. So the fall of each curve is drawn towards a line through the attention scores of all heads (without
these: towards the mean of all heads). How far follows from the samples: two halves of them differ by noise
alone, and what heads differ by beyond noise is real (empirical Bayes). With more samples the measurement
counts more.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .progress import Tally

Array = npt.NDArray[np.float64]


class Shrunk(NamedTuple):
    """losses: (n_heads, n_points). measured: as measured is this part of the falls, (n_points - 1,)."""

    losses: Array
    measured: Array


def shrink(tally: Tally, there: npt.NDArray[np.bool_], expected: Array | None) -> Shrunk:
    """Of the KV heads that are there, bool (n_layer, n_head_kv).

    tally: losses, (n_layer, n_head_kv, n_points), with samples in both halves. expected: of these heads, what
    their falls should go with, (n_heads,), not negative; None: they are expected to be alike.
    """
    losses = tally.mean[there]
    falls = losses[:, :1] - losses[:, 1:]
    line = np.ones(len(falls)) if expected is None else expected
    prior = np.outer(line, np.maximum(line @ falls / (line @ line), 0))
    halves = [total[there] / n for total, n in zip(tally.totals, tally.counted, strict=True)]
    difference = np.subtract(*(half[:, :1] - half[:, 1:] for half in halves))
    # halves of n0 and n1 samples differ by a variance of s/n0 + s/n1, and the mean of all has s/(n0 + n1)
    n0, n1 = tally.counted
    noise = (difference**2).mean(axis=0) * n0 * n1 / (n0 + n1) ** 2
    spread = ((falls - prior) ** 2).mean(axis=0)
    measured = np.where(spread > 0, np.maximum(spread - noise, 0) / np.where(spread > 0, spread, 1), 1)
    drawn = prior + (falls - prior) * measured
    return Shrunk(np.concatenate([losses[:, :1], losses[:, :1] - drawn], axis=1), measured)
