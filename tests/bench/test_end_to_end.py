"""The real commands on a tiny random model: what they write, not how good the figures are."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headkv_local import HeadScores, Llama
from headkv_local.bench import quality, report
from headkv_local.bench.quality import nll
from headkv_local.cli import main
from headkv_local.scores import SHIPPED


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, Any], str]:
    """The JSON on stdout and the table on stderr."""
    assert main(["bench", *arguments, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_speed(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n, budget, n_decode = 700, 64, 16
    data, table = run(
        capsys,
        *("speed", "--model", str(tiny_path), "--threads", "1", "--repeat", "2"),
        *("--prompt-tokens", str(n), "--budget", str(budget), "--decode-tokens", str(n_decode)),
    )
    (result,) = data["results"]
    assert result["prompt_tokens"] == n
    assert result["short_depth"] == budget
    assert {"decode, stock at 64", "prefill", "cache peak"} <= {
        line.split("  ")[0] for line in table.split("\n")
    }

    counts = {name: values["n"] for name, values in result["samples"].items()}
    per_pass = n_decode - n_decode // 8  # the first step of every block is not counted
    assert counts == {
        "end_plain": 6,
        "end_recorded": 6,
        "recording": 6,
        "select": 6,
        "compact": 6,
        "decode_stock": 2 * per_pass,
        "decode_headkv": 2 * per_pass,
        "decode_short": 2 * per_pass,
        "short_ratios": 2,
    }
    batches = result["prefill_seconds_of_batches"]
    assert [[len(one) for one in passes] for passes in batches.values()] == [[2, 2]] * 2  # 512 and 188 tokens
    assert all(values["median"] > 0 for name, values in result["samples"].items() if name != "recording")

    row = 2 * 64 * 2  # K and V of a head of 64 in f16
    cache, process = result["cache"], result["own_process"]
    assert cache["kept_share"] == pytest.approx(budget / n)
    assert cache["full_bytes"] == 768 * 2 * 2 * row  # 768 cells, 2 layers, 2 KV heads
    assert (budget - 8) * 2 * 2 * row <= cache["pool_bytes"] < cache["resident_bytes"] < cache["full_bytes"]
    assert cache["full_bytes"] <= cache["peak_bytes"] == process["peak_bytes"]
    assert process["kept_bytes"] == budget * 2 * 2 * row
    assert process["full_bytes"] == cache["full_bytes"]
    assert process["freed_bytes"] == process["full_bytes"] - process["resident_bytes"]


def test_speed_leaves_what_it_found_before_it_failed(tiny_path: Path, tmp_path: Path) -> None:
    """The first context has 256 positions; the second takes more than the model was trained for."""
    target = tmp_path / "speed.json"
    command = ["bench", "speed", "--model", str(tiny_path), "--threads", "1", "--repeat", "1", "--no-rss"]
    command += [
        "--prompt-tokens",
        "252,9000",
        "--decode-tokens",
        "4",
        "--budget",
        "32",
        "--json",
        str(target),
    ]
    assert main(command) != 0
    (result,) = json.loads(target.read_text())["results"]
    assert result["prompt_tokens"] == 252


def test_speed_of_several_budgets_and_a_random_model(capsys: pytest.CaptureFixture[str]) -> None:
    data, table = run(
        capsys,
        *("speed", "--model", "random:tiny", "--threads", "1", "--repeat", "1", "--compactions", "2"),
        *("--prompt-tokens", "300,500", "--budget", "32,20%", "--decode-tokens", "8", "--short-depth", "0"),
        *("--type-k", "q8_0", "--type-v", "q8_0", "--gpu-layers", "0"),
    )
    found = [(r["prompt_tokens"], r["budget"], r["cache"]["kept_bytes"]) for r in data["results"]]
    row = 2 * 68 * 2 * 2  # K and V of 64 values in q8_0, 2 layers, 2 KV heads
    assert found == [(n, b, kept * row) for n in (300, 500) for b, kept in ((32, 32), ("20%", n // 5))]
    for result in data["results"]:
        assert result["short_depth"] == 0
        assert result["samples"]["compact"]["n"] == 2
        assert result["cache"]["devices"] == ["CPU"]
        assert result["first_token_seconds"]["headkv"] > 0
        assert result["own_process"]["device_before"] is None  # no GPU holds this cache
    same_prompt = data["results"][0]["prefill_seconds_of_batches"]
    assert same_prompt == data["results"][1]["prefill_seconds_of_batches"]
    assert table.count("device free, least") == table.count("not available") // 4 == 4
    assert [line.split("  ")[0] for line in table.strip().splitlines()[-4:]] == [
        "300, 32",
        "300, 20%",
        "500, 32",
        "500, 20%",
    ]


def test_one_task(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, table = run(
        capsys,
        *("quality", "--tasks", "needle", "--model", str(tiny_path), "--threads", "1", "--seed", "5"),
        *("--lengths", "300,700", "--budgets", "64,50%", "--samples", "3", "--max-tokens", "4"),
    )
    assert [(line["length"], line["label"], line["total"]) for line in data["summary"]] == [
        (length, policy, 3)
        for length in (300, 700)
        for policy in ("full", "recent 64", "uniform 64", "recent 50%", "uniform 50%")
    ]
    row = 2 * 64 * 2
    for outcome in data["outcomes"]:
        n = outcome["prompt_tokens"]
        assert n == pytest.approx(outcome["length"], abs=25)
        assert outcome["expected"].isdecimal()
        share = {None: 1.0, 64: 64 / n, "50%": 0.5}[outcome["budget"]]
        assert outcome["kept_share"] == pytest.approx(share, abs=0.5 / n)
        assert outcome["kept_bytes"] == round(outcome["kept_share"] * n * 4) * row
    assert len(table.strip().split("\n")) == 2 * (2 + 5) + 1


@pytest.mark.parametrize("arch", ["gemma3", "lfm2", "qwen35"])
def test_benches_of_models_that_cannot_go_back(
    arch: str, tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Their sliding windows and recurrent layers have forgotten what was before."""
    common = ("--model", str(tiny(arch=arch)), "--threads", "1")
    few = ("--samples", "1", "--lengths", "400", "--budgets", "64", "--max-tokens", "4", "--tasks", "needle")
    data, _ = run(capsys, "quality", *common, *few, "--policies", "full,uniform")
    assert [math.isfinite(one["nll"]) for one in data["summary"]] == [True, True]
    speed = ("--repeat", "1", "--prompt-tokens", "600", "--budget", "64", "--decode-tokens", "16", "--no-rss")
    data, _ = run(capsys, "speed", *common, *speed)
    assert data["results"][0]["cache"]["kept_share"] < 1


