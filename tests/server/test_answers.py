"""Answers are those of a Llama, in OpenAI's form: streams, schemas, tools, log-probabilities, tokens."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai.lib.streaming._deltas import accumulate_delta
from serving import Running, serving

from headkv_local import Llama, Retention
from headkv_local.server.bodies import ChatBody, CompletionBody
from headkv_local.server.calls import Calls
from headkv_local.server.logprobs import Logprobs

MESSAGES: Any = [
    {"role": "system", "content": "The harbour has much to say. " * 20},
    {"role": "user", "content": "What is there?"},
]
GREEDY: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "temperature": 0.0}
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["b", "c"]}}, "required": ["a"]}


@pytest.fixture(scope="module")
def server(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    models = [
        {"model": str(tiny_path), "model_alias": name, "n_ctx": 1024, "n_threads": 1, **kept}
        for name, kept in (
            ("tiny", {"budget": 48}),
            ("other", {"budget": "full", "n_ctx": "auto"}),
            ("all", {"budget": "full", "logits_all": True}),
            ("words", {"budget": "full", "embedding": True}),
            ("pooled", {"budget": "full", "embedding": True, "kv_overrides": ["llama.pooling_type=int:1"]}),
        )
    ]
    models.append({"model": str(folder / "gone.gguf")})
    config = folder / "config.json"
    config.write_text(json.dumps({"models": models, "request_timeout": 100}))
    with serving(folder, "--config_file", config) as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


def test_streams(client: openai.OpenAI) -> None:
    """Few tokens: a random model soon writes bytes that are no UTF-8, and stock leaves out others."""
    whole = client.chat.completions.create(**GREEDY, max_tokens=6)
    assert whole.choices[0].finish_reason in ("length", "stop")
    chunks = list(
        client.chat.completions.create(
            **GREEDY, max_tokens=6, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    used = chunks[-1].usage
    assert (used.prompt_tokens, used.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )
    assert used.prompt_tokens_details.cached_tokens == used.prompt_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert told == whole.choices[0].message.content


def test_log_probabilities(client: openai.OpenAI, tiny_path: Path, load: Callable[..., Llama]) -> None:
    wanted: dict[str, Any] = {"max_tokens": 8, "logprobs": True, "top_logprobs": 3}
    alone = load(tiny_path, retention=Retention(budget=48), logits_all=True)
    expected: Any = alone.create_chat_completion(MESSAGES, temperature=0.0, repeat_penalty=1.1, **wanted)
    expected = [token["logprob"] for token in expected["choices"][0]["logprobs"]["content"]]
    found = client.chat.completions.create(**GREEDY, **wanted).choices[0].logprobs.content
    assert np.allclose([token.logprob for token in found], expected, atol=1e-3)
    assert all(1 <= len(token.top_logprobs) <= 4 for token in found)  # some have the same text
    streamed = [
        token
        for chunk in client.chat.completions.create(**GREEDY, **wanted, stream=True)
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [token.logprob for token in streamed] == [token.logprob for token in found]


@pytest.mark.parametrize("model", ["tiny", "all"])
def test_the_bytes_of_tokens_are_those_of_the_answer(client: openai.OpenAI, model: str) -> None:
    """Also where a character is of several tokens, as with the tiny model, whose tokens are bytes."""
    text = "a\U0001f31f \u00e9"
    asked: dict[str, Any] = {"max_tokens": 20, "extra_body": {"grammar": f'root ::= "{text}"'}}
    chat = {**GREEDY, **asked, "model": model, "logprobs": True, "top_logprobs": 2}
    reply = client.chat.completions.create(**chat)
    found = reply.choices[0].logprobs.content
    assert reply.choices[0].message.content == text
    assert b"".join(bytes(token.bytes or ()) for token in found) == text.encode()
    assert any(token.token.startswith("bytes:\\x") for token in found)
    assert all(top.bytes for token in found for top in token.top_logprobs if top.token)
    chunks = client.chat.completions.create(**chat, stream=True)
    streamed = [one for chunk in chunks for one in getattr(chunk.choices[0].logprobs, "content", None) or ()]
    told = [(token.token, token.bytes) for token in found]
    assert [(token.token, token.bytes) for token in streamed] == told
    old = client.completions.create(model=model, prompt="The", temperature=0.0, logprobs=2, **asked)
    assert old.choices[0].logprobs.tokens == [token.token for token in found]


def test_a_token_that_cannot_be_is_told_in_json(tiny_path: Path, load: Callable[..., Llama]) -> None:
    logprobs = Logprobs(load(tiny_path), 2, 0)
    logits = np.full(273, -np.inf, np.float32)
    logits[65] = 1
    logprobs.add(66, logits)
    told = json.dumps(logprobs.of_chunk(), allow_nan=False)
    assert json.loads(told)["token_logprobs"] == [-9999.0]


def test_log_probabilities_of_the_prompt(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="all", prompt="The harbour", echo=True, logprobs=1, max_tokens=2)
    found = reply.choices[0].logprobs.token_logprobs
    assert found[0] is None
    assert all(-100 < one <= 0 for one in found[1:])
    chat = client.chat.completions.create(**GREEDY | {"model": "all"}, logprobs=True, max_tokens=2)
    assert all(-100 < token.logprob <= 0 for token in chat.choices[0].logprobs.content)


def test_schemas_and_tools(client: openai.OpenAI) -> None:
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    reply = client.chat.completions.create(**GREEDY, response_format=given, max_tokens=60)
    assert json.loads(reply.choices[0].message.content)["a"] in ("b", "c")
    tool = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
    choice = {"type": "function", "function": {"name": "f"}}
    reply = client.chat.completions.create(**GREEDY, tools=[tool], tool_choice=choice, max_tokens=60)
    called = reply.choices[0].message.tool_calls[0].function
    assert (called.name, json.loads(called.arguments)["a"] in ("b", "c")) == ("f", True)
    reply = client.chat.completions.create(**GREEDY, tools=[tool], tool_choice="required", max_tokens=60)
    assert reply.choices[0].message.tool_calls[0].function.name == "f"
    unused: Any = {"type": "function", "function": {"name": "g", "parameters": {"properties": {"x": {}}}}}
    reply = client.chat.completions.create(**GREEDY, tools=[unused, tool], max_tokens=2)
    assert reply.usage.completion_tokens > 0
    grammar = {"grammar": 'root ::= "yes" | "no"'}
    reply = client.chat.completions.create(**GREEDY, max_tokens=10, extra_body=grammar)
    assert reply.choices[0].message.content in ("yes", "no")


LONG = {"type": "object", "properties": {"a": {"enum": ["b" * 60]}}, "required": ["a"]}


@pytest.mark.parametrize("older", [False, True])
def test_a_call_is_told_once(client: openai.OpenAI, older: bool) -> None:
    """OpenAI's client joins what the chunks of a stream say; what is cut off says so."""
    function = {"name": "f", "parameters": LONG, "strict": True}
    asked: Any = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    if older:
        asked = {"functions": [function], "function_call": {"name": "f"}}
    for most, stop, end in ((200, None, "tool_calls"), (10, None, "length"), (200, "bbb", "stop")):
        asked["stop"] = stop
        whole = client.chat.completions.create(**GREEDY, **asked, max_tokens=most).choices[0]
        joined: dict[Any, Any] = {}
        for chunk in client.chat.completions.create(**GREEDY, **asked, max_tokens=most, stream=True):
            accumulate_delta(joined, chunk.choices[0].to_dict())
        assert whole.finish_reason == joined["finish_reason"] == end
        for told in (whole.message.to_dict(), joined["delta"]):
            assert told["function_call"]["name"] == "f"
            (call,) = told["tool_calls"]
            assert (call["type"], call["function"]) == ("function", told["function_call"])
            assert call["id"].count("call_") == 1
            if end == "tool_calls":
                assert json.loads(call["function"]["arguments"]) == {"a": "b" * 60}


