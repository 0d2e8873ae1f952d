from __future__ import annotations

import os

import pytest

from headkv_local import ArgumentError, Retention
from headkv_local.chat.args import build_parser
from headkv_local.chat.config import parse_options
from headkv_local.chat.options import Options, budget_text
from headkv_local.settings import parse_budget


def options(*argv: str) -> Options:
    return parse_options(list(argv), build_parser(), {})


def test_defaults() -> None:
    assert options() == Options()


def test_spellings_of_llama_cpp() -> None:
    short = options(*"-m m.gguf -c 100 -t 3 -n 7 -ngl 0 -s 1 -sys text".split())
    long = options(
        *"m.gguf --ctx-size 100 --threads 3 --predict 7 --gpu-layers 0 --seed 1 --system-prompt text".split()
    )
    assert short == long == options(*"m.gguf --ctx 100 -t3 -n7 -ngl 0 --seed 1 --system text".split())
    assert options("-n", "-1").max_tokens == -1


def test_default_retention_is_that_of_the_library() -> None:
    assert options().retention() == Retention()


def test_everything_given() -> None:
    given = options(
        *(
            "m.gguf",
            "-p",
            "why?",
            "-f",
            "a",
            "--file",
            "b",
            "--system",
            "s",
            "--budget",
            "5%",
            "--ctx",
            "100",
        ),
        *(
            "--threads",
            "3",
            "--gpu-layers",
            "-1",
            "--max-tokens",
            "7",
            "--temp",
            "0.5",
            "--seed",
            "1",
            "--json",
            "--no-stream",
        ),
        *("--color", "never", "--history", "h", "--verbose"),
        *("--beta", "1.5", "--window", "16", "--kernel", "13", "--sinks", "0"),
        *("--observe", "16", "--draft", "0", "--fold", "off"),
        *("--archive", "here"),
    )
    assert given == Options(
        model="m.gguf",
        prompt="why?",
        files=("a", "b"),
        system="s",
        budget="5%",
        beta=1.5,
        window=16,
        kernel=13,
        sinks=0,
        observe=16,
        draft=0,
        fold="off",
        ctx=100,
        threads=3,
        gpu_layers=-1,
        max_tokens=7,
        temp=0.5,
        seed=1,
        json=True,
        stream=False,
        color="never",
        history="h",
        verbose=True,
        archive="here",
    )
    assert given.retention() == Retention(
        budget="5%", beta=1.5, window=16, kernel=13, sinks=0, observe=16, draft=0, fold=None
    )


@pytest.mark.parametrize(
    ("text", "budget"),
    [("128", 128), (" 64 ", 64), ("5%", "5%"), ("64MiB", "64MiB"), ("full", None), ("Full", None)],
)
def test_budget(text: str, budget: int | str | None) -> None:
    assert parse_budget(text) == budget
    assert parse_budget(budget_text(budget)) == budget


def test_a_path_begins_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    given = options("-m", "~/m", "--session=~/s", "--archive=~/a", "--scores=~/h", "--config", os.devnull)
    assert [given.model, given.session, given.archive, given.scores] == [f"/home/user/{c}" for c in "msah"]


def test_full_budget_is_no_retention() -> None:
    assert options("--budget", "full").retention() is None


@pytest.mark.parametrize("text", ["0", "-5", "7", "", "x", "5 percent", "nan", "101%", "1e3", "9" * 5000])
def test_bad_budget_is_refused_by_retention(text: str) -> None:
    with pytest.raises(ArgumentError):
        Options(budget=parse_budget(text)).retention()


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--temp", "-1"], "'-1' is not a number from 0 up"),
        (["--temp", "nan"], "'nan' is not a number from 0 up"),
        (["--temp", "inf"], "'inf' is not a number from 0 up"),
        (["--ctx", "-1"], "'-1' is not a whole number from 0 to 2147483647"),
        (["-n", "0"], "'0' is not a whole number from 1 up, or -1"),
        (["-n", "-2"], "'-2' is not a whole number from 1 up, or -1"),
        (["--top-p", "1.1"], "'1.1' is not a number from 0 to 1"),
        (["--top-k", "-1"], "'-1' is not a whole number from 0"),
        (["--repeat-penalty", "0"], "'0' is not a number from 0.01 up"),
        (["-m", "a", "b"], "two models are given, 'b' and 'a'; a document is given with -f"),
        (["--threads", "0"], "'0' is not a whole number from 1 to 512"),
        (["--threads", "513"], "'513' is not a whole number from 1 to 512"),
        (["--max-tokens", "many"], "'many' is not a whole number from 1 up, or -1"),
        (["--seed", "4294967296"], "'4294967296' is not a whole number from 0 to 4294967295"),
        (["-p", " \n"], "the text is empty"),
        (["-p", "\udcff"], "the text is not valid UTF-8"),
        (["--color", "blue"], "invalid choice"),
        (["-f", "-", "-f", "-"], "standard input can be read once"),
        (["--archive", ""], "it is auto, memory, off, or the path of a file"),
        (["--bud", "5"], "unrecognized arguments"),
        (["a", "b\x1b[2J"], "unrecognized arguments: b[2J; a document"),
        (["a", "b"], "unrecognized arguments: b; a document is given with -f: -f 'b'"),
    ],
)
def test_misuse_is_refused(argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        options(*argv)
    assert leave.value.code == 2
    assert reason in capsys.readouterr().err
