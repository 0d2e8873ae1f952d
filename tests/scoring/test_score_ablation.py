"""`headkv score --method ablation`: what a curve is, a run from end to end, and one that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headkv_local import ArgumentError, HeadScores, Llama, ModelError, Retention, ScoresError
from headkv_local.curves import Curves
from headkv_local.errors import DecodeMemoryError
from headkv_local.scoring import ablation, dataset, held_out, samples
from headkv_local.scoring.loss import SavedPrompt
from headkv_local.scoring.options import Options
from headkv_local.scoring.progress import NothingFoundError, Progress, Tally
from headkv_local.scoring.prompt import Prompter, ask
from headkv_local.scoring.shrinking import shrink
from headkv_local.tokens import logits_of

Score = Callable[..., int]
Capture = pytest.CaptureFixture[str]
SHORT = (
    "--method",
    "ablation",
    "--samples",
    "2",
    "--lengths",
    "300",
    "--threads",
    "1",
    "--points",
    "0,5,40",
    "--seed",
    "2",
)
N_RUNS = 4 * 3  # KV heads and points


@pytest.mark.parametrize("arch", ["llama", "gemma3", "lfm2"])
def test_the_loss_is_that_of_a_prompt_read_anew(
    arch: str, tiny: Callable[..., Path], load: Callable[..., Llama]
) -> None:
    """One that was compacted many times, and token by token instead of in one batch."""
    model = tiny(arch=arch)
    llm = load(model, flash_attn=True, swa_full=False)
    (plan,) = samples.plan(dataset.own("r").examples[:1], 1, (400,), seed=0)
    asked = ask(plan, Prompter(llm))
    tokens = asked.prompt.tokens
    assert asked.answer == llm.tokenize(plan.example.answer.encode(), add_bos=False)
    saved = SavedPrompt(llm, asked, window=8)
    retentions = [Retention(budget=b, scores="uniform") for b in (8, 40, "100%")]
    read: list[int] = []
    llm.on_prefill = lambda _, n_tokens: read.append(n_tokens)
    losses = [saved.loss(retention) for retention in (*retentions, *retentions)]
    assert set(read) == {len(tokens) - 1 - asked.n_before}  # nothing but the question
    assert losses[:3] == losses[3:]
    assert len(set(losses)) == 3

    for retention, loss in zip(retentions, losses, strict=False):
        other = load(model, retention=retention)
        other.prefill(tokens[:-1], messages=asked.messages)
        total, last = 0.0, tokens[-1]
        for token in asked.answer:
            other.eval([last])
            logits = logits_of(other).astype(np.float64)
            total += float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[token])
            last = token
        assert loss == pytest.approx(total / len(asked.answer), abs=2e-3)


def test_one_head_moves_at_a_time(tiny_path: Path, tmp_path: Path, load: Callable[..., Llama]) -> None:
    llm = load(tiny_path, flash_attn=True)
    options = Options("m", tmp_path / "o", method="ablation", points=(0, 10, 100), bases=(5, 100))
    progress = Progress(options.output, {}, {ablation.STAGE: (2, 2, 3)}, force=False)
    attention = np.array([[0.7, 0.1], [0.1, 0.1]])
    kept = ablation.settings_of(options)
    measuring = ablation.Ablating(
        llm, options, (300,), progress, lambda *_: None, lambda _: None, attention, kept
    )
    runs = list(measuring._variants(208))
    assert len(runs) == 2 * 4 * 3
    base = Retention(budget=18, scores=attention).caps_for(llm.shape, 208)
    whole = np.array([[208, 208], [208, 207]])
    for i, caps in enumerate(runs):
        others, head, point = (base, whole)[i // 12], divmod(i // 3 % 4, 2), (8, 28, 208)[i % 3]
        assert caps[head] == point
        assert [tuple(at) for at in np.argwhere(caps != others)] in ([head], [])


def test_from_end_to_end(score: Score, tmp_path: Path, capsys: Capture) -> None:
    assert score(*SHORT) == 0
    out, err = capsys.readouterr()
    assert err == f"headkv score: {2 * N_RUNS} runs, no prompt is read twice: about 0 min\n"
    assert "method ablation: 2 of 2 samples counted" in out
    assert "held-out examples" in out
    found = HeadScores.from_gguf(tmp_path / "out.gguf")
    assert found.curves is not None
    assert found.curves.shares.tolist() == pytest.approx([0, 0.05, 0.4, 1])
    losses = found.curves.losses
    assert losses.shape == (2, 2, 4)
    assert np.array_equal(losses[..., 3], losses[..., 2])
    falls = np.maximum(losses[..., 0] - losses[..., 3], 0)
    assert found.scores == pytest.approx(np.repeat(falls, 2, axis=1) / 2)
    assert found.beta in [pytest.approx(beta) for beta in held_out.BETAS]
    source = found.source
    assert (source["kinds"], source["unit"]) == ("r,r2", "nats per answer token")
    assert len(str(source["measured"]).split(",")) == 2
    assert (source["points"], source["base"], source["samples"]) == ("0%,5%,40%", "5%", "2")
    assert str(source["beta"]).startswith(f"{found.beta:g} of 1.005, 1.1, 1.3, 2, 3, 5, 10: loss ")


@pytest.mark.parametrize("is_held_out", [False, True])
@pytest.mark.parametrize(
    ("fact", "reason"),
    [
        ("A very " + "long " * 600 + "fact.", "prompts of 300 tokens leave no room for a haystack around"),
        ("the", "the fact 'the' stands in the text round it too"),
    ],
)
def test_an_example_that_cannot_be_asked_ends_a_run_before_anything_is_measured(
    fact: str,
    reason: str,
    is_held_out: bool,
    score: Score,
    tmp_path: Path,
    examples_file: Callable[..., Path],
    capsys: Capture,
) -> None:
    fields = {"kind": "r", "pattern": "any", "lang": "en", "needle": [0], "answer": "7"}
    good = [{**fields, "facts": [f"Box {i} holds a 7."], "question": f"What is in {i}?"} for i in range(8)]
    held_out = [example.question for example in dataset.split(dataset.read(examples_file(*good)), seed=2)[1]]
    at = next(i for i, one in enumerate(good) if (one["question"] in held_out) == is_held_out)
    good[at]["facts"] = [fact]
    path = examples_file(*good)
    assert score(*SHORT, "--samples", "8", "--examples", str(path)) == 2
    assert f"headkv: {path}, line {at + 1}: {reason}" in capsys.readouterr().err
    assert not (tmp_path / "out.gguf.partial.json").exists()


def test_layers_with_different_heads(
    score: Score, tiny: Callable[..., Path], tmp_path: Path, load: Callable[..., Llama]
) -> None:
    model = tiny(arch="lfm2")
    assert score(*SHORT, "--beta", "1.3", model=model) == 0
    path = str(tmp_path / "out.gguf")
    found = HeadScores.from_gguf(path)
    llm = load(model, retention=Retention(budget=40, scores=path))
    assert found.curves is not None
    assert (found.curves.losses[~llm.shape.heads] == 0).all()
    assert (found.curves.losses[llm.shape.heads] > 0).all()
    llm.prefill(list(range(3, 203)))
    assert llm.cache_stats().kept.sum() == 40 * llm.shape.n_heads


def test_a_given_beta_and_kinds(score: Score, tmp_path: Path, capsys: Capture) -> None:
    whole = (*SHORT, "--beta", "1.7", "--kind", "icl,truth", "--base", "100", "--seed", "1")
    assert score(*whole) == 0
    found = HeadScores.from_gguf(tmp_path / "out.gguf")
    assert found.beta == pytest.approx(1.7)
    assert (found.source["kinds"], found.source["base"]) == ("icl,truth", "100%")
    assert "beta" not in found.source
    assert "in-context.jsonl, truthfulness.jsonl" in str(found.source["data"])
    assert "held-out" not in capsys.readouterr().out


def test_a_users_examples_all_count(score: Score, tmp_path: Path, examples_file: Callable[..., Path]) -> None:
    def example(kind: str, n: int) -> dict[str, object]:
        texts = {"pattern": "x", "lang": "en", "question": f"What is number {n}?", "answer": f"a thing {n}"}
        return {"kind": kind, "facts": [f"Number {n} is a thing {n}."], "needle": [0], **texts}

    path = examples_file(example("truth", 1), example("icl", 2))
    assert score(*SHORT, "--examples", str(path)) == 0
    found = HeadScores.from_gguf(tmp_path / "out.gguf")
    assert found.source["kinds"] == "icl,truth"
    assert found.beta == pytest.approx(1.3)  # of two examples none is held out


# goes no further than into the fourth run
HELD = """
import sys, time
from headkv_local import Llama, cli
from headkv_local.scoring import ablation
from headkv_local.scoring.progress import Progress
ablation._SAVED_EVERY = 0.0
save = Progress.save
def hold(*_):
    while True:
        time.sleep(0.01)
