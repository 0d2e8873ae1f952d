"""What shapes an answer: seed, grammar, schemas and processors, looked at before llama_cpp takes them.

Stock takes any JSON for a schema that it cannot compile, crashes over such a grammar, and prints what a
processor raises; the answer would be another one than was asked for.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import llama_chat_format

from .errors import ArgumentError, GrammarError, SchemaError, ToolChoiceError
from .grammars import of_schema, require_compiled
from .settings import UINT32_MAX
from .strict import require_held
from .wording import shown

_MOST = 3.4028234663852886e38  # of a logit, a float of 32 bits
_OF_FORMATTER = llama_chat_format.chat_formatter_to_chat_completion_handler(None).__code__
_OF_PICTURES = llama_chat_format.Llava15ChatHandler, llama_chat_format.MTMDChatHandler
_FUNCTIONARY = llama_chat_format.functionary_chat_handler, llama_chat_format.functionary_v1_v2_chat_handler
_CALLING = *_FUNCTIONARY, llama_chat_format.chatml_function_calling


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


def stops_of(stop: Any) -> list[str]:
    """The texts that end an answer as llama_cpp takes them: it passes over those in a tuple."""
    found = [stop] if isinstance(stop, str) or not isinstance(stop, Iterable) else list(stop)
    if not all(isinstance(text, str) for text in found):
        raise ArgumentError(f"stop must be a text or a list of texts, not {shown(stop)}")
    return found


def require_bias(bias: Any, n_vocab: int) -> None:
    """Raises ArgumentError for what is no number by token."""
    if not isinstance(bias, Mapping):
        raise ArgumentError(f"logit_bias must be a dict of numbers by token, not {bias!r}")
    for token, value in bias.items():
        try:
            known = 0 <= int(token) < n_vocab
        except (TypeError, ValueError, OverflowError):
            raise ArgumentError(f"logit_bias: {str(token)[:20]!r} is no number of a token") from None
        try:
            number = abs(float(value)) <= _MOST or float(value) == -math.inf  # which is never
        except (TypeError, ValueError, OverflowError) as error:
            raise ArgumentError(f"logit_bias: {error}") from None
        if not number:
            raise ArgumentError(f"logit_bias of token {token}: {value!r} is no finite number of 32 bits")
        if not known:
            raise ArgumentError(f"logit_bias: token {str(token)[:20]} is none of the model's {n_vocab}")


def require_grammar(vocab: Any, grammar: Any) -> None:
    """Raises GrammarError for a grammar that llama.cpp cannot compile for this vocabulary, ArgumentError for
    what is none."""
    if not isinstance(grammar, llama_cpp.LlamaGrammar):
        raise ArgumentError(
            f"grammar must be a LlamaGrammar, not {grammar!r}: LlamaGrammar.from_string() makes one"
        )
    require_grammar_text(vocab, grammar._grammar, grammar._root)


def require_grammar_text(vocab: Any, grammar: str, root: str = "root") -> None:
    """As require_grammar()."""
    try:
        require_compiled(vocab, grammar, root)
    except GrammarError as error:
        raise GrammarError(f"the grammar cannot be compiled: {error}") from None


def require_forms(vocab: Any, handler: Any, given: dict[str, Any]) -> None:
    """Looks at what this chat handler compiles of these arguments of a chat, before the model runs.

    What a handler does not compile is not looked at, but for tools of which it may call any; nor is anything
    where it is none of llama_cpp's. A response_format, and a "required", become as llama_cpp knows them.
    Raises SchemaError for a schema that cannot be compiled, ToolChoiceError for the choice of a tool that is
    not there, ArgumentError for what is no tool or no response_format.
    """
    handler = bare_handler(handler)
    if handler not in _CALLING and not is_of_formatter(handler) and not isinstance(handler, _OF_PICTURES):
        return
    for name in ("tools", "functions"):
        if not isinstance(given.get(name), list | tuple | None):
            raise ArgumentError(f"{name} must be a list, not {shown(given[name])}")
    if isinstance(given.get("tool_choice"), str) and given["tool_choice"] == "required":
        given["tool_choice"] = _only(_offered(given, handler in _FUNCTIONARY)[0])
    tools, choice = _offered(given, handler in _FUNCTIONARY)
    by_name = ("auto", "none") if handler not in _FUNCTIONARY else (choice,)
    if not isinstance(choice, Mapping | None) and not (isinstance(choice, str) and choice in by_name):
        raise ArgumentError(f'tool_choice must be "auto", "none", "required" or a tool, not {choice!r}')
    _require_one_shape(given, choice)
    is_free = handler not in _CALLING or (handler not in _FUNCTIONARY and choice in (None, "none"))
    if given.get("response_format") is not None and is_free:
        wanted = given["response_format"] = plain_format(given["response_format"])
        if "schema" in wanted:
            _require_schema(vocab, wanted["schema"], "response_format")
    if isinstance(choice, Mapping):
        tools = [_chosen(tools, choice)]
    elif handler not in _CALLING or choice == "none":
        tools = []  # the model calls none by itself
    for tool in tools:
        if "parameters" in tool:
            where = f"the parameters of the tool {tool['name']!r}"
            if _is_strict(tool, where):
                _require_held(tool["parameters"], where)
            _require_schema(vocab, tool["parameters"], where)


def _require_one_shape(given: Mapping[str, Any], choice: Any) -> None:
    """llama_cpp would set one aside."""
    wanted = given.get("response_format")
    is_text = wanted is None or (isinstance(wanted, Mapping) and wanted.get("type") == "text")
    shapes = {
        "grammar": given.get("grammar") is not None,
        "response_format": not is_text,
        "the choice of a tool": isinstance(choice, Mapping),
    }
    found = [name for name, there in shapes.items() if there]
    if len(found) > 1:
        raise ArgumentError(f"{found[0]} and {found[1]} both shape the answer: give one of them")


def plain_format(wanted: Any) -> Any:
    """A response_format as llama_cpp writes it, also for OpenAI's "json_schema". Raises ArgumentError."""
    made = unchecked_format(wanted)
    if wanted["type"] == "json_schema" and wanted["json_schema"].get("strict"):
        _require_held(made["schema"], "response_format")
    return made


