"""Clients of all kinds at once: no wrong answer, no request that is stuck, no memory that stays taken.

HEADKV_TEST_REQUESTS says how many requests there are; 1,000 take some minutes.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from serving import N_UBATCH, SIZES, TIMEOUT, Running, serving, until

from headkv_local import Llama, Retention

N_REQUESTS = int(os.environ.get("HEADKV_TEST_REQUESTS", "80"))
N_CLIENTS = 4
CHAT = "/v1/chat/completions"
LETTERS = {str(token): 100.0 for token in range(64, 90)}  # a stream leaves out what is no UTF-8
GREEDY: dict[str, Any] = {
    "temperature": 0.0,
    "max_tokens": 3,
    "repeat_penalty": 1.1,
    "logit_bias": LETTERS,
}
QUESTIONS = ("What was said?", "Once more?", "And then?", "Why?")
BAD: list[tuple[int, Any]] = [
    (400, "{"),
    (400, {"messages": "hello"}),
    (400, {"messages": [{"role": "user", "content": "x " * 3000}]}),
    (400, {"messages": [{"role": "user", "content": "x"}], "grammar": "root ::= nowhere"}),
    (400, {"messages": [{"role": "user", "content": "x"}], "budget": "much"}),
    (404, {"messages": [{"role": "user", "content": "x"}], "model": "another"}),
    (413, {"messages": [{"role": "user", "content": "x" * 70_000}]}),
]


def scripts(load: Callable[..., Llama], path: Path) -> list[list[dict[str, str]]]:
    """Whole conversations, each with a Llama of its own."""
    made = []
    for name in ("forest", "castle", "market", "bridge"):
        alone = load(path, n_ctx=2048, n_ubatch=N_UBATCH, retention=Retention(budget=48, archive="memory"))
        chat = [{"role": "system", "content": f"This is {name}. " + f"The {name} has much to say. " * 12}]
        for question in QUESTIONS:
            chat.append({"role": "user", "content": question})
            chat.append({"role": "assistant", "content": said(alone, chat)})
        made.append(chat)
        alone.close()
    return made


def said(llm: Llama, chat: list[dict[str, str]]) -> str:
    reply: Any = llm.create_chat_completion(chat, **GREEDY)  # type: ignore[arg-type]
    text: str = reply["choices"][0]["message"]["content"]
    return text


def ask(client: httpx.Client, chat: list[dict[str, str]], rng: random.Random) -> str:
    """One turn of a conversation, any of those that were already: its answer must be the one it had."""
    end = 2 * rng.randrange(1, len(QUESTIONS) + 1)
    stream = rng.random() < 0.5
    body = {"messages": chat[:end], "stream": stream, **GREEDY}
    while (
        reply := client.post(CHAT, json=body)
    ).status_code == 429:  # as often as it takes on a slow machine
        time.sleep(0.1)
    assert reply.status_code == 200, reply.text
    if stream:
        *chunks, last = re.findall(r"^data: (.*?)\r?$", reply.text, re.MULTILINE)
        assert last == "[DONE]"
        deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
        text = "".join(delta.get("content") or "" for delta in deltas)
    else:
        text = reply.json()["choices"][0]["message"]["content"]
    assert text == chat[end]["content"]
    return "answered"


def leave(server: Running, chat: list[dict[str, str]], rng: random.Random) -> str:
    """Ask, and go away at some moment."""
    address = urlsplit(server.url)
    body = {"messages": chat[: 2 * rng.randrange(1, 4)], "stream": rng.random() < 0.5, "max_tokens": 500}
    text = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(text)}\r\n"
    whole = head.encode() + b"Content-Type: application/json\r\n\r\n" + text
    with socket.create_connection((address.hostname, address.port), TIMEOUT) as client:
        client.sendall(whole if rng.random() < 0.8 else whole[: rng.randrange(len(whole))])
        time.sleep(rng.random() * 0.3)
    return "left"


def refused(client: httpx.Client, rng: random.Random) -> str:
    status, body = rng.choice(BAD)
    content = body if isinstance(body, str) else json.dumps(body)
    reply = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert reply.status_code in (status, 429), reply.text
    assert reply.json()["error"]["message"]
    return "refused"


def test_random_requests(tiny_path: Path, load: Callable[..., Llama], tmp_path: Path) -> None:
    chats = scripts(load, tiny_path)
    limits = ("--max-conversations", 4, "--max-body", "64KiB", "--max-queue", 2)
    with serving(tmp_path, tiny_path, *SIZES, *limits) as server:

        def work(seed: int) -> tuple[str, int]:
            rng = random.Random(seed)
            with server.plain() as client:
                kind = rng.random()
                if kind < 0.6:
                    done = ask(client, rng.choice(chats), rng)
                elif kind < 0.8:
                    done = leave(server, rng.choice(chats), rng)
                else:
                    done = refused(client, rng)
            return done, server.rss()

        with concurrent.futures.ThreadPoolExecutor(N_CLIENTS) as clients:
            found = list(clients.map(work, range(N_REQUESTS)))
        until(lambda: server.metric("headkv_requests_running") == 0, "all work has ended", 10)
        assert server.metric("headkv_requests_waiting") == 0
        counts = Counter(done for done, _ in found)
        assert counts["answered"] > N_REQUESTS // 2, counts
        with server.plain() as client:
            for chat in chats:
                assert ask(client, chat, random.Random(0)) == "answered"
        # what stays taken, in each tenth: a request that runs has some more
        tenth = N_REQUESTS // 10
        sizes = [min(size for _, size in found[i * tenth : (i + 1) * tenth]) for i in range(10)]
        print(dict(counts), "resident MiB:", *(f"{size / 2**20:.1f}" for size in sizes))
        if N_REQUESTS >= 400:
            assert sizes[-1] < 1.05 * sizes[1]  # the first tenth has what the first prompts take for good
