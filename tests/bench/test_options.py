"""The command line of `headkv bench`, up to where a model would be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from headkv_local import ArgumentError
from headkv_local.bench import policies
from headkv_local.bench.command import with_default
from headkv_local.cli import main
from headkv_local.devices import gpus, why_no_gpu


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["bench"], ["bench", "speed"]),
        (["bench", "--repeat", "2"], ["bench", "speed", "--repeat", "2"]),
        (["bench", "needles"], ["bench", "needles"]),
        (["bench", "--help"], ["bench", "--help"]),
        ([], []),
        (["other"], ["other"]),
    ],
)
def test_speed_is_the_default(given: list[str], meant: list[str]) -> None:
    assert with_default(given) == meant


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
        ["bench", "needles", "--lengths", ""],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: headkv" in err


@pytest.mark.parametrize("kind", ["speed", "needles"])
def test_help_names_every_option(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["bench", kind, "--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--model", "--threads", "--type-k", "--type-v", "--json"))


@pytest.mark.parametrize("option", [["--budget", "nonsense"], ["--budget", "0"]])
def test_a_bad_budget_is_one_sentence(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model", "no.gguf", *option]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("headkv: budget must be")
    assert err.count("\n") == 1


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
@pytest.mark.parametrize("command", [["bench"], ["bench", "needles"], ["score", "no.gguf", "-o", "out.gguf"]])
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


def test_parse_budgets() -> None:
    assert policies.parse_budgets("64, 128,5%,2MiB") == [64, 128, "5%", "2MiB"]
    with pytest.raises(ArgumentError, match="no budget"):
        policies.parse_budgets(" , ")
