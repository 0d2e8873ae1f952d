"""A user's message as prompt tokens, in the model's own chat template."""

from __future__ import annotations

from typing import Any, cast

import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from headkv_local import ArgumentError

from .._core.templates import fitted

_TEMPLATE = "tokenizer.chat_template"


def chat_tokens(llm: llama_cpp.Llama, content: str) -> list[int]:
    """The message with the opening of the answer behind it. Raises ArgumentError without a chat template."""
    return tokens_of(llm, chat_prompt(llm, [{"role": "user", "content": content}]))


def chat_prompt(llm: llama_cpp.Llama, messages: list[dict[str, Any]]) -> str:
    """Messages with the opening of the answer behind them, put into the template as a chat would.

    Raises ArgumentError without a chat template, and what create_chat_completion() raises for one that
    does not take the messages.
    """
    formatter = chat_formatter(llm)
    if formatter is None:
        raise ArgumentError("the model has no chat template; --plain asks it without one")
    return fitted(messages, lambda form: str(formatter(messages=form).prompt), "the model's chat template")[1]


def tokens_of(llm: llama_cpp.Llama, prompt: str) -> list[int]:
    return list(llm.tokenize(prompt.encode(), add_bos=False, special=True))


def chat_formatter(llm: llama_cpp.Llama) -> Jinja2ChatFormatter | None:
    """The model's own chat template; None for a model without one."""
    template = cast("dict[str, str]", llm.metadata).get(_TEMPLATE)
    if not template:
        return None
    eos, bos = (_text(llm, token) for token in (llm.token_eos(), llm.token_bos()))
    return Jinja2ChatFormatter(template=template, eos_token=eos, bos_token=bos)


def plain_tokens(llm: llama_cpp.Llama, content: str) -> list[int]:
    """For base models: the message, to be continued with the answer."""
    return list(llm.tokenize(f"{content}\nAnswer:".encode(), add_bos=True, special=False))


def _text(llm: llama_cpp.Llama, token: int) -> str:
    return "" if token == -1 else llm.detokenize([token], special=True).decode("utf-8", errors="replace")
