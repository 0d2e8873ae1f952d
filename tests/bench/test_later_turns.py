"""`headkv bench turns`: orders, judging, the table, and a run on a tiny model."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from headkv_local.bench import turns_report
from headkv_local.bench.questions import access_code, locker, magic, ticket
from headkv_local.bench.tasks import Sample
from headkv_local.bench.turns import Document, Outcome, _ways, orders, usable
from headkv_local.bench.wordings import PLAIN, catalogue
from headkv_local.cli import main
from headkv_local.settings import DEFAULT_FOLD


def test_six_documents_have_all_orders_and_each_question_comes_once_at_each_turn() -> None:
    of_documents = [orders(i, seed=3) for i in range(6)]
    assert len({order for of_one in of_documents for order in of_one}) == 24
    for of_one in of_documents:
        assert all(sorted(at_turn) == [0, 1, 2, 3] for at_turn in zip(*of_one, strict=True))
    assert orders(6, seed=3) == of_documents[0]
    assert any(orders(0, seed) != of_documents[0] for seed in range(4, 9))


def test_wordings_of_the_test_set_that_a_turn_can_ask_with() -> None:
    families = {one.family for one in usable([one for one in catalogue().values() if one.set == "test"])}
    assert families == {"ending", "language", "few-shot", "unmarked"}
    assert usable([PLAIN]) == (PLAIN,)


def test_what_was_chosen_once_stays_chosen() -> None:
    folds = {way: retention.fold for way, _, retention in _ways([64]) if retention is not None}
    assert folds == {"once": None, "anew": DEFAULT_FOLD, "fresh": None}


def document() -> Document:
    rng = random.Random(1)
    first, *others = (kind(rng) for kind in (access_code, locker, ticket, magic))
    sample = Sample("needle", "A long text.", first, 0.5, others=tuple(others))
    return Document(0, 1000, sample, (catalogue()["ending-brief"],) * 4)


def test_only_the_first_message_holds_the_document() -> None:
    one = document()
    first, later = one.message(1, is_first=True), one.message(1, is_first=False)
    assert [part.get("document") for part in first["content"]] == [True, None]
    assert later == {"role": "user", "content": first["content"][1]["text"]}
    assert later["content"] == f"{one.questions[1].text} Be brief, please."


def test_an_answer_that_also_says_what_another_asks_for_is_wrong() -> None:
    one = document()
    said = [question.expected for question in one.questions]
    assert one.is_right(2, f"It was {said[2]}.")
    assert not one.is_right(2, f"It was {said[2]}, or {said[0]}.")
    assert not one.is_right(2, f"It was {said[3]}.")


def outcome(way: str, turn: int | None, right: bool) -> Outcome:
    sizes = dict(prompt_tokens=1000, kept_bytes=1, resident_bytes=1, archive_bytes=0)
    words = dict(kind="code", wording="plain", haystack="prose", expected="1", answer="1", order="0123")
    budget = None if way == "full" else 64
    rest = dict(length=1000, document=0, kept_share=1.0, seconds=1.0)
    return Outcome(way=way, budget=budget, turn=turn, right=right, **sizes, **words, **rest)  # type: ignore[arg-type]


def test_a_question_alone_stands_for_every_turn() -> None:
    """Fresh finds 3 of 4; anew 4, 3, 2 and 3 of 4."""
    found = {1: 4, 2: 3, 3: 2, 4: 3}
    outcomes = [outcome("fresh", None, i < 3) for i in range(4)]
    outcomes += [outcome("anew", turn, i < n) for turn, n in found.items() for i in range(4)]
    fresh, anew = turns_report.summary(outcomes)
    assert [cell["found"] for cell in fresh["turns"]] == [3, 3, 3, 3]
    assert [cell["of_fresh"] for cell in anew["turns"]] == pytest.approx([4 / 3, 1, 2 / 3, 1])
    assert anew["least_of_fresh"] == pytest.approx(2 / 3)
    assert anew["least_of_full"] is None
    assert anew["all"] == {"found": 12, "asked": 16}  # no interval: four questions, each four times
    (*_, row) = turns_report.table([fresh, anew]).splitlines()
    assert row.endswith("66.7%")


def test_some_ways_on_a_tiny_model(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "turns", "--model", str(tiny_path), "--threads", "1", "--tokens", "600"]
    command += [
        "--ways",
        "fresh,anew",
        "--budget",
        "48",
        "--samples",
        "4",
        "--max-tokens",
        "2",
        "--json",
        "-",
    ]
    assert main(command) == 0
    lines = json.loads(capsys.readouterr().out)["summary"]
    assert [(line["label"], line["least_of_full"]) for line in lines] == [
        ("anew 48", None),
        ("fresh 48", None),
    ]
    with pytest.raises(SystemExit):
        main([*command[:8], "--ways", "some"])
    assert "'some' is no way: full, once, anew, fresh" in capsys.readouterr().err


def test_all_ways_on_a_tiny_model(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each first turn reads what asking fresh reads, so that all three ways answer alike."""
    command = ["bench", "turns", "--model", str(tiny_path), "--threads", "1", "--tokens", "600"]
    command += ["--budget", "48,10%", "--samples", "8", "--max-tokens", "3", "--json", "-"]
    assert main(command) == 0
    out, table = capsys.readouterr()
    data = json.loads(out)
    labels = ["full", *(f"{way} {budget}" for budget in ("48", "10%") for way in ("once", "anew", "fresh"))]
    assert [line["label"] for line in data["summary"]] == labels
    assert all(cell["asked"] == 8 for line in data["summary"] for cell in line["turns"])
    assert [line.split("  ")[0] for line in table.splitlines()[4:]] == labels
    first = {}
    for one in data["outcomes"]:
        if one["turn"] in (1, None) and one["way"] != "full":
            key = one["budget"], one["document"], one["order"][0]
            first.setdefault(key, set()).add((one["answer"], one["prompt_tokens"], one["kept_bytes"]))
        assert (one["archive_bytes"] > 0) == (one["way"] == "anew")
        assert (one["kept_share"] == 1) == (one["way"] == "full")
    assert len(first) == 2 * 2 * 4
    assert all(len(answers) == 1 for answers in first.values())
