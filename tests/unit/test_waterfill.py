"""Budgets from curves: the optimum, found by trying all; and equal bytes."""

from __future__ import annotations

from decimal import Decimal
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headkv_local import ArgumentError, Retention
from headkv_local._core import native
from headkv_local._core.plans import Keep, get_caps
from headkv_local.budgets import LayerShape, ModelShape
from headkv_local.curves import Curves

SHARES = [0, 0.25, 0.5, 1]
MIXED = ModelShape.of([LayerShape(0, 4, 2, 256), LayerShape(3, 4, 2, 384), LayerShape(5, 2, 1, 512)])


def shape_of(n_layer: int, n_head_kv: int) -> ModelShape:
    return ModelShape(n_layer, n_head_kv, n_head_kv, 256)


def caps_of_total(
    total: int, curves: Curves | None, beta: float, window: int, shape: ModelShape, n_prompt: int
) -> npt.NDArray[np.int32]:
    """total: entries of all KV heads, of the mean size."""
    of_all = sum(x.n_head_kv * x.row_bytes for x in shape.layers) or shape.n_heads * shape.row_bytes
    budget = f"{Decimal(-(-total * of_all // shape.n_heads)) / 1024}KiB"
    return get_caps(Keep(budget, beta, window, 29, 4, 128, 8, curves), shape, n_prompt)


@st.composite
def curves(draw: st.DrawFn, n_layer: int, n_head_kv: int) -> Curves:
    loss = st.integers(-40, 40).map(lambda x: x / 16)  # ties come up
    n = n_layer * n_head_kv * len(SHARES)
    drawn = draw(st.lists(loss, min_size=n, max_size=n))
    return Curves(np.array(SHARES), np.array(drawn).reshape(n_layer, n_head_kv, -1))


def lower_hull(curves: Curves, window: int, n_prompt: int) -> npt.NDArray[np.float64]:
    """(n_heads, n_prompt + 1): by the definition of a hull, the lowest chord over each budget, then level."""
    at = window + np.rint(curves.shares * (n_prompt - window)).astype(int)
    rows = curves.losses.reshape(-1, len(at)).astype(np.float64)
    res = np.full((len(rows), n_prompt + 1), np.inf)
    for cap in range(window, n_prompt + 1):
        for i, j in product(range(len(at)), repeat=2):
            if at[i] <= cap <= at[j]:
                part = (cap - at[i]) / max(at[j] - at[i], 1)
                res[:, cap] = np.minimum(res[:, cap], rows[:, i] * (1 - part) + rows[:, j] * part)
    return np.minimum.accumulate(res, axis=1)


@given(curves(2, 2), st.integers(5, 9), st.data())
def test_no_other_caps_have_a_lower_loss(curves: Curves, n_prompt: int, data: st.DataObject) -> None:
    window, shape = 1, shape_of(2, 2)
    total = data.draw(st.integers(4 * window, 4 * n_prompt))
    beta = data.draw(st.sampled_from([1.0001, 2.0, 1e6]))
    base = window + int((total / 4 - window) * (1 - 1 / beta))
    caps = caps_of_total(total, curves, beta, window, shape, n_prompt).ravel()
    assert caps.sum() == total
    assert caps.min() >= base
    assert caps.max() <= n_prompt

    losses = lower_hull(curves, window, n_prompt)
    best = min(
        sum(losses[head, cap] for head, cap in enumerate(tried))
        for tried in product(range(base, n_prompt + 1), repeat=4)
        if sum(tried) == total
    )
    assert sum(losses[head, cap] for head, cap in enumerate(caps)) == pytest.approx(best, abs=1e-9)


@given(curves(3, 2), st.integers(9, 700), st.floats(1.001, 20), st.data())
def test_equal_bytes_where_rows_differ_in_size(
    curves: Curves, n_prompt: int, beta: float, data: st.DataObject
) -> None:
    total = data.draw(st.integers(8 * MIXED.n_heads, n_prompt * MIXED.n_heads))
    caps = caps_of_total(total, curves, beta, 8, MIXED, n_prompt)
    sizes = np.array([[256], [384], [512]])
    as_uniform = (caps_of_total(total, None, beta, 8, MIXED, n_prompt) * sizes).sum()
    assert as_uniform - 512 < (caps * sizes).sum() <= as_uniform
    assert caps[MIXED.heads].min() >= 8
    assert caps.max() <= n_prompt
    assert caps[2, 1] == 0  # the layer has one KV head