def save_and_hold(progress):
    save(progress)
    if len(progress.within) == 3:
        Llama.eval = hold
Progress.save = save_and_hold
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_run_that_is_stopped_within_a_sample(
    score: Score, tiny_path: Path, tmp_path: Path, capsys: Capture, sent: signal.Signals, code: int
) -> None:
    assert score(*SHORT, out="whole.gguf") == 0
    out, partial = tmp_path / "out.gguf", tmp_path / "out.gguf.partial.json"
    command = [sys.executable, "-c", HELD, "score", str(tiny_path), "-o", str(out), *SHORT]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        within = 0
        while within < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
            if partial.exists():
                within = len(json.loads(partial.read_text())["within"])
        os.kill(process.pid, sent)
        assert process.wait() == code
    kept = json.loads(partial.read_text())
    n_done = N_RUNS * kept["tallies"]["ablation"]["done"] + len(kept["within"])
    assert n_done == 3
    assert not out.exists()

    capsys.readouterr()
    assert score(*SHORT) == 0
    assert f"going on after run {n_done} of {2 * N_RUNS} of 'ablation'" in capsys.readouterr().err
    curves = [HeadScores.from_gguf(tmp_path / name).curves for name in ("out.gguf", "whole.gguf")]
    assert curves[0] is not None
    assert curves[1] is not None
    assert np.array_equal(curves[0].losses, curves[1].losses)
    assert {path.name for path in tmp_path.iterdir()} == {"out.gguf", "whole.gguf"}


