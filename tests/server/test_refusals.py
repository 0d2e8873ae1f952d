"""What is refused: with the right status and one sentence, and the next request is answered."""

from __future__ import annotations

import concurrent.futures
import gzip
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import llama_cpp
import openai
import pytest
from serving import TIMEOUT, Running, failing, serving, until

from headkv_local import ArgumentError, Cancelled, CancelToken, ContextFullError, Llama, Retention
from headkv_local.server.args import build_parser, parse
from headkv_local.server.bodies import ChatBody
from headkv_local.server.environment import PREFIX, require_settings
from headkv_local.server.errors import Refusal
from headkv_local.server.grammars import require_grammars
from headkv_local.server.network import network_of
from headkv_local.server.retaining import retention_of, usual_settings
from headkv_local.server.served import Asked, Served
from headkv_local.server.settings import ModelSettings, ServerSettings
from headkv_local.settings import ADVANCED

MESSAGES = [{"role": "user", "content": "Hello."}]
ASKED: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 2}
SMALL = ("--alias", "tiny", "--threads", 1, "--n-threads-batch", 1, "--budget", 48)
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    arguments = (tiny_path, *SMALL, "--ctx", 512, "--max-body", "64KiB")
    with serving(folder, *arguments, HEADKV_SERVER_API_KEY=" secret\n") as running:  # as out of a file
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[httpx.Client]:
    """After the test a request must be answered as ever."""
    with server.plain() as plain:
        plain.headers["Authorization"] = "Bearer secret"
        yield plain
        assert plain.post(CHAT, json=ASKED).status_code == 200


def message(response: httpx.Response) -> str:
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    text: str = found["message"]
    assert text
    assert "\n" not in text
    assert len(text) < 500
    return text


