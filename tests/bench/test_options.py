"""The command line of `headkv bench`, up to where a model would be loaded."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from headkv_local import ArgumentError, HeadScores, Retention
from headkv_local.bench import options, policies, quality_command
from headkv_local.bench.command import with_default
from headkv_local.bench.suites import command as suites
from headkv_local.budgets import ModelShape
from headkv_local.cli import main
from headkv_local.devices import gpus, why_no_gpu
from headkv_local.scores import SHIPPED


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["bench"], ["bench", "speed"]),
        (["bench", "--repeat", "2"], ["bench", "speed", "--repeat", "2"]),
        (["bench", "quality"], ["bench", "quality"]),
        (["bench", "--help"], ["bench", "--help"]),
        ([], []),
        (["other"], ["other"]),
    ],
)
def test_speed_is_the_default(given: list[str], meant: list[str]) -> None:
    assert with_default(given) == meant


@pytest.mark.parametrize("name", ["bench speed", "bench quality", "bench turns", "bench cancel", "score"])
def test_help_shows_defaults_as_they_are_written(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    defaults = re.findall(r"\(default:\s(.)", capsys.readouterr().out)
    assert defaults
    assert not {"(", "[", "{"} & {*defaults}


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["bench", "nothing"],
        ["bench", "--repeat", "0"],
        ["bench", "--prompt-tokens", "100,x"],
        ["bench", "--type-k", "q2_k"],
        ["bench", "--gpu-layers", "-2"],
        ["bench", "--short-depth", "-1"],
        ["bench", "needles"],
        ["bench", "quality", "--lengths", ""],
        ["bench", "quality", "--tasks", "needle,riddles"],
        ["bench", "quality", "--samples", "0"],
        ["bench", "--order", "layers,both"],
        ["bench", "turns", "--haystacks", "verse"],
        ["bench", "cancel", "--cancels", "0"],
        ["bench", "cancel", "--archive", "off"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: headkv" in err


@pytest.mark.parametrize("kind", ["speed", "quality", "turns", "cancel"])
def test_help_names_every_option(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["bench", kind, "--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--model", "--threads", "--type-k", "--type-v", "--json"))


@pytest.mark.parametrize("option", [["--budget", "nonsense"], ["--budget", "0"], ["--budget", "Full"]])
def test_a_bad_budget_is_one_sentence(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model", "no.gguf", *option]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("headkv: budget must be")
    assert err.count("\n") == 1


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
@pytest.mark.parametrize("command", [["bench"], ["bench", "quality"], ["score", "no.gguf", "-o", "out.gguf"]])
def test_figures_of_a_gpu_that_is_not_there_are_refused(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--gpu-layers", "-1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"headkv: {why_no_gpu()}\n"


def test_json_into_a_missing_folder_fails_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "missing" / "out.json"
    assert main(["bench", "--model", "no.gguf", "--json", str(target)]) == 1
    assert str(target) in capsys.readouterr().err


def test_a_score_file_named_twice_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    (shipped,) = SHIPPED.glob("SmolLM2*.gguf")
    assert main(["bench", "quality", "--scores", f"{shipped},{shipped},{shipped}"]) == 2
    assert capsys.readouterr().err == f"headkv: {shipped} is named twice\n"


def test_every_file_of_scores_has_a_row_of_its_own(tiny_path: Path, tmp_path: Path) -> None:
    """Whatever its name and method are."""
    paths = [tmp_path / folder / "out.gguf" for folder in "abcd"]
    for path, method in zip(paths, ("r2", "r2", "r2", "duo\x1b[31m"), strict=True):
        path.parent.mkdir()
        HeadScores(scores=np.ones((2, 4)), n_head_kv=2, method=method).to_sidecar(path)
    named = quality_command._scores(",".join(map(str, paths)), str(tiny_path))
    assert list(named) == ["r2", "r2:out", f"r2:{paths[2]}", "duo?[31m"]
    HeadScores(scores=np.ones((2, 4)), n_head_kv=2, method="uniform").to_sidecar(paths[0], force=True)
    assert list(quality_command._scores(str(paths[0]), str(tiny_path))) == ["uniform:out"]


SHAPE = ModelShape(n_layer=2, n_head=4, n_head_kv=2, row_bytes=256)


@pytest.mark.parametrize("budget", [32, "5%", "3.33%", "64KiB"])
def test_policies_keep_the_same_bytes(budget: int | str) -> None:
    scores = HeadScores(scores=np.arange(8).reshape(2, 4), n_head_kv=2, method="r2", kernel=9)
    made = policies.all_of([budget], {"r2": scores}, {"sinks": 2})
    assert [policy.label for policy in made] == [
        "full",
        *(f"{n} {budget}" for n in ("recent", "uniform", "r2")),
    ]
    retentions = [policy.retention(SHAPE, 1000) for policy in made]
    assert retentions[0] is None
    kept = []
    for retention in retentions[1:]:
        assert retention is not None
        assert retention.sinks == 2
        assert retention.fold is None  # nothing is chosen later
        settled = retention.with_scores(scores) if retention.wants_scores else retention
        assert settled.kernel == 9 or settled.window > 8  # also of uniform budgets, to compare like with like
        kept.append(int(settled.caps_for(SHAPE, 1000).sum()))
    assert kept[0] == kept[1] == kept[2]


def test_recent_keeps_the_first_and_the_last() -> None:
    recent = policies.recent(32, Retention(sinks=4)).retention(SHAPE, 1000)
    assert recent is not None
    assert (recent.window, recent.sinks) == (28, 4)
    assert (recent.caps_for(SHAPE, 1000) == 32).all()


def test_what_is_named_twice_is_measured_once() -> None:
    assert options.positives("100,200,0100") == (100, 200)
    assert suites.lengths("4k,4096,1k,4k") == (4096, 1024)
    assert policies.parse_budgets("64, 064,5%,64") == [64, "5%"]


def test_parse_budgets() -> None:
    assert policies.parse_budgets("64, 128,5%,2MiB") == [64, 128, "5%", "2MiB"]
    with pytest.raises(ArgumentError, match="no budget"):
        policies.parse_budgets(" , ")
