"""Budgets: what is asked for is what is given out, to the entry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headkv_local._core import native
from headkv_local._core.plans import Keep, get_caps
from headkv_local.budgets import LayerShape, ModelShape
from headkv_local.curves import Curves
from headkv_local.errors import ArgumentError, ScoresError
from headkv_local.retention import Retention
from headkv_local.scores import HeadScores
from headkv_local.settings import DEFAULT_BUDGET, DEFAULT_DRAFT, DEFAULT_OBSERVE, DEFAULTS

SHAPE = ModelShape(n_layer=3, n_head=4, n_head_kv=2, row_bytes=256)
Caps = npt.NDArray[np.int32]


def caps_of_total(
    total: int,
    scores: npt.NDArray[np.float64] | None,
    beta: float,
    window: int,
    shape: ModelShape,
    n_prompt: int,
) -> Caps:
    """total: entries of all KV heads, as the size of their rows."""
    budget = f"{Decimal(total * shape.row_bytes) / 1024}KiB"
    return get_caps(Keep(budget, beta, window, 29, 4, 128, 8, scores), shape, n_prompt)


def total_of(budget: object, n_prompt: int, window: int = 8) -> int:
    return int(Retention(budget=budget, window=window).caps_for(SHAPE, n_prompt).sum())  # type: ignore[arg-type]


def normalised(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return scores / scores.sum()


@dataclass(frozen=True)
class Case:
    shape: ModelShape
    scores: npt.NDArray[np.float64]
    window: int
    n_prompt: int
    total: int
    beta: float


@st.composite
def cases(draw: st.DrawFn) -> Case:
    n_layer, n_head_kv, group = draw(st.integers(1, 6)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    shape = ModelShape(n_layer, n_head_kv * group, n_head_kv, 256)
    score = st.one_of(st.just(0.0), st.floats(1e-6, 1e6), st.sampled_from([1.0, 2.0]))
    raw = np.array(draw(st.lists(score, min_size=shape.n_heads, max_size=shape.n_heads)))
    if raw.max() == 0:
        raw[draw(st.integers(0, len(raw) - 1))] = 1.0
    window = draw(st.integers(1, 20))
    n_prompt = draw(st.integers(window + 1, 3000))
    return Case(
        shape,
        normalised(raw.reshape(n_layer, n_head_kv)),
        window,
        n_prompt,
        draw(st.integers(window * shape.n_heads, n_prompt * shape.n_heads)),
        draw(st.floats(1.001, 20.0)),
    )


def caps_of(case: Case) -> Caps:
    return caps_of_total(case.total, case.scores, case.beta, case.window, case.shape, case.n_prompt)


@given(cases())
def test_total_is_exact_and_every_cap_is_within_bounds(case: Case) -> None:
    caps = caps_of(case)
    assert caps.dtype == np.int32
    assert caps.shape == (case.shape.n_layer, case.shape.n_head_kv)
    assert caps.sum() == case.total
    assert caps.min() >= case.window
    assert caps.max() <= case.n_prompt


@given(cases())
def test_a_higher_score_never_gets_less(case: Case) -> None:
    caps, scores = caps_of(case).ravel(), case.scores.ravel()
    order = np.argsort(scores, kind="stable")
    for lower, higher in pairwise(order):
        if scores[higher] > scores[lower] * (1 + 1e-12):  # less is lost when they are normalised
            assert caps[higher] >= caps[lower]
        else:
            assert abs(int(caps[higher]) - int(caps[lower])) <= 1


@given(cases())
def test_of_equal_scores_the_lower_index_gets_the_odd_entry(case: Case) -> None:
    caps, scores = caps_of(case).ravel(), case.scores.ravel()
    for score in np.unique(scores):
        of_equals = caps[scores == score].tolist()
        assert of_equals == sorted(of_equals, reverse=True)


@given(cases())
def test_water_filling_agrees_with_bisection(case: Case) -> None:
    """The pool level at which the clipped formula adds up to the total, found in another way."""
    base = case.window + (case.total / case.shape.n_heads - case.window) * (1 - 1 / case.beta)
    scores = case.scores.ravel()

    def filled(level: float) -> npt.NDArray[np.float64]:
        return np.minimum(base + scores * level, case.n_prompt)

    low, high = 0.0, 1e18
    if filled(high).sum() < case.total:
        return  # heads of score 0 have to take the rest: the sum and the bounds are tested above
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if filled(middle).sum() < case.total else (low, middle)
    assert np.abs(caps_of(case).ravel() - filled(high)).max() <= 1 + 1e-3


def test_the_formula_where_nothing_is_clipped() -> None:
    scores = np.array([[0.5, 0.1], [0.1, 0.1], [0.1, 0.1]])
    alpha, b, beta = 8, 64, 2.0
    expected = alpha + (b - alpha) * (1 - 1 / beta) + scores * (b - alpha) / beta * 6
    caps = caps_of_total(b * 6, scores, beta, alpha, SHAPE, 10_000)
    assert np.abs(caps - expected).max() < 1


def test_a_head_that_would_get_more_than_the_prompt_hands_the_rest_on() -> None:
    scores = np.array([[0.9, 0.02], [0.02, 0.02], [0.02, 0.02]])
    caps = caps_of_total(50 * 6, scores, 1.02, 8, SHAPE, 100)
    assert caps[0, 0] == 100
    assert caps.ravel()[1:].tolist() == [40] * 5


def test_heads_of_no_score_take_what_the_others_cannot() -> None:
    scores = np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    caps = caps_of_total(90 * 6, scores, 1.02, 8, SHAPE, 100)
    assert caps.ravel().tolist() == [100] + [88] * 5


def test_a_high_beta_is_flat() -> None:
    scores = np.array([[0.5, 0.1], [0.1, 0.1], [0.1, 0.1]])
    caps = caps_of_total(64 * 6, scores, 1e9, 8, SHAPE, 10_000)
    assert (caps == 64).all()


@given(st.integers(8, 4000), st.data())
def test_uniform(n_prompt: int, data: st.DataObject) -> None:
    total = data.draw(st.integers(8 * 6, n_prompt * 6))
    caps = caps_of_total(total, None, 2.0, 8, SHAPE, n_prompt)
    assert caps.sum() == total
    assert np.ptp(caps) <= 1
    assert caps.ravel().tolist() == sorted(caps.ravel().tolist(), reverse=True)


def test_scores_of_query_heads_are_summed_over_the_gqa_group() -> None:
    scores = np.array([[1, 2, 3, 4], [0, 0, 0, 0], [5, 0, 0, 5]], dtype=float)
    summed = np.array([[3, 7], [0, 0], [5, 5]], dtype=float)
    found, wanted = (caps_of_total(600, x, 1.1, 8, SHAPE, 1000) for x in (scores, summed))
    assert (found == wanted).all()
    assert found[0, 0] < found[2, 0] == found[2, 1] < found[0, 1]


def test_scores_near_the_end_of_the_float_range_do_not_overflow() -> None:
    assert (caps_of_total(600, np.full((3, 4), 1e308), 1.3, 8, SHAPE, 1000) == 100).all()


def test_the_rounding_of_sums_is_that_of_the_measured_budgets() -> None:
    """Of numpy: in another order of the additions some of these caps would be others."""
    shape = ModelShape(n_layer=30, n_head=48, n_head_kv=3, row_bytes=256)
    raw = np.random.default_rng(7).gamma(0.5, size=(30, 48)) * 3.7
    grouped = (raw / raw.max()).reshape(30, 3, 16).sum(axis=2)
    scores, total, window, beta, n_prompt = grouped / grouped.sum(), 90 * 77 + 5, 8, 1.3, 4000
    mean = total / 90
    base = window + (mean - window) * (1 - 1 / beta)
    pool = total - base * 90
    heaviest = np.sort(scores.ravel())[::-1]
    exact = base + scores.ravel() / np.cumsum(heaviest[::-1])[-1] * pool
    wanted = np.floor(exact).astype(np.int64)
    wanted[np.argsort(-(exact - wanted), kind="stable")[: total - int(wanted.sum())]] += 1
    assert caps_of_total(total, raw, beta, window, shape, n_prompt).ravel().tolist() == wanted.tolist()


WIDE_AND_NARROW = ModelShape.of([LayerShape(0, 16, 8, 2048), LayerShape(1, 16, 8, 256)])


@given(
    st.none() | arrays(np.float64, (2, 16), elements=st.floats(0.01, 1.0)),
    st.integers(8 * 8 * 2304, 8 * 8000 * 2304),
    st.sampled_from([1.0001, 1.3, 3.0]),
)
def test_bytes_of_rows_that_differ(scores: npt.NDArray[np.float64] | None, n_bytes: int, beta: float) -> None:
    """A budget in bytes is never exceeded, and what one row takes at most is left for each head."""
    keep = Keep(f"{Decimal(n_bytes) / 1024}KiB", beta, 8, 29, 4, 128, 8, scores)
    taken = (get_caps(keep, WIDE_AND_NARROW, 8000) * [[2048], [256]]).sum()
    assert n_bytes - 8 * 2304 < taken <= n_bytes


def test_a_layer_with_as_many_kv_heads_as_others_have_query_heads() -> None:
    """Scores are of query heads there, as those of a file are."""
    shape = ModelShape.of([LayerShape(0, 4, 2, 256), LayerShape(1, 4, 4, 256)])
    scores = np.array([[1, 1, 9, 9], [3, 1, 1, 1]], dtype=float)
    caps = get_caps(Keep(50, 1.1, 8, 29, 4, 128, 8, scores), shape, 1000)
    assert caps[0, 1] > caps[1, 0] > caps[0, 0] > caps[1, 1] == caps[1, 2] == caps[1, 3]


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (4, 3), (3, 8)])
def test_scores_of_another_shape(shape: tuple[int, int]) -> None:
    with pytest.raises(ArgumentError, match=r"\(3, 4\).*\(3, 2\)"):
        caps_of_total(600, np.ones(shape), 1.3, 8, SHAPE, 1000)


@pytest.mark.parametrize(
    ("budget", "total"),
    [
        (64, 64 * 6),
        (np.int64(64), 64 * 6),
        ("5%", 300),
        (" 5 % ", 300),
        ("12.5%", 750),
        ("100%", 6000),
        ("1MiB", 4096),
        ("0.5mib", 2048),
        ("256KiB", 1024),
        ("1GIB", 6000),
        (5000, 6000),
    ],
)
def test_budgets_of_a_prompt_of_1000(budget: object, total: int) -> None:
    assert total_of(budget, 1000) == total


@pytest.mark.parametrize(
    "budget",
    [
        *(0, -1, 7, True, False, 64.0, float("nan"), [64], 2**31),
        *("0%", "100.1%", "-5%", "nan%", "inf%", "5 percent", "%", "\u0665%", "9" * 5000 + "%"),
        *("5", "64", "", "64 MB", "0MiB", "1e3MiB", "5%\0", "5\n6%", "5.%", ".5%", 2**200, -(2**200)),
    ],
)
def test_budgets_that_can_never_work(budget: object) -> None:
    with pytest.raises(ArgumentError) as caught:
        Retention(budget=budget)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@given(st.integers(9, 100_000), st.integers(1, 64), st.sampled_from(["KiB", "MiB", "GiB"]))
def test_a_budget_below_the_window_names_the_smallest_that_works(
    n_prompt: int, window: int, unit: str
) -> None:
    if window >= n_prompt:
        return
    with pytest.raises(ArgumentError) as caught:
        total_of(f"0.0000001{unit}", n_prompt, window)
    advice = str(caught.value).rpartition("works is ")[2].strip("'")
    least = window * SHAPE.n_heads
    assert total_of(advice, n_prompt, window) >= least
    number = float(advice.removesuffix(unit))
    if number > 0.02:  # and little less does not work
        with pytest.raises(ArgumentError):
            total_of(f"{number - 0.011:.4f}{unit}", n_prompt, window)


@pytest.mark.parametrize(
    ("bounded", "words"), [(-1, "must not be negative"), (2**63 - 1, "is less than the 8589934592GiB")]
)
def test_bytes_of_layers_with_windows_that_cannot_be(bounded: int, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        get_caps(Keep("1GiB", 1.3, 8, 29, 4, 128, 8, None), SHAPE._replace(bounded_bytes=bounded), 1000)


@pytest.mark.parametrize("has_curves", [False, True])
@pytest.mark.parametrize("layers", [None, (0, 2, 4)])
def test_a_files_scores_and_advice_are_those_that_the_class_takes(
    layers: tuple[int, ...] | None, has_curves: bool, tmp_path: Path
) -> None:
    """What a C program does with headkv_scores_load() and headkv_init_retention()."""
    rng = np.random.default_rng(3)
    raw = rng.gamma(1.0, size=(3, 4))
    curves = Curves(np.array([0, 0.1, 1]), rng.normal(size=(3, 2, 3))) if has_curves else None
    scores = HeadScores(scores=raw, n_head_kv=2, method="r", window=6, beta=1.7, layers=layers, curves=curves)
    scores.to_sidecar(tmp_path / "x.headkv.gguf")
    shape = ModelShape.of([LayerShape(il, 4, 2, 256) for il in layers or range(3)])
    wanted = Retention(budget="10%").with_scores(scores).caps_for(shape, 1000)

    ffi, call = native.ffi, native._functions
    handle, keep = ffi.new("struct headkv_scores **"), ffi.new("struct headkv_retention *")
    native._check(call["headkv_scores_load"](str(tmp_path / "x.headkv.gguf").encode(), handle))
    loaded = ffi.gc(handle[0], call["headkv_scores_free"])
    size = ffi.sizeof("struct headkv_retention")
    native._check(call["headkv_init_retention"](keep, size, loaded))
    defaults = {**DEFAULTS, "window": 6, "beta": pytest.approx(1.7)}
    assert {name: getattr(keep, name) for name in DEFAULTS} == defaults
    assert (keep.entries, keep.observe, keep.draft) == (DEFAULT_BUDGET, DEFAULT_OBSERVE, DEFAULT_DRAFT)
    budget = ffi.new("char[]", b"10%")
    keep.budget = budget

    def caps(layers: Sequence[LayerShape]) -> list[int]:
        found = ffi.new("int32_t[]", sum(layer.n_head_kv for layer in layers))
        raw = ffi.new("struct headkv_layer[]", list(layers))
        native._check(call["headkv_get_caps"](keep, size, raw, len(raw), 0, 1000, found, len(found)))
        return list(found)

    assert caps(shape.layers) == wanted.ravel().tolist()
    for other in ((7, 4, 2, 256), (0, 4, 4, 256), (0, 8, 2, 256)):
        with pytest.raises(ScoresError, match="the head scores are for"):
            caps([LayerShape(*other), *shape.layers[1:]])

    keep.scores = ffi.from_buffer("double[]", raw)  # the caller's own go before the file
    keep.n_rows, keep.n_cols = raw.shape
    own = replace(scores, scores=raw, curves=None)
    assert (
        caps(shape.layers) == Retention(budget="10%").with_scores(own).caps_for(shape, 1000).ravel().tolist()
    )