LONG = [{"role": "user", "content": "a " * 2000}]
NUMBERS = ("max_tokens", "max_completion_tokens", "temperature", "top_k", "seed", "top_logprobs", "n")
SCHEMA = {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}}
HUGE = {"type": "array", "items": {"type": "string"}, "maxItems": 10**8}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
FETCHED = {"$ref": "https://127.0.0.1:1/schema"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "nothing", "$ref": "#/x"}}}
CHOSEN = {"tool_choice": {"type": "function", "function": {"name": "f"}}}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{", "not JSON"),
        ("[" * 50_000, "no JSON that can be read"),
        (ASKED | {"messages": [{"role": "user"}]}, "message 1 (user) has no content"),
        (ASKED | {"messages": [{"role": "user", "content": None}]}, "message 1 (user) has no content"),
        (ASKED | {"messages": [{"role": "user", "content": []}]}, "message 1 (user) is an empty list"),
        (ASKED | {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "has no text"),
        (
            ASKED | {"messages": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]},
            "a part of type 'input_text': this model reads parts of type 'text' only",
        ),
        (ASKED | {"messages": [{"role": "user", "content": 7}]}, "must be a text or a list of parts, not 7"),
        (ASKED | {"response_format": {"type": "json_object", "schema": HUGE}}, "more than 2000 times"),
        (ASKED | {"response_format": {"type": "json_object", "schema": FETCHED}}, "is no part of it"),
        ('{"messages": 3}', "messages"),
        ([], "body"),
        ({}, "messages"),
        ({"messages": []}, "messages"),
        (ASKED | {"messages": [{"role": "alien", "content": "x"}]}, "messages"),
        (
            ASKED | {"messages": [*MESSAGES, {"role": "User", "content": "x"}]},
            "message 2 has the role 'User': messages have developer, system, user, assistant, tool, function",
        ),
        (ASKED | {"temperature": "warm"}, "temperature"),
        (ASKED | {"temperature": -0.001}, "temperature must be at least 0"),
        (ASKED | {"repeat_penalty": 0}, "repeat_penalty must be at least 0.01"),
        *((ASKED | {name: True}, f"{name} must be a number, not true") for name in NUMBERS),
        (ASKED | {"top_logprobs": 2}, "top_logprobs goes with logprobs: true"),
        (ASKED | {"logprobs": True, "top_logprobs": 21}, "top_logprobs: Input should be less than"),
        (ASKED | {"stop": 5}, "stop: Input should be a valid string, or a valid list"),
        (
            ASKED | {"stream_options": {"include_usage": "sometimes"}},
            "stream_options.include_usage: Input should be a valid boolean",
        ),
        (ASKED | {"stop": ["a", 5]}, "stop.1: Input should be a valid string"),
        (ASKED | {"scores": [[1, "a"]]}, "scores.0.1: Input should be a valid number, or a valid integer"),
        (ASKED | {"tool_choice": {"type": "function"}}, "tool_choice.function: Field required"),
        (ASKED | {"messages": [{"role": "function", "content": "x"}]}, "messages.0.name: Field required"),
        (ASKED | {"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id: Field required"),
        (ASKED | {"budget": 1.5}, "budget: Input should be a valid integer, or a valid string"),
        (ASKED | {"response_format": {"type": "x"}}, "must be 'text', 'json_object' or 'json_schema'"),
        ('{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "temperature"),
        (ASKED | {"n": 2}, "n must be 1"),
        (ASKED | {"stop": [""]}, "stop"),
        (ASKED | {"stop": ["\ud800"]}, "stop has half a character"),
        (ASKED | {"max_tokens": 0}, "max_tokens must be at least 1, or -1"),
        (ASKED | {"max_completion_tokens": -5}, "max_completion_tokens must be at least 1, or -1"),
        (ASKED | {"max_completion_tokens": 0}, "max_completion_tokens must be at least 1, or -1"),
        (ASKED | {"budget": 2**40}, "budget must be at most"),
        (ASKED | {"response_format": {"type": "json_object", "schema": {"enum": []}}}, "cannot be compiled"),
        (ASKED | {"budget": 0}, "budget must be more than nothing, not 0"),
        (ASKED | {"budget": "much"}, "budget"),
        (ASKED | {"budget": True}, "budget"),
        (ASKED | {"archive": "/etc/passwd"}, "archive"),
        (ASKED | {"scores": "/etc/passwd"}, "scores"),
        (ASKED | {"scores": [[1.0, 2.0]]}, "scores"),
        (ASKED | {"budget": "full", "archive": "memory"}, "full"),
        (ASKED | {"logit_bias": {"999999": 1.0}}, "token 999999 is none of the model's"),
        (ASKED | {"logit_bias": {"-1": 1.0}}, "token -1 is none of the model's"),
        (ASKED | {"logit_bias": {"a": 1.0}}, "logit_bias"),
        (ASKED | {"response_format": {"type": "json_object", "schema": SCHEMA}}, "schema cannot be compiled"),
        (ASKED | {"response_format": {"type": "json_schema", "json_schema": {}}}, "schema"),
        (ASKED | {"tools": [TOOL]} | CHOSEN, "'f': the JSON schema cannot be compiled"),
        (ASKED | {"tools": [TOOL], "tool_choice": "required"}, "'f': the JSON schema cannot be compiled"),
        (ASKED | {"tools": [TOOL, TOOL], "tool_choice": "required"}, "needs one tool, not 2"),
        (ASKED | {"tool_choice": "required"}, "needs one tool, not 0"),
        (ASKED | {"tools": [TOOL], "functions": [TOOL["function"]]}, "tools and functions, its older name,"),
        (
            ASKED | {"tool_choice": "auto", "function_call": "auto"},
            "tool_choice and function_call, its older",
        ),
        (ASKED | {"tool_choice": {"type": "function", "function": {"name": "g"}}}, "no tool 'g'"),
        (ASKED | {"tools": [TOOL], "function_call": {"name": "g"}}, "no tool 'g'"),
        (ASKED | {"grammar": "root ::= nowhere"}, "compiled: Undefined rule identifier 'nowhere'"),
        (ASKED | {"grammar": "root ::= " + "(" * 30_000}, "nested more than 500 deep"),
        (ASKED | {"grammar": 'root ::= "a"{5,2}'}, "ends before it begins"),
        (ASKED | {"messages": [{"role": "user", "content": [PICTURE]}]}, "a part of type 'image_url'"),
        (ASKED | {"chat_template_kwargs": "x"}, "chat_template_kwargs: Input should be a valid dict"),
        (ASKED | {"chat_template_kwargs": {"messages": []}}, "'messages' is no variable to give"),
        (ASKED | {"chat_template_kwargs": {"bos_token": ""}}, "'bos_token' is no variable to give"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_body_that_cannot_be(client: httpx.Client, body: Any, words: str, stream: bool) -> None:
    if isinstance(body, dict):
        body = body | {"stream": stream}
    text = body if isinstance(body, str) else json.dumps(body)
    refused = client.post(CHAT, content=text, headers={"Content-Type": "application/json"})
    assert refused.status_code == 400
    assert words in message(refused)


@pytest.mark.parametrize(
    "target", ["/v1/models/", "{url}/v1/models", "{url}/v1/models/?x=1", "HTTP{rest}/health"]
)
def test_each_way_to_write_a_path(server: Running, client: httpx.Client, target: str) -> None:
    address = urlsplit(server.url)
    target = target.format(url=server.url, rest=server.url.removeprefix("http"))
    for key, expected in ((b"secret", b"200"), (b"wrong", b"200" if "health" in target else b"401")):
        with socket.create_connection((address.hostname, address.port), TIMEOUT) as one:
            one.sendall(
                b"GET " + target.encode() + b" HTTP/1.1\r\nHost: x\r\nX-Api-Key: " + key + b"\r\n\r\n"
            )
            assert one.recv(1000).split()[1] == expected


@pytest.mark.parametrize(
    ("given", "param"),
    [
        *(({name: 0}, name) for name in ("max_tokens", "repeat_penalty", "budget", "n")),
        ({"stop": [""]}, "stop"),
        ({"temperature": True}, "temperature"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"scores": [[1.0]]}, "scores"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"grammar": "root ::= nowhere"}, "grammar"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages"),
        ({"messages": LONG}, "messages"),
    ],
)
def test_the_field_that_is_wrong_is_named(client: httpx.Client, given: dict[str, Any], param: str) -> None:
    assert client.post(CHAT, json=ASKED | given).json()["error"]["param"] == param


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_does_not_say_that_it_is_json(client: httpx.Client, kind: str | None) -> None:
    for path, body in ((CHAT, ASKED), ("/v1/completions", {"prompt": "a"}), ("/extras/tokenize", {})):
        given = {} if kind is None else {"Content-Type": kind}
        refused = client.post(path, content=json.dumps(body), headers=given)
        assert refused.status_code == 400
        assert "needs the header Content-Type: application/json" in message(refused)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_that_is_too_long(client: httpx.Client, stream: bool) -> None:
    refused = client.post("/v1/completions", json={"prompt": "a " * 2000, "stream": stream})
    assert refused.status_code == 400
    assert "maximum context length is 512 tokens" in message(refused)
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    refused = client.post("/v1/chat/completions", json={"messages": LONG, "stream": stream})
    assert message(refused).endswith(
        " in the messages). Please reduce the length of the messages or completion."
    )


def test_an_answer_without_a_limit_is_not_counted(client: httpx.Client) -> None:
    for path, body, place in (
        ("/v1/completions", {"prompt": "a " * 2000}, "prompt"),
        (CHAT, {"messages": LONG}, "messages"),
    ):
        refused = client.post(path, json=body | {"max_tokens": -1})
        assert refused.json()["error"]["param"] == place
        found = re.search(r"requested (\d+) tokens \((\d+) in (the messages|your prompt)\)", message(refused))
        assert found is not None, message(refused)
        assert found[1] == found[2]


VAST = "the sea was calm " * 100_000
MANY = MESSAGES * 10_000
ASKING: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (Served.create_completion, {"prompt": VAST}),
    (Served.create_completion, {"prompt": "a", "suffix": VAST}),
    (Served.create_chat_completion, {"messages": [MESSAGES[0] | {"content": VAST}]}),
    (Served.create_chat_completion, {"messages": MANY}),
    (
        Served.create_chat_completion,
        {
            "messages": MESSAGES,
            "tools": [{"type": "function", "function": {"name": "f", "description": VAST}}],
        },
    ),
]


@pytest.fixture
def served(
    tiny: Callable[..., Path], load: Callable[..., Llama], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Served, list[int]]]:
    """While a request is answered; sizes of what is tokenized for it."""
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}"
    marks = {f"tokenizer.ggml.fim_{name}_token_id": 257 for name in ("pre", "suf", "mid")}
    llm = load(tiny(chat_template=template), Served, n_ctx=512, kv_overrides=marks)
    sizes, tokenize = list[int](), llama_cpp.Llama.tokenize

    def measured(llm: Any, text: bytes, *args: Any, **kwargs: Any) -> list[int]:
        sizes.append(len(text))
        return tokenize(llm, text, *args, **kwargs)

    monkeypatch.setattr(llama_cpp.Llama, "tokenize", measured)
    with llm.answered(Asked(None)):
        yield llm, sizes


