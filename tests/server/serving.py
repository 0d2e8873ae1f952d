"""headkv-server in a process of its own, and OpenAI's client in front of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

TIMEOUT = 300
# With so few tokens at once llama.cpp's attention rounds in one way only: answers are the same, however much
# of a prompt has been read before.
N_UBATCH = 32
SIZES = ("--ctx", 2048, "--threads", 1, "--n-threads-batch", 1, "--n-ubatch", N_UBATCH, "--budget", 48)


@dataclass
class Running:
    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1",
            api_key=key,
            max_retries=0,
            timeout=TIMEOUT,
            http_client=httpx.Client(trust_env=False),
        )

    def plain(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=TIMEOUT, trust_env=False)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics", timeout=TIMEOUT, trust_env=False).text
        return sum(float(value) for value in re.findall(rf"^{re.escape(name)}\S* (\S+)$", text, re.MULTILINE))

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> int:
        """Bytes."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(TIMEOUT)


def until(done: Callable[[], bool], what: str, seconds: float = TIMEOUT) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not within {seconds} seconds: {what}"
        time.sleep(0.02)


def environment(**given: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("HEADKV_SERVER_")} | given


@contextmanager
def serving(
    folder: Path, *arguments: Any, within: tuple[str, ...] = (), **variables: str
) -> Iterator[Running]:
    """A server on a free port, with its sessions in folder/sessions. within: a command that starts it."""
    command = [*within, sys.executable, "-m", "headkv_local.server", *map(str, arguments), "--port", "0"]
    if "--sessions" not in command:
        command += ["--sessions", str(folder / "sessions")]
    log = folder / f"log-{time.monotonic_ns()}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(**variables)
        )
    try:
        listening = re.compile(r"listens on (\S+)")
        until(lambda: bool(listening.search(log.read_text())) or process.poll() is not None, "an address")
        found = listening.search(log.read_text())
        assert found is not None, log.read_text()
        running = Running(found[1], process, log)
        with running.plain() as client:
            until(lambda: client.get("/health").status_code == 200, "a model")
        yield running
        assert "Traceback" not in log.read_text(), log.read_text()
    finally:
        process.kill()
        process.wait()


def failing(folder: Path, *arguments: Any, **variables: str) -> tuple[int, str]:
    """Exit code and standard error of a server that does not come up."""
    command = [sys.executable, "-m", "headkv_local.server", *map(str, arguments)]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, env=environment(**variables)
    )
    return done.returncode, done.stderr
