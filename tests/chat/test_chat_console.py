from __future__ import annotations

import fcntl
import os
import re
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress

import pytest
from prompt_toolkit.utils import get_cwidth

from headkv_local.chat.console import Console, OutputError, wants_color
from headkv_local.chat.progress import MIN_TOKENS, PrefillBar


class Tty:
    """A terminal of 40 columns."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        self.stream = os.fdopen(slave, "w", encoding="utf-8")

    def shown(self) -> str:
        """All that was written to it so far. A terminal hands that over in pieces, so it is given an end."""
        self.stream.write("<end>")
        self.stream.flush()
        shown = b""
        while not shown.endswith(b"<end>"):
            shown += os.read(self._master, 4096)
        return shown.decode().removesuffix("<end>")

    def close(self) -> None:
        self.stream.close()
        os.close(self._master)


@pytest.fixture
def tty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tty]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    tty = Tty()
    yield tty
    tty.close()


@pytest.mark.parametrize(
    ("choice", "env", "tty", "wanted"),
    [
        ("auto", {}, True, True),
        ("auto", {}, False, False),
        ("auto", {"NO_COLOR": "1"}, True, False),
        ("auto", {"NO_COLOR": ""}, True, True),
        ("auto", {"TERM": "dumb"}, True, False),
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {}, True, False),
    ],
)
def test_color(choice: str, env: dict[str, str], tty: bool, wanted: bool) -> None:
    assert wants_color(choice, env, tty) is wanted  # type: ignore[arg-type]


def test_answer_cannot_steer_a_terminal(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", tty.stream)
    console = Console()
    console.answer(console.printable("\x1b]0;owned\x07 a\tb"))
    assert tty.shown() == "]0;owned a\tb"


def test_piped_answer_is_the_models_own(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    Console().answer("\x1b[1m\x07")
    assert capfdbinary.readouterr().out == b"\x1b[1m\x07"


def test_message_cannot_steer_a_terminal(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", tty.stream)
    Console("never").error("the file '\x1b[2J' is missing")
    assert tty.shown() == "error: the file '[2J' is missing\r\n"


def test_messages_break_between_words(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", tty.stream)
    Console("never").note("word " * 20)
    lines = tty.shown().split("\r\n")
    assert max(map(len, lines)) < 40
    assert " ".join(lines).split() == ["word"] * 20


def test_messages_of_wide_characters_break_at_the_edge(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes two columns: what a model thought, or the name of a file, was broken amid every line."""
    monkeypatch.setattr(sys, "stderr", tty.stream)
    Console("never").note("港は静かだった。" * 8 + "\n\n  behind a blank line")
    first, *_, blank, last, _ = lines = tty.shown().split("\r\n")
    assert max(sum(map(get_cwidth, line)) for line in lines) < 40
    assert sum(map(get_cwidth, first)) > 34
    assert "".join(lines[:-3]) == "港は静かだった。" * 8
    assert (blank, last) == ("", "  behind a blank line")


def test_colors_end_where_the_message_ends(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", tty.stream)
    Console().error("no")
    assert tty.shown() == "\x1b[31merror: no\x1b[0m\r\n"


def test_progress_at_40_columns(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", tty.stream)
    with PrefillBar(Console()) as bar:
        bar.update(0, 5000)
        bar.update(2500, 5000)
    shown = tty.shown()
    assert " 50%|" in shown
    assert "2500/5000" in shown
    assert re.search(r" \d\d:\d\d<\d\d:\d\d\r", shown)  # the time left is the last thing that goes
    assert max(map(len, shown.split("\r"))) < 40
    assert shown.endswith("\r\x1b[K")


def test_no_progress_for_a_short_prompt(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", tty.stream)
    with PrefillBar(Console()) as bar:
        bar.update(1, MIN_TOKENS - 1)
    assert tty.shown() == ""


def test_progress_of_a_short_prompt_that_takes_long(tty: Tty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", tty.stream)
    with PrefillBar(Console()) as bar:
        bar.tick()  # nothing is read yet
        bar.update(0, MIN_TOKENS - 1)
        bar.tick()
        bar.update(MIN_TOKENS - 1, MIN_TOKENS - 1)
        bar.tick()  # the answer is on its way, and nothing may be drawn into it
    shown = tty.shown()
    assert "  0%|" in shown
    assert shown.endswith("\r\x1b[K")


def test_no_progress_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with PrefillBar(Console()) as bar:
        bar.update(0, 5000)
        bar.tick()
        bar.update(5000, 5000)
    assert capsys.readouterr().err == ""


def test_closed_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    console = Console("always")
    console.error("nobody reads this")
    with pytest.raises(OutputError, match="standard output is closed"):
        console.answer("nor this")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_what_is_said_beside_the_answer_is_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with suppress(OSError), open("/dev/full", "w") as full:  # closing it fails too
        monkeypatch.setattr(sys, "stderr", full)
        console = Console("always")
        console.note("a new session")
        console.hint("reading")
        console.error("no room")
        console.erase_line()


def test_character_that_the_stream_cannot_show(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    with open(f"{tmp_path}/out", "w+", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        console = Console()
        console.answer("日")
        assert console.unicode is False
        out.seek(0)
        assert out.read() == "?"
