"""The bodies of requests: llama-cpp-python's, with what is kept of the prompt, and OpenAI's newer fields."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any, Final, get_args

import llama_cpp
from llama_cpp.server import types as stock
from pydantic import BaseModel, ConfigDict, Field, WrapValidator, field_validator, model_validator

from ..forms import unchecked_format
from ..messages import require_messages
from .retaining import OfArchive, OfBudget, OfScores, check_budget
from .variables import Variables

_logger = logging.getLogger("headkv_local.server")

_MOST_NAMES: Final = 100
_set_aside: set[str] = set()  # names of fields
_MOST_LOGPROBS: Final = 20  # as with OpenAI: of each token
_ROLES: Final = ("developer", "system", "user", "assistant", "tool", "function")
_MOST_TOKENS: Final = "Tokens that an answer may have; -1: as many as the context has room for."


def _tools_as_given(tools: Any, check: Any) -> Any:
    """Checked, but whole: stock's types would drop "strict"."""
    check(tools)
    return tools


def _format_as_given(wanted: Any, check: Any) -> Any:
    """Also OpenAI's "json_schema". Its schema is looked into in the model's thread: others would wait."""
    wanted = _without_nulls(wanted)
    if not isinstance(wanted, dict) or wanted.get("type") in ("text", "json_object"):
        return check(wanted)  # stock's types say what is wrong with it
    if wanted.get("type") != "json_schema":
        raise ValueError("response_format: its type must be 'text', 'json_object' or 'json_schema'")
    unchecked_format(wanted)
    return wanted


def _without_nulls(value: Any) -> Any:
    """null is what was not given: so clients write it that dump all their fields."""
    return {name: one for name, one in value.items() if one is not None} if isinstance(value, dict) else value


def _as_given(value: Any, check: Any) -> Any:
    """Checked, but whole: what stock's types do not know, such as marks of documents, is for the template."""
    messages = [_without_nulls(message) for message in require_messages(value)]
    for i, message in enumerate(messages, start=1):
        if message["role"] not in _ROLES:  # of which pydantic would say what the others lack
            known = ", ".join(_ROLES)
            raise ValueError(f"message {i} has the role {message['role'][:100]!r}: messages have {known}")
    check([_as_stock(message) for message in messages])
    return messages


def _as_stock(message: Mapping[str, Any]) -> dict[str, Any]:
    """As stock's types know it. Theirs are older than parts in all roles, and than developers."""
    known = dict(message)
    if message["role"] == "developer":
        known["role"] = "system"
    if not isinstance(message.get("content"), str):  # it has been checked
        known["content"] = ""
    return known


class _StreamOptions(BaseModel):
    include_usage: bool | None = None


class _Kept(BaseModel):
    """What each KV head keeps of this prompt, and how a stream ends."""

    model_config = ConfigDict(allow_inf_nan=False)

    budget: OfBudget = None
    scores: OfScores = None
    archive: OfArchive = None
    stream_options: _StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _take_null(cls, given: Any) -> Any:
        found = _without_nulls(given)
        for name, value in found.items() if isinstance(found, dict) else ():
            known = cls.model_fields.get(name)
            if known is None:
                _warn_of(name)
            if isinstance(value, bool) and known is not None and _is_number(known.annotation):
                raise ValueError(f"{name} must be a number, not {str(value).lower()}")
        return found

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def require_sense(self) -> None:
        """Raises ValueError for what stock sets aside without a word."""
        if self.budget is not None:
            check_budget(self.budget, self.scores, self.archive)
        for name in ("n", "best_of"):
            if getattr(self, name, 1) not in (None, 1):
                raise ValueError(f"{name} must be 1: there is one answer to a request")
        for name in ("max_tokens", "max_completion_tokens"):
            limit = getattr(self, name, None)
            if limit is not None and limit < 1 and limit != -1:
                raise ValueError(f"{name} must be at least 1, or -1: an answer may fill the context then")
        for name, least in (("temperature", 0), ("repeat_penalty", 0.01)):
            if getattr(self, name, least) < least:
                raise ValueError(f"{name} must be at least {least}")
        stop = getattr(self, "stop", None)
        if stop is not None and (stop == "" or "" in ([stop] if isinstance(stop, str) else stop)):
            raise ValueError("stop must not be an empty text")
        for name in ("stop", "prompt", "suffix"):
            _require_text(name, getattr(self, name, None))


