"""Clients that leave: reading and answering stop, and whoever waits comes next."""

from __future__ import annotations

import json
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from serving import TIMEOUT, Running, environment, serving, until

LONG = [{"role": "user", "content": "The sea was calm. " * 600}]  # more than 6,000 tokens
SHORT = [{"role": "user", "content": "Hello."}]
ENDLESS = {"max_tokens": 7000, "logit_bias": {"65": 100.0}, "logit_bias_type": "input_ids"}


@pytest.fixture(scope="module")
def server(tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = tiny(n_layer=24, n_ff=2048, n_ctx_train=16384)
    limits = ("--alias", "tiny", "--ctx", 16384, "--threads", 1, "--n-threads-batch", 1)
    with serving(tmp_path_factory.mktemp("server"), model, *limits) as running:
        yield running


def begin(server: Running, **body: Any) -> socket.socket:
    """A request whose client waits for it."""
    address = urlsplit(server.url)
    text = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(text)}\r\n"
    client = socket.create_connection((address.hostname, address.port), TIMEOUT)
    client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + text)
    return client


def require_idle(server: Running) -> None:
    until(lambda: server.metric("headkv_requests_running") == 0, "the work has stopped", 10)
    before = server.cpu_seconds()
    time.sleep(1)
    assert server.cpu_seconds() - before < 0.3
    require_answer(server)


def require_answer(server: Running) -> None:
    reply = httpx.post(
        f"{server.url}/v1/chat/completions",
        json={"messages": SHORT, "max_tokens": 1},
        timeout=TIMEOUT,
        trust_env=False,
    )
    assert reply.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_while_the_prompt_is_read(server: Running, stream: bool) -> None:
    read = server.metric('headkv_tokens_total{kind="read"}')
    client = begin(server, messages=LONG, max_tokens=1, stream=stream)
    if stream:
        assert client.recv(100).startswith(b"HTTP/1.1 200")  # before the first token is there
    until(lambda: server.metric("headkv_requests_running") == 1, "the request runs")
    began = server.cpu_seconds()
    until(lambda: server.cpu_seconds() - began > 1, "the prompt is being read")
    assert server.metric("headkv_requests_running") == 1
    client.close()
    require_idle(server)
    assert server.metric('headkv_context_tokens{model="tiny",part="prompt"}') < 100
    assert server.metric('headkv_tokens_total{kind="read"}') < read + 9000


@pytest.mark.parametrize("stream", [False, True])
def test_while_it_is_answered(server: Running, stream: bool) -> None:
    client = begin(server, messages=SHORT, stream=stream, **ENDLESS)
    if stream:
        got = b""
        while b'"content"' not in got:
            got += client.recv(1000)
    until(lambda: server.metric('headkv_context_tokens{model="tiny",part="tail"}') > 20, "an answer")
    client.close()
    require_idle(server)


def test_while_its_body_is_sent(server: Running) -> None:
    """It is no client that has sent a wrong one."""
    address = urlsplit(server.url)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 100\r\n"
    with socket.create_connection((address.hostname, address.port), TIMEOUT) as client:
        client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n{")
        require_answer(server)
    left = 'headkv_responses_total{path="/v1/completions",status="499"}'
    until(lambda: server.metric(left) == 1, "it is counted", 10)


def test_while_it_waits(server: Running) -> None:
    running = begin(server, messages=SHORT, **ENDLESS)
    until(lambda: server.metric("headkv_requests_running") == 1, "the first runs")
    waiting = begin(server, messages=SHORT, max_tokens=1)
    until(lambda: server.metric("headkv_requests_waiting") == 1, "the second waits")
    waiting.close()
    until(lambda: server.metric("headkv_requests_waiting") == 0, "it is not waited for", 10)
    assert server.metric("headkv_requests_running") == 1
    running.close()
    require_idle(server)


def test_a_stream_gives_way_where_that_is_set(tiny_path: Path, tmp_path: Path) -> None:
    arguments = (tiny_path, "--ctx", 8192, "--threads", 1, "--interrupt_requests", "true")
    with serving(tmp_path, *arguments) as server:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        client = begin(server, messages=SHORT, **options, **ENDLESS)
        until(lambda: server.metric('headkv_context_tokens{model="') > 20, "an answer")
        require_answer(server)
        got = b""
        while b"[DONE]" not in got:
            got += (more := client.recv(100_000))
            assert more
        client.close()
        *_, end, usage, _ = re.findall(r"data: (.*)", got.decode())
        assert json.loads(end)["choices"][0]["finish_reason"] == "length"
        assert json.loads(usage)["usage"]["completion_tokens"] > 0


def test_a_stream_gives_way_before_it_begins(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """While its model takes the place of another one."""
    paths = {"a": tiny(), "b": tiny(n_layer=24, n_ff=2048, n_ctx_train=16384)}
    models = [
        {"model": str(path), "model_alias": name, "n_ctx": 8192, "n_threads": 1}
        for name, path in paths.items()
    ]
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"models": models, "interrupt_requests": True}))
    with serving(tmp_path, "--config-file", config) as server:
        for _ in range(4):
            stream = begin(server, model="b", messages=SHORT, stream=True, **ENDLESS)
            until(lambda: server.metric("headkv_requests_running") == 1, "the stream's turn")
            after = begin(server, model="a", messages=SHORT, max_tokens=1)
            got = b""
            while b"[DONE]" not in got:
                got += (more := stream.recv(100_000))
                assert more
                assert got.startswith(b"HTTP/1.1 200")
            *_, end = re.findall(r"data: (\{.*)", got.decode())
            assert json.loads(end)["choices"][0]["finish_reason"] == "length"
            assert after.recv(1000).startswith(b"HTTP/1.1 200")
            for client in (stream, after):
                client.close()


