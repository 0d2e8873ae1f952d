"""Forms of an answer that cannot be: refused, where llama_cpp takes another form, prints, or crashes."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable
from functools import partial
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from llama_cpp import LlamaGrammar, LogitsProcessorList

from headkv_local import ArgumentError, Llama, Retention, StateError, UnsupportedError
from headkv_local.tokens import log_softmax

Load = Callable[..., Llama]

MESSAGES = [{"role": "user", "content": "Hello."}]
F = {"type": "function", "function": {"name": "f"}}
YES = LlamaGrammar.from_string('root ::= "yes"', verbose=False)


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f"} | function}], "tool_choice": F}


def schema(**given: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_object", "schema": given}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (schema(enum=[]), "response_format: the JSON schema cannot be compiled: its enum is empty"),
        (schema(**{"$ref": "#"}), "response_format: its grammar cannot be compiled"),
        (schema(**{"$ref": "#/nowhere"}), "response_format: the JSON schema cannot be compiled"),
        ({"response_format": {"type": "json_schema"}}, "json_schema must have a schema"),
        ({"response_format": {"type": "xml"}}, "response_format must have a type"),
        (tool(parameters={"type": "nothing"}), "the tool 'f': the JSON schema cannot be compiled"),
        (tool(), "the tool 'f' has no parameters"),
        ({"tool_choice": F}, "Tool choice 'f' not found"),
        (
            {"functions": [{"name": "g", "parameters": {}}], "function_call": {"name": "f"}},
            "Tool choice 'f' not found",
        ),
        ({"tools": [{}], "tool_choice": F}, "a tool must have a function with a name"),
        ({"tools": {"function": {}}, "tool_choice": "required"}, "tools must be a list, not {"),
        ({"tools": 5, "tool_choice": F}, "tools must be a list, not 5"),
        ({"functions": (one for one in ())}, "functions must be a list"),
        (tool(parameters={}) | {"tool_choice": 5}, 'must be "auto", "none", "required" or a tool, not 5'),
        (tool(parameters={}) | {"tool_choice": "f"}, 'must be "auto", "none", "required" or a tool, not'),
        ({"tool_choice": "required"}, "needs one tool, not 0"),
        ({"tools": tool()["tools"] * 2, "tool_choice": "required"}, "needs one tool, not 2"),
        (tool(parameters={"type": "nothing"}) | {"tool_choice": "required"}, "the tool 'f': the JSON schema"),
        (schema(type="null") | tool(parameters={}) | {"tool_choice": "required"}, "both shape the answer"),
        ({"grammar": LlamaGrammar.from_string("root ::= nowhere")}, "the grammar cannot be compiled"),
        ({"grammar": YES} | schema(type="null"), "grammar and response_format both shape the answer"),
        ({"grammar": YES} | tool(parameters={}), "grammar and the choice of a tool both shape"),
        (schema(type="null") | tool(parameters={}), "response_format and the choice of a tool both shape"),
        ({"grammar": "root"}, "must be a LlamaGrammar"),
        ({"logit_bias": {-1: 1.0}}, "token -1 is none"),
        ({"logit_bias": {"1000": 1.0}}, "token 1000 is none"),
        ({"logit_bias": {float("inf"): 1.0}}, "'inf' is no number of a token"),
        ({"logit_bias": {1: float("nan")}}, "nan is no finite number"),
        ({"logit_bias": {1: float("inf")}}, "inf is no finite number"),
        ({"logit_bias": {1: 1e300}}, "1e\\+300 is no finite number of 32 bits"),
        ({"logit_bias": {1: 10**400}}, "too large"),
        ({"seed": "x"}, "seed must be an int"),
    ],
)
def test_a_form_that_cannot_be(load: Load, tiny_path: Path, given: dict[str, Any], words: str) -> None:
    llm = load(tiny_path)
    with pytest.raises(ArgumentError, match=words):
        llm.create_chat_completion(MESSAGES, max_tokens=4, **given)
    assert llm("Hello.", max_tokens=2)["usage"]["completion_tokens"] > 0


BAD: dict[str, Any] = {"name": "f", "parameters": {"type": "nothing"}}
GOOD: dict[str, Any] = {"name": "f", "parameters": {"type": "object", "properties": {}}}


def offered(function: dict[str, Any]) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": function}]}


@pytest.mark.parametrize(
    ("handler", "given", "words"),
    [
        (
            "chatml-function-calling",
            schema(**{"$ref": "#"}),
            "response_format: its grammar cannot be compiled",
        ),
        ("chatml-function-calling", {"response_format": {"type": "xml"}}, "response_format must have a type"),
        (
            "chatml-function-calling",
            offered(BAD) | {"tool_choice": F},
            "the tool 'f': the JSON schema cannot",
        ),
        ("chatml-function-calling", offered(BAD) | {"tool_choice": "auto"}, "the tool 'f': the JSON schema"),
        (
            "chatml-function-calling",
            offered(GOOD) | {"functions": [], "tool_choice": F},
            "Tool choice 'f' not found",
        ),
        (
            "chatml-function-calling",
            offered(GOOD) | {"function_call": {"name": "g"}},
            "Tool choice 'g' not found",
        ),
        ("functionary", {"functions": [BAD]}, "the tool 'f': the JSON schema cannot be compiled"),
        ("functionary", offered(BAD) | {"functions": [GOOD]}, "the tool 'f': the JSON schema cannot"),
    ],
)
def test_a_form_that_another_handler_compiles(
    load: Load, tiny_path: Path, handler: str, given: dict[str, Any], words: str
) -> None:
    """It would take any JSON."""
    llm = load(tiny_path, chat_format=handler)
    with pytest.raises(ArgumentError, match=words):
        llm.create_chat_completion(MESSAGES, max_tokens=4, **given)


@pytest.mark.parametrize(
    ("handler", "given"),
    [
        ("chatml", offered(BAD) | {"tool_choice": "auto"}),
        ("chatml-function-calling", offered(BAD) | {"tool_choice": "none"}),
        ("chatml-function-calling", schema(enum=[]) | offered(GOOD) | {"tool_choice": "auto"}),
        ("functionary", schema(enum=[])),
        ("functionary", offered(GOOD) | {"functions": [BAD], "function_call": "none"}),
        (lambda llama, messages, **_: {"choices": []}, schema(enum=[]) | offered(BAD) | {"tool_choice": F}),
    ],
)
def test_a_form_that_no_handler_compiles(
    load: Load, tiny_path: Path, handler: Any, given: dict[str, Any]
) -> None:
    named = {"chat_format" if isinstance(handler, str) else "chat_handler": handler}
    load(tiny_path, **named).create_chat_completion(MESSAGES, max_tokens=4, **given)


@pytest.mark.parametrize("given", [{}, {"chat_format": "chatml-function-calling"}])
def test_a_json_schema_as_openai_has_it(load: Load, tiny_path: Path, given: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"schema": {"const": "yes"}}}
    reply = load(tiny_path, **given).create_chat_completion(MESSAGES, max_tokens=9, response_format=wanted)
    assert reply["choices"][0]["message"]["content"] == '"yes"'


@pytest.mark.parametrize("given", [{}, {"chat_format": "chatml-function-calling"}])
def test_the_only_tool_is_called_where_one_is_required(
    load: Load, tiny_path: Path, given: dict[str, Any]
) -> None:
    one = tool(parameters={"const": {"a": 1}}) | {"tool_choice": "required"}
    reply = load(tiny_path, **given).create_chat_completion(MESSAGES, max_tokens=60, **one)
    called = reply["choices"][0]["message"]["tool_calls"][0]["function"]
    assert (called["name"], json.loads(called["arguments"])) == ("f", {"a": 1})


def is_nested(value: Any) -> bool:
    return value == 1 or (isinstance(value, list) and len(value) < 2 and all(map(is_nested, value)))


PLAIN = re.compile(r"[^\x00-\x1f\x7f]*")


@pytest.mark.parametrize(
    ("schema", "holds"),
    [
        (
            {"type": "string", "minLength": 3, "maxLength": 9},
            lambda x: 3 <= len(x) <= 9 and PLAIN.fullmatch(x),
        ),
        ({"type": "string", "pattern": "^.[^a]\\d{2}[\\w-]$"}, lambda x: re.fullmatch(r"..?\d\d[\w-]", x)),
        ({"type": "string", "pattern": r"^\d{1,2}\.\d{2}$"}, lambda x: re.fullmatch(r"\d{1,2}[.]\d\d", x)),
        ({"type": "string", "pattern": "^[ -~]{1,9}$"}, lambda x: re.fullmatch("[ -~]{1,9}", x)),
        ({"type": "string", "pattern": r"^[^a-z\s]{2,5}\S$"}, lambda x: re.fullmatch(r"[^a-z ]{2,5}[^ ]", x)),
        ({"type": "string", "pattern": "^(?:ab?|c){1,3}$"}, lambda x: re.fullmatch("(ab?|c){1,3}", x)),
        (
            {"type": "string", "pattern": r"^[\w.\-]{3}\W$"},
            lambda x: re.fullmatch(r"[A-Za-z0-9_.-]{3}[^A-Za-z0-9_]", x),
        ),
        ({"type": "string", "format": "ipv4"}, lambda x: ipaddress.IPv4Address(x)),
        ({"type": "string", "format": "ipv6"}, lambda x: ipaddress.IPv6Address(x)),
        ({"anyOf": [{"const": 1}, {"type": "array", "items": {"$ref": "#"}, "maxItems": 1}]}, is_nested),
        (
            {
                "$defs": {
                    "A_b": {"anyOf": [{"const": 1}, {"items": {"$ref": "#/$defs/A_b"}, "maxItems": 1}]}
                },
                "properties": {"a": {"$ref": "#/$defs/A_b"}},
                "required": ["a"],
                "additionalProperties": False,
            },
            lambda x: list(x) == ["a"] and is_nested(x["a"]),
        ),
        ({"type": "integer", "minimum": -12, "maximum": 345}, lambda x: -12 <= x <= 345),
        ({"type": ["integer", "null"], "exclusiveMinimum": 0}, lambda x: x is None or x > 0),
        ({"type": ["string", "null"], "enum": ["a", "b", None]}, lambda x: x in ("a", "b", None)),
        ({"type": "array", "maxItems": 0}, lambda x: not x),
        (
            {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False},
            lambda x: x == [1, 2],
        ),
        ({"type": "array", "items": {"enum": [1]}, "minItems": 2, "maxItems": 3}, lambda x: 2 <= len(x) <= 3),
        ({"type": "object", "properties": {'a"\\': {"const": '"\\\n'}}, "required": ['a"\\']}, lambda x: x),
    ],
)
def test_answers_are_of_their_schema(
    load: Load, tiny_path: Path, schema: dict[str, Any], holds: Callable[[Any], Any]
) -> None:
    """Of a model that says anything."""
    llm = load(tiny_path)
    for seed in range(8):
        choice = llm.create_chat_completion(
            MESSAGES,
            response_format={"type": "json_object", "schema": schema},
            max_tokens=64,
            temperature=5.0,
            top_k=0,
            top_p=1.0,
            min_p=0.0,
            seed=seed,
        )["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert holds(json.loads(choice["message"]["content"])), choice


@pytest.mark.parametrize("call", ["completion", "stream", "generate", "sample"])
def test_what_a_logits_processor_raises(load: Load, tiny_path: Path, call: str) -> None:
    def processor(tokens: Any, scores: Any) -> Any:
        raise KeyError("mine")

    llm = load(tiny_path)
    llm.eval([1, 2, 3])
    calls: dict[str, Callable[..., Any]] = {
        "completion": partial(llm, "Hello."),
        "stream": lambda **given: list(llm("Hello.", stream=True, **given)),
        "generate": lambda **given: next(llm.generate([1, 2, 3], **given)),
        "sample": llm.sample,
    }
    with pytest.raises(KeyError, match="mine"):
        calls[call](logits_processor=[processor])
    assert llm("Hello.", max_tokens=2)["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(
    ("processor", "said"),
    [
        (lambda tokens, scores: None, "has returned None, no scores"),
        (lambda tokens, scores: 0, "has returned 0, no scores"),
        (lambda tokens, scores: scores[:1], "no scores"),
        (lambda tokens, scores: [*scores, 0.0], "no scores"),
        (lambda tokens, scores: scores * np.nan, "leaves nothing to draw from"),
        (lambda tokens, scores: np.where(np.arange(len(scores)) % 2, np.nan, scores), "leaves nothing to"),
        (lambda tokens, scores: scores + np.inf, "leaves nothing to draw from"),
        (lambda tokens, scores: scores - np.inf, "leaves nothing to draw from"),
    ],
)
def test_a_logits_processor_that_says_nothing(load: Load, tiny_path: Path, processor: Any, said: str) -> None:
    llm = load(tiny_path)
    with pytest.raises(ArgumentError, match=said):
        llm("Hello.", max_tokens=4, logits_processor=LogitsProcessorList([processor]))
    assert llm("Hello.", max_tokens=2)["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("where", ["logits_processor", "stopping_criteria"])
@pytest.mark.parametrize("name", ["eval", "reset", "load_state", "retention", "prefill", "embed"])
def test_what_looks_at_tokens_does_not_change_the_context(
    load: Load, tiny_path: Path, name: str, where: str
) -> None:
    """The token that is drawn would be of another text."""
    llm = load(tiny_path, retention=Retention(budget=16))
    llm.eval([1, 2, 3])
    state = llm.save_state()
    changes: dict[str, Callable[[], Any]] = {
        "eval": lambda: llm.eval([1]),
        "reset": llm.reset,
        "load_state": lambda: llm.load_state(state),
        "retention": lambda: setattr(llm, "retention", None),
        "prefill": lambda: llm.prefill([1, 2]),
        "embed": lambda: llm.embed("a"),
    }

    def meddle(tokens: Any, scores: Any) -> Any:
        llm.tokenize(b"what tells, and changes nothing")
        changes[name]()
        return scores if where == "logits_processor" else False

    expected = llm("Hello.", max_tokens=3, temperature=0.0)["choices"]
    with pytest.raises(StateError, match="callback"):
        llm("Hello.", max_tokens=3, **{where: meddle if where == "stopping_criteria" else [meddle]})
    with pytest.raises(StateError, match="callback"):
        list(islice(llm.generate([1, 2], **{where: meddle if where == "stopping_criteria" else [meddle]}), 3))
    names = [*signature(llama_cpp.Llama.generate).parameters.values()][2:]
    given = {one.name: one.default for one in names if one.name != "grammar"} | {where: meddle}
    if where == "logits_processor":
        given[where] = [meddle]
    with pytest.raises(StateError, match="callback"):
        list(islice(llm.generate([1, 2], *given.values()), 3))
    assert llm("Hello.", max_tokens=3, temperature=0.0)["choices"] == expected


@pytest.mark.parametrize("stream", [False, True])
def test_a_logits_processor_and_a_bias(load: Load, tiny_path: Path, stream: bool) -> None:
    llm, seen = load(tiny_path), []

    def processor(tokens: Any, scores: Any) -> Any:
        seen.append(scores.argmax())
        return scores

    mine = LogitsProcessorList([processor])
    (letter,) = llm.tokenize(b"z")
    given: dict[str, Any] = {"logits_processor": mine, "logit_bias": {letter: 1000.0}, "stream": stream}
    reply: Any = llm("Hello.", max_tokens=3, temperature=0.0, **given)
    assert "".join(one["choices"][0]["text"] for one in (reply if stream else [reply])) == "zzz"
    assert len(seen) == 3
    assert letter not in seen
    assert len(mine) == 1


@pytest.mark.parametrize("seed", [-1, 2**32 + 7, 2**70])
def test_any_int_is_a_seed_and_can_be_saved(load: Load, tiny_path: Path, tmp_path: Path, seed: int) -> None:
    llm = load(tiny_path, retention=Retention(budget=16), seed=seed)
    answers = [llm("Hello.", max_tokens=8, temperature=2.0, seed=one) for one in (seed, seed % 2**32)]
    assert answers[0]["choices"] == answers[1]["choices"] or seed == -1  # which is another one each time
    llm.save_session(tmp_path / "session")
    with Llama.open_session(tmp_path / "session") as opened:
        assert opened.n_tokens == llm.n_tokens


def test_the_seed_0_is_one(load: Load, tiny_path: Path) -> None:
    """llama_cpp would draw another one each time."""
    llms = [load(tiny_path, seed=seed) for seed in (0, 2**32, 0)]
    answers = [list(islice(llm.generate([1, 2, 3], temp=2.0, top_k=0), 12)) for llm in llms]
    assert answers[0] == answers[1] == answers[2]


MARKS = {f"tokenizer.ggml.fim_{name}_token_id": 257 + i for i, name in enumerate(("pre", "suf", "mid"))}


def test_a_suffix(load: Load, tiny_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no tokens for a suffix"):
        load(tiny_path)("a", suffix="b")
    llm = load(tiny_path, kv_overrides=MARKS)
    for _ in llm("a<|im_end|>", suffix="b", max_tokens=1, stream=True):
        pass
    plain = llm.tokenize(b"a<|im_end|>", False, False)
    wanted = [257, *plain, 258, *llm.tokenize(b"b", False, False), 259]
    assert np.array_equal(llm.input_ids[: len(wanted)], wanted)
    with pytest.raises(ArgumentError, match="echo"):
        llm("a", suffix="b", echo=True)


@pytest.mark.parametrize("stream", [False, True])
def test_a_suffix_with_log_probabilities(load: Load, tiny_path: Path, stream: bool) -> None:
    """Texts are counted in characters, and begin after the prompt."""
    llm = load(tiny_path, kv_overrides=MARKS, logits_all=True)
    given: dict[str, Any] = {"logprobs": 1, "stream": stream, "logit_bias": {llm.tokenize(b"z")[0]: 1000.0}}
    for prompt, suffix in (("the th\u00e4 the the", None), ("the th\u00e4 the the", ")"), ([5, 6], ")")):
        reply: Any = llm(prompt, suffix=suffix, max_tokens=3, temperature=0.0, **given)
        chunks = [one["choices"][0]["logprobs"] for one in (reply if stream else [reply])]
        offsets = [offset for one in chunks if one is not None for offset in one["text_offset"]]
        assert offsets == [len(prompt) + i for i in range(3)]


@pytest.mark.parametrize("retention", [None, Retention(budget=32)])
@pytest.mark.parametrize("with_bos", [False, True])
def test_log_probabilities_are_those_of_the_tokens(
    load: Load, tiny_path: Path, with_bos: bool, retention: Retention | None
) -> None:
    """Each behind those before it, of the prompt and of the answer; with and without a BOS."""
    llm = load(tiny_path, logits_all=True, retention=retention)
    prompt = "<|endoftext|>" * with_bos + "The keeper lit the lamp. " * 3
    asked: dict[str, Any] = {"max_tokens": 5, "temperature": 0.0, "logprobs": 2}
    whole = llm.create_completion(prompt, echo=True, **asked)["choices"][0]["logprobs"]["token_logprobs"]
    tokens = llm.input_ids[: llm.n_tokens].tolist()
    expected = [float(log_softmax(row)[token]) for row, token in zip(llm.scores, tokens[1:], strict=False)]
    answer = llm.create_completion(prompt, **asked)["choices"][0]["logprobs"]["token_logprobs"]
    assert (tokens[0] == llm.token_bos()) is with_bos
    assert whole[0] is None
    assert whole[1:-1] == pytest.approx(expected[with_bos:], abs=1e-3)
    assert whole[-5:] == pytest.approx(answer, abs=0.05)
