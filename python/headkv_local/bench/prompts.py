"""A user's message as prompt tokens, in the model's own chat template."""

from __future__ import annotations

from typing import Any, Final

from headkv_local import ArgumentError, Llama

_CURE: Final = "--plain asks it without one"


def chat_tokens(llm: Llama, content: str, cure: str = _CURE) -> list[int]:
    """The message with the opening of the answer behind it. Raises ArgumentError as chat_prompt() does."""
    return tokens_of(llm, chat_prompt(llm, [{"role": "user", "content": content}], cure))


def chat_prompt(llm: Llama, messages: list[dict[str, Any]], cure: str = _CURE) -> str:
    """Messages with the opening of the answer behind them, put into the template as a chat would.

    Raises ArgumentError without a chat template, with what helps then, and what create_chat_completion()
    raises for one that does not take the messages.
    """
    if not has_template(llm):
        raise ArgumentError(f"the model has no chat template; {cure}")
    return llm.chat_prompt(messages)


def length_of(llm: Llama, text: str) -> int:
    """Tokens of a text that goes into a message."""
    return len(llm.tokenize(text.encode(), add_bos=False, special=False))


def tokens_of(llm: Llama, prompt: str) -> list[int]:
    return list(llm.tokenize(prompt.encode(), add_bos=False, special=True))


def has_template(llm: Llama) -> bool:
    return bool(llm.metadata.get("tokenizer.chat_template"))


def plain_text(content: str) -> str:
    """For base models: the message, to be continued with the answer."""
    return f"{content}\nAnswer:"


def plain_tokens(llm: Llama, content: str) -> list[int]:
    return list(llm.tokenize(plain_text(content).encode(), add_bos=True, special=False))
