"""Calls of tools as OpenAI tells them, in what llama-cpp-python's chat handlers make of a completion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class Calls:
    """Of one answer. Stock repeats in each chunk what a call is, and clients join what chunks say."""

    def __init__(self) -> None:
        self._told: dict[tuple[int, int | None], object] = {}  # by choice and tool; None for a function_call
        self._arguments: dict[int, str] = {}  # of each call

    def mended(self, reply: Any, completion_end: str | None) -> Any:
        """The answer, or a chunk of it. completion_end: why the completion has ended, if it has."""
        for choice in reply["choices"]:
            delta = choice.get("delta") or {}
            for i, call in enumerate((choice.get("message") or delta).get("tool_calls") or ()):
                i = call.get("index", i)
                self._arguments[i] = self._arguments.get(i, "") + call["function"]["arguments"]
            if choice["finish_reason"] in ("tool_calls", "function_call") and (
                completion_end == "length" or not all(map(_is_whole, self._arguments.values()))
            ):
                choice["finish_reason"] = completion_end  # it is cut off
            for call in delta.get("tool_calls") or ():
                if self._known((choice["index"], call["index"]), call.get("id")):
                    call.pop("id", None), call.pop("type", None)
                    call["function"] = _without_name(call["function"])
            function = delta.get("function_call")
            if function and self._known((choice["index"], None), function.get("name")):
                delta["function_call"] = _without_name(function)
        return reply

    def _known(self, place: tuple[int, int | None], call: object) -> bool:
        known = place in self._told and self._told[place] == call
        self._told[place] = call
        return known


def _is_whole(arguments: str) -> bool:
    """Whether no stop has cut it."""
    try:
        json.loads(arguments)
    except ValueError:
        return False
    return True


def _without_name(function: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in function.items() if key != "name"}