def test_one_sample_or_one_example_tells_nothing_from_noise(
    score: Score, tmp_path: Path, examples_file: Callable[..., Path], capsys: Capture
) -> None:
    texts = {"kind": "r", "pattern": "x", "lang": "en", "question": "What hums?", "answer": "zebras"}
    path = examples_file({**texts, "facts": ["Zebras hum."], "needle": [0]})
    for few in (("--samples", "1"), ("--examples", str(path))):
        assert score(*SHORT, *few) == 2
        assert "an ablation takes at least 2 samples, of 2 examples" in capsys.readouterr().err
        assert not list(tmp_path.glob("out*"))


def test_no_scores_where_no_entries_help(tiny_path: Path, load: Callable[..., Llama]) -> None:
    tally = Tally(np.zeros((2, 2, 2, 3)))
    for half in (0, 1):
        tally.add(half, np.broadcast_to([1.0, 1.5, 2.0], (2, 2, 3)))
    shape = load(tiny_path, flash_attn=True).shape
    curves = ablation.curves_of(shrink(tally, shape.heads, None).losses, (0, 5, 40), shape)
    with pytest.raises(ValueError, match="no head's entries ever lowered the loss"):
        ablation.scores_of(curves, shape)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--points", "0,5,5.0000001", "the points 0.0,5.0,5.0000001 are too close to each other, or to 100"),
        ("--points", "0,99.999999999", "are too close to each other, or to 100"),
        ("--base", ",".join(f"{n / 10:g}" for n in range(1, 999)), "headkv.source.base"),
    ],
)
def test_what_no_file_can_hold_is_refused_before_anything_is_measured(
    score: Score,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: str,
    reason: str,
) -> None:
    monkeypatch.setattr(Llama, "eval", lambda *_: pytest.fail("measured"))
    assert score(*SHORT, option, value) == 2
    assert reason in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [ArgumentError, ModelError, ScoresError, DecodeMemoryError, OSError])
def test_what_was_measured_outlives_any_late_error(
    score: Score, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """But what the measuring itself decides: that would end the same run in the same way again."""
    partial = tmp_path / "out.gguf.partial.json"

    def fail(*_: object) -> None:
        raise error("late")

    with monkeypatch.context() as late:
        late.setattr(ablation, "scores_of", fail)
        assert score(*SHORT) in (1, 2)
    assert capsys.readouterr().err.endswith("headkv: late\n")
    assert json.loads(partial.read_text())["tallies"]["ablation"]["done"] == 2

    with monkeypatch.context() as late:
        level = lambda *_: Curves(np.array([0, 1.0]), np.zeros((2, 2, 2)))  # noqa: E731
        late.setattr(ablation, "curves_of", level)
        assert score(*SHORT) == 1
    assert capsys.readouterr().err.endswith("ever lowered the loss of an answer: no scores were written\n")
    assert not list(tmp_path.iterdir())


def test_losses_that_are_not_finite_are_no_scores() -> None:
    tally = Tally(np.zeros((2, 2, 2, 3)))
    ablation.require_losses(tally)
    tally.add(1, np.full((2, 2, 3), np.nan))
    with pytest.raises(NothingFoundError, match="is not finite: no scores were written"):
        ablation.require_losses(tally)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--points", "3,10", "must ascend from 0"),
        ("--points", "0,10,10", "must ascend from 0"),
        ("--points", "0,101", "percentages from 0 to 100"),
        ("--points", "0,nan", "percentages from 0 to 100"),
        ("--base", "0", "above 0"),
        ("--base", "5,5", "different percentages"),
        ("--kind", "r,r3", "no list of r, r2, icl, truth"),
    ],
)
def test_wrong_usage(score: Score, capsys: Capture, option: str, value: str, reason: str) -> None:
    with pytest.raises(SystemExit) as ended:
        score("--method", "ablation", option, value)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_options_of_ablation_alone(score: Score, tmp_path: Path, capsys: Capture) -> None:
    assert score("--teacher-forced", "--points", "0,5") == 2
    assert capsys.readouterr().err == "headkv: --kind, --points and --base go with --method ablation\n"
    assert score("--method", "ablation", "--teacher-forced") == 2
    assert "--teacher-forced goes with the other methods" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
