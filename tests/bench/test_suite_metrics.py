"""Each metric on answers whose score is known."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headkv_local.bench.suites import metrics
from headkv_local.bench.suites.item import Item

ROOMS = ("bathroom", "bedroom", "kitchen", "office")


def score(metric: str, answer: str, *answers: str, **fields: Any) -> float:
    item = Item("t", "", 0, "", "d", "", answers, (metric,), 8, **fields)
    return metrics.score(item, answer)[metric]


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Office", 1),
        ("She is in the office. Not in the kitchen.", 1),  # only the first sentence counts
        ("In the office or the kitchen", 0),
        ("She left the bedroom for the office", 1),  # the question names the bedroom
        ("The garden", 0),
        ("", 0),
    ],
)
def test_babilong(answer: str, right: int) -> None:
    said = score("babilong", answer, "office", classes=ROOMS, question="Where is she after the bedroom?")
    assert said == right


def test_babilong_wants_all_of_several() -> None:
    things = ("apple", "football", "milk", "nothing")
    assert score("babilong", "milk and apple", "apple,milk", classes=things) == 1
    assert score("babilong", "apple", "apple,milk", classes=things) == 0


@pytest.mark.parametrize(
    ("metric", "answer", "answers", "expected"),
    [
        ("match_all", "it is AB-1 and cd", ("ab-1", "cd", "ef"), 2 / 3),
        ("match_part", "it is AB-1", ("ab-1", "cd"), 1),
        ("f1", "The cat, sat!", ("a cat sat down",), 0.8),
        ("f1", "dog", ("cat", "the dog"), 1),
        ("f1", "", ("cat",), 0),
        ("rouge_l", "the cat sat", ("the cat ran",), 2 / 3),
        ("rouge_l", "a b. c d", ("c d. a b",), 1),  # sentences in another order
        (
            "rouge_l",
            "the cat sat.\n",
            ("the cat sat.",),
            6 / 7,
        ),  # what the package gives: "\n" is a word more
        ("rouge_l", "The cat sat. \n. It", ("the cat . sat. it",), 4 / 9),
        ("rouge_l_recall", "the cat sat.", ("the cat sat.\n",), 3 / 4),
        ("rouge_l_recall", "x the cat ran y", ("the cat ran",), 1),
        ("rouge_l", "", ("a",), 0),
        ("retrieval", "Paragraph 7, not 8", ("Paragraph 7",), 0.5),
        ("retrieval", "段落7", ("段落7",), 1),
        ("count", "17", ("7",), 0),
        ("code_similarity", "# no\nreturn a", ("return a",), 1),
        ("code_similarity", "abcd", ("abXd",), 0.75),
        ("code_similarity", "return self.foo(bar, baz)", ("self.bar = baz(foo).return_value",), 0.25),
        ("code_similarity", "", ("",), 1),
        (
            "cloze",
            "So: {'<mask-0>': 'Ada', '<mask-1>': 'Rome'}",
            ("{'<mask-0>': 'Ada', '<mask-1>': 'Oslo'}",),
            0.5,
        ),
        ("cloze", "{'<mask-0>': ", ("{'<mask-0>': 'Ada'}",), 0),
        ("cloze_part", "{'<mask-0>': 'Ada'}", ("{'<mask-0>': 'Ada Byron'}",), 1),
    ],
)
def test_known_pairs(metric: str, answer: str, answers: tuple[str, ...], expected: float) -> None:
    assert score(metric, answer, *answers) == pytest.approx(expected)


def test_chinese_marks_are_those_of_the_suite() -> None:
    pytest.importorskip("jieba", reason="jieba is of the extra 'eval'")
    assert score("f1_chinese", "〖北京〗〜｣", "北京") == 1


def test_classification_shares_among_all_classes_named() -> None:
    classes = ("Person", "Other person", "Place")
    assert score("classification", "Place", "Place", classes=classes) == 1
    assert score("classification", "Place or Person", "Place", classes=classes) == 0.5
    assert score("classification", "Other person", "Other person", classes=("Other", *classes)) == 1


def test_what_follows_a_stop_does_not_count() -> None:
    assert score("f1", "\nAda\nBob Carl", "Ada", stop="\n") == 1


EXPECTED = {"babilong": "office", "cloze": "{'<mask-0>': 'Ada'}", "cloze_part": "{'<mask-0>': 'Ada'}"}


@pytest.mark.parametrize("metric", metrics.METRICS)
def test_any_answer_has_a_score(metric: str) -> None:
    """However a model puts what looks like Python."""
    if metric.endswith("chinese"):
        pytest.importorskip("jieba", reason="jieba is of the extra 'eval'")

    @settings(deadline=None)  # jieba reads its dictionary first
    @given(st.text() | st.text("{}[]()'\"\\,:-.#/ 019axAda<mask>\n"))
    @example("{['Ada']}")
    @example("{'<mask-0>': ['Ada']}")
    @example("{{}: 1}")
    @example("{'<mask-0>': 0x" + "f" * 5000 + "}")
    @example("{" + "(" * 500 + "}")
    @example("{" + "-" * 500 + "1}")
    def check(answer: str) -> None:
        for stop in ("", "\n"):
            found = score(metric, answer, EXPECTED.get(metric, "Ada"), classes=(*ROOMS, "Ada"), stop=stop)
            assert 0 <= found <= 1

    check()