@pytest.mark.parametrize("chats", [True, False])
def test_a_stream_gives_way_while_its_prompt_is_read(
    tiny: Callable[..., Path], tmp_path: Path, chats: bool
) -> None:
    model = tiny(n_layer=24, n_ff=2048, n_ctx_train=16384)
    options: Any = {
        "model": "tiny",
        "max_tokens": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    arguments = (model, "--alias", "tiny", "--ctx", 16384, "--threads", 1, "--n-threads-batch", 1)
    with serving(tmp_path, *arguments, "--interrupt-requests") as server, server.client() as client:
        if chats:
            stream = client.chat.completions.create(messages=LONG, **options)
        else:
            stream = client.completions.create(prompt=LONG[0]["content"], **options)
        require_answer(server)
        end, usage = stream
        assert end.choices[0].finish_reason == "length"
        assert (end.choices[0].delta.content if chats else end.choices[0].text or None) is None
        assert (usage.choices, usage.usage.completion_tokens) == ([], 0)


def test_the_server_stops_in_the_middle(tiny_path: Path, tmp_path: Path) -> None:
    with serving(tmp_path, tiny_path, "--ctx", 8192, "--threads", 1) as server:
        client = begin(server, messages=SHORT, **ENDLESS)
        until(lambda: server.metric("headkv_requests_running") == 1, "it runs")
        server.process.send_signal(signal.SIGTERM)
        assert client.recv(1000).startswith(b"HTTP/1.1 503")
        server.process.wait(TIMEOUT)
        client.close()


def test_a_body_that_is_not_whole_is_not_waited_for(tiny_path: Path, tmp_path: Path) -> None:
    with serving(tmp_path, tiny_path, "--ctx", 1024, "--threads", 1) as server:
        address = urlsplit(server.url)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 100\r\n"
        with socket.create_connection((address.hostname, address.port), TIMEOUT) as client:
            client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n{")
            require_answer(server)
            server.process.send_signal(signal.SIGTERM)
            assert client.recv(1000).startswith(b"HTTP/1.1 503")
        server.process.wait(TIMEOUT)
        assert "ERROR" not in server.log.read_text()


def test_a_terminal_that_is_closed_costs_no_conversation(tiny_path: Path, tmp_path: Path) -> None:
    with serving(tmp_path, tiny_path, "--ctx", 1024) as server:
        with server.plain() as client:
            body = {"messages": [{"role": "user", "content": "Hello. " * 40}], "max_tokens": 2}
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        server.process.send_signal(signal.SIGHUP)
        assert server.process.wait(TIMEOUT) == 0
    assert list(tmp_path.rglob("*.session"))


def test_a_default_folder_that_cannot_be_made(tiny_path: Path, tmp_path: Path) -> None:
    """Nobody asked for it: the server works without."""
    (tmp_path / "home").touch()
    command = [sys.executable, "-m", "headkv_local.server", str(tiny_path), "--port", "0"]
    env = environment(HOME=str(tmp_path / "home"), XDG_CACHE_HOME=str(tmp_path / "home" / "cache"))
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = process.stdout.readline().split()[-1].decode()
        body = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 2}
        answered = False
        while not answered and process.poll() is None:
            reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=TIMEOUT, trust_env=False)
            answered = reply.status_code == 200
        assert answered
        process.send_signal(signal.SIGTERM)
        assert b"each conversation is read anew (--sessions names another folder)" in process.stderr.read()


@contextmanager
def started(model: Path, folder: Path, program: str = "") -> Iterator[Any]:
    """A server that stops when its standard input ends. program: what runs in its place."""
    start = ["-c", program] if program else ["-m", "headkv_local.server"]
    options = [str(model), "--port", "0", "--stop-with-stdin", "--sessions", str(folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *start, *options], env=environment(), **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_stops_with_the_program_that_started_it(tiny_path: Path, tmp_path: Path) -> None:
    with started(tiny_path, tmp_path) as process:
        assert process.stdout.readline().startswith(b"headkv-server listens on http://127.0.0.1:")
        process.stdin.close()
        assert process.wait(TIMEOUT) == 0


DEBUGGED = """
import asyncio, sys
asyncio.BaseEventLoop.set_debug = lambda loop, _: setattr(loop, "_debug", True)  # uvicorn turns it off
from headkv_local.server import main
sys.exit(main())
"""


def test_that_program_ends_what_waits_in_the_loop(tiny_path: Path, tmp_path: Path) -> None:
    """asyncio's debug mode refuses what another thread does to its loop."""
    with started(tiny_path, tmp_path, DEBUGGED) as process:
        address = urlsplit(process.stdout.readline().split()[-1].decode())
        with socket.create_connection((address.hostname, address.port), TIMEOUT) as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 100\r\nExpect: 100-continue\r\n\r\n"
            )
            assert client.recv(1000).startswith(b"HTTP/1.1 100")  # the body is waited for
            process.stdin.close()
            assert b" 503 " in client.recv(1000)
        assert process.wait(TIMEOUT) == 0
        assert b"Traceback" not in process.stderr.read()


