"""All commands end with 2 where they were used wrongly, with 1 where something else is in the way."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headkv_local import __version__, chat, cli, server
from headkv_local.demo.__main__ import main as demonstrate

MISSING = "missing.gguf"
USAGE = (
    ["bench", "speed", "--archive", "file"],
    ["bench", "quality", "--suite", "loogle"],
    ["bench", "turns", "--budget", "much"],
    ["bench", "cancel", "--budget", "0"],
    ["score", MISSING, "-o", "out.gguf", "--kernel", "4"],
    ["scores", "show"],
    ["doctor", "now"],
    ["sdk", "now"],
)
FAILURE = (
    *(["bench", kind, "--model", MISSING] for kind in ("speed", "quality", "turns", "cancel")),
    ["score", MISSING, "-o", "out.gguf"],
    ["scores", "show", MISSING],
)


def code_of(main: object, arguments: list[str]) -> object:
    assert callable(main)
    try:
        return main(arguments)
    except SystemExit as ended:  # argparse's
        return ended.code


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_wrong_usage(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(cli.main, arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "headkv" in shown.err


@pytest.mark.parametrize("command", ["bench speed", "bench quality", "scores show", "doctor"])
def test_what_a_command_does_not_know(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what it knows, and not that there are commands."""
    known = [MISSING] if command == "scores show" else []
    assert code_of(cli.main, [*command.split(), *known, "--samples-of", "9"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"usage: headkv {command} [-h]")
    assert said.endswith(f"headkv {command}: error: unrecognized arguments: --samples-of 9\n")


@pytest.mark.parametrize("arguments", FAILURE, ids=" ".join)
def test_failure(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(cli.main, arguments) == 1
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert MISSING in shown.err


@pytest.mark.parametrize("main", [chat.main, server.main, demonstrate], ids=["chat", "server", "demo"])
def test_the_other_commands(
    main: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"A question?")))
    assert code_of(main, ["--model", MISSING, "--budget", "much"]) == 2
    assert code_of(main, ["--model", MISSING]) == 1
    assert MISSING in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "command"),
    [(cli.main, "headkv"), (chat.main, "headkv-chat"), (server.main, "headkv-server")],
    ids=["headkv", "chat", "server"],
)
def test_version(main: object, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(main, ["--version"]) in (None, 0)
    assert capsys.readouterr().out == f"{command} {__version__}\n"


@pytest.mark.parametrize("module", ["cli", "chat", "server"])
def test_an_interrupt_while_a_command_is_imported(module: str) -> None:
    code = (
        "import signal, sys, importlib.abc\n"
        f"from headkv_local.{module} import main\n"
        "class Stop(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, *_): signal.raise_signal(signal.SIGINT)\n"
        "sys.meta_path.insert(0, Stop())\n"
        "sys.exit(main(['--version']))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("encoding", ["ascii", "ascii:surrogateescape", "latin-1"])
def test_a_letter_that_standard_output_lacks_is_no_failure(encoding: str) -> None:
    code = r"""
import sys
from headkv_local import cli
cli._run = lambda _: print("\u4e00 9.5 \udcff") or 0
sys.exit(cli.main([]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert (ended.returncode, ended.stdout) == (0, "\\u4e00 9.5 \\udcff\n"), ended.stderr


def test_a_terminal_that_is_gone_takes_no_exit_code_with_it() -> None:
    code = """
import os, pty, sys
controller, terminal = pty.openpty()
os.dup2(terminal, 2)
os.close(controller)
from headkv_local import exits
print(exits.interrupted(exits.HungUp()), exits.told(OSError("x")))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "129 1\n")


def test_standard_streams_that_are_closed_are_not_taken_by_files(tmp_path: Path) -> None:
    code = f"""
import os
from headkv_local.cli import main
try:
    main(["--version"])
except SystemExit:
    pass
file = os.open({str(tmp_path / "a")!r}, os.O_WRONLY | os.O_CREAT)
null = os.stat(os.devnull).st_rdev
os.write(file, str([file > 2, *(os.fstat(n).st_rdev == null for n in range(3))]).encode())
"""
    done = subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code])
    assert done.returncode == 0
    assert (tmp_path / "a").read_text() == str([True] * 4)
