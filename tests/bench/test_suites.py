"""Files of public suites: what is read of them, and what is said of broken ones. No model in here."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headkv_local import ArgumentError
from headkv_local.bench.suites import babilong, longbench, loogle, ruler
from headkv_local.bench.suites.item import Item
from headkv_local.bench.suites.ruler_sample import Asked, filled

BABILONG = {"input": "Mary went to the office. It rained.", "question": "Where is Mary? ", "target": "office"}
LONGBENCH = {
    "input": "Who came?",
    "context": "Ada came.",
    "answers": ["Ada"],
    "length": 2,
    "dataset": "hotpotqa",
    "language": "en",
    "all_classes": None,
    "_id": "1",
}
LOOGLE = {
    "input": "Ada lives in London.",
    "title": "1",
    "qa_pairs": [{"Q": "Who lives there?", "A": "Ada", "S": ["Ada lives in London."]}],
    "output": "none",
}
CLOZE = {**LOOGLE, "qa_pairs": repr([{"Q": "<mask-0> lives in London.", "A": {"<mask-0>": "Ada"}}])}

Load = Callable[[Path], list[Item]]
READ: dict[str, tuple[str, dict[str, Any], Load]] = {
    "babilong": ("1k/qa1.jsonl", BABILONG, lambda folder: babilong.items(folder, None, None)),
    "longbench": ("hotpotqa.jsonl", LONGBENCH, lambda folder: longbench.items(folder, None)),
    "loogle": ("shortdep_qa.jsonl", LOOGLE, lambda folder: loogle.items(folder, None)),
    "cloze": ("shortdep_cloze.jsonl", CLOZE, lambda folder: loogle.items(folder, ["shortdep_cloze"])),
}


def write(folder: Path, name: str, *rows: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("suite", READ)
def test_public_layouts_are_read(tmp_path: Path, suite: str) -> None:
    name, row, load = READ[suite]
    write(tmp_path, name, row, row)
    first, second = load(tmp_path)
    assert (first.number, second.number) == (0, 1)
    assert first.document == row.get("context", row["input"])
    assert first.question in first.after
    assert first.text.index(first.document) < first.text.index(first.question)


@pytest.mark.parametrize(
    ("suite", "change", "said"),
    [
        ("babilong", {"question": None}, "'question' must be a text, not None"),
        ("babilong", {"target": "moon"}, "'target' must be of bathroom"),
        ("babilong", {"input": "  "}, "'input' is empty"),
        ("longbench", {"answers": []}, "'answers' must be a list of texts"),
        ("longbench", {"dataset": "trec"}, "'dataset' must be 'hotpotqa', not 'trec'"),
        ("longbench", {"all_classes": [1]}, "'all_classes' must be a list of texts"),
        ("longbench", {"input": "\ud83d"}, r"'input' holds half of a character, '\ud83d'"),
        ("longbench", {"answers": ["Ada", "\ude00"]}, r"'answers' holds half of a character, '\ude00'"),
        ("loogle", {"qa_pairs": "[{'Q'"}, "'qa_pairs' is no list as Python writes it"),
        ("loogle", {"qa_pairs": "{['Q']: 1}"}, "'qa_pairs' is no list as Python writes it"),
        ("loogle", {"qa_pairs": [{"Q": "\ud83d?", "A": "Ada"}]}, "question 1: 'Q' holds half of a character"),
        ("loogle", {"qa_pairs": [{"Q": "Who?"}]}, "question 1: 'A' is missing"),
        ("cloze", {"qa_pairs": [{"Q": "Who?", "A": "Ada"}]}, "question 1: 'A' is no object"),
    ],
)
def test_a_broken_row_names_file_line_and_key(
    tmp_path: Path, suite: str, change: dict[str, Any], said: str
) -> None:
    name, row, load = READ[suite]
    path = write(tmp_path, name, row, {**row, **change})
    with pytest.raises(ArgumentError) as found:
        load(tmp_path)
    assert str(found.value).startswith(f"{path}, line 2")
    assert said in str(found.value)


@pytest.mark.parametrize("suite", READ)
def test_a_missing_key_and_what_is_no_json(tmp_path: Path, suite: str) -> None:
    name, _, load = READ[suite]
    path = write(tmp_path, name, {"other": 1})
    with pytest.raises(ArgumentError, match=r"line 1: '\w+' is missing"):
        load(tmp_path)
    for text, said in (('{"a": ', "line 1: is no JSON"), ("", "is empty"), ("3", "must be a JSON object")):
        path.write_text(text)
        with pytest.raises(ArgumentError, match=said):
            load(tmp_path)
    path.unlink()
    with pytest.raises(ArgumentError, match="has no"):
        load(tmp_path)
    with pytest.raises(ArgumentError, match="is not a folder"):
        load(tmp_path / "nowhere")


def test_babilong_of_one_json_list(tmp_path: Path) -> None:
    write(tmp_path, "qa1/4k.json", json.dumps([BABILONG, {**BABILONG, "target": 3}]))
    with pytest.raises(ArgumentError, match=r"4k.json, item 2: 'target' must be a text"):
        babilong.items(tmp_path, ["qa1"], ["4k"])


def test_babilong_of_lengths_with_other_tasks(tmp_path: Path) -> None:
    for name in ("1k/qa1.jsonl", "1k/qa2.jsonl", "2k/qa1.jsonl"):
        write(tmp_path, name, BABILONG)

    def read(tasks: list[str] | None, lengths: list[object] | None) -> list[str]:
        return [f"{item.length} {item.task}" for item in babilong.items(tmp_path, tasks, lengths)]

    assert read(None, None) == ["1k qa1", "1k qa2", "2k qa1"]
    assert read(["qa2"], None) == ["1k qa2"]
    assert read(["qa1"], [2048, "1k"]) == ["2k qa1", "1k qa1"]
    for tasks, lengths, said in (
        (["qa1", "qa2"], ["1k", "2k"], "has no qa2 of length 2k, only of 1k"),
        (["qa1"], ["4k"], "has no qa1 of length 4k, only of 1k, 2k"),
        (None, ["4k"], "has no questions of length 4k, only of 1k, 2k"),
        (["qa3"], ["1k"], "has no qa3: BABILong is looked for in DIR/1k/qa1.jsonl"),
        (["qa1"], ["1K"], "BABILong has no length '1K': 0k, 1k, 2k"),
    ):
        with pytest.raises(ArgumentError, match=said):
            read(tasks, lengths)


@pytest.mark.parametrize("rows", ["lines", "list"])
def test_files_with_a_byte_order_mark(tmp_path: Path, rows: str) -> None:
    text = json.dumps([BABILONG, BABILONG]) if rows == "list" else 2 * f"{json.dumps(BABILONG)}\n"
    write(tmp_path, "1k/qa1.jsonl", "\ufeff" + text)
    assert len(babilong.items(tmp_path, None, None)) == 2


def test_official_prompts_of_longbench_are_used(tmp_path: Path) -> None:
    write(tmp_path, "hotpotqa.jsonl", LONGBENCH)
    write(tmp_path, "config/dataset2prompt.json", {"hotpotqa": "Read {context}! {input}"})
    write(tmp_path, "config/dataset2maxlen.json", {"hotpotqa": 7})
    (item,) = longbench.items(tmp_path, None)
    assert (item.text, item.max_tokens) == ("Read Ada came.! Who came?", 7)
    write(tmp_path, "config/dataset2prompt.json", {"hotpotqa": "{{Read}} {context}"})
    assert longbench.items(tmp_path, None)[0].text == "{Read} Ada came."
    for prompt in (
        "Read!",
        "{context} {context}",
        "{context} {nope}",
        "{context} {}",
        "{context} {input!r}",
        "{context} {input",
    ):
        write(tmp_path, "config/dataset2prompt.json", {"hotpotqa": prompt})
        with pytest.raises(ArgumentError, match="must hold {context} once"):
            longbench.items(tmp_path, None)
    write(tmp_path, "config/dataset2prompt.json", {"hotpotqa": "{context} \ud83d"})
    with pytest.raises(ArgumentError, match="dataset2prompt.json: 'hotpotqa' holds half of a character"):
        longbench.items(tmp_path, None)
    write(tmp_path, "config/dataset2prompt.json", {})
    for length in (0, -5, 7.0, "7", None, True):
        write(tmp_path, "config/dataset2maxlen.json", {"hotpotqa": length})
        with pytest.raises(ArgumentError, match="dataset2maxlen.json: 'hotpotqa' must be a number of tokens"):
            longbench.items(tmp_path, ["hotpotqa"])
    for text, said in (
        ("[" * 10**5, "is no JSON"),
        ('{"hotpotqa": 7, "hotpotqa": 8}', "is there twice"),
        ("[]", "JSON object"),
    ):
        (tmp_path / "config/dataset2maxlen.json").write_text(text)
        with pytest.raises(ArgumentError, match=said):
            longbench.items(tmp_path, ["hotpotqa"])


def count(text: str) -> int:
    return len(text.split())


@pytest.mark.parametrize("task", ruler.SYNTHETIC)
def test_ruler_hides_its_answers_in_the_length_asked_for(task: str) -> None:
    items = ruler.items([task], [1500], 3, 0, count, 20)
    for item in items:
        assert all(answer in item.document for answer in item.answers)
        assert 1500 * 0.9 < count(item.text + item.lead) + 20 + item.max_tokens <= 1500
    assert len({item.document for item in items}) == len(items)
    assert items[:2] == ruler.items([task], [1500], 2, 0, count, 20)  # more samples change none
    assert items != ruler.items([task], [1500], 3, 1, count, 20)
    with pytest.raises(ArgumentError, match="leave no room"):
        ruler.items([task], [30], 1, 0, count, 20)


@pytest.mark.parametrize("task", ["niah_single_2", "cwe", "fwe"])
def test_ruler_has_text_for_any_length(task: str) -> None:
    """More than the haystack's prose, or words of its vocabulary."""
    length = 100_000
    (item,) = ruler.items([task], [length], 1, 0, count, 20)
    assert length * 0.9 < count(item.text + item.lead) + 20 <= length


