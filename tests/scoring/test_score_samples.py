"""Haystacks with facts in them, without a model: a token is a word here."""

from __future__ import annotations

from collections import Counter

import pytest

from headkv_local import ArgumentError
from headkv_local.scoring import dataset, samples

EXAMPLES = dataset.own("r2").examples


def count(text: str) -> int:
    return len(text.split())


def test_same_seed_same_samples() -> None:
    assert samples.plan(EXAMPLES, 9, (400,), 3) == samples.plan(EXAMPLES, 9, (400,), 3)
    first, second = (samples.plan(EXAMPLES, 9, (400,), seed) for seed in (3, 4))
    assert [p.example for p in first] != [p.example for p in second]
    assert samples.content(first[0], 400, count) != samples.content(second[0], 400, count)


def test_depths_are_spread_and_lengths_take_turns_in_both_halves() -> None:
    plans = samples.plan(EXAMPLES, 40, (300, 600), 0)
    assert sorted(p.depth for p in plans) == pytest.approx([(i + 0.5) / 40 for i in range(40)])
    assert set(Counter((p.half, p.length) for p in plans).values()) == {10}


@pytest.mark.parametrize("n_examples", [4, 7, 8, 24])
@pytest.mark.parametrize("lengths", [(300, 600), (300, 600, 900)])
def test_no_example_is_asked_at_one_length_alone(n_examples: int, lengths: tuple[int, ...]) -> None:
    plans = samples.plan(EXAMPLES[:n_examples], 4 * n_examples, lengths, 0)
    at = {example: {p.length for p in plans if p.example == example} for example in EXAMPLES[:n_examples]}
    assert min(map(len, at.values())) > 1


@pytest.mark.parametrize("n_examples", [2, 7, 30])
def test_halves_have_no_example_in_common(n_examples: int) -> None:
    plans = samples.plan(EXAMPLES[:n_examples], 70, (300,), 0)
    first, second = ({p.example for p in plans if p.half == half} for half in (0, 1))
    assert first
    assert second
    assert not first & second
    assert len(first | second) == n_examples


@pytest.mark.parametrize("plan", samples.plan(EXAMPLES, 12, (500, 900), 1), ids=lambda p: f"{p.depth:.2f}")
def test_facts_stand_once_at_their_depths(plan: samples.Plan) -> None:
    text = samples.content(plan, plan.length, count)
    assert count(text) == pytest.approx(plan.length, abs=2)
    assert text.endswith(f"Question: {plan.example.question}")
    for i, fact in enumerate(plan.example.facts):
        assert text.count(fact) == 1
        wanted = (plan.depth + i / len(plan.example.facts)) % 1
        assert count(text.split(fact)[0]) / count(text) == pytest.approx(wanted, abs=0.2)


def test_no_room_and_too_short_a_haystack_are_errors() -> None:
    (plan,) = samples.plan(EXAMPLES, 1, (40,), 0)
    with pytest.raises(ArgumentError, match="40 tokens leave no room"):
        samples.content(plan, 20, count)
    (plan,) = samples.plan(EXAMPLES, 1, (10**7,), 0)
    with pytest.raises(ArgumentError, match="prompts of 10000000 tokens cannot be made"):
        samples.content(plan, 10**7, count)