def test_of_several_calls_each_is_looked_at() -> None:
    """Some chat handlers write them: all are whole, or the answer was cut off."""
    for second, end in (("{}", "tool_calls"), ('{"a": "', "stop")):
        calls = [
            {"id": f"call_{text}", "function": {"name": "f", "arguments": text}} for text in ("{}", second)
        ]
        whole: Any = {"index": 0, "message": {"tool_calls": calls}, "finish_reason": "tool_calls"}
        told = Calls().mended({"choices": [whole]}, "stop")
        assert told["choices"][0]["finish_reason"] == end


def test_a_tool_without_parameters_takes_none(client: openai.OpenAI) -> None:
    for more in ({}, {"parameters": None}):
        function: Any = {"name": "f", **more}
        older: Any = {"functions": [function], "function_call": {"name": "f"}}
        tools: Any = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
        for asked in (older, tools):
            reply = client.chat.completions.create(**GREEDY, **asked, max_tokens=60)
            assert json.loads(reply.choices[0].message.tool_calls[0].function.arguments) == {}


def test_completions_and_two_ways_to_bend_them(client: openai.OpenAI) -> None:
    bent: dict[str, Any] = {"min_tokens": 5, "logit_bias_type": "input_ids"}
    reply = client.completions.create(
        model="tiny", prompt="hello", max_tokens=6, temperature=0, logit_bias={"65": 100}, extra_body=bent
    )
    assert reply.choices[0].text == "A" * 6
    bent["logprobs"] = 0
    for stream in (False, True):
        reply = client.completions.create(
            model="tiny", prompt="hello", max_tokens=2, logit_bias={"65": 100}, extra_body=bent, stream=stream
        )
        told = [one.choices[0].logprobs for one in (reply if stream else [reply])]
        assert [offset for one in told if one for offset in one.text_offset] == [5, 6]


