"""Retention: what it accepts, and the caps that come out."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from headkv_local.budgets import ModelShape
from headkv_local.errors import ArgumentError
from headkv_local.retention import Retention
from headkv_local.scores import HeadScores

SHAPE = ModelShape(n_layer=3, n_head=4, n_head_kv=2, row_bytes=256)
SCORES = np.arange(12, dtype=float).reshape(3, 4)


def test_uniform() -> None:
    caps = Retention(budget=64).caps_for(SHAPE, 1000)
    assert caps.dtype == np.int32
    assert caps.tolist() == [[64, 64]] * 3


def test_a_budget_that_is_left_open() -> None:
    assert Retention(budget=None).budget == Retention().budget == 128
    assert Retention(budget=None) == Retention()


@pytest.mark.parametrize(
    "changed",
    [
        Retention(budget=64, sinks=2, archive="memory").without_archive(),
        Retention(archive="memory", sinks=2).having(budget=64, archive=None),
    ],
)
def test_what_was_left_to_the_scores_still_is(changed: Retention) -> None:
    """As of a conversation that goes on after its archive was lost."""
    found = changed.with_scores(HeadScores(scores=SCORES, n_head_kv=2, method="r2", beta=7.0, window=11))
    assert (found.beta, found.window, found.sinks) == (7.0, 11, 2)
    assert changed == Retention(budget=64, sinks=2)


def test_the_window_of_all_goes_with_it() -> None:
    whole = Retention(observe="all")
    assert (whole.window, whole.having(observe=128)) == (1, Retention(observe=128))
    assert Retention(observe="all", window=4).having(observe=128).window == 4


def test_scores() -> None:
    caps = Retention(budget=64, scores=SCORES).caps_for(SHAPE, 1000)
    assert caps.sum() == 64 * 6
    assert np.argmin(caps) == 0
    assert np.argmax(caps) == 5


def test_scores_may_be_given_per_kv_head() -> None:
    per_kv_head = SCORES.reshape(3, 2, 2).sum(axis=2)
    caps = Retention(budget=64, scores=per_kv_head.tolist()).caps_for(SHAPE, 1000)
    assert (caps == Retention(budget=64, scores=SCORES).caps_for(SHAPE, 1000)).all()


def test_given_caps_are_clipped_to_the_prompt() -> None:
    caps = Retention(caps=[[8, 100], [200, 2**31 - 1], [50, 60]]).caps_for(SHAPE, 100)
    assert caps.dtype == np.int32
    assert caps.tolist() == [[8, 100], [100, 100], [50, 60]]


@pytest.mark.parametrize("n_prompt", [0, 1, 7, 8])
@pytest.mark.parametrize("retention", [Retention(budget="1%"), Retention(budget=64, scores=SCORES)])
def test_a_prompt_within_the_window_is_kept_whole(retention: Retention, n_prompt: int) -> None:
    assert (retention.caps_for(SHAPE, n_prompt) == n_prompt).all()


@pytest.mark.parametrize("n_prompt", [9, 63, 64])
def test_a_prompt_within_the_budget_is_kept_whole(n_prompt: int) -> None:
    for scores in (None, SCORES):
        assert (Retention(budget=64, scores=scores).caps_for(SHAPE, n_prompt) == n_prompt).all()


def test_a_share_of_a_short_prompt_is_what_that_needs() -> None:
    assert (Retention(budget="5%").caps_for(SHAPE, 30) == 30).all()
    assert (Retention(budget="5%").caps_for(SHAPE, 100) == 32).all()
    assert (Retention(budget="5%", window=40).caps_for(SHAPE, 100) == 40).all()
    assert (Retention(budget="40%").caps_for(SHAPE, 100) == 40).all()


def test_a_size_that_is_less_than_the_window() -> None:
    with pytest.raises(ArgumentError, match=r"less than the window of 8.*works is '.*KiB'"):
        Retention(budget="1KiB").caps_for(SHAPE, 100)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"budget": 0}, "at least the window of 8 entries per KV head, not 0"),
        ({"budget": 7}, "not 7"),
        ({"budget": 2**31}, "at most 2147483647 entries per KV head"),
        ({"budget": -(10**30)}, "at most 2147483647 entries per KV head"),
        ({"beta": 10**400}, "beta must be a finite number above 1"),
        ({"window": 200}, "at least the window of 200"),
        ({"window": 0}, "window must be an int of at least 1, not 0"),
        ({"window": 8.0}, "window must be an int"),
        ({"window": True}, "window must be an int"),
        ({"window": 2**40}, "window must be at most 2147483647"),
        ({"kernel": 6}, "kernel must be odd, not 6"),
        ({"kernel": -1}, "kernel must be an int of at least 1"),
        ({"sinks": -1}, "sinks must be an int of at least 0, not -1"),
        ({"beta": 1}, "above 1, not 1"),
        ({"beta": float("nan")}, "not nan"),
        ({"beta": float("inf")}, "not inf"),
        ({"beta": "2"}, "not '2'"),
        ({"scores": [1.0, 2.0]}, "shape"),
        ({"scores": [[1.0], [2.0, 3.0]]}, "array of numbers"),
        ({"scores": [["a"]]}, "array of numbers"),
        ({"scores": [[-1.0, 1.0]]}, "not negative"),
        ({"scores": [[float("nan"), 1.0]]}, "finite"),
        ({"scores": [[0.0, 0.0]]}, "above 0"),
        ({"scores": np.empty((0, 4))}, "shape"),
        ({"caps": [[64]], "budget": 64}, "exclude each other"),
        ({"caps": [[64]], "scores": [[1.0]]}, "exclude each other"),
        ({"caps": [64]}, "shape"),
        ({"caps": [[64], [64, 64]]}, "int array"),
        ({"caps": [[64.0]]}, "ints, not float64"),
        ({"caps": [[True]]}, "ints, not bool"),
        ({"caps": [[64, 7]]}, "from the window of 8 to 2147483647, not 7"),
        ({"caps": [[64, -1]]}, "not -1"),
        ({"caps": [[64, 2**31]]}, "not 2147483648"),
    ],
)
def test_values_that_can_never_work(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentError, match=text.replace("(", r"\(")) as caught:
        Retention(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields", [{"caps": [[64, 64]]}, {"caps": [[64] * 4] * 3}, {"scores": np.ones((4, 3))}]
)
def test_arrays_of_another_shape_than_the_model(fields: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=r"must have the shape \(3, "):
        Retention(**fields).caps_for(SHAPE, 1000)


@pytest.mark.parametrize("n_prompt", [-1, None, 1.5, "5%", True, 2**70])
def test_lengths_that_no_prompt_has(n_prompt: Any) -> None:
    with pytest.raises(ArgumentError, match="n_prompt must be "):
        Retention().caps_for(SHAPE, n_prompt)


def test_keyword_only_and_frozen() -> None:
    with pytest.raises(TypeError):
        Retention(64)  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        Retention().budget = 64  # type: ignore[misc]


def test_arrays_are_copied_and_cannot_be_written() -> None:
    caps = np.full((3, 2), 64)
    retention = Retention(caps=caps)
    caps[:] = 0
    assert (retention.caps_for(SHAPE, 1000) == 64).all()
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(retention.caps)[0, 0] = 0


def test_equality_follows_the_values() -> None:
    assert Retention(scores=SCORES) == Retention(scores=SCORES.tolist())
    assert hash(Retention(scores=SCORES)) == hash(Retention(scores=SCORES.tolist()))
    assert Retention(scores=SCORES) != Retention(scores=SCORES + 1)
    assert Retention(caps=[[64, 65]]) != Retention(caps=[[64], [65]])
    assert Retention() != Retention(scores="uniform")  # the model may come with scores
    assert Retention() != Retention(beta=Retention().beta)  # which may recommend another one
    assert Retention(scores=SCORES) == Retention(scores=SCORES, beta=Retention().beta)
    heads = HeadScores(scores=SCORES, n_head_kv=2, method="r2")
    assert Retention(scores=heads) == Retention(scores=replace(heads))
    assert Retention(scores=heads) != Retention(scores=replace(heads, beta=2.0))
    assert Retention(archive="memory") == Retention(archive="memory", reselect=True)
    assert Retention() != Retention(window=9)
    assert Retention() != 128


def test_copies() -> None:
    retention = Retention(budget="5%", scores=SCORES)
    assert replace(retention, budget="6%").budget == "6%"
    assert pickle.loads(pickle.dumps(retention)) == retention


def test_policy() -> None:
    assert Retention().policy == "uniform"
    assert Retention(scores="uniform").policy == "uniform"
    assert Retention(scores=SCORES).policy == "scores"
    assert Retention(caps=[[64]]).policy == "caps"
    assert Retention(observe="all").policy == "observed"
    assert Retention(observe="all", caps=[[64]]).policy == "caps"
