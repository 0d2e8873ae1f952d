"""`headkv bench quality --suite` on a tiny random model: what is measured, counted, resumed and refused."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headkv_local import ArgumentError, HeadScores, Llama
from headkv_local.bench.policies import by_scores
from headkv_local.bench.suites import longbench, report, ruler
from headkv_local.bench.suites import run as running
from headkv_local.bench.suites.again import model_of, prompts_of
from headkv_local.bench.suites.command import prepared
from headkv_local.bench.suites.names import CHOSEN
from headkv_local.bench.suites.prompts import Fitting, made
from headkv_local.bench.suites.results import Outcome, Results, header_of
from headkv_local.cli import main
from headkv_local.models import model_id

_FACT = "Mary went to the office. "
_FILLER = "It rained all day long, and nobody came to see the old house at the river. "


def babilong(folder: Path, *lengths: int) -> Path:
    """qa1 and qa2 at 1k, a sample for each number of sentences."""
    for task in ("qa1", "qa2"):
        path = folder / "1k" / f"{task}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"input": _FILLER * n + _FACT, "question": "Where is Mary? ", "target": "office"} for n in lengths
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(model: Path, suite: str, *options: str) -> int:
    return main(
        [
            *("bench", "quality", "--suite", suite, "--model", str(model), "--threads", "1"),
            *("--max-tokens", "2", *options),
        ]
    )


def documents(folder: Path) -> tuple[str, ...]:
    """--data of a LooGLE file with three questions about one document."""
    folder.mkdir()
    pairs = [{"Q": f"Who came on day {i}?", "A": "Mary"} for i in range(3)]
    row = {"input": _FILLER * 8 + _FACT, "qa_pairs": pairs, "output": "none"}
    (folder / "shortdep_qa.jsonl").write_text(json.dumps(row))
    return "--data", str(folder)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_policies_keep_the_same_bytes_of_the_same_prompts(tiny_path: Path, tmp_path: Path) -> None:
    data = ("--data", str(babilong(tmp_path / "data", 10, 12)))
    assert run(tiny_path, "babilong", *data, "--budgets", "32,10%", "--json", str(tmp_path / "o.json")) == 0
    found = read(tmp_path / "o.json")
    labels = ["full", "recent 32", "uniform 32", "recent 10%", "uniform 10%"]
    assert [line["label"] for line in found["summary"]] == labels
    assert [line["total"] for line in found["summary"]] == [4] * 5
    kept = {line["label"]: line["kept_bytes"] for line in found["summary"]}
    assert kept["recent 32"] == kept["uniform 32"] == 32 * 4 * 2 * 64 * 2
    by_sample: dict[Any, set[str]] = {}
    for one in found["outcomes"]:
        by_sample.setdefault((one["task"], one["sample"]), set()).add(one["prompt"])
        assert one["answer_tokens"] <= 2
    assert [len(prompts) for prompts in by_sample.values()] == [1] * 4


def test_an_interrupted_run_goes_on(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, lines = tmp_path / "o.json", tmp_path / "o.jsonl"
    data = ("--data", str(babilong(tmp_path / "data", 10, 12)), "--budgets", "32", "--json", str(out))
    assert run(tiny_path, "babilong", *data) == 0
    whole, text = read(out)["outcomes"], lines.read_bytes()
    assert text.count(b"\n") == 1 + len(whole)

    lines.write_bytes(b"\n".join(text.split(b"\n")[:6])[:-40])  # killed while it wrote the fifth
    assert run(tiny_path, "babilong", *data) == 0
    again = read(out)["outcomes"]
    assert [one["seconds"] for one in again[:4]] == [
        one["seconds"] for one in whole[:4]
    ]  # not measured again
    assert [one["seconds"] for one in again[4:]] != [one["seconds"] for one in whole[4:]]
    assert [{**one, "seconds": 0} for one in again] == [{**one, "seconds": 0} for one in whole]

    capsys.readouterr()
    babilong(tmp_path / "data", 11, 12)
    assert run(tiny_path, "babilong", *data) == 2
    assert "with another prompt: give another --results" in capsys.readouterr().err
    babilong(tmp_path / "data", 10, 12)
    assert run(tiny_path, "babilong", *data, "--kernel", "3") == 2
    assert "holds a run with kernel None, not 3: give another --results" in capsys.readouterr().err
    other = ("--policies", "recent", "--budgets", "16")  # rows of the file come into the table, but not these
    assert run(tiny_path, "babilong", *data, *other, "--window", "4") == 2
    assert "holds a run with window None, not 4" in capsys.readouterr().err
    text = lines.read_bytes()
    babilong_qa1 = tmp_path / "data" / "1k" / "qa1.jsonl"
    babilong_qa1.write_text(babilong_qa1.read_text().replace('"office"}', '"garden"}'))
    assert run(tiny_path, "babilong", *data) == 2
    assert "sample 0, with another prompt" in capsys.readouterr().err
    babilong(tmp_path / "data", 10, 12)
    assert read(out)["settings"]["kernel"] is None
    assert run(tiny_path, "babilong", *data, "--plain") == 2
    assert "holds a run with plain False, not True" in capsys.readouterr().err
    assert run(tiny_path, "babilong", *data, "--threads", "2") == 2
    assert "holds a run with n_threads 1, not 2" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("headkv_local.__version__", "0.0.1")
        assert run(tiny_path, "babilong", *data) == 2
    assert "not '0.0.1': give another --results" in capsys.readouterr().err
    lines.write_bytes(text.replace(b'"version": 2', b'"version": 1', 1))
    assert run(tiny_path, "babilong", *data) == 2
    assert "has version 1 of its format, not 2" in capsys.readouterr().err
    for nothing in ("{}\n", "[" * 10**5):
        lines.write_text(nothing)
        assert run(tiny_path, "babilong", *data) == 2
        assert f"{lines} holds no results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score", "x"),
        ("score", None),
        ("score", 5),
        ("score", float("nan")),
        ("scores", []),
        ("scores", {"babilong": True}),
        ("kept_share", None),
        ("prompt_tokens", "9"),
        ("sample", "0"),
        ("expected", "office"),
    ],
)
def test_a_line_of_results_that_none_can_be(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, value: object
) -> None:
    lines = tmp_path / "o.jsonl"
    data = ("--data", str(babilong(tmp_path / "data", 10, 12)), "--budgets", "32", "--results", str(lines))
    assert run(tiny_path, "babilong", *data) == 0
    first, second, *rest = lines.read_text().splitlines()
    lines.write_text("\n".join([first, json.dumps(json.loads(second) | {name: value}), *rest, ""]))
    capsys.readouterr()
    assert run(tiny_path, "babilong", *data) == 1
    assert f"line 2: is no outcome: its {name} cannot be" in capsys.readouterr().err


def test_rows_of_other_scores_do_not_come_into_a_table(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At other budgets than these either, and whatever the scores recommend for equal budgets."""
    for name, seed, window in (("a", 1, 8), ("b", 2, 8), ("c", 1, 4)):
        scores = np.random.default_rng(seed).random((2, 4), dtype=np.float32)
        HeadScores(scores=scores, n_head_kv=2, method="r2", window=window).to_sidecar(tmp_path / name)
    lines = tmp_path / "o.jsonl"
    data = ("--data", str(babilong(tmp_path / "data", 10, 12)), "--results", str(lines))
    assert run(tiny_path, "babilong", *data, "--budgets", "40", "--scores", str(tmp_path / "a")) == 0
    for name, policies, word in (("b", "full,scores", "r2 40"), ("c", "full,uniform", "uniform 40")):
        options = ("--budgets", "32", "--policies", policies, "--scores", str(tmp_path / name))
        capsys.readouterr()
        assert run(tiny_path, "babilong", *data, *options) == 2
        assert f"with another {word}: give another --results" in capsys.readouterr().err
    assert run(tiny_path, "babilong", *data, "--budgets", "32", "--scores", str(tmp_path / "a")) == 0
    assert "r2 40" in capsys.readouterr().out


