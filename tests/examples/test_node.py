"""examples/node: the example runs, an answer can be stopped, and no server outlives its node."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "node"
TIMEOUT = 120

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc"),
]

BEGIN = f"""
import {{ HeadkvServer }} from "{(FOLDER / "server.mjs").as_uri()}";
const server = new HeadkvServer([process.env.MODEL, "--ctx", "8192", "--threads", "1"]);
"""
STREAMING = """
const endless = { max_tokens: 8000, logit_bias: { 97: 100 }, logit_bias_type: "tokens" };
await server.start();
for await (const _ of server.chat([{ role: "user", content: "hello" }], endless)) console.log("on");
"""


@pytest.fixture
def variables(tiny_path: Path, tmp_path: Path) -> dict[str, str]:
    """node's environment: the server on the PATH, a tiny model, and a folder that marks all processes."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "MODEL": str(tiny_path), "HEADKV_SERVER_SESSIONS": str(tmp_path)}


def left(variables: dict[str, str]) -> list[int]:
    """Processes that have the mark."""
    mark = f"HEADKV_SERVER_SESSIONS={variables['HEADKV_SERVER_SESSIONS']}\0".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # another user's, or it has ended
            if mark in (process / "environ").read_bytes():
                found.append(int(process.name))
    return found


def until(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + TIMEOUT
    while not done():
        assert time.monotonic() < end, f"not within {TIMEOUT} seconds: {what}"
        time.sleep(0.02)


@contextmanager
def node(variables: dict[str, str], script: str) -> Iterator[subprocess.Popen[str]]:
    """node in a process group of its own, as a shell starts it."""
    command = ["node", "--input-type=module", "-e", BEGIN + script]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=variables, start_new_session=True
    )
    try:
        with process:
            yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def run(variables: dict[str, str], *command: str | Path) -> str:
    """What node prints. No process is left after it."""
    done = subprocess.run(["node", *command], capture_output=True, text=True, env=variables, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    assert left(variables) == []
    return done.stdout


def test_the_example(variables: dict[str, str]) -> None:
    printed = run(variables, FOLDER / "main.mjs", variables["MODEL"])
    assert re.search(r"^\S+ at http://127\.0\.0\.1:\d+$", printed, re.MULTILINE), printed
    first, second = re.findall(r"^\[(\d+) tokens, (\d+) of them not read again\]$", printed, re.MULTILINE)
    assert first[1] == "0"
    assert int(second[1]) >= int(first[0])
    assert "stopped after '" in printed
    assert printed.endswith("the server has ended with 0\n")


def test_answers_are_stopped(variables: dict[str, str]) -> None:
    printed = run(variables, Path(__file__).with_name("stopping.mjs")).splitlines()
    generated = printed.pop(3)
    assert printed == [
        "a key is needed",
        "the loop is left",
        "AbortError",
        "context_length_exceeded",
        "stopped: the server stops",
        "the server does not run",
        "ok",
    ]
    assert 5 < int(generated.removeprefix("generated ")) < 8000


@pytest.mark.parametrize(
    ("command", "said"),
    [("headkv-server", "no-model.gguf"), ("no-such-program", "spawn no-such-program ENOENT")],
)
def test_a_server_that_cannot_start(variables: dict[str, str], command: str, said: str) -> None:
    script = f"""
        const none = new HeadkvServer(["no-model.gguf"], {{ command: "{command}" }});
        await none.start().catch((error) => console.log(error.message));
        await none.stop();"""
    printed = run(variables, "--input-type=module", "-e", BEGIN + script)
    assert said in printed
    assert printed.count("\n") == 1


def test_a_server_is_started_again_when_it_has_ended(variables: dict[str, str]) -> None:
    script = """
        let left = 2;
        server.on("exit", (code, signal) => {
          console.log(`exit ${signal ?? code}`);
          if (left-- > 0) go().catch((error) => console.log(error.message));
        });
        async function go() {
          const { status } = await server.start();
          console.log(status);
          if (left > 0) process.kill(Number((await pids()).pop()), "SIGKILL");
          else await server.stop();
        }
        async function pids() {
          const { readFile } = await import("node:fs/promises");
          const children = await readFile(`/proc/self/task/${process.pid}/children`, "utf8");
          return children.trim().split(" ");
        }
        await go();"""
    printed = run(variables, "--input-type=module", "-e", BEGIN + script)
    assert printed.split("\n") == ["ok", "exit SIGKILL", "ok", "exit SIGKILL", "ok", "exit 0", ""]


def test_a_server_that_is_killed_while_it_starts(variables: dict[str, str], tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho a warning >&2\nkill -KILL $$\n")
    program.chmod(0o755)
    script = f"""
        const killed = new HeadkvServer([], {{ command: "{program}" }});
        await killed.start().catch((error) => console.log(error.message));"""
    printed = run(variables, "--input-type=module", "-e", BEGIN + script)
    assert printed == "headkv-server was ended by SIGKILL; its last line: a warning\n"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_a_server_that_cannot_be_asked(variables: dict[str, str], tmp_path: Path) -> None:
    """It speaks TLS: start() ends, and so does the server."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-nodes",
        "-subj",
        "/CN=localhost",
        "-keyout",
        key,
        "-out",
        certificate,
    ]
    subprocess.run(made, check=True, capture_output=True)
    given = {"HEADKV_SERVER_SSL_KEYFILE": str(key), "HEADKV_SERVER_SSL_CERTFILE": str(certificate)}
    script = "await server.start().catch((error) => console.log(error.code));"
    printed = run(variables | given, "--input-type=module", "-e", BEGIN + script)
    assert printed == "ERR_INVALID_PROTOCOL\n"


@pytest.mark.parametrize("script", ["process.exit(3)", "throw new Error('an error of this test')"])
def test_no_server_is_left_when_node_ends(variables: dict[str, str], script: str) -> None:
    with node(variables, f"await server.start(); {script};") as process:
        assert process.wait(TIMEOUT) > 0
        until(lambda: left(variables) == [], "the server ends")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_server_is_left_when_node_is_killed(variables: dict[str, str], number: signal.Signals) -> None:
    with node(variables, STREAMING) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        end = os.killpg if number == signal.SIGINT else os.kill  # Ctrl-C is for all of the terminal
        end(process.pid, number)
        assert process.wait(TIMEOUT) == -number
        until(lambda: left(variables) == [], "the server ends")


def test_no_server_is_left_when_node_is_killed_at_once(variables: dict[str, str]) -> None:
    with node(variables, STREAMING) as process:
        until(lambda: len(left(variables)) == 2, "a server has begun")
        process.kill()
        process.wait()
        until(lambda: left(variables) == [], "the server ends")
