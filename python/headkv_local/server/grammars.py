"""Grammars and JSON schemas of requests: compiled before anything is read, so that none is set aside."""

from __future__ import annotations

from typing import Any, Final

import llama_cpp

from ..errors import ArgumentError
from ..forms import chat_handler_of, require_forms, require_grammar_text, unchecked_format
from .errors import refusal_of

_OF_CHATS: Final = ("grammar", "response_format", "tools", "tool_choice", "functions", "function_call")


def require_grammars(llm: llama_cpp.Llama, body: Any) -> None:
    """Raises Refusal for what forms.require_forms() does not take, or a grammar that cannot be compiled."""
    vocab = llm._model.vocab
    try:
        if body.grammar is not None:
            require_grammar_text(vocab, body.grammar)
        require_forms(vocab, chat_handler_of(llm), {name: getattr(body, name, None) for name in _OF_CHATS})
        if getattr(body, "response_format", None) is not None:
            body.response_format = unchecked_format(body.response_format)  # it has been
    except ArgumentError as error:
        raise refusal_of(error, body) from None
