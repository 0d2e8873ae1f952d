"""A user's message as prompt tokens, in the model's own chat template."""

from __future__ import annotations

from typing import cast

import llama_cpp
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from headkv_local import ArgumentError

_TEMPLATE = "tokenizer.chat_template"


def chat_tokens(llm: llama_cpp.Llama, content: str) -> list[int]:
    """The message with the opening of the answer behind it. Raises ArgumentError without a chat template."""
    metadata = cast("dict[str, str]", llm.metadata)
    if _TEMPLATE not in metadata:
        raise ArgumentError("the model has no chat template; --plain asks it without one")
    eos, bos = (_text(llm, token) for token in (llm.token_eos(), llm.token_bos()))
    formatter = Jinja2ChatFormatter(template=metadata[_TEMPLATE], eos_token=eos, bos_token=bos)
    prompt = formatter(messages=[{"role": "user", "content": content}]).prompt
    return list(llm.tokenize(prompt.encode(), add_bos=False, special=True))


def plain_tokens(llm: llama_cpp.Llama, content: str) -> list[int]:
    """For base models: the message, to be continued with the answer."""
    return list(llm.tokenize(f"{content}\nAnswer:".encode(), add_bos=True, special=False))


def _text(llm: llama_cpp.Llama, token: int) -> str:
    return "" if token == -1 else llm.detokenize([token], special=True).decode("utf-8", errors="replace")