def test_documents_are_marked(client: openai.OpenAI) -> None:
    """What stock's types do not know of a message is what the model's class needs."""
    parts = [
        {"type": "text", "text": "What is there? " + "The harbour has much to say. " * 20, "document": True},
        {"type": "text", "text": "Who?"},
    ]
    messages: Any = [{"role": "user", "content": parts}]
    reply = client.chat.completions.create(model="tiny", messages=messages, max_tokens=2)
    assert reply.usage.prompt_tokens > 100


def test_several_models_and_embeddings(client: openai.OpenAI) -> None:
    """Each keeps its conversations while another is loaded."""
    first = client.chat.completions.create(**GREEDY, max_tokens=3)
    reply = client.chat.completions.create(**GREEDY | {"model": "other"}, max_tokens=3)
    assert reply.model == "other"
    held = reply.usage.prompt_tokens
    made = client.embeddings.create(model="words", input=["a", "b"], encoding_format="float")
    assert len(made.data) == 2
    again = client.chat.completions.create(**GREEDY | {"model": "other"}, max_tokens=3)
    assert again.usage.prompt_tokens_details.cached_tokens >= held - 1
    assert again.choices[0].message.content == reply.choices[0].message.content
    alone = client.chat.completions.create(**GREEDY | {"model": "words"}, max_tokens=3)
    assert alone.choices[0].message.content == reply.choices[0].message.content
    client.chat.completions.create(**GREEDY | {"model": "other"}, max_tokens=3)
    models = {model.id: model for model in client.models.list().data}
    assert set(models) == {"tiny", "other", "all", "words", "pooled", "gone"}
    assert models["tiny"].retention["budget"] == 48
    assert models["other"].loaded
    assert models["other"].n_ctx == 8192  # memory has room for all that it was trained for
    assert models["other"].memory["resident_bytes"] > 0
    back = client.chat.completions.create(**GREEDY, max_tokens=3)
    assert back.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens
    assert back.choices[0].message.content == first.choices[0].message.content


def test_embeddings(client: openai.OpenAI, server: Running) -> None:
    """OpenAI's clients ask for base64 where nothing is said."""
    texts = ["a", "hello hello"]
    told = client.embeddings.create(model="pooled", input=texts, encoding_format="float")
    made = client.embeddings.create(model="pooled", input=texts, dimensions=len(told.data[0].embedding))
    for expected, found in zip(told.data, made.data, strict=True):
        assert np.allclose(found.embedding, expected.embedding, atol=1e-4)
    with server.plain() as plain:
        body = {"model": "pooled", "input": "a", "encoding_format": "base64"}
        data = plain.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
        assert np.allclose(np.frombuffer(base64.b64decode(data), "<f4"), told.data[0].embedding, atol=1e-4)
        for given, words in (
            ({"input": []}, "input is an empty list"),
            ({"input": ["a", "hello " * 1000]}, "it may have from 1 to 512"),
            ({"encoding_format": "hex"}, "encoding_format"),
            ({"dimensions": 5}, f"makes embeddings of {len(told.data[0].embedding)} numbers, not 5"),
            ({"model": "words"}, 'encoding_format must be "float"'),
        ):
            refused = plain.post("/v1/embeddings", json=body | given)
            assert refused.status_code == 400
            assert words in refused.json()["error"]["message"]


def test_a_model_that_is_gone(client: openai.OpenAI) -> None:
    with pytest.raises(
        openai.InternalServerError, match="gone cannot be loaded: there is no model"
    ) as raised:
        client.chat.completions.create(**GREEDY | {"model": "gone"}, max_tokens=3)
    assert raised.value.status_code == 503
    assert client.chat.completions.create(**GREEDY, max_tokens=3).usage.completion_tokens > 0


