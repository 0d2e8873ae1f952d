"""The project's own examples, and what is said of a user's bad lines."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headkv_local import ArgumentError
from headkv_local.bench import haystack
from headkv_local.bench.questions import TASKS
from headkv_local.scoring import dataset
from headkv_local.scoring.attention import RIGHT_ABOVE, token_f1

PLAIN, REASONING, IN_CONTEXT, TRUTH = (dataset.own(kind).examples for kind in ("r", "r2", "icl", "truth"))
ALL = (*PLAIN, *REASONING, *IN_CONTEXT, *TRUTH)
GOOD: dict[str, Any] = {
    "kind": "r2",
    "pattern": "order",
    "lang": "en",
    "facts": ["Ada left on Monday.", "Bo left on Friday."],
    "needle": [0, 1],
    "question": "Who left first?",
    "answer": "Ada",
}
FUNCTION_WORDS = set("after been before does every first only that what when where which with".split())


def words(text: str) -> set[str]:
    return set(re.findall(r"\w{4,}", text.casefold()))


def parts(text: list[str], least: int) -> list[list[str]]:
    """All runs of so many words or more."""
    return [text[i:j] for i in range(len(text)) for j in range(i + least, len(text) + 1)]


def test_there_are_enough_of_all_kinds_in_two_languages() -> None:
    assert len(PLAIN) >= 20
    assert len(REASONING) >= 20
    for examples, n_german in ((PLAIN, 6), (REASONING, 6), (IN_CONTEXT, 5), (TRUTH, 6)):
        languages = Counter(example.lang for example in examples)
        assert languages["en"] >= 13
        assert languages["de"] >= n_german


def test_every_reasoning_pattern_is_there_in_both_languages() -> None:
    patterns = Counter((example.pattern, example.lang) for example in REASONING)
    names = ("comparison", "order", "category", "negation", "two hops")
    assert set(patterns) == {(name, lang) for name in names for lang in ("en", "de")}
    assert min(patterns.values()) >= 2


def test_no_example_is_there_twice() -> None:
    facts = [fact for example in ALL for fact in example.facts]
    assert len(set(facts)) == len(facts)
    assert not any(fact in text for fact in facts for text in haystack.paragraphs())


@pytest.mark.parametrize("example", PLAIN, ids=lambda e: e.answer)
def test_plain_needles_are_the_answer(example: dataset.Example) -> None:
    assert [example.facts[i] for i in example.needle] == [example.answer]


@pytest.mark.parametrize("example", REASONING, ids=lambda e: e.question)
def test_reasoning_takes_more_than_one_fact_and_no_other_counts(example: dataset.Example) -> None:
    assert len(example.needle) >= 2
    others = [fact for fact in example.facts if not words(example.answer) <= words(fact)]
    assert len(others) == len(example.facts) - 1
    n_words = len(example.answer.split())
    for said in (" ".join(part) for fact in others for part in parts(fact.split(), n_words)):
        assert token_f1(said, example.answer) <= RIGHT_ABOVE, said


@pytest.mark.parametrize("example", IN_CONTEXT, ids=lambda e: e.answer)
def test_in_context_learning_needs_several_examples_and_none_is_the_answer(example: dataset.Example) -> None:
    assert len(example.needle) >= 2
    if example.pattern == "labels":
        labelled = [fact for fact in example.facts if example.answer in fact]
        assert labelled == [example.facts[i] for i in example.needle]
        assert len(labelled) < len(example.facts)
    else:  # a rule: nobody has said the answer
        assert not any(example.answer in fact for fact in example.facts)


@pytest.mark.parametrize("example", TRUTH, ids=lambda e: e.answer)
def test_only_what_is_true_says_the_answer(example: dataset.Example) -> None:
    assert example.needle == (1,)
    wrong, right = example.facts
    assert example.answer in right
    assert example.answer not in wrong


def test_a_part_of_every_kind_is_held_out() -> None:
    for examples in (PLAIN, REASONING, IN_CONTEXT, TRUTH, ALL):
        measured, held_out = dataset.split(examples, seed=0)
        assert len(held_out) == len(examples) // 4
        assert not {e.question for e in measured} & {e.question for e in held_out}
        assert len(measured) + len(held_out) == len(examples)
        assert {e.kind for e in held_out} == {e.kind for e in examples}
        assert dataset.split(examples, seed=0) == (measured, held_out)
        assert dataset.split(examples, seed=1) != (measured, held_out)
    assert dataset.split(PLAIN[:3], seed=0) == (list(PLAIN[:3]), [])


def test_many_examples_are_split_without_comparing_each_with_each(monkeypatch: pytest.MonkeyPatch) -> None:
    compared, equal = [], dataset.Example.__eq__
    monkeypatch.setattr(dataset.Example, "__eq__", lambda a, b: compared.append(a) or equal(a, b))
    many = [replace(PLAIN[0], answer=str(i)) for i in range(400)]
    measured, held_out = dataset.split(many, seed=0)
    assert (len(measured), len(held_out)) == (300, 100)
    assert len(compared) < len(many)


def test_questions_of_the_bench_share_no_wording() -> None:
    rng = random.Random(0)
    asked = (maker(rng) for makers in TASKS.values() for maker in makers for _ in range(300))
    theirs = set().union(*(words(" ".join((*q.facts, q.text, q.lead, q.expected))) for q in asked))
    assert {"locker", "velmora", "marta", "lottery", "observatory", "bassoon"} <= theirs
    ours = set().union(*(words(" ".join((*e.facts, e.question, e.answer))) for e in ALL))
    assert ours & theirs <= FUNCTION_WORDS


def test_a_users_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    plain = GOOD | {"kind": "r", "needle": [1]}
    lines = f"{json.dumps(GOOD)}\n\n{json.dumps(plain, ensure_ascii=False)}\r\n"
    path.write_text(lines, encoding="utf-8-sig")  # as Windows writes it
    assert [e.kind for e in dataset.read(path)] == ["r2", "r"]
    (only,) = dataset.theirs(path).of(["r"]).examples
    assert (only.needle, only.facts, only.answer) == ((1,), tuple(GOOD["facts"]), "Ada")
    assert dataset.theirs(path).of(["r"]).name == "mine.jsonl"
    assert dataset.theirs(path).of(["r"]).digest != dataset.theirs(path).of(["r2"]).digest


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting property name"),
        ("[" * 100_000, "recursion"),
        ("3", "must be a JSON object"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "lang"}), "'lang' is missing"),
        (json.dumps(GOOD | {"extra": 1}), "'extra' is unknown"),
        (json.dumps(GOOD | {"kind": "r3"}), "'kind' must be one of 'r', 'r2', 'icl', 'truth', not 'r3'"),
        (json.dumps(GOOD | {"kind": ["r"]}), "'kind' must be one of"),
        (json.dumps(GOOD), "the same example stands in line 1"),
        (json.dumps(GOOD | {"question": " "}), "'question' must be a text"),
        (json.dumps(GOOD | {"question": "Who? "}), "'question' must not begin or end with blanks: 'Who? '"),
        (json.dumps(GOOD | {"answer": "\ud83d"}), r"'answer' holds half of a character, '\ud83d'"),
        (json.dumps(GOOD | {"facts": ["Ada left \ude00.", "Bo."]}), "'facts' holds half of a character"),
        (json.dumps(GOOD | {"answer": 7}), "'answer' must be a text"),
        (json.dumps(GOOD | {"facts": []}), "'facts' must be a list"),
        (json.dumps(GOOD | {"facts": "Ada left."}), "'facts' must be a list"),
        (json.dumps(GOOD | {"facts": ["a fact", None]}), "every one of 'facts'"),
        (json.dumps(GOOD | {"facts": ["one\n\ntwo", "three"]}), "must be one line"),
        (json.dumps(GOOD | {"facts": ["the sun", "the sun is up"]}), "must not stand in another"),
        (json.dumps(GOOD | {"facts": ["left", "Bo stayed."]}), "or in the question"),
        (json.dumps(GOOD | {"needle": []}), "'needle' must be a list"),
        (json.dumps(GOOD | {"needle": [True]}), "'needle' must be a list"),
        (json.dumps(GOOD | {"needle": [0, 2]}), "different indices from 0 to 1"),
        (json.dumps(GOOD | {"needle": [-1]}), "different indices from 0 to 1"),
        (json.dumps(GOOD | {"needle": [1, 1]}), "different indices from 0 to 1"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(ArgumentError) as raised:
        dataset.theirs(path).of(["r2"])
    assert str(raised.value).startswith(f"{path}, line 3: ")
    assert reason in str(raised.value)


def test_bad_bytes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"kind": "\xff"}\n')
    with pytest.raises(ArgumentError, match="line 1: .*utf-8"):
        dataset.theirs(path).of(["r2"])


def test_a_file_without_the_kind_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(GOOD), encoding="utf-8")
    with pytest.raises(ArgumentError, match="no examples of the kind 'r'"):
        dataset.theirs(path).of(["r"])
    with pytest.raises(FileNotFoundError):
        dataset.theirs(tmp_path / "other.jsonl").of(["r"])
