"""Questions and their judging, without a model: a token is a word here."""

from __future__ import annotations

import random

import pytest

from headkv_local.bench.questions import TASKS, Maker
from headkv_local.bench.tasks import Sample, found, right, samples

MAKERS = [maker for makers in TASKS.values() for maker in makers]


def count(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("task", TASKS)
def test_same_seed_same_samples(task: str) -> None:
    assert samples(task, 6, 800, count, seed=3) == samples(task, 6, 800, count, seed=3)


@pytest.mark.parametrize("task", TASKS)
def test_other_seed_other_samples(task: str) -> None:
    first, second = samples(task, 6, 800, count, seed=3), samples(task, 6, 800, count, seed=4)
    assert [s.question.facts for s in first] != [s.question.facts for s in second]
    assert not {s.document for s in first} & {s.document for s in second}


@pytest.mark.parametrize("task", TASKS)
def test_samples_have_the_length_asked_for(task: str) -> None:
    assert [count(s.content) for s in samples(task, 5, 700, count, seed=0)] == [700] * 5


@pytest.mark.parametrize("task", TASKS)
def test_depths_are_spread_and_kinds_take_turns(task: str) -> None:
    made = samples(task, 9, 500, count, seed=1)
    assert sorted(s.depth for s in made) == pytest.approx([(i + 0.5) / 9 for i in range(9)])
    assert [s.question.kind for s in made] == [s.question.kind for s in made[:3]] * 3
    assert len({s.question.kind for s in made}) == len(TASKS[task])


@pytest.mark.parametrize("task", TASKS)
def test_facts_stand_once_and_nothing_else_says_the_answer(task: str) -> None:
    for sample in samples(task, 9, 1500, count, seed=2):
        question, rest = sample.question, sample.document
        assert sample.content.endswith(question.text)
        for fact in question.facts:
            assert sample.document.count(fact) == 1
            rest = rest.replace(fact, "")
        assert not any(found(said, rest) for said in (question.expected, *question.wrong))
        before = count(sample.document.split(question.facts[0])[0])
        assert before / count(sample.document) == pytest.approx(sample.depth, abs=0.12)


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_the_facts_alone_answer_the_question(maker: Maker) -> None:
    for seed in range(50):
        question = maker(random.Random(seed))
        assert found(question.expected, " ".join(question.facts))
        assert not found(question.expected, f"{question.text} {question.lead}")
        assert right(question, f"{question.lead} {question.expected}.")
        for wrong in question.wrong:
            assert wrong != question.expected
            assert found(wrong, " ".join(question.facts))
            assert not right(question, f"{question.lead} {wrong}.")
            assert not right(question, f"{question.expected} or {wrong}")


def test_no_room_for_a_haystack_is_an_error() -> None:
    with pytest.raises(ValueError, match="20 tokens leave no room"):
        samples("needle", 1, 20, count, seed=0)


@pytest.mark.parametrize(
    ("expected", "answer", "is_found"),
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
def test_found(expected: str, answer: str, is_found: bool) -> None:
    assert found(expected, answer) is is_found


def test_sample_content() -> None:
    question = TASKS["needle"][0](random.Random(0))
    assert Sample("needle", "text", question, 0.5).content == f"text\n\nQuestion: {question.text}"
