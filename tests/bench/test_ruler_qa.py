"""RULER's questions from SQuAD and HotpotQA: small files of their schema, whole and broken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from headkv_local import ArgumentError
from headkv_local.bench.suites import metrics, ruler
from headkv_local.bench.suites.item import Item
from headkv_local.errors import DataError


def count(text: str) -> int:
    return len(text.split())


def squad(n_articles: int = 3) -> dict[str, Any]:
    """Two paragraphs an article, with a question each that has an answer, and one that has none."""
    return {
        "version": "v2.0",
        "data": [
            {
                "title": f"Town {i}",
                "paragraphs": [
                    {
                        "context": f"In town {i} the mayor of part {j} is called Ada{i}{j}, as all know.",
                        "qas": [
                            {
                                "id": f"{i}{j}",
                                "question": f"Who is the mayor of part {j} of town {i}?",
                                "answers": [{"text": f"Ada{i}{j}", "answer_start": 42}] * 3,
                                "is_impossible": False,
                            },
                            {"id": "x", "question": "Why?", "answers": [], "is_impossible": True},
                        ],
                    }
                    for j in (1, 2)
                ],
            }
            for i in range(n_articles)
        ],
    }


def hotpotqa(n: int = 6) -> list[dict[str, Any]]:
    """A question for each two of four paragraphs."""
    return [
        {
            "_id": str(i),
            "question": f"Where was the writer of Book {i} born?",
            "answer": f"Port{i}",
            "type": "bridge",
            "level": "hard",
            "supporting_facts": [[f"Book {i}", 0], [f"Writer {i}", 0]],
            "context": [
                [f"River {i}", [f"River {i} is long."]],
                [f"Book {i}", [f"Book {i} is by Writer {i}.", " It is short."]],
                [f"Hill {i}", [f"Hill {i} is high."]],
                [f"Writer {i}", [f"Writer {i} was born in Port{i}."]],
            ],
        }
        for i in range(n)
    ]


QA = {"qa_1": ("dev-v2.0.json", squad), "qa_2": ("hotpot_dev_distractor_v1.json", hotpotqa)}


@pytest.mark.parametrize("task", QA)
def test_ruler_mixes_documents_of_other_sets_up_to_the_length(tmp_path: Path, task: str) -> None:
    name, make = QA[task]
    (tmp_path / name).write_text(json.dumps(make(), indent=1))

    def made(length: int, seed: int = 0) -> list[Item]:
        return ruler.items([task], [length], 100, seed, count, 20, tmp_path)

    assert len(made(400)) == 6  # all that have an answer
    for item in made(400):
        assert 400 * 0.9 < count(item.text + item.lead) + 20 + item.max_tokens <= 400
        (answer,) = item.answers
        assert item.document.count(answer) == 1  # others come again where the file has too few
        assert item.document.startswith("Document 1:\n")
        assert metrics.score(item, f"It is {answer.upper()}.") == {"match_part": 1.0}
        assert metrics.score(item, "I do not know.") == {"match_part": 0.0}
    assert len({item.document.index(item.answers[0]) for item in made(400)}) > 3  # anywhere
    assert {item.question for item in made(120)} == {item.question for item in made(400)}
    assert made(400) == made(400)
    assert [item.question for item in made(400)] != [item.question for item in made(400, seed=1)]
    for item in made(120):  # those that stand near come first
        own = re.findall(r"\d", item.question)[-1]
        assert item.document.count(f"town {own}" if task == "qa_1" else f"{own} ") >= 2
    with pytest.raises(ArgumentError, match="prompts of 60 tokens leave no room"):
        made(60)


def test_ruler_has_all_tasks_whose_files_are_there(tmp_path: Path) -> None:
    (tmp_path / "squad.json").write_text(json.dumps(squad()))
    tasks = {item.task for item in ruler.items(None, [600], 1, 0, count, 20, tmp_path)}
    assert tasks == {*ruler.SYNTHETIC, "qa_1"}
    with pytest.raises(DataError, match=r"has no qa_2: SQuAD is looked for in DIR/dev-v2.0.json"):
        ruler.items(["qa_1", "qa_2"], [600], 1, 0, count, 20, tmp_path)


def changed(found: Any, *path: Any, value: Any = None) -> Any:
    """A copy with this value at the path, or without what is there."""
    found = json.loads(json.dumps(found))
    at = found
    for step in path[:-1]:
        at = at[step]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return found


_ASKED = ("data", 1, "paragraphs", 1, "qas", 0)


@pytest.mark.parametrize(
    ("task", "broken", "said"),
    [
        ("qa_1", {"version": "v2.0"}, ": 'data' is missing"),
        ("qa_1", [squad()], ": must be a JSON object, not"),
        (
            "qa_1",
            changed(squad(), "data", 1, "paragraphs", value=3),
            ", article 2: 'paragraphs' must be a list",
        ),
        (
            "qa_1",
            changed(squad(), "data", 1, "paragraphs", 1, "context"),
            ", article 2, paragraph 2: 'context' is missing",
        ),
        ("qa_1", changed(squad(), *_ASKED, "question"), "paragraph 2, question 1: 'question' is missing"),
        ("qa_1", changed(squad(), *_ASKED, "answers", value=[]), "'answers' is empty, where the question is"),
        ("qa_1", changed(squad(), *_ASKED, "answers", 1, "text"), "question 1, answer 2: 'text' is missing"),
        ("qa_1", changed(squad(), *_ASKED, "is_impossible", value="no"), "'is_impossible' must be true or"),
        ("qa_1", {"data": []}, " has no question with an answer"),
        ("qa_1", changed(squad(1), "data", 0, "paragraphs", 1), " has no documents beside those"),
        ("qa_2", changed(hotpotqa(), 2, "answer"), ", item 3: 'answer' is missing"),
        (
            "qa_2",
            changed(hotpotqa(), 2, "context", value={"title": []}),
            ", item 3: 'context' must be a list",
        ),
        ("qa_2", changed(hotpotqa(), 2, "context", 1, 1, value="text"), "'context' must be a list of para"),
        (
            "qa_2",
            changed(hotpotqa(), 2, "supporting_facts", value=[["Book 2"]]),
            "'supporting_facts' must be",
        ),
        ("qa_2", changed(hotpotqa(), 2, "supporting_facts", value=[["Other", 0]]), "names a title that"),
    ],
)
def test_broken_files_of_other_sets(tmp_path: Path, task: str, broken: Any, said: str) -> None:
    path = tmp_path / QA[task][0]
    path.write_text(json.dumps(broken))
    with pytest.raises(DataError) as found:
        ruler.items([task], [400], 1, 0, count, 20, tmp_path)
    assert str(found.value).startswith(str(path))
    assert said in str(found.value)