def unchecked_format(wanted: Any) -> Any:
    """As plain_format(), of a schema that nobody has looked into yet: that may take a while."""
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "json_schema":
        inner = wanted.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, Mapping) else None
        if not isinstance(schema, Mapping):
            raise ArgumentError("response_format: json_schema must have a schema, which is an object")
        _is_strict(inner, "response_format")
        return {"type": "json_object", "schema": schema}
    if kind not in ("text", "json_object"):
        raise ArgumentError(
            f'response_format must have a type, "text", "json_object" or "json_schema", not {wanted!r}'
        )
    return wanted


def _is_strict(given: Mapping[str, Any], where: str) -> bool:
    if not isinstance(given.get("strict"), bool | None):
        raise ArgumentError(f"{where}: strict must be true or false, not {shown(given['strict'])}")
    return given.get("strict") is True


def _require_held(schema: Any, where: str) -> None:
    try:
        require_held(schema)
    except ValueError as error:
        raise SchemaError(f"{where}: the JSON schema is strict, and {error}") from None


def _require_schema(vocab: Any, schema: Any, where: str) -> None:
    try:
        grammar = of_schema(schema)
    except SchemaError as error:
        raise SchemaError(f"{where}: {error}") from None
    try:
        require_compiled(vocab, grammar)
    except GrammarError as error:
        raise SchemaError(f"{where}: its grammar cannot be compiled: {error}") from None


def _offered(given: Mapping[str, Any], tools_first: bool) -> tuple[list[dict[str, Any]], Any]:
    """The functions of a chat, and which of them is to be called.

    tools_first: whether tools and tool_choice hold before functions and function_call, where both are given.
    """
    tools, choice = given.get("tools"), given.get("tool_choice")
    functions, call = given.get("functions"), given.get("function_call")
    if functions is not None and not (tools_first and tools is not None):
        tools = [{"function": function} for function in functions]
    if call is not None and not (tools_first and choice is not None):
        choice = call
    return [_function_of(tool) for tool in tools or ()], choice


def _only(tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The choice of the one tool that there is. Nothing here chooses among several."""
    if len(tools) != 1:
        raise ArgumentError(f'tool_choice "required" needs one tool, not {len(tools)}: name the one to call')
    return {"type": "function", "function": {"name": tools[0]["name"]}}


def _chosen(tools: Sequence[dict[str, Any]], choice: Mapping[str, Any]) -> dict[str, Any]:
    name = _function_of(choice if "function" in choice else {"function": choice})["name"]
    found = next((tool for tool in tools if tool["name"] == name), None)
    if found is None:
        raise ToolChoiceError(f"Tool choice '{name}' not found in tools.", name=name)  # as llama_cpp says it
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


class Guarded:
    """A callback, such as a stopping criterion. alone: while it runs nothing may use the context."""

    def __init__(
        self, callback: Callable[..., Any], alone: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._callback, self._alone = callback, alone

    def __call__(self, *args: Any) -> Any:
        with self._alone():
            return self._callback(*args)


class Processors:
    """Logits processors, one after the other. What one raises is handed to keep: ctypes would print it.

    alone: while they run nothing may use the context, which is in the middle of drawing a token.
    """

    def __init__(
        self,
        processors: Iterable[Any],
        keep: Callable[[BaseException], None],
        alone: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._processors, self._keep, self._alone = processors, keep, alone

    def __call__(self, tokens: Any, scores: Any) -> Any:
        try:
            with self._alone():
                self._process(tokens, scores)
        except BaseException as error:  # Ctrl-C too
            self._keep(error)
        return scores

    def _process(self, tokens: Any, scores: Any) -> None:
        for processor in self._processors:
            found = processor(tokens, scores)
            if np.shape(found) != scores.shape:
                raise ArgumentError(
                    f"the logits processor {processor!r} has returned {shown(found)}, no scores"
                )
            scores[:] = found
            if not np.isfinite(scores.max()):  # NaN is the most of all
                raise ArgumentError(
                    f"the logits processor {processor!r} leaves nothing to draw from: each score is -inf, or "
                    "one is no finite number"
                )
