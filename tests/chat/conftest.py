"""Fixtures for headkv-chat: the command on pipes and in a terminal."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chat_driver import COMMAND, TIMEOUT, Terminal


@pytest.fixture(scope="session")
def text() -> str:
    """English prose that every CPython brings along."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


@pytest.fixture
def environment() -> dict[str, str]:
    found = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")}
    return found | {"XDG_CONFIG_HOME": os.devnull, "PAGER": "cat"}


@pytest.fixture
def chat(tmp_path: Path, environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run headkv-chat on pipes, with the text `stdin` as input (None: no input at all)."""

    def run(
        *args: str, stdin: str | bytes | None = None, timeout: float = TIMEOUT, **env: str
    ) -> subprocess.CompletedProcess[str]:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        process = subprocess.run(
            [*COMMAND, *args],
            input=data,
            stdin=subprocess.DEVNULL if data is None else None,
            capture_output=True,
            cwd=tmp_path,
            env=environment | env,
            timeout=timeout,
            check=False,
        )
        out, err = process.stdout.decode(), process.stderr.decode()
        assert "Traceback" not in err, err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run


@pytest.fixture
def terminal(tmp_path: Path, environment: dict[str, str]) -> Iterator[Terminal]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    terminal = Terminal(tmp_path, environment)
    yield terminal
    terminal.close()
