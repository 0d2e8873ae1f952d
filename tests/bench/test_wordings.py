"""Wordings, haystacks and tables of `headkv bench quality`. A token is a word where there is no model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headkv_local import Llama
from headkv_local.bench import wordings_report
from headkv_local.bench.cases import by_beginning, chat_case
from headkv_local.bench.haystack_kinds import KINDS
from headkv_local.bench.quality import Outcome
from headkv_local.bench.questions import SINGLE_FACT, Question
from headkv_local.bench.tasks import found, n_right, wide_samples
from headkv_local.bench.wordings import PLAIN, Wording, catalogue
from headkv_local.cli import main

LEAST = {
    "ending": (6, 8),
    "first": (3, 4),
    "both": (2, 2),
    "several": (2, 2),
    "language": (3, 4),
    "ruler": (1, 2),
    "few-shot": (2, 2),
    "system": (2, 2),
    "follow-up": (2, 2),
    "unmarked": (6, 6),
}
QUESTIONS = tuple(
    Question("kind", (f"The {name} is {n}.",), f"What is the {name}?", f"The {name} is", str(n))
    for name, n in (("red key", 11111), ("blue key", 22222), ("green key", 33333))
)


def count(text: str) -> int:
    return len(text.split())


def of_set(name: str) -> list[Wording]:
    return [wording for wording in catalogue().values() if wording.set == name]


def sentences(wording: Wording) -> set[str]:
    """What it says besides the document and the questions."""
    said = (re.split(r"(?<=[.?!:])\s*|\n|\{\w+\}", text) for _, text in wording.turns)
    return {part.strip(" ,-").casefold() for parts in said for part in parts if re.search(r"\w\W+\w", part)}


def test_every_family_has_wordings_of_both_sets() -> None:
    for family, least in LEAST.items():
        n = [sum(one.family == family for one in of_set(name)) for name in ("development", "test")]
        assert n[0] >= least[0]
        assert n[1] >= least[1]
    assert {one.family for one in catalogue().values()} == set(LEAST)


def test_development_and_test_share_no_sentence() -> None:
    both = [set[str]().union(*map(sentences, of_set(name))) for name in ("development", "test")]
    assert min(map(len, both)) > 30
    assert not both[0] & both[1]


@pytest.mark.parametrize("wording", [PLAIN, *catalogue().values()], ids=lambda wording: wording.name)
def test_messages_hold_the_document_and_the_questions(wording: Wording) -> None:
    messages = wording.messages("DOC\n\nUMENT", QUESTIONS)
    parts = [m["content"] for m in messages if isinstance(m["content"], list)]
    (document,) = [part["text"] for content in parts for part in content if part.get("document")]
    assert document.strip() == "DOC\n\nUMENT"
    texts = [
        c if isinstance(c := m["content"], str) else " ".join(part["text"] for part in c) for m in messages
    ]
    asking = [text for text in texts if any(one.text.rstrip("?") in text for one in QUESTIONS)][-1]
    assert messages[-1]["role"] == "user"
    for i, question in enumerate(QUESTIONS):
        assert (question.text.rstrip("?") in asking) is (i < wording.n_asked)
    everything = json.dumps(messages, ensure_ascii=False)
    assert not re.search(r"\{\w+\}", everything)
    assert QUESTIONS[0].expected not in everything


def test_endings_are_of_all_lengths_and_no_wording_is_too_long(
    smollm2: Path, load: Callable[..., Llama]
) -> None:
    llm = load(smollm2, n_ctx=256)

    def n_tokens(text: str) -> int:
        return len(llm.tokenize(text.encode(), add_bos=False, special=False))

    for name, aims in (("test", (0, 4, 10, 20, 30, 45, 60)), ("development", (0, 4, 25, 45, 60))):
        endings = [one.turns[0][1].split("{question}") for one in of_set(name) if one.family == "ending"]
        lengths = [n_tokens(parts[1].replace("{what}", "number")) for parts in endings if len(parts) == 2]
        for aim in aims:
            assert min(abs(n - aim) for n in lengths) <= max(3, aim // 5), (name, aim, sorted(lengths))
    for wording in catalogue().values():
        words = sum(n_tokens(text) for _, text in wording.turns)
        assert words + 3 * 40 < 512, wording.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", SINGLE_FACT)
def test_every_haystack_hides_every_fact_once(kind: str, task: str) -> None:
    made = wide_samples(task, 3, 900, count, 0, (kind,))
    assert made == wide_samples(task, 3, 900, count, 0, (kind,))
    for sample in made:
        questions = (sample.question, *sample.others)
        assert sample.haystack == kind
        assert len({one.kind for one in questions}) == 4
        for question in questions:
            own = [line for line in sample.document.split("\n") if found(question.expected, line)]
            assert len(own) == 1  # a line of its own
            assert any(own[0].endswith(fact) for fact in question.facts)
            assert all(sample.document.count(fact) == 1 for fact in question.facts)
        assert "[00:00]" not in sample.document


def test_haystacks_take_turns() -> None:
    made = wide_samples("needle", 5, 600, count, 0, ("code", "chat"))
    assert [sample.haystack for sample in made] == ["code", "chat", "code", "chat", "code"]


def test_a_document_is_read_once_for_all_wordings_that_begin_with_it(
    tiny_path: Path, load: Callable[..., Llama]
) -> None:
    llm = load(tiny_path)
    (sample,) = wide_samples("needle", 1, 700, count, 0)
    names = ("ending-none", "first-bare", "ending-rules", "follow-up-next", "system-archive")
    cases = [chat_case(llm, sample, 0, catalogue()[name]) for name in names]
    groups = {case.wording.name: i for i, (_, g) in enumerate(by_beginning(cases)) for case in g}
    assert groups["ending-none"] == groups["ending-rules"] == groups["follow-up-next"]
    assert len(set(groups.values())) == 3
    for beginning, group in by_beginning(cases):
        for case in group:
            assert case.tokens[: len(beginning)] == beginning
            assert 160 < len(case.tokens) - len(beginning) < 900


@pytest.mark.parametrize(
    ("answer", "n"),
    [("11111", 1), ("11111 and 22222", 2), ("22222", 1), ("11111, 22222, 33333", 0), ("nothing", 0)],
)
def test_an_answer_to_two_questions(answer: str, n: int) -> None:
    assert n_right(QUESTIONS[:2], QUESTIONS[2:], answer) == n


def test_an_answer_in_chinese_is_found() -> None:
    assert found("11111", "密码是11111。")


def outcome(policy: str, wording: str, n_found: int, **others: Any) -> Outcome:
    fields: dict[str, Any] = dict.fromkeys(Outcome.__dataclass_fields__)
    one = Outcome(**{**fields, "length": 1000, "asked": 1, "found": n_found, "policy": policy})
    return replace(one, wording=wording, family=wording.split("-")[0], **others)


def test_arithmetic_of_the_table() -> None:
    made = {
        "full": {"ending-a": 3, "ending-b": 4, "ending-c": 0, "several-a": 2},
        "uniform": {"ending-a": 3, "ending-b": 2, "ending-c": 0, "several-a": 2},
    }
    outcomes = [
        outcome(policy, wording, int(i < n), sample=i, budget=None if policy == "full" else 64)
        for policy, wordings in made.items()
        for wording, n in wordings.items()
        for i in range(4)
    ]
    full, uniform = wordings_report.summary(outcomes)
    assert (full["found"], full["asked"], full["of_full"]) == (9, 16, 1.0)
    assert (uniform["label"], uniform["found"], uniform["of_full"]) == ("uniform 64", 7, 7 / 9)
    assert full["families"]["ending"]["worst"] == "ending-c"
    ending = uniform["families"]["ending"]
    assert (ending["found"], ending["asked"], ending["of_full"]) == (5, 12, 5 / 7)
    assert ending["worst"] == "ending-b"  # of what the full cache finds; it finds nothing of ending-c
    assert ending["wordings"]["ending-c"] == {"found": 0, "asked": 4, "of_full": None}
    rows = {line[:16].strip(): line[16:].split() for line in wordings_report.table(outcomes).splitlines()}
    assert rows["ending"] == ["7/12", "(100%)", "5/12", "(71%)"]
    assert rows["worst wording"][-2:] == ["2/4", "(50%)"]
    assert rows["ending-c"] == ["0/4", "0/4"]
    assert rows["all"] == ["9/16", "(100%)", "7/16", "(78%)"]
    (_, cut_short) = wordings_report.summary(outcomes[:18])  # one of uniform's, and full's of the same prompt
    assert (cut_short["found"], cut_short["asked"], cut_short["of_full"]) == (2, 2, 1.0)
    alone = wordings_report.summary([one for one in outcomes if one.policy != "full"])
    assert alone[0]["of_full"] is None
    assert alone[0]["families"]["ending"]["worst"] == "ending-c"


def test_three_wordings_from_end_to_end(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["ending-none", "first-bare", "several-two"]
    arguments = ["--wordings", ",".join(names), "--haystacks", "code,chat", "--policies", "full,uniform"]
    arguments += ["--lengths", "600", "--budgets", "64", "--samples", "1", "--max-tokens", "4"]
    command = ["bench", "quality", "--model", str(tiny_path), "--threads", "1", *arguments, "--json", "-"]
    assert main(command) == 0
    out, table = capsys.readouterr()
    data = json.loads(out)
    assert (data["sets"], data["settings"]["wordings"]) == (["test"], names)
    assert [(line["label"], line["asked"]) for line in data["summary"]] == [("full", 4), ("uniform 64", 4)]
    tried = [(one["wording"], one["policy"], one["asked"]) for one in data["outcomes"]]
    assert sorted(tried) == sorted(
        (n, p, 1 + (n == "several-two")) for n in names for p in ("full", "uniform")
    )
    for one in data["outcomes"]:
        assert one["haystack"] == "code"
        kept = 1 if one["policy"] == "full" else 64 / one["prompt_tokens"]
        assert one["kept_share"] == pytest.approx(kept, abs=1e-4)
    assert table.startswith("wordings: test (3); haystacks: code, chat; tasks: needle; model: ")
    titles = [line.split("  ")[0] or line.split()[0] for line in table.splitlines()[4:]]
    assert titles == ["all", "ending", "ending-none", "first", "first-bare", "several", "several-two"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--wordings", "ending-nought"], "names like it: ending-none"),
        (["--wordings", "plain,test"], "the wording plain has a table of its own"),
        (["--wordings", "test", "--tasks", "needle,hops"], "only --wordings plain asks for them"),
        (["--wordings", "test", "--plain"], "wordings are chat messages"),
        (["--wordings", "test", "--png", "out.png"], "--png plots likelihoods"),
        (["--policies", "scores"], "the model has no head scores"),
    ],
)
def test_what_cannot_be_combined_is_one_sentence(
    tiny_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(["bench", "quality", "--model", str(tiny_path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("headkv: ")
    assert sentence in err
    assert err.count("\n") == 1
