"""Noisy curves: less wrong than as measured, and as measured where there is no noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from headkv_local.scoring.progress import Tally
from headkv_local.scoring.shrinking import shrink

N_LAYER, N_HEAD_KV = 12, 4
THERE = np.ones((N_LAYER, N_HEAD_KV), dtype=bool)


def measured(true: npt.NDArray[np.float64], noise: float, n: int, rng: np.random.Generator) -> Tally:
    tally = Tally(np.zeros((2, N_LAYER, N_HEAD_KV, true.shape[1])))
    for i in range(n):
        tally.add(i % 2, (true + rng.normal(0, noise, true.shape)).reshape(N_LAYER, N_HEAD_KV, -1))
    return tally


@pytest.mark.parametrize("follow", [0.0, 0.9])
def test_few_samples_are_drawn_to_what_attention_expects(follow: float) -> None:
    rng = np.random.default_rng(0)
    better = []
    for _ in range(20):
        attention = rng.exponential(1, N_LAYER * N_HEAD_KV)
        own = rng.exponential(1, len(attention))
        fall = 0.05 * (follow * attention + (1 - follow) * own)
        true = 2 - np.outer(fall, [0, 0.6, 1.0])
        tally = measured(true, 0.15, 4, rng)
        shrunk = shrink(tally, THERE, attention)
        assert (shrunk.measured >= 0).all()
        assert (shrunk.measured < 0.9).all()
        errors = [
            ((np.diff(found - true)) ** 2).sum() for found in (shrunk.losses, tally.mean.reshape(true.shape))
        ]
        better.append(errors[0] < errors[1])
        many = shrink(measured(true, 0.15, 4000, rng), THERE, attention)
        assert np.abs(np.diff(many.losses - true)).max() < 0.02
    assert sum(better) >= 19


def test_what_is_without_noise_stays_as_measured() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(2, 1, (N_LAYER * N_HEAD_KV, 3))
    shrunk = shrink(measured(true, 0, 4, rng), THERE, None)
    assert shrunk.losses == pytest.approx(true)
    assert shrunk.measured == pytest.approx(1)


def test_heads_that_are_not_there() -> None:
    rng = np.random.default_rng(2)
    true = rng.normal(2, 1, (N_LAYER * N_HEAD_KV, 3))
    there = THERE.copy()
    there[:, 3] = False
    shrunk = shrink(measured(true, 0, 2, rng), there, None)
    assert shrunk.losses == pytest.approx(true[there.ravel()])
    assert shrunk.measured == pytest.approx(1)
