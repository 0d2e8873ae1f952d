"""llama_cpp's own server: with this package's library alone, and with its Llama."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import llama_cpp
import pytest
import uvicorn
from llama_cpp.server import app
from llama_cpp.server.settings import ModelSettings, ServerSettings

from headkv_local import Llama, Retention
from headkv_local._core import library
from helpers import beside

TIMEOUT = 120
# letters only: a stream leaves out what is no UTF-8
GREEDY = {
    "max_tokens": 4,
    "temperature": 0.0,
    "logit_bias": dict.fromkeys("abcdefghijklmnop", 100.0),
    "logit_bias_type": "tokens",
}
ASKED: dict[str, Any] = {"prompt": "hello " * 20, **GREEDY}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello " * 20}], **GREEDY}
LONG: dict[str, Any] = {
    "/v1/completions": {"prompt": "a " * 2000},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a " * 2000}]},
}


@pytest.fixture(scope="module")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A process that knows nothing of headkv_local, on a port that the system chooses."""
    folder = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(tiny_path), "--model_alias", "tiny"]
    limits = ["--n_ctx", "512", "--n_threads", "1", "--host", "127.0.0.1", "--port", "0"]
    named = ("HOST", "PORT", "MODEL", "CONFIG_FILE", "LLAMA_CPP_LIB_PATH", "PYTHONPATH")
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *limits],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=folder,
            env={key: value for key, value in os.environ.items() if key not in named},
        )
    try:
        with httpx.Client(base_url=_address(process, log), timeout=TIMEOUT, trust_env=False) as client:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            assert str(library.library_path()) in maps
            yield client
        process.terminate()
        process.wait(TIMEOUT)
        assert "Finished server process" in log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + TIMEOUT
    while (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text())) is None:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    return found[1]


def streamed(client: httpx.Client, path: str, body: dict[str, Any]) -> list[Any]:
    """The chunks of an answer; the stream must end as OpenAI's does."""
    text = client.post(path, json=body | {"stream": True}).text
    *chunks, end = re.findall(r"^data: (.*?)\r?$", text, re.MULTILINE)
    assert end == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def require_answers(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["tiny"]
    completion = client.post("/v1/completions", json=ASKED).json()
    assert completion["usage"]["completion_tokens"] == 4
    chunks = streamed(client, "/v1/completions", ASKED)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == completion["choices"][0]["text"]
    chat = client.post("/v1/chat/completions", json=CHAT).json()
    chunks = streamed(client, "/v1/chat/completions", CHAT)
    told = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert told == chat["choices"][0]["message"]["content"]


def require_refusal(client: httpx.Client, path: str) -> None:
    refused = client.post(path, json=LONG[path])
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 512 tokens" in refused.json()["error"]["message"]
    require_answers(client)


def test_the_server_answers(server: httpx.Client) -> None:
    require_answers(server)


@pytest.mark.parametrize("path", LONG)
def test_the_server_refuses_what_is_too_long(server: httpx.Client, path: str) -> None:
    require_refusal(server, path)


class Served(Llama):
    """A Llama as the server makes it, from its settings, but one that compacts."""

    def __init__(self, model_path: str, **kwargs: Any) -> None:
        super().__init__(model_path, retention=Retention(budget=32), **kwargs)


@pytest.fixture
def in_process(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """The server's app in a thread of this process, with our Llama."""
    monkeypatch.setattr(llama_cpp, "Llama", Served)
    limits: dict[str, Any] = {"n_ctx": 512, "n_threads": 1, "flash_attn": True, "verbose": False}
    model = ModelSettings(model=str(tiny_path), model_alias="tiny", **limits)
    made = app.create_app(server_settings=ServerSettings(), model_settings=[model])
    running = uvicorn.Server(uvicorn.Config(made, log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listening, beside(lambda: running.run([listening])):
        try:
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with httpx.Client(base_url=address, timeout=TIMEOUT, trust_env=False) as client:
                yield client
        finally:
            running.should_exit = True
    app._llama_proxy.free()


def test_the_app_answers(in_process: httpx.Client) -> None:
    require_answers(in_process)
    assert app._llama_proxy().cache_stats().compacted


@pytest.mark.parametrize("path", LONG)
def test_the_app_refuses_what_is_too_long(in_process: httpx.Client, path: str) -> None:
    require_refusal(in_process, path)


@pytest.mark.parametrize("path", LONG)
def test_a_stream_that_is_too_long_harms_no_other(in_process: httpx.Client, path: str) -> None:
    """The server has sent its 200 before it asks for the first token, so no error code can follow."""
    with suppress(httpx.TransportError):
        body = LONG[path] | {"stream": True}
        refused = in_process.post(path, json=body, headers={"Connection": "close"})
        assert "data: {" not in refused.text
    require_answers(in_process)


def test_a_client_that_leaves_its_stream_harms_no_other(in_process: httpx.Client) -> None:
    body = ASKED | {"stream": True, "max_tokens": 300}
    with in_process.stream("POST", "/v1/completions", json=body) as answer:
        assert next(answer.iter_lines()).startswith("data: {")
    require_answers(in_process)