@pytest.mark.parametrize(("arch", "budget"), [("gemma3", "2.2MiB"), ("qwen35", "0.3MiB")])
def test_a_size_is_of_the_whole_cache(
    arch: str, budget: str, tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what layers beside those that retain hold too, whatever shares it out."""
    few = ("--samples", "1", "--lengths", "700", "--max-tokens", "1", "--tasks", "needle")
    model = ("--model", str(tiny(arch=arch)), "--threads", "1")
    data, _ = run(capsys, "quality", *model, *few, "--budgets", budget, "--policies", "recent,uniform")
    assert len({line["kept_bytes"] for line in data["summary"]}) == 1
    assert 0 < data["summary"][0]["kept_share"] < 1


def test_quality(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    for path in (first, second):  # of the tiny model's shape: 2 layers of 4 query and 2 KV heads
        HeadScores(scores=np.arange(8).reshape(2, 4), n_head_kv=2, method="r2").to_sidecar(path)
    data, table = run(
        capsys,
        *("quality", "--model", str(tiny_path), "--threads", "1", "--samples", "1", "--lengths", "600"),
        *("--budgets", "32,100%", "--max-tokens", "2", "--scores", f"{first},{second}"),
    )
    names = ["recent", "uniform", "r2", "r2:second"]
    labels = ["full", *(f"{name} {budget}" for budget in ("32", "100%") for name in names)]
    assert [line["label"] for line in data["summary"]] == labels
    assert all(list(line["tasks"]) == ["needle", "keys", "hops", "prose"] for line in data["summary"])
    assert len(table.strip().split("\n")) == 2 + len(labels)
    nlls = {line["label"]: line["nll"] for line in data["summary"]}
    kept = {line["label"]: line["kept_bytes"] for line in data["summary"]}
    for name in names:
        assert kept[f"{name} 32"] == 32 * 4 * 2 * 64 * 2
        assert nlls[f"{name} 100%"] == pytest.approx(nlls["full"], abs=0.02)
        assert math.isfinite(nlls[f"{name} 32"])
    assert nlls["r2 32"] == nlls["r2:second 32"] != nlls["uniform 32"]


def test_likelihood_is_that_of_the_whole_vocabulary(tiny_path: Path) -> None:
    """Against a log-softmax of all positions' logits, computed in one batch without any cache restored."""
    with Llama(tiny_path, n_ctx=512, logits_all=True) as llm:
        tokens = llm.tokenize(b"The access code of the archive is 41783.", add_bos=True)
        llm.eval(tokens)
        logits = llm.scores[: len(tokens)].astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        expected = -np.mean([log_p[i - 1, tokens[i]] for i in range(5, len(tokens))])
    with Llama(tiny_path, n_ctx=512, flash_attn=True) as llm:
        assert nll(llm, tokens[:5], tokens[5:]) == pytest.approx(expected, rel=2e-3)


@pytest.fixture
def as_in_a_new_process() -> Iterator[None]:
    """SIGTERM and SIGHUP, whatever tests before this have left to handle them."""
    before = {one: signal.signal(one, signal.SIG_DFL) for one in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.usefixtures("as_in_a_new_process")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_an_interrupted_run_prints_what_it_has(
    tiny_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
) -> None:
    measured = quality.run

    def interrupted(*arguments: Any) -> Iterator[quality.Outcome]:
        yield from itertools.islice(measured(*arguments), 3)
        os.kill(os.getpid(), number)
        yield from measured(*arguments)

    monkeypatch.setattr(quality, "run", interrupted)
    arguments = ["--lengths", "300", "--budgets", "32", "--max-tokens", "1", "--samples", "1"]
    arguments += ["--model", str(tiny_path), "--threads", "1"]
    assert main(["bench", "quality", *arguments]) == 2  # nothing is measured where not all can be made
    assert capsys.readouterr().out == ""
    assert main(["bench", "quality", *arguments, "--tasks", "needle"]) == code
    assert {signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)} == {signal.SIG_DFL}
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == [
        "full",
        "recent",
        "uniform",
    ]


INTERRUPTED = {
    "speed": ("speed", "--prompt-tokens", "64,80", "--repeat", "1", "--no-rss", "--decode-tokens", "4"),
    "orders": ("speed", "--order", "layers", "--prompt-tokens", "64,80", "--repeat", "1", "--no-rss"),
    "cancel": (
        "cancel",
        "--order",
        "layers",
        "--prompt-tokens",
        "64,80",
        "--cancels",
        "1",
        "--answer-tokens",
        "8",
    ),
}


@pytest.mark.usefixtures("as_in_a_new_process")
@pytest.mark.parametrize("kind", INTERRUPTED)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_an_interrupted_run_writes_what_it_has_to_stdout(
    tiny_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    number: int,
    code: int,
) -> None:
    """What was measured before, and no document where that is nothing."""
    module = import_module(f"headkv_local.bench.{kind}")
    measured = module.run

    def interrupted(n: int) -> Callable[..., Iterator[Any]]:
        def run(*arguments: Any) -> Iterator[Any]:
            yield from itertools.islice(measured(*arguments), n)
            os.kill(os.getpid(), number)

        return run

    common = ("--budget", "16", "--model", str(tiny_path), "--threads", "1", "--json", "-")
    for n in (1, 0):
        monkeypatch.setattr(module, "run", interrupted(n))
        assert main(["bench", *INTERRUPTED[kind], *common]) == code
        out = capsys.readouterr().out
        assert n == 0 or {one["prompt_tokens"] for one in json.loads(out)["results"]} == {64}
        assert n == 1 or out == ""


@pytest.mark.usefixtures("as_in_a_new_process")
def test_a_session_that_ends_sends_more_than_one_signal(
    tiny_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was measured is written nevertheless."""
    written = report.write

    def write(*arguments: Any) -> None:
        for one in (signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), one)
        written(*arguments)

    def run(*arguments: Any) -> Iterator[quality.Outcome]:
        yield from itertools.islice(measured(*arguments), 1)
        os.kill(os.getpid(), signal.SIGHUP)

    measured = quality.run
    monkeypatch.setattr(quality, "run", run)
    monkeypatch.setattr(report, "write", write)
    arguments = [
        "--lengths",
        "300",
        "--budgets",
        "32",
        "--max-tokens",
        "1",
        "--samples",
        "1",
        "--tasks",
        "needle",
    ]
    assert main(["bench", "quality", *arguments, "--model", str(tiny_path), "--threads", "1"]) == 129
    assert "full" in capsys.readouterr().out


@pytest.mark.usefixtures("as_in_a_new_process")
def test_who_ignores_a_closed_terminal_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As nohup has it."""

    def run(*_: Any) -> Iterator[quality.Outcome]:
        os.kill(os.getpid(), signal.SIGHUP)
        yield from ()

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(quality, "run", run)
    assert main(["bench", "quality", "--samples", "1"]) == 0


@pytest.mark.usefixtures("as_in_a_new_process")
def test_a_signal_to_a_child_is_the_childs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a pool of processes ends its workers."""
    ended: list[int] = []

    def run(*_: Any) -> Iterator[quality.Outcome]:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        ended.append(os.waitpid(child, 0)[1])
        yield from ()

    monkeypatch.setattr(quality, "run", run)
    assert main(["bench", "quality", "--samples", "1"]) == 0
    assert ended == [signal.SIGTERM]


def test_answers_are_repeatable(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quality", "--model", str(tiny_path), "--threads", "1", "--samples", "2", "--lengths", "300"]
    arguments += ["--tasks", "needle", "--budgets", "64", "--plain"]
    first, second = (run(capsys, *arguments)[0]["outcomes"] for _ in range(2))
    for outcome in [*first, *second]:
        del outcome["seconds"]
    assert first == second


OTHERS = SHIPPED / "SmolLM2-135M-Instruct.Q4_1.headkv.gguf"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["speed", "--prompt-tokens", "9000"], "the model was trained for 8192 tokens"),
        (["speed", "--prompt-tokens", "100", "--no-rss"], "a budget of 128 keeps all of 100 prompt tokens"),
        (["speed", "--prompt-tokens", "100"], "a budget of 128 keeps all of 100 prompt tokens"),
        (["quality", "--budgets", ""], "no budget in ''"),
        (["quality", "--suite", "ruler", "--budgets", ""], "no budget in ''"),
        (["quality", "--lengths", "40"], "prompts of 40 tokens cannot be made"),
        (["quality", "--lengths", "9000"], "the model was trained for 8192 tokens"),
        (["speed", "--stock-flash", "off", "--type-v", "q8_0", "--no-rss"], "the context cannot be made"),
        (["quality", "--lengths", "300", "--scores", str(OTHERS)], "the model has 2 layers of 4 and 2"),
        (["speed", "--order", "layers", "--prompt-tokens", "100"], "a budget of 128 keeps all of 100 prompt"),
        (["speed", "--order", "layers", "--prompt-tokens", "9000"], "the model was trained for 8192 tokens"),
        (["speed", "--order", "layers", "--decode-tokens", "8"], "--decode-tokens does not go with --order"),
        (["speed", "--archive", "file"], "--archive goes with --order"),
        (["turns", "--tokens", "40"], "documents of 40 tokens cannot be made"),
        (["turns", "--tokens", "9000"], "the model was trained for 8192 tokens"),
        (["turns", "--samples", "6"], "must be a multiple of 4, not 6"),
        (["turns", "--wordings", "first-bare"], "no turn can ask with the wording first-bare"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    tiny_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    code = 1 if sentence.startswith("the model has") else 2
    assert main(["bench", *arguments, "--model", str(tiny_path), "--threads", "1"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("headkv: ")
    assert sentence in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("bench", ["quality", "speed", "turns", "cancel"])
def test_an_empty_path_is_not_the_default_model(bench: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", bench, "--model", ""]) == 2
    assert capsys.readouterr().err.startswith("headkv: the path of the model is empty")


@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "speed", "--json="],
        ["bench", "quality", "--scores="],
        ["bench", "quality", "--suite", "babilong", "--data="],
        ["bench", "quality", "--suite", "ruler", "--results="],
        ["score", "MODEL", "-o", "OUT", "--examples="],
    ],
)
def test_an_empty_path_is_no_file(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    option = arguments[-1].removesuffix("=")
    assert f"argument {option}: the path is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "cure"),
    [
        (["quality", "--lengths", "300"], "--plain asks it without one"),
        (["quality", "--suite", "ruler", "--lengths", "300"], "--plain asks it without one"),
        (["quality", "--wordings", "test"], "--plain, which goes with --wordings plain, asks it without one"),
        (["turns"], "turns of a conversation need one"),
    ],
)
def test_a_base_model_is_told_what_helps(
    tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str], arguments: list[str], cure: str
) -> None:
    assert main(["bench", *arguments, "--model", str(tiny(chat_template="")), "--threads", "1"]) == 2
    assert capsys.readouterr().err == f"headkv: the model has no chat template; {cure}\n"


def test_scores_of_a_model_whose_layers_differ(
    tiny: Callable[..., Path], tmp_path: Path, load: Callable[..., Llama], capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = tiny(arch="lfm2"), tmp_path / "scores.gguf"
    shape = load(model, flash_attn=True).shape
    layers = tuple(layer.il for layer in shape.layers)
    raw = np.arange(1, 1 + shape.n_layer * shape.n_head).reshape(shape.n_layer, shape.n_head)
    HeadScores(scores=raw, n_head_kv=shape.n_head_kv, method="r2", layers=layers).to_sidecar(path)
    few = ("--samples", "1", "--lengths", "600", "--budgets", "32", "--max-tokens", "1")
    arguments = ("quality", "--model", str(model), "--threads", "1", *few, "--wordings", "ending-brief")
    data, _ = run(capsys, *arguments, "--scores", str(path))
    assert [line["label"] for line in data["summary"]] == ["full", "recent 32", "uniform 32", "r2 32"]
    assert len({one["kept_bytes"] for one in data["outcomes"][1:]}) == 1
    assert main(["bench", *arguments, "--scores", str(OTHERS)]) == 1
    assert "the head scores are for 30 layers" in capsys.readouterr().err


def test_a_missing_model_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing.gguf"
    for kind in ("speed", "quality"):
        assert main(["bench", kind, "--model", str(missing)]) == 1
        err = capsys.readouterr().err
        assert err.startswith("headkv: ")
        assert str(missing) in err
        assert err.count("\n") == 1
