"""Who waits while the model is busy, and who does not."""

from __future__ import annotations

import concurrent.futures
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient
from serving import TIMEOUT, until

from headkv_local.server import bodies, create_app
from headkv_local.server.service import Service
from headkv_local.server.settings import ModelSettings, ServerSettings
from helpers import beside

ASKED = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 2}


@contextmanager
def served(model: Path, folder: Path, **settings: object) -> Iterator[tuple[Service, httpx.Client]]:
    """In a thread of this process."""
    server = ServerSettings(sessions=str(folder), **settings)
    app = create_app(server, [ModelSettings(model=str(model), n_ctx=512, n_threads=1, budget=48)])
    running = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listening, beside(lambda: running.run([listening])):
        try:
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            with httpx.Client(base_url=address, timeout=TIMEOUT, trust_env=False) as client:
                until(lambda: client.get("/health").status_code == 200, "a model")
                yield app.state.service, client
        finally:
            running.should_exit = True


def test_other_clients_do_not_wait_for_figures_of_a_busy_model(tiny_path: Path, tmp_path: Path) -> None:
    with (
        served(tiny_path, tmp_path) as (service, client),
        concurrent.futures.ThreadPoolExecutor(2) as threads,
    ):
        llm = service.models.loaded
        assert llm is not None
        with llm._lifetime._changed:  # whoever asks the model waits
            asked = [threads.submit(client.get, path) for path in ("/metrics", "/v1/models")]
            for _ in range(20):
                assert client.get("/health", timeout=60).status_code == 200
                time.sleep(0.05)
            assert not any(one.done() for one in asked)
        assert [one.result().status_code for one in asked] == [200, 200]


def test_messages_that_cannot_fit_are_not_checked_one_by_one(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other clients would wait for it."""
    checked = []
    require = bodies.require_messages
    monkeypatch.setattr(
        bodies, "require_messages", lambda messages: [checked.append(len(messages)), require(messages)][1]
    )
    with served(tiny_path, tmp_path) as (_, client):
        for n_messages, status in ((512, 400), (1, 200)):
            reply = client.post(
                "/v1/chat/completions", json=ASKED | {"messages": ASKED["messages"] * n_messages}
            )
            assert reply.status_code == status
            if status == 400:
                error = reply.json()["error"]
                assert error["code"] == "context_length_exceeded"
                assert "of which 512 messages leave none" in error["message"]
    assert checked == [1]


def test_figures_of_a_model_that_is_freed_meanwhile(tiny_path: Path, tmp_path: Path) -> None:
    with served(tiny_path, tmp_path) as (service, client):
        llm = service.models.loaded
        assert llm is not None
        llm.close()
        assert client.get("/metrics").status_code == 200
        assert client.get("/v1/models").status_code == 200


def test_a_model_that_cannot_be_loaded_in_a_server_of_somebody_else(tmp_path: Path) -> None:
    """Which goes on."""
    app = create_app(ServerSettings(sessions=str(tmp_path)), [ModelSettings(model="gone.gguf")])
    with TestClient(app, base_url="http://localhost") as client:
        until(lambda: app.state.service.failed is not None, "the failure")
        told = client.get("/health")
        assert (told.status_code, told.json()["status"]) == (503, "failed")
        refused = client.post("/v1/chat/completions", json=ASKED)
        assert (refused.status_code, "Retry-After" in refused.headers) == (503, False)
        assert refused.json()["error"]["code"] == "model_failed"
        assert "there is no model gone.gguf" in refused.json()["error"]["message"]


def test_a_save_makes_way_for_who_comes(tiny_path: Path, tmp_path: Path) -> None:
    """Also where no request may wait for another."""
    with (
        served(tiny_path, tmp_path, save_after=2, max_queue=0) as (service, client),
        concurrent.futures.ThreadPoolExecutor(1) as threads,
    ):
        assert client.post("/v1/chat/completions", json=ASKED).status_code == 200
        llm = service.models.loaded
        assert llm is not None
        with llm._lifetime._changed:  # which a save waits for
            until(lambda: service.line.busy, "the save", 30)
            asked = threads.submit(client.post, "/v1/chat/completions", json=ASKED)
            until(lambda: service.line.n_waiting == 1 or asked.done(), "the request", 30)
        assert asked.result().status_code == 200
        folder = next(tmp_path.iterdir())
        until(lambda: len(list(folder.glob("*.session"))) == 1, "the save after it", 30)
