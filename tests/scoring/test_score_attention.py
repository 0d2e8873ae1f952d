"""The arithmetic of scores against the formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_local.budgets import LayerShape, ModelShape
from headkv_local.scoring.attention import by_kv_head, needle_share, token_f1


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(0, 5))
def test_needle_share_is_the_formula(seed: int, n_needle: int, n_behind: int) -> None:
    rng = np.random.default_rng(seed)
    n_prompt = 30
    rows = rng.random((2, 3, n_prompt + n_behind)).astype(np.float32)
    needle = np.sort(rng.choice(n_prompt, n_needle, replace=False))
    share = needle_share(rows, needle, n_prompt)
    for layer in range(2):
        for head in range(3):
            a = rows[layer, head]
            top = sorted(range(n_prompt), key=lambda i, a=a: -a[i])[:n_needle]
            wanted = sum(float(a[i]) / n_needle for i in top if i in needle)
            assert share[layer, head] == pytest.approx(wanted)


def test_needle_share_leaves_out_what_is_not_in_the_top() -> None:
    rows = np.array([[[0.5, 0.1, 0.2, 0.15, 0.05]]], dtype=np.float32)
    assert needle_share(rows, np.array([1, 2]), 5)[0, 0] == pytest.approx(0.2 / 2)
    assert needle_share(rows, np.array([4]), 5)[0, 0] == 0
    assert needle_share(rows, np.arange(5), 5)[0, 0] == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("answer", "gold", "f1"),
    [
        ("Oskar Lindqvist", "Oskar Lindqvist", 1.0),
        ("It is OSKAR LINDQVIST.", "Oskar Lindqvist", 2 / 3),
        ("Beate Hollmann", "Oskar Lindqvist", 0.0),
        ("at 22:47", "22:47.", 0.8),
        ("a a a", "a", 0.5),
        ("", "a", 0.0),
        ("...", "a", 0.0),
    ],
)
def test_token_f1(answer: str, gold: str, f1: float) -> None:
    assert token_f1(answer, gold) == pytest.approx(f1)


def test_groups_are_summed() -> None:
    """Also of a layer with fewer heads, whose rows end in zeros."""
    shape = ModelShape.of([LayerShape(0, 6, 2, 64), LayerShape(1, 4, 4, 64)])
    scores = np.array([[1.0, 2, 3, 4, 5, 6], [7, 8, 9, 10, 0, 0]])
    assert by_kv_head(scores, shape).tolist() == [[6, 15, 0, 0], [7, 8, 9, 10]]