@pytest.mark.parametrize(("call", "body"), ASKING)
def test_what_cannot_fit_is_not_tokenized(
    served: tuple[Served, list[int]], call: Callable[..., Any], body: dict[str, Any]
) -> None:
    llm, sizes = served
    with pytest.raises(ContextFullError, match="maximum context length is 512 tokens"):
        call(llm, **body)
    assert sum(sizes) < 64 * 1024


@pytest.mark.parametrize(("call", "body"), ASKING)
def test_nothing_is_tokenized_for_a_client_that_has_left(
    served: tuple[Served, list[int]], call: Callable[..., Any], body: dict[str, Any]
) -> None:
    llm, sizes = served
    stop = CancelToken()
    stop.cancel()
    with stop, pytest.raises((Cancelled, ContextFullError)):
        call(llm, **body)
    assert sum(sizes) <= 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"suffix": "b"}, "no tokens for a suffix"),
        ({"suffix": "\ud800"}, "suffix has half a character"),
        ({"prompt": "\ud800"}, "prompt has half a character"),
        ({"max_tokens": 0, "echo": True}, "max_tokens must be at least 1"),
        ({"max_tokens": -5}, "max_tokens must be at least 1"),
        ({"logprobs": 21}, "logprobs: Input should be less than"),
    ],
)
def test_a_completion_that_cannot_be(
    client: httpx.Client, given: dict[str, Any], words: str, stream: bool
) -> None:
    text = json.dumps({"prompt": "a", "max_tokens": 2, "stream": stream} | given)
    refused = client.post("/v1/completions", content=text, headers={"Content-Type": "application/json"})
    assert refused.status_code == 400
    assert words in message(refused)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"suffix": "b"}, "echo and suffix exclude each other"),
        ({"stream": True}, "echo and stream exclude each other"),
        ({"logprobs": 1}, "start the server with --logits-all --budget full"),
    ],
)
def test_an_echo_that_cannot_be(client: httpx.Client, given: dict[str, Any], words: str) -> None:
    refused = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 2, "echo": True} | given)
    assert refused.status_code == 400
    assert words in message(refused)


def test_any_tool_may_be_compiled_by_a_handler_that_calls_them(
    tiny_path: Path, load: Callable[..., Llama]
) -> None:
    body = ChatBody(**ASKED, tools=[TOOL])
    require_grammars(load(tiny_path), body)
    with pytest.raises(Refusal, match="'f': the JSON schema cannot be compiled"):
        require_grammars(load(tiny_path, chat_format="chatml-function-calling"), body)


def test_what_a_refused_form_is_called(tiny_path: Path, load: Callable[..., Llama]) -> None:
    llm = load(tiny_path)
    for given, code, param in (
        ({"response_format": {"type": "json_object", "schema": SCHEMA}}, "invalid_schema", "response_format"),
        (
            {"response_format": {"type": "json_object", "schema": {"enum": []}}},
            "invalid_schema",
            "response_format",
        ),
        ({"grammar": "root ::= nowhere"}, "invalid_grammar", "grammar"),
        ({"tools": [TOOL], "tool_choice": "required"}, "invalid_schema", "tools"),
        ({"tools": [TOOL], "function_call": {"name": "g"}}, None, "tool_choice"),
    ):
        with pytest.raises(Refusal) as refused:
            require_grammars(llm, ChatBody(**ASKED, **given))
        assert (refused.value.status, refused.value.code, refused.value.param) == (400, code, param)