def test_one_file_under_two_names(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ("--data", str(babilong(tmp_path / "data", 10, 12)), "--json", str(tmp_path / "o"))
    assert run(tiny_path, "babilong", *data, "--results", "o") == 2
    assert "give two files" in capsys.readouterr().err


def test_what_does_not_fit_is_counted_or_cut_and_said(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", str(babilong(tmp_path / "data", 4, 30)), "--budgets", "32", "--policies", "full")
    limit = ("--context", "1200")
    assert run(tiny_path, "babilong", *data, *limit, "--json", str(tmp_path / "a.json")) == 0
    assert "qa1 1k: 1 of 2 are left out" in capsys.readouterr().out
    found = read(tmp_path / "a.json")
    assert found["left_out"]["qa1 1k"]["too_long"] == 1
    assert [one["sample"] for one in found["outcomes"]] == [0, 0]

    cut = (*limit, "--truncate-middle", "--json", str(tmp_path / "b.json"))
    assert run(tiny_path, "babilong", *data, *cut) == 0
    assert "qa1 1k: the middle of 1 of 2 was cut out" in capsys.readouterr().out
    for one in read(tmp_path / "b.json")["outcomes"]:
        assert one["prompt_tokens"] + 2 <= 1200
        assert (one["removed_tokens"] > 0) == (one["sample"] == 1)

    assert run(tiny_path, "babilong", *data, "--context", "64") == 2
    assert "nothing is left to ask; qa1 1k: 2 of 2 are left out" in capsys.readouterr().err


def test_what_is_chosen_before_and_anew(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an archive what is kept for a question does not depend on when it became known."""
    read_again = tokens_read_again(monkeypatch)
    options = ("--budgets", "10%", "--policies", "full,uniform", "--chosen", "with,before,anew")
    out = tmp_path / "o.json"
    assert run(tiny_path, "loogle", *documents(tmp_path / "d"), *options, "--json", str(out)) == 0
    found = read(out)
    by_label: dict[str, list[dict[str, Any]]] = {}
    for one in sorted(found["outcomes"], key=lambda one: one["sample"]):
        by_label.setdefault(f"{one['policy']}, {one['chosen']}", []).append(one)
    labels = ["full, with", "uniform, with", "uniform, before", "uniform, anew"]
    assert {name: len(of) for name, of in by_label.items()} == dict.fromkeys(labels, 3)
    assert [line["label"] for line in found["summary"]][1:] == [
        "uniform 10%",
        "uniform 10%, before",
        "uniform 10%, anew",
    ]
    with_it, before, anew = (by_label[label] for label in labels[1:])
    assert all(one["archive_bytes"] > 0 for one in anew)
    assert not any(one["archive_bytes"] for one in before)
    assert [one["answer"] for one in with_it] == [one["answer"] for one in anew]
    for name in ("kept_bytes", "prompt"):  # equal bytes of the same prompts
        assert [one[name] for one in with_it] == [one[name] for one in before] == [one[name] for one in anew]
    assert {round(one["kept_share"], 2) for one in (*with_it, *before)} == {0.1}
    assert max(read_again) < min(one["prompt_tokens"] for one in before) / 2

    lines = out.with_suffix(".jsonl")
    lines.write_bytes(b"\n".join([*lines.read_bytes().split(b"\n")[:9], b""]))  # ended within the document
    assert run(tiny_path, "loogle", "--data", str(tmp_path / "d"), *options, "--json", str(out)) == 0
    again = {(one["policy"], one["chosen"], one["sample"]): one["answer"] for one in read(out)["outcomes"]}
    assert again == {
        (one["policy"], one["chosen"], one["sample"]): one["answer"] for one in found["outcomes"]
    }


def tokens_read_again(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each prompt takes that is read from a copy of its document's beginning."""
    totals: list[int] = []
    opened = running.open_headkv

    def open_headkv(setup: Any, n_ctx: int) -> Llama:
        llm = opened(setup, n_ctx)
        llm.on_prefill = lambda _, total: totals.append(total)
        return llm

    monkeypatch.setattr(running, "open_headkv", open_headkv)
    return totals


def test_a_document_that_chooses_for_all_its_questions(tiny_path: Path, tmp_path: Path) -> None:
    """Once, and never anew; in the bytes of the others."""
    options = ("--budgets", "10%", "--policies", "uniform,reread", "--chosen", "before,anew")
    out = tmp_path / "o.json"
    assert run(tiny_path, "loogle", *documents(tmp_path / "d"), *options, "--json", str(out)) == 0
    found = read(out)
    labels = ["uniform 10%, before", "uniform 10%, anew", "reread 10%, before"]
    assert [line["label"] for line in found["summary"]] == labels
    assert len({line["kept_bytes"] for line in found["summary"]}) == 1


def test_instructions_before_a_document_are_known_and_questions_there_refused(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, asked = "Read this text with care.", "Who came on a rainy day?"
    row = {"input": asked, "context": _FILLER * 8, "answers": ["Mary"], "all_classes": None}
    (tmp_path / "hotpotqa.jsonl").write_text(json.dumps({**row, "dataset": "hotpotqa"}))
    prompts = tmp_path / "dataset2prompt.json"
    prompts.write_text(json.dumps({"hotpotqa": f"{known}\n{{context}}\n{{input}}"}))
    (item,) = longbench.items(tmp_path, None)
    with Llama(tiny_path, vocab_only=True, n_ctx=64) as llm:
        prompt = made(llm, Fitting(item, 0, 0), plain=False)
        before = llm.detokenize(prompt.tokens[: prompt.n_document]).decode()
    assert known in before
    assert asked not in before
    assert [part["text"].strip() for part in prompt.known[0]["content"]] == [known, item.document.strip()]
    assert [part["document"] for part in prompt.known[0]["content"]] == [False, True]

    prompts.write_text(json.dumps({"hotpotqa": "{input}\n{context}"}))
    options = ("--data", str(tmp_path), "--budgets", "32", "--policies", "uniform")
    assert run(tiny_path, "longbench", *options) == 0
    capsys.readouterr()
    assert run(tiny_path, "longbench", *options, "--chosen", "with,before") == 2
    assert "hotpotqa: the prompt has its question before the document" in capsys.readouterr().err


def test_longbench_continues_text_and_judges_each_task_by_its_metric(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for task, classes in (("trec", ["Place", "Person"]), ("lcc", None), ("multifieldqa_zh", None)):
        row = {"input": "Type:", "context": _FILLER * 8, "answers": ["Place"], "all_classes": classes}
        (tmp_path / f"{task}.jsonl").write_text(json.dumps({**row, "dataset": task}))
    options = ("--data", str(tmp_path), "--budgets", "32", "--policies", "full,uniform")
    out = tmp_path / "o.json"
    chosen_when = ("--chosen", "with,before")
    assert run(tiny_path, "longbench", *options, "--tasks", "trec,lcc", *chosen_when, "--json", str(out)) == 0
    found = read(out)
    assert {name: list(one["metrics"]) for name, one in found["summary"][0]["tasks"].items()} == {
        "trec": ["classification"],
        "lcc": ["code_similarity"],
    }
    assert not found["official_prompts"]
    with Llama(tiny_path, vocab_only=True, n_ctx=64) as llm:  # no template stands around examples
        n_tokens = len(llm.tokenize(f"{_FILLER * 8}\nType:".encode(), add_bos=True))
    assert {one["prompt_tokens"] for one in found["outcomes"] if one["task"] == "trec"} == {n_tokens}
    monkeypatch.setitem(sys.modules, "jieba", None)
    assert run(tiny_path, "longbench", *options) == 1
    assert "which needs jieba: pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--suite", "ruler", "--data", "x", "--tasks", "vt"], "which are made on the spot"),
        (["--suite", "ruler", "--truncate-middle"], "--truncate-middle does not go with ruler"),
        (["--suite", "ruler", "--tasks", "vt,qa_2"], "qa_2 of ruler needs --data DIR"),
        (["--suite", "loogle"], "needs --data DIR"),
        (["--suite", "loogle", "--data", "x", "--lengths", "1k"], "whose texts have their own"),
        (["--suite", "ruler", "--tasks", "qa1"], "'qa1' is no task of ruler"),
        (["--suite", "ruler", "--wordings", "test"], "--wordings does not go with --suite"),
        (["--suite", "babilong", "--data", "x", "--lengths", "1000"], "BABILong has no length 1000"),
        (["--suite", "ruler", "--context", "99999"], "the model was trained for 8192 tokens"),
        (["--suite", "ruler", "--policies", "reread", "--chosen", "anew"], "reread chooses once"),
        (["--data", "x"], "--data goes with --suite"),
        (["--tasks", "vt"], "vt is a task of a suite"),
        (["--json", "x.json", "--png", "x.json"], "--json and --png both name x.json: give two files"),
        (
            ["--suite", "ruler", "--json", "x.json", "--results", "y", "--png", "./y"],
            "--results and --png both name y: give two files",
        ),
        (
            ["--suite", "ruler", "--json", "x.json", "--png", "x.jsonl"],
            "--results and --png both name x.jsonl: give two files",
        ),
    ],
)
def test_options_that_do_not_go_together(
    tiny_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "quality", "--model", str(tiny_path), *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_an_archive_changes_nothing_that_scores_recommend(
    tiny_path: Path, load: Callable[..., Llama]
) -> None:
    scores = HeadScores(scores=np.arange(8).reshape(2, 4), n_head_kv=2, method="r2", beta=2.0, window=16)
    llm = load(tiny_path, flash_attn=True)
    for when in CHOSEN[1:]:
        found = running._retention(running.Way(by_scores("r2", scores, 64, {}), when), llm, 1000)
        assert found is not None
        if found.wants_scores:
            found = found.with_scores(scores)
        assert (found.beta, found.window, found.fold) == (2.0, 16, None)


def outcome(task: str, sample: int, policy: str, score: float) -> Outcome:
    budget = None if policy == "full" else "5%"
    return Outcome(
        *(task, "4k", sample, policy, budget, "with", "", "", 100, 0, ("x",), "x", 1),
        *(score, {"m": score}, 0.25, 1.0, 10, 10, 0, 1.0),
    )


def test_prompts_of_later_runs_are_made_again(
    tiny_path: Path, tmp_path: Path, load: Callable[..., Llama]
) -> None:
    """Of any tasks, lengths and numbers that the file has answers of; what is another prompt is told."""
    llm, path = load(tiny_path, vocab_only=True), tmp_path / "r.jsonl"
    first = dict(suite="ruler", data=None, tasks=["vt"], lengths=[400], samples=1, seed=0, plain=False)
    first |= dict(max_tokens=None, truncate_middle=False, limit=500)
    results = Results(path, {}, first)
    later = {**first, "tasks": ["vt", "fwe"], "lengths": [600], "samples": 2}
    keys = []
    for one in (*prepared(str(tiny_path), first, 500).fitting, *prepared(str(tiny_path), later, 900).fitting):
        prompt = made(llm, one, plain=False)
        keys.append(prompt.item.key)
        task, length, number = prompt.item.key
        results.add(replace(outcome(task, number, "full", 1), length=length, prompt=prompt.digest))
    results.add(replace(outcome("vt", 7, "full", 1), length="400", prompt="of other data"))
    results.add(replace(outcome("cwe", 0, "full", 1), length="400", prompt="of other data"))
    found, others = prompts_of(llm, header_of(path)["settings"], Results(path, {}, first))
    assert len(keys) == 5
    assert sorted(prompt.item.key for prompt in found) == sorted(keys)
    assert others == [("vt", "400", 7), ("cwe", "400", 0)]


def test_results_are_of_one_model(tiny: Callable[..., Path], tiny_path: Path, tmp_path: Path) -> None:
    moved = shutil.copy(tiny_path, tmp_path / "moved.gguf")
    first = {"header": {"model_id": model_id(tiny_path)}, "settings": {"model": str(tiny_path)}}
    assert model_of(first) == tiny_path
    assert model_of(first, str(moved)) == moved
    with pytest.raises(ArgumentError, match="is not the model of these results: they name fnv1a-"):
        model_of(first, str(tiny(seed=9)))


def test_no_interval_is_narrower_than_its_samples_allow() -> None:
    """However alike scores are: equal ones, or equal pairs, prove little."""
    full = [outcome("one", i, "full", 1) for i in range(20)] + [
        outcome("two", i, "full", 0.5) for i in range(3)
    ]
    nearly = [outcome("one", i, "r2", 0.75 if i == 0 else 1) for i in range(20)]
    same = [replace(one, policy="same", budget="5%") for one in full]
    lines = report.summary([*full, *nearly, *same], ["full", "r2 5%", "same 5%"])
    whole, worse, equal = (line["tasks"]["one"]["interval_95"] for line in lines)
    assert whole == equal == pytest.approx((0.839, 1), abs=1e-3)
    assert worse[0] < whole[0]
    assert worse[1] <= whole[1]
    low, high = lines[0]["tasks"]["two"]["interval_95"]
    assert low < 0.2 < 0.8 < high
    assert lines[0]["score_95"][0] < 0.85
    assert lines[0]["able"] == ["one"]  # three answers of 0.5 show nothing
    assert (lines[2]["of_full"], lines[2]["of_full_95"], lines[2]["of_full_differ"]) == (1, None, 0)
    assert lines[1]["of_full_95"] is not None
    many = [outcome("many", i, "full", 1) for i in range(1000)]
    few = [outcome("few", i, "full", i < 4) for i in range(5)]
    (line,) = report.summary([*many, *few], ["full"])
    low, high = line["tasks"]["few"]["interval_95"]
    assert line["score_95"] == pytest.approx(((1 + low) / 2, (1 + high) / 2), abs=0.005)
    *_, row = (text for text in report.table(lines).splitlines() if text.startswith("same"))
    assert row.endswith(" 100    0/20")


def test_peers_are_compared_with_their_own_full_cache() -> None:
    scores = {"full": 1, "kvpress full-torch": 0.8, "kvpress snapkv": 0.4, "r2": 0.5}
    found = [outcome("one", i, policy, score) for i in range(20) for policy, score in scores.items()]
    found = [replace(one, budget=None) if one.policy == "kvpress full-torch" else one for one in found]
    lines = report.summary(found, ["full", "r2 5%"])
    assert "Rows of kvpress are divided by kvpress full-torch." in report.table(lines)
    of_full = {line["label"]: line["of_full"] for line in lines}
    wanted = {"full": 1, "r2 5%": 0.5, "kvpress full-torch": 1, "kvpress snapkv 5%": 0.5}
    assert of_full == pytest.approx(wanted)
    others = [one for one in found if one.policy != "kvpress full-torch"]
    of_full = {line["label"]: line["of_full"] for line in report.summary(others, ["full"])}
    assert of_full["kvpress snapkv 5%"] == pytest.approx(0.4)


@pytest.mark.parametrize(("n", "n_worse"), [(1, 1), (2, 1), (2, 2), (3, 3)])
def test_samples_that_differ_alike_make_no_interval(n: int, n_worse: int) -> None:
    """Drawn anew they are always the same."""
    asked = [("many", i) for i in range(20)] + [("few", i) for i in range(n)]
    full = [replace(outcome(task, i, "full", 1), chance=0.0) for task, i in asked]
    worse = {"policy": "r2", "budget": "5%"}
    ours = [
        replace(one, **worse, score=0.8 if one.task == "few" and one.sample < n_worse else 1) for one in full
    ]
    line = report.summary([*full, *ours], ["full", "r2 5%"])[1]
    assert line["of_full_differ"] == n_worse
    assert (line["of_full_95"] is None) is (n == n_worse)


def test_a_ratio_without_a_limit_says_so() -> None:
    """Draws in which what it is divided by is 0."""
    scores = {"full": 1.0, "kvpress full-torch": 0.0, "kvpress snapkv": 1.0}
    found = [outcome("one", i, policy, score) for i in range(8) for policy, score in scores.items()]
    found = [replace(one, budget=None) if one.policy == "kvpress full-torch" else one for one in found]
    found = [
        replace(one, score=1.0) if one.label == "kvpress full-torch" and one.sample < 1 else one
        for one in found
    ]
    lines = report.summary(found, ["full"])
    (line,) = (one for one in lines if one["label"] == "kvpress snapkv 5%")
    low, high = line["of_full_95"]
    assert (line["of_full"], high) == (8, None)
    assert 2 < low < 8
    assert f"800 ({100 * low:.0f} to ∞)" in report.table(lines)


def test_a_prompt_of_ruler_fits_with_its_answer(tiny_path: Path) -> None:
    """So that something is left to ask at the model's own context."""
    said = dict(suite="ruler", data=None, tasks=None, lengths=[1500], samples=1, seed=0, plain=False)
    for max_tokens in (None, 200):
        found = prepared(str(tiny_path), {**said, "max_tokens": max_tokens, "truncate_middle": False}, 1500)
        assert not found.too_long
        assert all(one.item.max_tokens == (max_tokens or one.item.max_tokens) for one in found.fitting)
        assert all(one.n_tokens > 1350 for one in found.fitting)


def test_a_prompt_of_ruler_has_its_length(tiny_path: Path) -> None:
    """Also in prose that goes on without an end: most of these begin in another place of it."""
    said = dict(
        suite="ruler", data=None, tasks=["niah_multikey_1"], lengths=[2000], samples=60, seed=1, plain=False
    )
    found = prepared(str(tiny_path), {**said, "max_tokens": 8, "truncate_middle": False}, 2000)
    assert len(found.fitting) == 60
    assert all(1750 < one.n_tokens <= 2000 for one in found.fitting)


def test_tasks_that_the_full_cache_cannot_do_count_nowhere() -> None:
    able = [
        outcome("able", i, policy, score) for i in range(40) for policy, score in (("full", 1), ("r2", i % 2))
    ]
    chance = [outcome("unable", i, policy, i % 4 == 0) for i in range(40) for policy in ("full", "r2")]
    full, ours = report.summary([*able, *chance], ["full", "r2 5%"])
    assert (full["able"], ours["able"]) == (["able"], ["able"])
    assert (full["of_full"], ours["of_full"]) == (1.0, 0.5)
    low, high = ours["of_full_95"]
    assert 0.3 < low < 0.5 < high < 0.7
    assert (ours["of_full_differ"], ours["of_full_pairs"]) == (20, 40)
    text = report.table([full, ours])
    assert "* unable 4k: the full cache itself scores 25% in 40 samples, where guessing gives 25%" in text
    assert text.count("*") == 3  # both cells, and the sentence


def test_no_prompt_of_ruler_is_made_that_cannot_fit(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_of: list[int] = []
    filled = ruler.filled

    def counting(asked: Any, task: str, length: int, *others: Any) -> Any:
        made_of.append(length)
        return filled(asked, task, length, *others)

    monkeypatch.setattr(ruler, "filled", counting)
    common = ("--tasks", "niah_single_1,vt", "--samples", "2", "--budgets", "32", "--policies", "full")
    path = tmp_path / "out.json"
    assert run(tiny_path, "ruler", *common, "--lengths", "1000,9000,999999", "--json", str(path)) == 0
    assert set(made_of) == {1000, 9000}  # the model was trained for 8192: 9000 may be filled less
    found = read(path)["left_out"]
    asked = {name: (one["asked"], one["too_long"]) for name, one in found.items()}
    assert asked["vt 1000"] == (2, 0)
    assert asked["vt 999999"] == asked["niah_single_1 999999"] == (2, 2)
    said = "2 of 2 are left out: with their answers they take more than 8192 tokens, the longest 999999\n"
    out = capsys.readouterr().out
    assert f"niah_single_1 999999: {said}" in out

    made_of.clear()
    assert run(tiny_path, "ruler", *common, "--lengths", "999999") == 2
    assert made_of == []
    assert "nothing is left to ask; niah_single_1 999999: 2 of 2 are left out" in capsys.readouterr().err


@pytest.mark.parametrize("theirs", ["0123456789abcdef", None])
def test_answers_of_another_build_are_not_taken(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], theirs: str | None
) -> None:
    """None: of a file that does not say."""
    data = ("--data", str(babilong(tmp_path / "data", 10)), "--budgets", "32", "--tasks", "qa1")
    rows = tmp_path / "rows.jsonl"
    assert run(tiny_path, "babilong", *data, "--results", str(rows)) == 0
    first, *others = rows.read_text().splitlines(keepends=True)
    header = json.loads(first)
    header["header"]["build"] = theirs
    if theirs is None:
        del header["header"]["build"]
    rows.write_text(json.dumps(header) + "\n" + "".join(others))
    left = rows.read_bytes()
    capsys.readouterr()
    assert run(tiny_path, "babilong", *data, "--results", str(rows)) == 2
    err = capsys.readouterr().err
    said = f"a run with build {theirs!r}, not" if theirs else "does not say which build of headkv-local"
    assert err.startswith(f"headkv: {rows} ")
    assert said in err
    assert err.endswith(": give another --results\n")
    assert rows.read_bytes() == left


def test_what_is_whole_is_never_written_again(tmp_path: Path) -> None:
    """A line that was not finished is cut off, also where no byte can be written, as on a full disk.

    There is no file without its whole first line, which says what all others are of.
    """
    path, new = tmp_path / "rows.jsonl", tmp_path / "new.jsonl"
    Results(path, {}, {})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"task": "t", "len')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))
    try:
        Results(path, {}, {})
        with pytest.raises(OSError, match="cannot be written"):
            Results(new, {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole
    assert not new.exists()
    new.write_bytes(whole[:-1])
    with pytest.raises(ArgumentError, match="holds no results"):
        Results(new, {}, {})
    assert new.read_bytes() == whole[:-1]