SLOW = """
import sys, time
from headkv_local.server import main, models
def load(*_):
    print("loading", flush=True)
    time.sleep(100)
models.Models._load = staticmethod(load)
sys.exit(main())
"""


BUSY = """
import sys, time
from headkv_local.server import keeper, main
settle = keeper.Keeper.settle
keeper.Keeper.settle = lambda self: (time.sleep(2), settle(self))  # as where others take the processor
sys.exit(main())
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, "stdin"])
def test_a_stream_is_told_that_the_server_stops(tiny_path: Path, tmp_path: Path, how: Any) -> None:
    """However long it takes until its work has ended."""
    with started(tiny_path, tmp_path, BUSY) as process:
        server = Running(process.stdout.readline().split()[-1].decode(), process, tmp_path)
        with server.plain() as client:
            until(lambda: client.get("/health").status_code == 200, "a model")
        client = begin(server, messages=SHORT, stream=True, **ENDLESS)
        got = b""
        while b'"content"' not in got:
            got += client.recv(1000)
        if how == "stdin":
            process.stdin.close()
        else:
            process.send_signal(how)
        while more := client.recv(100_000):
            got += more
        assert b'"code": "stopping"' in got
        assert got.endswith(b"\r\n0\r\n\r\n")
        process.wait(TIMEOUT)


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130), ("stdin", 0)]
)
def test_a_model_that_is_loaded_is_not_waited_for(
    tiny_path: Path, tmp_path: Path, how: Any, code: int
) -> None:
    with started(tiny_path, tmp_path, SLOW) as process:
        while process.stdout.readline() != b"loading\n":
            assert process.poll() is None
        if how == "stdin":
            process.stdin.close()
        else:
            process.send_signal(how)
        assert process.wait(30) == code


@pytest.mark.parametrize("why", ["interrupted", "no model"])
def test_it_ends_by_itself_while_that_program_runs(tiny_path: Path, tmp_path: Path, why: str) -> None:
    model = tiny_path
    if why == "no model":
        model = tmp_path / "half.gguf"
        model.write_bytes(tiny_path.read_bytes()[: tiny_path.stat().st_size // 2])
    with started(model, tmp_path) as process:
        assert process.stdout.readline().startswith(b"headkv-server listens on ")
        if why == "interrupted":
            process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == {"interrupted": 130, "no model": 1}[why]
        if why == "no model":
            assert len(process.stderr.read().splitlines()) == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_server_whose_output_is_closed(tiny_path: Path, tmp_path: Path, closed: str) -> None:
    """As daemons and starters of programs leave it: it runs until its standard input ends."""
    server = [sys.executable, "-m", "headkv_local.server", str(tiny_path), "--port", "0", "--stop-with-stdin"]
    command = ["sh", "-c", f'"$@" {closed} </dev/null', "sh", *server, "--sessions", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("headkv-server listens on") == (closed == "2>&-")


def test_more_connections_than_files(tiny_path: Path, tmp_path: Path) -> None:
    """They wait, one sentence says so, and when others have left they are served."""
    with serving(tmp_path, tiny_path, "--ctx", 1024, "--threads", 1) as server:
        require_answer(server)
        in_use = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (in_use + 2, most))
        address = urlsplit(server.url)
        idle = [socket.create_connection((address.hostname, address.port), TIMEOUT) for _ in range(6)]
        until(lambda: "have to wait" in server.log.read_text(), "the log says so")
        time.sleep(2)  # asyncio tries again each second
        for one in idle:
            one.close()
        require_answer(server)
        said = [line for line in server.log.read_text().splitlines() if "have to wait" in line]
        assert said == ["ERROR: new connections have to wait: Too many open files"]


def test_what_is_no_http_is_logged_once(tiny_path: Path, tmp_path: Path) -> None:
    """However often a client sends it."""
    upgrade = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with serving(tmp_path, tiny_path, "--ctx", 1024, "--threads", 1) as server:
        address = urlsplit(server.url)
        for text, status in ((b"hello\r\n\r\n", b"400"), (upgrade, b"200")):
            for _ in range(5):
                with socket.create_connection((address.hostname, address.port), TIMEOUT) as client:
                    client.sendall(text)
                    assert client.recv(100).split()[1] == status
        said = server.log.read_text()
    assert said.count("Invalid HTTP request") == 1
    assert said.count("Unsupported upgrade request") == 1