def test_a_history_as_the_client_has_it(client: openai.OpenAI) -> None:
    """With message objects, calls of tools, and their results."""
    reply = client.chat.completions.create(**GREEDY, max_tokens=3)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    later = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "42"}]},
    ]
    history = [*MESSAGES, reply.choices[0].message, *later]
    again = client.chat.completions.create(**GREEDY | {"messages": history}, max_tokens=3)
    assert again.usage.prompt_tokens_details.cached_tokens >= reply.usage.prompt_tokens


BIASED = {
    "logit_bias": {"65": 100.0},
    "logit_bias_type": "input_ids",
}  # no answer ends, or within a character


def test_null_is_what_is_not_given(client: openai.OpenAI, server: Running) -> None:
    """As clients write it that dump all fields of what they have."""
    reply = client.chat.completions.create(**GREEDY, max_tokens=3)
    tool = {"type": "function", "function": {"name": "f", "description": None, "parameters": SCHEMA}}
    empty = ChatBody.model_fields.keys() - GREEDY.keys()
    said = reply.choices[0].message.model_dump()
    assert said["tool_calls"] is None
    history = [*MESSAGES, said, {"role": "user", "content": "And?", "name": None}]
    body = dict.fromkeys(empty) | GREEDY | {"messages": history, "max_tokens": 3}
    with server.plain() as plain:
        wanted = {"type": "text", "schema": None}
        for more in ({"temperature": None}, {"tools": [tool]}, {"response_format": wanted}):
            answered = plain.post("/v1/chat/completions", json=body | more)
            assert answered.status_code == 200, answered.text
        empty = CompletionBody.model_fields.keys()
        answered = plain.post("/v1/completions", json=dict.fromkeys(empty) | {"prompt": "hello"} | BIASED)
        assert answered.status_code == 200, answered.text
        assert answered.json()["usage"]["completion_tokens"] == 16
        answered = plain.post(
            "/v1/embeddings", json={"input": "a", "model": "words", "encoding_format": None, "user": None}
        )
        assert answered.status_code == 200, answered.text


def test_fields_that_nobody_knows(client: openai.OpenAI, server: Running) -> None:
    """They change nothing, and the log names each once, whatever it is called."""
    names = ["guided_json", "a\nb", "c" * 1000, "guided_json"]
    for name in names:
        client.chat.completions.create(**GREEDY, max_tokens=1, extra_body={name: 1, "unset": None})
    said = [line for line in server.log.read_text().splitlines() if "is set aside" in line]
    assert [sum(repr(name[:100]) in line for line in said) for name in names] == [1, 1, 1, 1]
    assert not any("unset" in line for line in said)


def test_an_answer_without_a_limit_fills_the_context(server: Running) -> None:
    chat = {"messages": [{"role": "user", "content": "hello " * 180}]} | BIASED
    with server.plain() as plain:
        for path, body in (
            ("/v1/completions", {"prompt": "hello " * 200, "max_tokens": -1} | BIASED),
            ("/v1/chat/completions", chat | {"max_tokens": -1}),
            ("/v1/chat/completions", chat | {"max_completion_tokens": -1}),
        ):
            assert plain.post(path, json=body).json()["usage"]["total_tokens"] == 1024


def test_tokens(server: Running) -> None:
    with server.plain() as client:
        tokens = client.post("/extras/tokenize", json={"input": "hello"}).json()["tokens"]
        assert client.post("/extras/tokenize/count", json={"input": "hello"}).json() == {"count": len(tokens)}
        assert client.post("/extras/detokenize", json={"tokens": tokens}).json() == {"text": "hello"}


def test_what_the_server_says_of_itself(server: Running) -> None:
    with server.plain() as client:
        client.post("/v1/chat/completions", json=GREEDY | {"max_tokens": 2})
        assert client.get("/health").json() | {"version": ""} == {
            "status": "ok",
            "version": "",
            "model": "tiny",
        }
        text = client.get("/metrics").text
        for line in text.splitlines():
            assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [-+.e\d]+', line)
        assert 'headkv_cache_bytes{model="tiny",kind="archive"}' in text
        assert server.metric('headkv_responses_total{path="/v1/chat/completions",status="200"}') > 0
        page = client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert "://" not in page.text  # it needs nothing from elsewhere
        assert "default-src 'none'" in page.headers["content-security-policy"]
