"""`headkv score` from end to end, on tiny models: what it writes, says and refuses."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from architectures import FAMILIES
from gguf_factory import TinyModel
from headkv_local import HeadKVError, Llama, Retention, __version__
from headkv_local._core import native
from headkv_local.cli import main
from headkv_local.models import retained_shape
from headkv_local.scores import HeadScores
from headkv_local.scoring import dataset, held_out, samples
from headkv_local.scoring.measure import observe
from headkv_local.scoring.progress import Tally
from headkv_local.scoring.prompt import Prompter, ask

Score = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def only(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_teacher_forced_from_end_to_end(
    score: Score, tiny_path: Path, tmp_path: Path, capsys: Capture, load: Callable[..., Llama]
) -> None:
    assert score("--teacher-forced", "--seed", "7") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "method r2-teacher-forced: 4 of 4 samples counted\n" in out
    assert re.search(r"halves of 2 and 2 samples .*: Spearman -?[01]\.\d{3} over 4 KV heads\n", out)
    assert len(re.findall(r" [01]-[0-3] \d+\.\d%", out)) == 8
    assert out.endswith(f"written to {tmp_path / 'out.gguf'}\n")
    assert only(tmp_path) == {"out.gguf"}

    written = HeadScores.from_gguf(tmp_path / "out.gguf")
    assert written.scores.shape == (2, 4)
    assert (written.scores > 0).any()
    assert (written.n_head_kv, written.method) == (2, "r2-teacher-forced")
    assert written.beta in [pytest.approx(beta) for beta in held_out.BETAS]
    assert (written.window, written.kernel, written.sinks) == (8, 29, 4)
    source = dict(written.source)
    assert source.pop("data").startswith("headkv-local's reasoning.jsonl in pydoc_data.topics of Python 3.")
    assert date.fromisoformat(str(source.pop("date")))
    chosen = str(source.pop("beta"))
    assert chosen.startswith(f"{written.beta:g} of 1.005, 1.1, 1.3, 2, 3, 5, 10: loss ")
    assert chosen.endswith(", on 4 samples of 7 held-out examples at 3% and 6%")
    assert source.pop("kinds") == "r2"
    assert source == {
        "model": tiny_path.name,
        "model_id": native.model_id(str(tiny_path)),
        "layer_heads": "4/2",
        "samples": "4",
        "samples_tried": "4",
        "seed": "7",
        "lengths": "400,600",
        "licence": "CC0-1.0",
        "tool": f"headkv-local {__version__}",
    }
    llm = load(tiny_path, retention=Retention(budget=32, scores=str(tmp_path / "out.gguf")))
    llm.prefill(list(range(200)))
    assert llm.cache_stats().policy == "scores"


@pytest.mark.parametrize(("worse", "beta"), [((0.3, 0.3), 5), ((0.01, 0.01), 10), ((0.9, -0.6), 5)])
def test_of_betas_that_samples_cannot_tell_apart_the_flattest_is_recommended(
    worse: tuple[float, float], beta: float
) -> None:
    """Samples differ by far more than betas do, and the same samples are asked with each of them."""
    rng = np.random.default_rng(1)
    losses = rng.uniform(1, 3, (10, 1)) + rng.normal(0, 0.1, (10, 1 + len(held_out.BETAS)))
    losses[:, 0] += 3
    losses[:, 1:] += [0.3, 0.3, 0.3, 0, 0.01, 0.01, 0]
    losses[:, -1] += worse * 5  # in turns
    tally = Tally(np.zeros((2, *held_out.SHAPE)))
    for i, sample in enumerate(losses):
        tally.add(i % 2, held_out.moments(sample))
    more = losses[:, 1:] - losses[:, [1 + losses[:, 1:].mean(axis=0).argmin()]]
    within = more.mean(axis=0) <= np.minimum(more.std(axis=0, ddof=1) / 10**0.5, held_out.MOST)
    assert held_out.flattest(tally) == beta == held_out.BETAS[np.flatnonzero(within)[-1]]


def test_heads_that_a_layer_does_not_have_are_no_heads(
    score: Score, tiny: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    few = ("--teacher-forced", "--samples", "2", "--lengths", "300", "--beta", "2")
    assert score(*few, model=tiny(arch="deci")) == 0  # 2, 2, 2 and 4 KV heads
    assert re.search(r"Spearman -?[01]\.\d{3} over 10 KV heads\n", capsys.readouterr().out)
    written = str(tmp_path / "out.gguf")
    assert main(["scores", "diff", written, written]) == 0
    assert re.search(r"heads +10 +16\n", capsys.readouterr().out)


def test_heads_that_no_file_can_hold(
    score: Score, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES["openelm"]
    counts = {"attention.head_count": [6, 6, 6, 4], "attention.head_count_kv": [2, 2, 2, 4]}
    monkeypatch.setitem(FAMILIES, "openelm", replace(family, keys=lambda model: family.keys(model) | counts))
    model = TinyModel(arch="openelm", width=256).write(tmp_path / "uneven.gguf")
    assert score("--samples", "2", "--lengths", "300", model=model) == 1
    assert "the 4 KV heads of one layer do not divide the 6 query heads" in capsys.readouterr().err


def test_what_is_recommended(score: Score, tmp_path: Path, capsys: Capture) -> None:
    advice = ("--beta", "1.5", "--window", "4", "--kernel", "17", "--sinks", "0")
    assert score("--teacher-forced", *advice) == 0
    written = HeadScores.from_gguf(tmp_path / "out.gguf")
    assert (written.beta, written.window, written.kernel, written.sinks) == (1.5, 4, 17, 0)

    capsys.readouterr()
    assert score("--teacher-forced", "--force", "--kernel", "4") == 2
    assert capsys.readouterr().err == "headkv: kernel must be odd, not 4\n"
    assert HeadScores.from_gguf(tmp_path / "out.gguf").kernel == 17


def test_same_seed_same_scores(score: Score, tmp_path: Path) -> None:
    for out, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert score("--teacher-forced", "--method", "r", "--seed", seed, out=out) == 0
    a, b, c = (HeadScores.from_gguf(tmp_path / name) for name in "abc")
    assert a.method == "r-teacher-forced"
    assert np.array_equal(a.scores, b.scores)
    assert not np.array_equal(a.scores, c.scores)


def test_an_output_is_replaced_with_force_only(score: Score, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "out.gguf").write_text("mine")
    assert score("--teacher-forced") == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "out.gguf").read_text() == "mine"
    assert score("--teacher-forced", "--force") == 0
    assert HeadScores.from_gguf(tmp_path / "out.gguf").scores.shape == (2, 4)


def test_what_is_read_is_never_the_output(
    tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, examples = tmp_path / "model.gguf", tmp_path / "examples.jsonl"
    model.write_bytes(tiny_path.read_bytes())
    assert main(["score", str(model), "-o", str(model), "--force"]) == 2
    assert "is the model itself, which would be lost" in capsys.readouterr().err
    examples.write_text("mine")
    assert main(["score", str(model), "-o", str(examples), "--examples", str(examples), "--force"]) == 2
    assert "is what is read here, and would be lost" in capsys.readouterr().err
    assert (model.read_bytes(), examples.read_text()) == (tiny_path.read_bytes(), "mine")
    assert sorted(tmp_path.iterdir()) == [examples, model]


def test_lengths_beyond_the_context_are_skipped(
    score: Score, tiny: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    model = tiny(n_ctx_train=1024)
    assert score("--teacher-forced", "--lengths", "400,1000", model=model) == 0
    err = capsys.readouterr().err
    assert err == (
        "headkv score: prompts of 1000 tokens are skipped: with an answer, they do not fit into 1024\n"
    )
    assert HeadScores.from_gguf(tmp_path / "out.gguf").source["lengths"] == "400"
    assert score("--teacher-forced", "--lengths", "1000,9000", model=model, out="none") == 2
    assert capsys.readouterr().err.endswith("none fits into 1024 tokens\n")
    assert only(tmp_path) == {"out.gguf"}


def test_a_base_model_is_asked_without_a_template(
    score: Score, tiny_path: Path, tmp_path: Path, capsys: Capture
) -> None:
    key = b"tokenizer.chat_template"
    whole = tiny_path.read_bytes()
    assert whole.count(key) == 1
    base = tmp_path / "base.gguf"
    base.write_bytes(whole.replace(key, key[:-1] + b"_"))
    assert score(model=base) == 2
    assert capsys.readouterr().err == (
        "headkv: the model has no chat template: --plain measures base models without one\n"
    )
    assert only(tmp_path) == {"base.gguf"}
    assert score("--plain", "--teacher-forced", model=base, out="plain.gguf") == 0
    assert HeadScores.from_gguf(tmp_path / "plain.gguf").source["samples"] == "4"


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (("--lengths", "60"), 2, "60 tokens leave no room"),
        (("--window", "300", "--lengths", "300"), 2, "window must be less than the shortest prompt, of "),
        (("--window", "1000", "--beta", "2", "--teacher-forced"), 2, "tokens, not 1000"),
        (("--examples", "/nonexistent/x.jsonl"), 1, "headkv: /nonexistent/x.jsonl: No such file"),
        (("--examples", "/dev/zero"), 1, "headkv: /dev/zero is not a file"),
        (("--examples", "/proc/self/mem"), 1, "headkv: /proc/self/mem: "),
        (("--sinks", "2000000"), 2, "headkv.sinks must be from 0 to 1048576"),
        (("--beta", "1.00000001"), 2, "headkv.beta must be finite and above 1, not 1"),
        (("--beta", "1e39"), 2, "beta must be finite in 32 bits"),
    ],
)
def test_what_cannot_be_measured(
    score: Score, tmp_path: Path, capsys: Capture, options: tuple[str, ...], code: int, reason: str
) -> None:
    assert score(*options) == code
    assert reason in capsys.readouterr().err
    assert only(tmp_path) == set()


def test_unusable_models_and_folders(
    score: Score, tiny: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    assert score(model=tmp_path / "none.gguf") == 1
    assert "does not exist" in capsys.readouterr().err
    assert score(model=tiny(arch="mamba")) == 1
    assert "recurrent" in capsys.readouterr().err
    assert score("--teacher-forced", out="no/such/folder.gguf") == 1
    assert "No such file or directory" in capsys.readouterr().err
    assert only(tmp_path) == set()


@pytest.mark.parametrize("options", [("--seed", "-1"), ("--seed", "4294967296"), ("--samples", "0")])
def test_wrong_usage(score: Score, options: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as raised:
        score(*options)
    assert raised.value.code == 2


def test_a_bad_line_is_named_before_anything_is_measured(
    score: Score, tmp_path: Path, capsys: Capture
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"kind": "r"}\n')
    assert score("--examples", str(bad)) == 1
    assert capsys.readouterr().err == f"headkv: {bad}, line 1: 'answer' is missing\n"
    assert only(tmp_path) == {"bad.jsonl"}


def test_examples_that_take_the_place_of_others_are_refused_as_early(
    score: Score, tmp_path: Path, capsys: Capture, examples_file: Callable[..., Path]
) -> None:
    """Those of plain retrieval, which only a model that answers no other question is measured on."""
    long = example("r", " ".join(["Zebras hum."] * 200), "zebras")
    path = examples_file(example("r2", "Yaks hum.", "yaks"), long)
    assert score("--examples", str(path)) == 2
    err = capsys.readouterr().err
    assert "examples.jsonl, line 2" in err
    assert "measuring plain retrieval" not in err
    assert only(tmp_path) == {path.name}


def test_a_model_that_answers_nothing_gets_no_file(score: Score, tmp_path: Path, capsys: Capture) -> None:
    assert score("--method", "r") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "headkv: only 0 of 1 samples of the method 'r' were answered right: try --teacher-forced, or shorter "
        "--lengths; no scores were written\n"
    )
    assert only(tmp_path) == set()

    assert score() == 1
    err = capsys.readouterr().err
    assert "measuring plain retrieval (the method 'r') instead\n" in err
    assert "of the method 'r2' were answered right, and 0 of 1 of the method 'r': try" in err
    assert only(tmp_path) == set()


def example(kind: str, fact: str, answer: str) -> dict[str, Any]:
    fields = {"kind": kind, "pattern": "any", "lang": "en", "facts": [fact], "needle": [0]}
    return fields | {"question": "What is it?", "answer": answer}


def answers(path: Path, model: Path, n: int, length: int) -> dict[str, str]:
    """What the model says to the plain examples of a file: by fact. Prompts do not depend on answers."""
    with Llama(model, n_ctx=1024, n_threads=1, n_threads_batch=1, flash_attn=True) as llm:
        prompter = Prompter(llm)
        said = {}
        for plan in samples.plan(dataset.theirs(path).of(["r"]).examples, n, (length,), 0):
            said[plan.example.facts[0]] = observe(llm, ask(plan, prompter).prompt, None).text
        return said


def test_what_is_answered_right_counts_and_r2_falls_back_to_r(
    score: Score, tiny_path: Path, tmp_path: Path, capsys: Capture, examples_file: Callable[..., Path]
) -> None:
    facts = ["Zebras hum.", "Yaks whistle."]
    path = examples_file(*(example("r", fact, "?") for fact in facts))
    said = answers(path, tiny_path, 2, 300)
    assert all(re.search(r"\w", text) for text in said.values())
    plain = [example("r", fact, said[fact]) for fact in facts]
    reasoning = [example("r2", fact, "certainly nothing that it says") for fact in facts]
    path = examples_file(*plain, *reasoning)

    few = ("--examples", str(path), "--samples", "2", "--lengths", "300")
    assert score(*few) == 0
    out, err = capsys.readouterr()
    assert err == (
        "headkv score: only 0 of 1 samples of the method 'r2' were answered right, too few for scores: "
        "measuring plain retrieval (the method 'r') instead\n"
        "headkv score: fewer than 4 examples: none is held out to choose beta on, it stays 1.3\n"
    )
    assert "method r: 2 of 2 samples counted" in out
    fallen = HeadScores.from_gguf(tmp_path / "out.gguf")
    assert fallen.method == "r"
    assert str(fallen.source["data"]).startswith("the user's examples.jsonl in ")

    assert score(*few, "--method", "r", out="plain.gguf") == 0
    asked = HeadScores.from_gguf(tmp_path / "plain.gguf")
    assert np.array_equal(asked.scores, fallen.scores)
    assert len(np.unique(asked.scores)) > 1

    path = examples_file(*reasoning)
    assert score(*few, out="own.gguf") == 1
    assert "hold none of the kind 'r': this project's own are used\n" in capsys.readouterr().err


def test_examples_may_come_through_a_pipe(score: Score, tmp_path: Path, capsys: Capture) -> None:
    """Which can be read once, whatever kinds are looked for in it."""
    texts = [json.dumps(example(kind, f"{kind} hums.", "no")) for kind in ("r", "r2")]
    reader, writer = os.pipe()
    os.write(writer, "\n".join(texts).encode())
    os.close(writer)
    given = ("--examples", f"/dev/fd/{reader}", "--samples", "2", "--lengths", "300")
    assert score(*given) == 1
    os.close(reader)
    err = capsys.readouterr().err
    assert "of the method 'r'" in err
    assert "hold none of the kind" not in err


def test_a_right_answer_that_is_long_is_cut(score: Score, examples_file: Callable[..., Path]) -> None:
    path = examples_file(*(example("r", fact, "la " * 600) for fact in ("Zebras hum.", "Yaks whistle.")))
    assert score("--method", "r", "--teacher-forced", "--examples", str(path), "--lengths", "400") == 0


def test_scores_fit_the_measured_model_only(
    score: Score, tiny: Callable[..., Path], tiny_path: Path, tmp_path: Path
) -> None:
    assert score("--teacher-forced") == 0
    written = HeadScores.from_gguf(tmp_path / "out.gguf")
    written.for_model(retained_shape(tiny_path), tiny_path)
    other = tiny(seed=2)
    with pytest.raises(HeadKVError, match="another model file"):
        written.for_model(retained_shape(other), other)


def test_the_model_as_an_option(tmp_path: Path, capsys: Capture) -> None:
    missing, out = str(tmp_path / "no.gguf"), str(tmp_path / "out.gguf")
    for given in ([missing, "-o", out], ["-o", out, "--model", missing], ["-m", missing, "-o", out]):
        assert main(["score", *given]) == 1
        assert missing in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["score", missing, "-m", missing, "-o", out])