def test_a_schema_is_not_looked_into_while_the_body_is_read(
    tiny_path: Path, load: Callable[..., Llama]
) -> None:
    """Other clients would wait for it."""
    body = ChatBody(**ASKED, **strict_body("response_format", True))
    with pytest.raises(Refusal, match="the JSON schema is strict, and no grammar holds to its 'minimum'"):
        require_grammars(load(tiny_path), body)


def strict_body(where: str, strict: Any) -> dict[str, Any]:
    held: dict[str, Any] = {"name": "f", "strict": strict}
    schema = {"type": "number", "minimum": 1}
    return {
        "response_format": {
            "response_format": {"type": "json_schema", "json_schema": {**held, "schema": schema}}
        },
        "tools": {
            "tools": [{"type": "function", "function": {**held, "parameters": schema}}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
    }[where]


@pytest.mark.parametrize("where", ["response_format", "tools"])
def test_a_schema_is_strict_or_not(client: httpx.Client, where: str) -> None:
    refused = client.post(CHAT, json=ASKED | strict_body(where, "true"))
    assert refused.status_code == 400
    assert "strict must be true or false, not 'true'" in message(refused)
    for strict in (False, None):
        assert client.post(CHAT, json=ASKED | strict_body(where, strict)).status_code == 200


@pytest.mark.parametrize("where", ["response_format", "tools"])
def test_a_strict_schema_is_called_a_schema(client: httpx.Client, where: str) -> None:
    """Found while the body is read, or before its grammar is made: the same code."""
    refused = client.post(CHAT, json=ASKED | strict_body(where, True))
    assert refused.status_code == 400
    assert (refused.json()["error"]["code"], refused.json()["error"]["param"]) == ("invalid_schema", where)
    assert "the JSON schema is strict" in message(refused)


def test_models_that_are_not_here(server: Running, client: httpx.Client) -> None:
    for path, body in (
        (CHAT, ASKED),
        ("/extras/tokenize", {"input": "x"}),
        ("/v1/embeddings", {"input": "x"}),
    ):
        refused = client.post(path, json=body | {"model": "gpt-5"})
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == "model_not_found"
        assert "`gpt-5` does not exist" in message(refused)
        half = json.dumps(body | {"model": "\ud800"})
        refused = client.post(path, content=half, headers={"Content-Type": "application/json"})
        assert refused.status_code == 404
        assert r"`\ud800` does not exist" in message(refused)
    with server.client("secret") as ours, pytest.raises(openai.NotFoundError):
        ours.models.retrieve("gpt-5")


def test_what_is_not_offered(client: httpx.Client) -> None:
    for path in ("/v1/files", "/etc/passwd", "/v1/models/../../etc/passwd"):
        assert client.get(path).status_code == 404
    assert client.get(CHAT).status_code == 405
    assert "--embedding" in message(client.post("/v1/embeddings", json={"input": "x"}))
    assert "none of the model's" in message(client.post("/extras/detokenize", json={"tokens": [10**6]}))


def test_keys(server: Running, client: httpx.Client) -> None:
    with server.plain() as stranger:
        for path in ("/v1/models", "/metrics", "/docs", "/nowhere"):
            refused = stranger.get(path)
            assert refused.status_code == 401
            assert "API key" in message(refused)
        # before the body is looked at
        assert stranger.post(CHAT, content="{").status_code == 401
        assert stranger.get("/health").json()["status"] == "ok"
        assert stranger.get("/").status_code == 200
        assert [stranger.head(path).status_code for path in ("/health", "/", "/metrics")] == [200, 200, 401]
        assert stranger.get("/v1/models", headers={"X-Api-Key": "wrong"}).status_code == 401
        assert stranger.get("/v1/models", headers={"X-Api-Key": "secret"}).status_code == 200
    with server.client("wrong") as wrong, pytest.raises(openai.AuthenticationError, match="key is wrong"):
        wrong.models.list()
    with server.client("secret") as right:
        assert [model.id for model in right.models.list().data] == ["tiny"]


def test_a_key_that_ends_as_a_blank_does(tiny_path: Path, tmp_path: Path) -> None:
    """In Latin-1, which headers are in, the last byte of its UTF-8 is one."""
    key, arguments = "voil\N{LATIN SMALL LETTER A WITH GRAVE}", (tiny_path, *SMALL, "--ctx", 512)
    with serving(tmp_path, *arguments, HEADKV_SERVER_API_KEY=key) as server, server.plain() as client:
        given = {"Authorization": b"Bearer \t" + key.encode()}
        assert client.get("/v1/models", headers=given).status_code == 200
        assert client.get("/v1/models", headers={"Authorization": b"Bearer voil"}).status_code == 401


def test_bodies_that_are_too_large(client: httpx.Client) -> None:
    large = json.dumps(ASKED | {"user": "x" * 70_000}).encode()
    for content in (large, iter([large[:40_000], large[40_000:]])):  # the second says no length
        refused = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
        assert refused.status_code == 413
        assert "65536 bytes" in message(refused)


def test_a_body_that_is_compressed(client: httpx.Client) -> None:
    packed = gzip.compress(json.dumps(ASKED).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    refused = client.post(CHAT, content=packed, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (415, "body_compressed")
    assert message(refused) == "a body that is compressed ('gzip') is not read"
    assert client.post(CHAT, json=ASKED, headers={"Content-Encoding": "identity"}).status_code == 200


def test_a_request_has_the_name_that_its_client_gives(client: httpx.Client) -> None:
    """Proxies name requests as they like; without a name it has one of ours."""
    for given in ("abc", "Root=1-67891233", "\u00e9"):
        answered = client.get("/v1/models", headers={"X-Request-ID": given.encode()})
        assert answered.status_code == 200
        assert dict(answered.headers.raw)[b"x-request-id"] == given.encode()
    assert len(client.get("/v1/models").headers["x-request-id"]) == 32
    for status, headers, content in (
        (403, {"Origin": "null"}, b""),
        (413, {}, b"x" * 70_000),
        (415, {"Content-Encoding": "gzip"}, b"x"),
    ):
        refused = client.post(CHAT, content=content, headers=headers | {"X-Request-ID": "abc"})
        assert (refused.status_code, refused.headers.get("x-request-id")) == (status, "abc")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/health", "GET, HEAD"), ("/v1/models", "GET, HEAD"), ("/v1/models/a", "GET, HEAD"), (CHAT, "POST")],
)
def test_a_method_that_a_path_does_not_know(client: httpx.Client, path: str, allowed: str) -> None:
    refused = client.put(path)
    assert (refused.status_code, refused.headers["allow"]) == (405, allowed)


@pytest.mark.parametrize("origin", ["null", "http://[", "http://[::1", "file://", ""])
def test_an_origin_that_names_no_host(origin: str) -> None:
    assert network_of(origin) is None  # so that an empty Host header is not its equal


def test_pages_from_elsewhere(tiny_path: Path, tmp_path: Path) -> None:
    with serving(tmp_path, tiny_path, *SMALL, "--ctx", 512) as server, server.plain() as client:
        for headers in (
            {"Origin": "https://example.com"},
            {"Origin": "null"},
            {"Host": "example.com"},
            {"Host": "127.0.0.1.example.com"},
            {"Host": "["},
            {"Origin": "http://["},
        ):
            assert client.post(CHAT, json=ASKED, headers=headers).status_code == 403
        assert client.post(CHAT, json=ASKED, headers={"Origin": server.url}).status_code == 200
        assert client.get("/health", headers={"Host": "localhost:1"}).status_code == 200
        for path, line, status in (
            ("/health", "", 200),
            ("/v1/models", "", 200),
            ("/health", "Host: \r\n", 403),
            ("/health", "Origin: null\r\n", 403),
        ):
            with socket.create_connection(("127.0.0.1", client.base_url.port)) as old:
                old.sendall(f"GET {path} HTTP/1.0\r\n{line}\r\n".encode())
                assert old.recv(100).split()[1] == str(status).encode()
    allowed = "https://example.com"
    arguments = (tiny_path, *SMALL, "--ctx", 512, "--cors_origins", allowed)
    with serving(tmp_path, *arguments) as server, server.plain() as client:
        answered = client.post(CHAT, json=ASKED, headers={"Origin": allowed})
        assert answered.headers["access-control-allow-origin"] == allowed
        asked = {"Origin": allowed, "Access-Control-Request-Method": "POST"}
        assert client.options(CHAT, headers=asked).status_code == 200
        asked["Access-Control-Request-Private-Network"] = "true"  # a page of the network asks this machine
        assert client.options(CHAT, headers=asked).status_code == 200


ENDLESS = ASKED | {"max_tokens": 65000, "logit_bias": {"65": 100.0}, "logit_bias_type": "input_ids"}


def test_too_many_requests(tiny_path: Path, tmp_path: Path) -> None:
    with (
        serving(tmp_path, tiny_path, *SMALL, "--ctx", 65536, "--max-queue", 1) as server,
        server.plain() as client,
        concurrent.futures.ThreadPoolExecutor(1) as threads,
    ):
        with client.stream("POST", CHAT, json=ENDLESS | {"stream": True}):
            until(lambda: server.metric("headkv_requests_running") == 1, "the first runs")
            second = threads.submit(client.post, CHAT, json=ASKED)
            until(lambda: server.metric("headkv_requests_waiting") == 1, "the second waits")
            third = client.post(CHAT, json=ASKED)
            assert third.status_code == 429
            assert third.headers["Retry-After"]
            assert "wait already" in message(third)
        assert second.result().status_code == 200


def test_requests_that_take_too_long(tiny_path: Path, tmp_path: Path) -> None:
    limits = ("--ctx", 65536, "--queue-timeout", 0.5, "--request-timeout", 10)
    with serving(tmp_path, tiny_path, *SMALL, *limits) as server, server.plain() as client:
        with concurrent.futures.ThreadPoolExecutor(1) as threads:
            first = threads.submit(client.post, CHAT, json=ENDLESS)
            until(lambda: server.metric("headkv_requests_running") == 1, "the first runs")
            second = client.post(CHAT, json=ASKED)
            assert second.status_code == 503
            assert "has waited" in message(second)
            assert first.result().status_code == 503
            assert "longer than the 10 seconds" in message(first.result())
        text = client.post(CHAT, json=ENDLESS | {"stream": True}).text
        *_, last = re.findall(r"^data: (.*?)\r?$", text, re.MULTILINE)
        assert json.loads(last)["error"]["code"] == "request_timeout"
        assert client.post(CHAT, json=ASKED).status_code == 200


@pytest.mark.parametrize(
    "setting",
    [
        {"rpc_servers": "localhost:50052"},
        {"lora_base": "base.gguf"},
        {"mul_mat_q": False},
        {"draft_model": "small.gguf"},
        {"hf_tokenizer_config_path": "tokenizer_config.json"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_that_stock_does_nothing_with(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        ModelSettings(model="x", **setting)
    ModelSettings(model="x", mul_mat_q=True, draft_model="prompt-lookup-decoding")


def test_a_server_that_cannot_be(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, but no more")
    (tmp_path / "bad.json").write_text('{"models": [{"model": "x", "colour": 1}]}')
    (tmp_path / "none.json").write_text("{}")
    (tmp_path / "eyes.json").write_text('{"models": [{"model": "x", "clip_model_path": "y"}]}')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sessions = ("--sessions", tmp_path / "sessions")
        for code, words, arguments in (
            (1, "there is no model nowhere.gguf", ("nowhere.gguf", "--port", 0)),
            (1, "bad.gguf", ("bad.gguf", "--port", 0)),
            (1, "cannot be listened on: Address already in use", (tiny_path, "--port", port)),
            (2, "give the server an --api-key", (tiny_path, "--host", "0.0.0.0", "--port", 0)),
            (2, "--api-key is empty", (tiny_path, "--api-key", "", "--port", 0)),
            (
                2,
                "pages of any site can use the server as 'null'",
                (tiny_path, "--cors-origins", "http://a,null"),
            ),
            (2, "pages of any site can use the server as '*'", (tiny_path, "--cors-origins", "*")),
            (2, "model is empty", ("--model", "", "--port", 0)),
            (2, "--alias is empty", (tiny_path, "--model-alias", "", "--port", 0)),
            (2, "scores is empty", (tiny_path, "--scores", "", "--port", 0)),
            (2, "sessions is empty", (tiny_path, "--sessions", "", "--port", 0)),
            (2, "--budget must be", (tiny_path, "--budget", "much", "--port", 0)),
            (2, "--beta must be", (tiny_path, "--beta", 0.5, "--port", 0)),
            (2, "--window must be", (tiny_path, "--budget", "5%", "--window", -3, "--port", 0)),
            (2, "--ctx: it is a number of tokens", ("--ctx", "x", "--port", 0)),
            (2, "as large as n_batch", ("--embedding", "--budget", "full", "--n-ubatch", 32, "--port", 0)),
            (2, "colour", ("--config-file", "bad.json", "--port", 0)),
            (2, "or list models in a --config-file", ("--config-file", "none.json", "--port", 0)),
            (2, "images cannot be read here", ("--config-file", "eyes.json", "--port", 0)),
            (2, "bad.yaml cannot be read", ("--config-file", "bad.yaml")),
            (2, "go together", (tiny_path, "--ssl-keyfile", "bad.json", "--port", 0)),
            (
                2,
                "--ssl-certfile bad.json and --ssl-keyfile no.pem cannot be used",
                (tiny_path, "--ssl-certfile", "bad.json", "--ssl-keyfile", "no.pem", "--port", 0),
            ),
            (2, "--chat-format: Invalid chat handler", (tiny_path, "--chat-format", "none", "--port", 0)),
            (1, "cannot be kept in", (tiny_path, "--sessions", tiny_path, "--port", 0)),
        ):
            given = arguments if "--sessions" in arguments else (*arguments, *sessions)
            found, said = failing(tmp_path, *given)
            assert (found, words in said) == (code, True), said
            assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "0"], "budget must be more than nothing, not 0"),
        (["--budget", "0", "--window", "4"], "budget must be more than nothing, not 0"),
        (["--budget", "full", "--archive", "memory"], "neither scores nor an archive"),
        (["--budget", "full", "--scores", "uniform"], "neither scores nor an archive"),
        (["--budget", "full", "--draft", "0"], 'budget "full" keeps everything: draft has no part in it'),
        (["--observe", "all", "--archive", "memory"], "observe all chooses once"),
        (["--type-k", "12"], "type-k must be one of 0 "),
        (["--chat-template-kwargs", '{"stop": "x"}'], "'stop' is no variable to give"),
        (["--flash-attn", "false"], "flash-attn is off: a KV cache"),
        (["--vocab-only", "true"], "vocab-only"),
        (["--logits-all", "--archive", "memory"], "logits-all, or a draft model, goes with neither"),
        (
            ["--draft-model", "prompt-lookup-decoding", "--archive", "file"],
            "logits-all, or a draft model",
        ),
    ],
)
def test_settings_that_can_never_be(options: list[str], words: str) -> None:
    with pytest.raises(ArgumentError, match=f"^--.*{words}"):
        parse(["x.gguf", *options], build_parser())
    for archive in ("auto", "off"):
        parse(["x.gguf", "--budget", "full", "--archive", archive], build_parser())
    for possible in (
        ["--flash-attn", "false", "--budget", "full"],
        ["--chat-format", "chat_template.default"],
        ["--budget", "4"],  # where the scores' file recommends a smaller window
    ):
        parse(["x.gguf", *possible], build_parser())


@pytest.mark.parametrize(
    ("variables", "options", "words"),
    [
        ({"CTX": "abc"}, [], "HEADKV_SERVER_CTX: it is a number"),
        ({"N_CTX": "abc"}, [], "HEADKV_SERVER_N_CTX: it is a number"),
        ({"CTX": "8"}, ["-c", "abc"], "--ctx: it is a number"),
        ({"API_KEY": " "}, [], "HEADKV_SERVER_API_KEY is empty"),
        ({"OBSERVE": "all", "ARCHIVE": "memory"}, [], "HEADKV_SERVER_OBSERVE=all chooses once"),
        ({"CORS_ORIGINS": "*"}, [], "HEADKV_SERVER_CORS_ORIGINS: pages of any site"),
    ],
)
def test_what_was_given_is_blamed(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], options: list[str], words: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(ArgumentError, match=f"^{words}"):
        parse(["x.gguf", *options], build_parser())


def test_a_list_is_one_word(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The same in the environment and as an option, where the word behind it is the model."""
    origins = ["http://localhost:3000", "null"]
    for origin in ("http://localhost:3000,null", '["http://localhost:3000", "null"]'):
        for split in ("0.5,0.5", "0.5 0.5", " 0.5, 0.5 ", "[0.5, 0.5]"):
            options = [
                "--api-key",
                "k",
                "--cors-origins",
                origin,
                "--tensor-split",
                split,
                "--kv-overrides",
                '["a=str:b c"]',
            ]
            given = [parse([*options, "x.gguf"], build_parser())]
            with monkeypatch.context() as patched:
                for flag, value in zip(options[::2], options[1::2], strict=True):
                    patched.setenv(PREFIX + flag.strip("-").replace("-", "_").upper(), value)
                given.append(parse(["x.gguf"], build_parser()))
            for server, (model,) in given:
                assert (model.model, server.cors_origins) == ("x.gguf", origins)
                assert (model.tensor_split, model.kv_overrides) == ([0.5, 0.5], ["a=str:b c"])
    given = ["--api-key=k", "--cors_origins", "a://a", "--cors-origins=http://b,*", "x.gguf"]
    server, _ = parse(given, build_parser())
    assert server.cors_origins == ["a://a", "http://b", "*"]
    for origin in ("localhost:3000", "http://localhost:3000/", ""):
        with pytest.raises(ArgumentError, match="^--cors-origins: an origin is"):
            parse([f"--cors-origins={json.dumps([origin])}", "x.gguf"], build_parser())
    with pytest.raises(SystemExit):
        parse(["--cors-origins", "[http://", "x.gguf"], build_parser())
    assert "--cors-origins: '[http://' begins as a list of JSON and is none" in capsys.readouterr().err
    for name, value in (
        ("CORS_ORIGINS", "[http://"),
        ("TENSOR_SPLIT", "much"),
        ("CHAT_TEMPLATE_KWARGS", "no"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(PREFIX + name, value)
            with pytest.raises(ArgumentError, match=f"^{PREFIX}{name}"):
                parse(["x.gguf"], build_parser())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a", "one is NAME=TYPE:VALUE"),
        ("a=5", "one is NAME=TYPE:VALUE"),  # stock passes over it
        ("a=int:five", "one is NAME=TYPE:VALUE"),
        ("a=long:5", "one is NAME=TYPE:VALUE"),
        ("a=bool:yes", "one is NAME=TYPE:VALUE"),  # stock takes it for false
        ("a=str:b=c", "one is NAME=TYPE:VALUE"),
        ("a=str:b:c", "one is NAME=TYPE:VALUE"),
        ("=int:5", "cannot hold"),
        (f"a=int:{2**70}", "cannot hold"),
        ("a=float:nan", "cannot hold"),
    ],
)
def test_overrides_that_are_none(given: str, said: str) -> None:
    with pytest.raises(ArgumentError, match=f"^--kv-overrides .*{said}"):
        parse(["x.gguf", "--kv-overrides", json.dumps([given])], build_parser())


def test_overrides_are_taken() -> None:
    given = ["a=int:-5", "b=float:1e-6", "c=bool:True", "d=bool:0", "e=str:", "f=str:ä b"]
    _, (model,) = parse(["x.gguf", "--kv-overrides", json.dumps(given)], build_parser())
    assert model.kv_overrides == given


def test_each_long_option_has_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for action in build_parser()._actions:
        for flag in action.option_strings:
            if action.dest not in ("help", "version", "config_file") and re.match("--(?!no-)", flag):
                name = PREFIX + flag[2:].replace("-", "_").upper()
                require_settings([name], [ModelSettings, ServerSettings])
    for name, value in (("CTX", "77"), ("THREADS", "3"), ("GPU_LAYERS", "0"), ("ALIAS", "me")):
        monkeypatch.setenv(PREFIX + name, value)
    _, (model,) = parse(["x.gguf"], build_parser())
    assert (model.n_ctx, model.n_threads, model.n_gpu_layers, model.alias) == (77, 3, 0, "me")
    _, (model,) = parse(["x.gguf", "--n-ctx", "78"], build_parser())
    assert model.n_ctx == 78
    monkeypatch.setenv(PREFIX + "N_CTX", "77")
    with pytest.raises(ArgumentError, match="has HEADKV_SERVER_CTX and HEADKV_SERVER_N_CTX, which are one"):
        parse(["x.gguf"], build_parser())


def test_threads_may_be_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in (["--threads", "-1", "--n-threads-batch=-1"], []):
        if not given:
            monkeypatch.setenv(PREFIX + "N_THREADS", " -1")
            monkeypatch.setenv(PREFIX + "N_THREADS_BATCH", "-1")
        _, (model,) = parse(["x.gguf", *given], build_parser())
        assert (model.n_threads, model.n_threads_batch) == (os.cpu_count(), os.cpu_count())
    assert ModelSettings(model="x", n_threads=-1).n_threads == os.cpu_count()
    for refused in ("0", "-2"):
        with pytest.raises(ArgumentError, match="^--threads: Input should be greater than or equal to 1"):
            parse(["x.gguf", "--threads", refused], build_parser())


@pytest.mark.parametrize(
    ("variable", "end"),
    [
        ("HEADKV_SERVER_APIKEY", "; is HEADKV_SERVER_API_KEY meant?"),
        ("headkv_server_apikey", "; is HEADKV_SERVER_API_KEY meant?"),
        ("HEADKV_SERVER_COLOUR", ""),
        ("HEADKV_SERVER_MODELS", "; is HEADKV_SERVER_MODEL meant?"),
    ],
)
def test_a_variable_that_is_no_setting(monkeypatch: pytest.MonkeyPatch, variable: str, end: str) -> None:
    """A misspelled key would start a server without one."""
    monkeypatch.setenv(variable, "")
    with pytest.raises(ArgumentError) as refused:
        parse(["x.gguf"], build_parser())
    assert str(refused.value) == f"the environment has {variable.upper()}, which is no setting{end}"


def test_each_setting_of_a_retention_is_one_of_a_model() -> None:
    given = {"beta": "1.5", "window": "6", "kernel": "9", "sinks": "0", "observe": "16", "draft": "0"}
    assert given.keys() | {"fold"} == ADVANCED.keys()
    options = [f"--{name}={value}" for name, value in given.items()]
    for fold in ("off", "128"):
        _, (model,) = parse(["x.gguf", *options, "--fold", fold], build_parser())
        assert retention_of(usual_settings(model, None)) == Retention(
            **{name: float(value) if name == "beta" else int(value) for name, value in given.items()},
            fold=None if fold == "off" else 128,
            archive="memory",
        )
    _, (model,) = parse(["x.gguf", "--observe", "all"], build_parser())
    assert retention_of(usual_settings(model, None)) == Retention(
        observe="all"
    )  # nothing to choose anew from
    with pytest.raises(ArgumentError, match="^--observe: 'most' is neither a number of tokens nor all"):
        parse(["x.gguf", "--observe", "most"], build_parser())
    with pytest.raises(ArgumentError, match="^--fold: 'never' is neither a number of tokens nor off"):
        parse(["x.gguf", "--fold", "never"], build_parser())


def test_models_in_a_file_have_their_settings_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "models.json").write_text('{"port": 1, "models": [{"model": "x.gguf"}]}')
    given = ["--config-file", str(tmp_path / "models.json")]
    monkeypatch.setenv("HEADKV_SERVER_PORT", "77")
    server, _ = parse(given, build_parser())
    assert server.port == 1
    for name in ("HEADKV_SERVER_BUDGET", "headkv_server_alias", "--budget"):
        with monkeypatch.context() as patched:
            options = [name, "77"] if name.startswith("--") else []
            if not options:
                patched.setenv(name, "77")
            with pytest.raises(SystemExit, match="2"):
                parse([*given, *options], build_parser())
        assert f"the models are in {given[1]}: {name} is given there" in capsys.readouterr().err


def test_what_is_off_in_a_file(tmp_path: Path) -> None:
    """To YAML the word is a False."""
    off = "page: off\nmodels:\n  - model: x.gguf\n    archive: off\n    fold: off\n"
    (tmp_path / "models.yaml").write_text(off)
    server, (model,) = parse(["--config-file", str(tmp_path / "models.yaml")], build_parser())
    assert (server.page, model.archive, model.fold) == (False, "off", "off")
    (tmp_path / "models.yaml").write_text("models:\n  - model: x.gguf\n    archive: on\n")
    with pytest.raises(ArgumentError, match="archive"):
        parse(["--config-file", str(tmp_path / "models.yaml")], build_parser())


@pytest.mark.parametrize("name", ["models.json", "models.yaml"])
def test_a_file_may_begin_with_a_mark(name: str, tmp_path: Path) -> None:
    """As editors under Windows write it."""
    (tmp_path / name).write_text('{"models": [{"model": "x.gguf"}]}', encoding="utf-8-sig")
    _, (model,) = parse(["--config-file", str(tmp_path / name)], build_parser())
    assert model.model == "x.gguf"


def test_a_file_takes_numbers_for_sizes_and_each_long_name(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text(
        "aside: 0\nmax_body: 16\nsessions_size: 1024\n"
        "models:\n  - {model: x.gguf, ctx: 512, threads: 2, gpu_layers: 0, alias: z}\n"
    )
    given = ["--config-file", str(tmp_path / "models.yaml")]
    server, (model,) = parse(given, build_parser())
    assert (server.aside_bytes, server.body_bytes, server.session_bytes) == (0, 16, 1024)
    assert (model.n_ctx, model.n_threads, model.n_gpu_layers, model.alias) == (512, 2, 0, "z")
    for wrong, words in (
        ("aside: -1\n", "aside must be a size"),
        ("max_body: true\n", "max_body: Input should be a valid string"),
        ("models:\n  - {model: x.gguf, ctx: 512, n_ctx: 256}\n", "ctx and n_ctx are one setting"),
        ("models:\n  - x.gguf\n", "a model's settings must be names with values"),
    ):
        (tmp_path / "models.yaml").write_text(wrong)
        with pytest.raises(ArgumentError, match=words):
            parse(given, build_parser())


def test_two_servers_do_not_share_a_folder(tiny_path: Path, tmp_path: Path) -> None:
    with serving(tmp_path, tiny_path, *SMALL, "--ctx", 512):
        sessions = ("--sessions", tmp_path / "sessions", "--port", 0)
        found, said = failing(tmp_path, tiny_path, *SMALL, "--ctx", 512, *sessions)
    assert found == 1
    assert "another server keeps its sessions in" in said