def _warn_of(name: str) -> None:
    """Once, and of so many that a log has room for."""
    name = name[:100]
    if name not in _set_aside and len(_set_aside) < _MOST_NAMES:
        _set_aside.add(name)
        _logger.warning("requests have %r, which is not known here: it is set aside", name)


def _is_number(annotation: Any) -> bool:
    kinds = get_args(annotation) or (annotation,)
    return bool not in kinds and (int in kinds or float in kinds)


def _require_text(name: str, text: str | list[str] | None) -> None:
    try:
        "".join(text or ()).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"{name} has half a character, which is no text in UTF-8") from None


class CompletionBody(_Kept, stock.CreateCompletionRequest):  # type: ignore[misc]
    prompt: str | list[str] = Field(default="", description="The text to go on with.")
    max_tokens: int | None = Field(default=16, description=_MOST_TOKENS)
    logprobs: int | None = Field(
        default=None, ge=0, le=_MOST_LOGPROBS, description="Likeliest tokens to tell of, at each."
    )

    @model_validator(mode="after")
    def _check(self) -> CompletionBody:
        self.require_sense()
        if isinstance(self.prompt, list):
            if len(self.prompt) > 1:
                raise ValueError("prompt must be one text: there is one answer to a request")
            self.prompt = self.prompt[0] if self.prompt else ""
        if self.echo and self.stream:
            raise ValueError("echo and stream exclude each other: a stream begins behind the prompt")
        return self


_Messages = Annotated[list[llama_cpp.ChatCompletionRequestMessage], WrapValidator(_as_given)]
_Tools = Annotated[list[llama_cpp.ChatCompletionTool], WrapValidator(_tools_as_given)]
_Format = Annotated[llama_cpp.ChatCompletionRequestResponseFormat, WrapValidator(_format_as_given)]


class ChatBody(_Kept, stock.CreateChatCompletionRequest):  # type: ignore[misc]
    messages: _Messages = Field(min_length=1, description="The conversation so far.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=_MOST_LOGPROBS, description="Likeliest tokens to tell of, at each."
    )
    max_tokens: int | None = Field(default=None, description=_MOST_TOKENS)
    max_completion_tokens: int | None = Field(default=None, description="OpenAI's newer name of max_tokens.")
    chat_template_kwargs: Variables = Field(default=None, description="Variables of the chat template.")
    tools: _Tools | None = Field(default=None, description="Functions that the model may call.")
    response_format: _Format | None = Field(default=None, description="The form of the answer.")

    @field_validator("tools", mode="before")
    @classmethod
    def _plain_tools(cls, tools: Any) -> Any:
        return [_plain_tool(tool) for tool in tools] if isinstance(tools, list) else tools

    @field_validator("functions", mode="before")
    @classmethod
    def _plain_functions(cls, functions: Any) -> Any:
        return [_plain_function(one) for one in functions] if isinstance(functions, list) else functions

    @model_validator(mode="after")
    def _check(self) -> ChatBody:
        self.require_sense()
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        for name, older in (("tools", "functions"), ("tool_choice", "function_call")):
            if getattr(self, name) is not None and getattr(self, older) is not None:
                raise ValueError(f"{name} and {older}, its older name, exclude each other: give one of them")
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true")
        if self.logprobs and self.top_logprobs is None:
            self.top_logprobs = 0  # stock would leave them out
        return self


def _plain_tool(tool: Any) -> Any:
    plain = _without_nulls(tool)
    if isinstance(plain, dict) and "function" in plain:
        plain["function"] = _plain_function(plain["function"])
    return plain


def _plain_function(function: Any) -> Any:
    """One without parameters takes none, as with OpenAI."""
    plain = _without_nulls(function)
    if isinstance(plain, dict):
        plain.setdefault("parameters", {"type": "object", "properties": {}})
    return plain


NEW_FIELDS = frozenset(
    ("budget", "scores", "archive", "stream_options", "max_completion_tokens", "chat_template_kwargs")
)
"""What is not handed on to llama-cpp-python."""