def test_entries_go_where_the_loss_falls_and_what_none_wants_is_shared_equally() -> None:
    losses = np.zeros((2, 2, 4))
    losses[0, 1] = [3, 0, 0, 0]  # falls until a quarter of what is beyond the window
    losses[1, 0] = [1, 1, 0, 2]  # by half of it, then rises: no reason for more
    found = Curves(np.array(SHARES), losses)
    few, more = (caps_of_total(4 * mean, found, 1.0001, 10, shape_of(2, 2), 130) for mean in (30, 40))
    assert few.tolist() == [[10, 40], [60, 10]]
    assert more.tolist() == [[25, 40], [70, 25]]


def test_a_hull_takes_rises_and_bumps_for_noise() -> None:
    shares = np.array([0, 0.001, 0.066, 0.2, 0.466, 1])  # of 120 tokens: 8, 8, 16, 32, 64 and 128 entries
    losses = np.zeros((1, 2, 6))
    losses[0, 0] = [5, 4, 4.5, 1, 2, 1]  # (8, 4) and (32, 1) are the hull
    losses[0, 1, 4:] = -2.5  # less steep, down to 64 entries
    found = Curves(shares, losses)
    for total, wanted in ((8 + 31, [31, 8]), (8 + 32, [32, 8]), (32 + 50, [32, 50]), (200, [100, 100])):
        assert caps_of_total(total, found, 1.0001, 8, shape_of(1, 2), 128).tolist() == [wanted]


def test_a_retention_with_curves() -> None:
    falling = np.zeros((2, 2, 4))
    falling[1, 1] = [2, 1, 0.5, 0]
    found = Retention(budget=32, scores=Curves(np.array(SHARES), falling), beta=2)
    caps = found.caps_for(shape_of(2, 2), 200)
    assert found.policy == "scores"
    assert caps.tolist() == [[20, 20], [20, 68]]
    assert found == Retention(budget=32, scores=Curves(np.array(SHARES), falling), beta=2)
    assert found != Retention(budget=32, scores=Curves(np.array(SHARES), falling * 2), beta=2)
    with pytest.raises(ArgumentError, match=r"\(2, 3\) \(layers, KV heads\) for this model, not of \(2, 2\)"):
        found.caps_for(shape_of(2, 3), 200)


@pytest.mark.parametrize(
    ("shares", "losses", "reason"),
    [
        ([0, 1], np.full((1, 1, 2), np.nan), "finite"),
        ([0, 1], np.full((1, 1, 2), 1e39), "finite"),
        ([0.1, 1], np.zeros((1, 1, 2)), "ascend from 0 to 1"),
        ([0, 0.5, 0.5, 1], np.zeros((1, 1, 4)), "ascend from 0 to 1"),
        ([0, np.nan, 1], np.zeros((1, 1, 3)), "ascend from 0 to 1"),
        ([0], np.zeros((1, 1, 1)), "2 to 64"),
        ([0, 1], np.zeros((1, 1, 3)), r"\(n_layer, n_head_kv, 2\)"),
    ],
)
def test_what_are_no_curves(shares: list[float], losses: npt.NDArray[np.float64], reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason):
        Curves(np.array(shares), losses)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"shares": None}, "curves need both shares and losses"),
        ({"losses": None}, "curves need both shares and losses"),
        ({"scores": [1.0] * 4}, "scores and curves exclude each other"),
        ({"n_points": 1}, "the shares of curves must be 2 to 64 numbers, not 1"),
        ({"n_points": 65}, "the shares of curves must be 2 to 64 numbers, not 65"),
        ({"shares": [0, 0.5, 0.5, 1]}, "the shares of curves must ascend from 0 to 1"),
        ({"shares": [0, np.nan, 0.5, 1]}, "the shares of curves must ascend from 0 to 1"),
        ({"shares": [0, 0.1, 0.5, 2]}, "the shares of curves must ascend from 0 to 1"),
        ({"losses": [0.0] * 15 + [np.inf]}, "losses must be finite"),
        ({"n_rows": 0}, r"curves cannot be of \(0, 2\)"),
        ({"n_cols": 2**16}, r"curves cannot be of \(2, 65536\)"),
    ],
)
def test_what_are_no_curves_of_a_c_program(changed: dict[str, Any], reason: str) -> None:
    ffi, check = native.ffi, native._functions["headkv_check_retention"]
    curves = Curves(np.array(SHARES), np.zeros((2, 2, 4)))
    raw, _kept = Keep(32, 1.3, 8, 29, 4, 128, 8, curves).struct()
    size = ffi.sizeof("struct headkv_retention")
    native._check(check(raw, size))
    for name, value in changed.items():
        kind = "double[]" if name == "scores" else "float[]"
        new = ffi.new(kind, value) if isinstance(value, list) else ffi.NULL if value is None else value
        setattr(raw, name, new)
    with pytest.raises(ArgumentError, match=reason):
        native._check(check(raw, size))