def test_a_prompt_that_is_shorter_than_it_is_said_to_be_is_refused() -> None:
    asked = Asked(document=lambda n: "rain " * n, after="?", lead="", answers=("a",), max_tokens=1, n_most=50)
    assert count(filled(asked, "rain", 52, 0, count, 0).document) == 50
    with pytest.raises(ArgumentError, match="cannot be made for rain: its text has no more than 50 tokens"):
        filled(asked, "rain", 100, 0, count, 0)


def test_ruler_asks_for_what_it_says() -> None:
    """The answers are those that the text gives: by its needles, its chain, its counts."""
    made = {item.task: item for item in ruler.items(None, [3000], 1, 3, count, 20)}
    several = made["niah_multivalue"]
    key = several.after.split(" for ")[1].split(" that")[0]
    assert [several.document.count(f"for {key} is: {value}.") for value in several.answers] == [1] * 4
    alike = made["niah_multikey_3"]  # keys and values of all needles, as in the suite
    needles = re.findall(r"for (\S+) is: (\S+)\.", alike.document)
    assert len({str(uuid.UUID(one)) for needle in needles for one in needle}) == 2 * len(needles) > 40
    assert (alike.after.split(" for ")[1].split(" that")[0], *alike.answers) in needles
    chain = made["vt"]
    assert chain.document.index(f"VAR {chain.answers[0]} = ") < chain.document.index(
        f" = VAR {chain.answers[0]}"
    )
    words = [word for word in made["cwe"].document.split() if word.isalpha()]
    least = min(words.count(word) for word in made["cwe"].answers)
    assert all(words.count(word) < least for word in set(words) - set(made["cwe"].answers))
    assert least == 6
    words = made["fwe"].document.split()
    ranked = sorted(set(words), key=words.count, reverse=True)
    assert tuple(ranked[:4]) == ("...", *made["fwe"].answers)
