"""Needles and their judging, without a model: a token is a word here."""

from __future__ import annotations

import pytest

from headkv_local.bench.tasks import NEEDLES, Sample, found, needle_samples


def count(text: str) -> int:
    return len(text.split())


def test_same_seed_same_samples() -> None:
    assert needle_samples(6, 800, count, seed=3) == needle_samples(6, 800, count, seed=3)


def test_other_seed_other_samples() -> None:
    first, second = needle_samples(6, 800, count, seed=3), needle_samples(6, 800, count, seed=4)
    assert [s.fact.expected for s in first] != [s.fact.expected for s in second]
    assert [s.document for s in first] != [s.document for s in second]


def test_samples_have_the_length_asked_for() -> None:
    assert [count(s.content) for s in needle_samples(5, 700, count, seed=0)] == [700] * 5


def test_depths_are_spread_and_kinds_take_turns() -> None:
    samples = needle_samples(9, 500, count, seed=1)
    assert sorted(s.depth for s in samples) == pytest.approx([(i + 0.5) / 9 for i in range(9)])
    assert {s.fact.kind for s in samples[: len(NEEDLES)]} == {s.fact.kind for s in samples}
    assert len({s.fact.kind for s in samples}) == len(NEEDLES)


@pytest.mark.parametrize("sample", needle_samples(9, 1500, count, seed=2), ids=lambda s: f"{s.depth:.2f}")
def test_needle_stands_once_at_its_depth(sample: Sample) -> None:
    assert sample.document.count(sample.fact.sentence) == 1
    assert sample.content.count(sample.fact.expected) == 1
    assert sample.fact.expected in sample.fact.sentence
    assert sample.content.endswith(sample.fact.question)
    assert len(sample.fact.expected) == 5
    assert sample.fact.expected.isdecimal()
    before = count(sample.document.split(sample.fact.sentence)[0])
    assert before / count(sample.document) == pytest.approx(sample.depth, abs=0.12)


def test_no_room_for_a_haystack_is_an_error() -> None:
    with pytest.raises(ValueError, match="20 tokens leave no room"):
        needle_samples(1, 20, count, seed=0)


@pytest.mark.parametrize(
    ("expected", "answer", "right"),
    [
        ("48213", "The code is 48213.", True),
        ("48213", "The code is 148213.", False),
        ("48213", "The code is 4821.", False),
        ("23", "It is 23000 crowns.", False),
        ("07:45", "It leaves at 07:45 every morning", True),
        ("Petrel", "the PETREL", True),
        ("Petrel", "the Petrels", False),
        ("a.c", "abc", False),
        ("48213", "", False),
    ],
)
def test_found(expected: str, answer: str, right: bool) -> None:
    assert found(expected, answer) is right
