"""Starts headkv-chat as a process, on pipes or in a terminal of tmux."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

COMMAND = [sys.executable, "-m", "headkv_local.chat", "--threads", "1"]
TIMEOUT = 300.0
ENDLESS = ("--grammar", 'root ::= [a-z]+ " " root')  # no answer comes to its own end


def start(
    argv: list[str],
    environment: dict[str, str],
    directory: Path,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *argv],
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=directory,
    )


def end(process: subprocess.Popen[str]) -> str:
    """Standard error of a process that is about to end."""
    assert process.stderr is not None
    with process.stderr:
        err = process.stderr.read()
    process.wait(TIMEOUT)
    if process.stdout is not None:
        process.stdout.close()
    return err


def wait_until_reading(process: subprocess.Popen[str]) -> None:
    """Return once the process waits for its standard input in read(2), which is call 0 of x86-64."""
    end = time.monotonic() + TIMEOUT
    while Path(f"/proc/{process.pid}/syscall").read_text().split()[:2] != ["0", "0x0"]:
        assert time.monotonic() < end, "the process does not read its standard input"
        time.sleep(0.02)


def words(screen: str) -> str:
    """The text of a screen with single spaces and no line breaks."""
    return " ".join(screen.split())


class Terminal:
    """headkv-chat in a terminal of its own."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        self._tmux = ["tmux", "-L", f"headkv-{uuid.uuid4().hex[:12]}", "-f", os.devnull]
        self._directory = directory
        self._environment = environment
        self._code = directory / "exit-code"

    def start(self, *args: str, columns: int = 80, lines: int = 50, jobs: bool = False) -> None:
        """jobs: with the job control of a shell, which goes on where the command is suspended (code 148)."""
        # Ctrl-C reaches the shell as well, and it must outlive the command to tell the exit code.
        keep = f"echo $? > {shlex.quote(str(self._code))}; exec cat"
        command = f"{'set -m; ' * jobs}trap : INT; {shlex.join([*COMMAND, *args])}; {keep}"
        size = ["-x", str(columns), "-y", str(lines)]
        subprocess.run(
            [*self._tmux, "new-session", "-d", *size, "-c", str(self._directory), "sh", "-c", command],
            env=self._environment,
            check=True,
        )

    def type(self, *keys: str) -> None:
        subprocess.run([*self._tmux, "send-keys", *keys], check=True)

    def line(self, text: str) -> None:
        subprocess.run([*self._tmux, "send-keys", "-l", text], check=True)
        self.type("Enter")

    def fill_in(self, text: str) -> None:
        """Have the prompt show this. Keys that come with a Ctrl-C may be lost; they come again then."""
        self.type("C-u", text, "C-l")
        typed = time.monotonic()

        def shown(screen: str) -> bool:
            nonlocal typed
            if words(screen).endswith(f"> {text}"):
                return True
            if time.monotonic() > typed + 10:
                self.type("C-u", text, "C-l")
                typed = time.monotonic()
            return False

        self._until(shown, f"{text} at the prompt")

    def screen(self) -> str:
        """All lines so far."""
        capture = [*self._tmux, "capture-pane", "-p", "-S", "-"]
        return subprocess.run(capture, check=True, capture_output=True).stdout.decode().rstrip()

    def wait(self, pattern: str, count: int = 1) -> str:
        """All text so far, once `pattern` stands in it `count` times; line breaks count as spaces."""
        self._until(lambda screen: len(re.findall(pattern, words(screen))) >= count, pattern)
        return words(self.screen())

    def wait_prompt(self) -> str:
        """All text so far, once the last line is an empty prompt."""
        return words(self._until(lambda screen: screen.endswith("\n>"), "the prompt"))

    def exit_code(self) -> int:
        self._until(lambda _: self._code.exists() and self._code.read_text() != "", "the end")
        return int(self._code.read_text())

    def kill(self, number: int) -> None:
        """Send the command a signal."""
        listed = [*self._tmux, "list-panes", "-F", "#{pane_pid}"]
        shell = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.strip()
        children = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
        os.kill(int(children[0]), number)

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)

    def _until(self, reached: Callable[[str], bool], what: str) -> str:
        end = time.monotonic() + TIMEOUT
        while True:
            screen = self.screen()
            if reached(screen):
                return screen
            assert time.monotonic() < end, f"waited in vain for {what} on:\n{screen}"
            time.sleep(0.05)
