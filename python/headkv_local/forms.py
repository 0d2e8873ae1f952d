"""What shapes an answer: seed, grammar, schemas and processors, looked at before llama_cpp takes them.

Stock takes any JSON for a schema that it cannot compile, crashes over such a grammar, and prints what a
processor raises; the answer would be another one than was asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import llama_chat_format

from .errors import ArgumentError
from .grammars import of_schema, require_compiled
from .settings import UINT32_MAX

_OF_FORMATTER = llama_chat_format.chat_formatter_to_chat_completion_handler(None).__code__


def chat_handler_of(llm: llama_cpp.Llama) -> Any:
    """What makes a prompt of chat messages."""
    return (
        llm.chat_handler
        or llm._chat_handlers.get(llm.chat_format)
        or llama_chat_format.get_chat_completion_handler(llm.chat_format)
    )


def bare_handler(handler: Any) -> Any:
    """Without what functools.partial() has it tell the template each time."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    return handler


def is_of_formatter(handler: Any) -> bool:
    """Whether it writes chats by a template alone, and compiles the schema of the chosen tool alone."""
    return getattr(bare_handler(handler), "__code__", None) is _OF_FORMATTER


def seed_of(seed: Any) -> int:
    """A seed as the sampler takes it, from 0 to 2**32 - 1: whatever int was given, modulo 2**32."""
    if not isinstance(seed, int | np.integer):
        raise ArgumentError(f"seed must be an int, not {seed!r}")
    return int(seed) & UINT32_MAX


def require_bias(bias: Any, n_vocab: int) -> None:
    """Raises ArgumentError for what is no number by token."""
    if not isinstance(bias, Mapping):
        raise ArgumentError(f"logit_bias must be a dict of numbers by token, not {bias!r}")
    for token, value in bias.items():
        try:
            known = 0 <= int(token) < n_vocab
            number = not math.isnan(float(value))
        except (TypeError, ValueError, OverflowError) as error:
            raise ArgumentError(f"logit_bias: {error}") from None
        if not number:
            raise ArgumentError(f"logit_bias of token {token}: {value!r} is no number")
        if not known:
            raise ArgumentError(f"logit_bias: token {str(token)[:20]} is none of the model's {n_vocab}")


def require_grammar(vocab: Any, grammar: Any) -> None:
    """Raises ArgumentError for a grammar that llama.cpp cannot compile for this vocabulary."""
    if not isinstance(grammar, llama_cpp.LlamaGrammar):
        raise ArgumentError(
            f"grammar must be a LlamaGrammar, not {grammar!r}: LlamaGrammar.from_string() makes one"
        )
    try:
        require_compiled(vocab, grammar._grammar, grammar._root)
    except ArgumentError as error:
        raise ArgumentError(f"the grammar cannot be compiled: {error}") from None


def plain_format(wanted: Any) -> Any:
    """A response_format as llama_cpp writes it, also for OpenAI's "json_schema". Raises ArgumentError."""
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "json_schema":
        inner = wanted.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(schema, Mapping):
            raise ArgumentError("response_format: json_schema must have a schema")
        return {"type": "json_object", "schema": schema}
    if kind not in ("text", "json_object"):
        raise ArgumentError(
            f'response_format must have a type, "text", "json_object" or "json_schema", not {wanted!r}'
        )
    return wanted


def require_schema(vocab: Any, schema: Any, where: str) -> None:
    """Raises ArgumentError, whose text begins with where, for a schema that cannot be compiled."""
    try:
        grammar = of_schema(schema)
    except ArgumentError as error:
        raise ArgumentError(f"{where}: {error}") from None
    try:
        require_compiled(vocab, grammar)
    except ArgumentError as error:
        raise ArgumentError(f"{where}: its grammar cannot be compiled: {error}") from None


def chosen_tool(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The function that these arguments of a chat have the model call: its name and its parameters.

    Raises ArgumentError for one that is not there.
    """
    tools = [_function_of(tool) for tool in given.get("tools") or ()]
    choice = given.get("tool_choice")
    if given.get("functions") is not None:
        tools = [_function_of({"function": function}) for function in given["functions"]]
    if given.get("function_call") is not None:
        choice = given["function_call"]
    if not isinstance(choice, Mapping):
        return None
    name = _function_of(choice if "function" in choice else {"function": choice})["name"]
    found = next((tool for tool in tools if tool["name"] == name), None)
    if found is None:
        raise ArgumentError(f"Tool choice '{name}' not found in tools.")  # as llama_cpp says it
    if "parameters" not in found:
        raise ArgumentError(f"the tool {name!r} has no parameters: give it a JSON schema")
    return found


def _function_of(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ArgumentError(f"a tool must have a function with a name, not {tool!r}")
    return dict(function)


class Extensible(llama_cpp.LogitsProcessorList):  # type: ignore[misc]
    """A copy of logits processors that a logit_bias may be added to: llama_cpp goes on with what extend()
    returns, and a list's own returns nothing."""

    def extend(self, more: Iterable[Any]) -> Any:
        super().extend(more)
        return self


class Processors:
    """Logits processors, one after the other. What one raises is handed to keep: ctypes would print it."""

    def __init__(self, processors: Iterable[Any], keep: Callable[[BaseException], None]) -> None:
        self._processors, self._keep = processors, keep

    def __call__(self, tokens: Any, scores: Any) -> Any:
        try:
            for processor in self._processors:
                scores[:] = processor(tokens, scores)
        except BaseException as error:  # Ctrl-C too
            self._keep(error)
        return scores
