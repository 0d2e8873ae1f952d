"""Grammars and JSON schemas of requests: compiled before anything is read, so that none is set aside."""

from __future__ import annotations

from typing import Any

import llama_cpp

from ..errors import ArgumentError
from ..forms import chat_handler_of, is_of_formatter
from ..grammars import of_schema, require_compiled
from .errors import Refusal


def require_grammars(llm: llama_cpp.Llama, body: Any) -> None:
    """Raises Refusal where a grammar, or a schema of the answer or of the chosen tool, cannot be compiled.

    Stock would take any JSON for such a schema, and any text for such a grammar. A chat handler that is not
    made of a formatter may compile the schema of any tool.
    """
    if body.grammar is not None:
        _require_compiled(llm, body.grammar, "grammar")
    wanted = getattr(body, "response_format", None) or {}
    if "schema" in wanted:
        _require_schema(llm, wanted["schema"], "response_format")
    tools = [tool["function"] for tool in getattr(body, "tools", None) or ()]
    chosen = getattr(body, "tool_choice", None)
    if getattr(body, "functions", None):
        tools, chosen = list(body.functions), body.function_call
    if isinstance(chosen, dict):
        name = chosen.get("function", chosen).get("name")
        tool = next((tool for tool in tools if tool.get("name") == name), None)
        if tool is None:
            raise Refusal(400, f"tool_choice: there is no tool {name!r} among the tools", param="tool_choice")
        tools = [tool]
    elif tools and is_of_formatter(chat_handler_of(llm)):
        tools = []
    for tool in tools:
        _require_schema(llm, tool.get("parameters") or {}, f"tools: the parameters of {tool.get('name')!r}")


def _require_schema(llm: llama_cpp.Llama, schema: Any, where: str) -> None:
    try:
        grammar = of_schema(schema)
    except ArgumentError as error:
        raise Refusal(400, f"{where}: {error}", "invalid_schema") from None
    _require_compiled(llm, grammar, where)


def _require_compiled(llm: llama_cpp.Llama, grammar: str, where: str) -> None:
    try:
        require_compiled(llm._model.vocab, grammar)
    except ArgumentError as error:
        raise Refusal(400, f"{where}: the grammar cannot be compiled: {error}", "invalid_grammar") from None
