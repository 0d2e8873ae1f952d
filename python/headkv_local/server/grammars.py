"""Grammars and JSON schemas of requests: compiled before anything is read, so that none is set aside."""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final

import llama_cpp
from llama_cpp.llama_grammar import json_schema_to_gbnf

from .errors import Refusal

_MOST_BYTES: Final = 2**18  # of a schema or a grammar
_MOST_TIMES: Final = 2000  # that something may be repeated: the converter writes each of them out
_COUNTS: Final = ("minItems", "maxItems", "minLength", "maxLength")
_QUANTIFIER: Final = re.compile(r"\{\s*\d*\s*,?\s*\d*\s*\}")


def require_grammars(llm: llama_cpp.Llama, body: Any) -> None:
    """Raises Refusal where a grammar, or a schema of the answer or of the chosen tool, cannot be compiled.

    Stock would take any JSON for such a schema, and any text for such a grammar.
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
    for tool in tools:
        _require_schema(llm, tool.get("parameters") or {}, f"tools: the parameters of {tool.get('name')!r}")


def _require_schema(llm: llama_cpp.Llama, schema: Any, where: str) -> None:
    try:
        text = json.dumps(schema)
        if len(text) > _MOST_BYTES:
            raise ValueError(f"it has more than {_MOST_BYTES} bytes")
        _require_bounded(schema)
        grammar = json_schema_to_gbnf(text)
    except RecursionError:
        raise Refusal(400, f"{where}: the JSON schema is nested too deeply", "invalid_schema") from None
    except Exception as error:  # whatever the schema makes of the converter
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Refusal(
            400, f"{where}: the JSON schema cannot be compiled: {reason}", "invalid_schema"
        ) from error
    _require_compiled(llm, grammar, where)


def _require_compiled(llm: llama_cpp.Llama, grammar: str, where: str) -> None:
    if len(grammar) > 4 * _MOST_BYTES:
        raise Refusal(400, f"{where}: the grammar is too large", "invalid_grammar")
    if "\0" in grammar:
        raise Refusal(400, f"{where}: a grammar has no zero bytes", "invalid_grammar")
    vocab = llm._model.vocab
    made = llama_cpp.llama_sampler_init_grammar(vocab, grammar.encode("utf-8"), b"root")
    if not made:
        raise Refusal(400, f"{where}: the grammar cannot be compiled", "invalid_grammar")
    llama_cpp.llama_sampler_free(made)


def _require_bounded(schema: Any) -> None:
    """Raises ValueError for more repetitions than a grammar can hold."""
    rest = [schema]
    while rest:
        part = rest.pop()
        if isinstance(part, list):
            rest += part
        elif isinstance(part, dict):
            rest += part.values()
            counts = [part[name] for name in _COUNTS if isinstance(part.get(name), int | float)]
            if isinstance(part.get("pattern"), str):
                found = _QUANTIFIER.findall(part["pattern"])
                counts.append(math.prod(max(map(int, re.findall(r"\d+", one)), default=1) for one in found))
            if max(counts, default=0) > _MOST_TIMES:
                raise ValueError(f"something in it may be repeated more than {_MOST_TIMES} times")
