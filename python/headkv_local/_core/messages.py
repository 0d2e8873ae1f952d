"""Chats: what was asked is what the model reads, and the next turn can go on from it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Final

import llama_cpp
from llama_cpp import llama_chat_format

from ..errors import ArgumentError
from ..forms import chosen_tool, plain_format, require_schema
from . import templates
from .generation import Generating

_STOCK: Final = llama_cpp.Llama.create_chat_completion  # llama_cpp.Llama may be set to ours later
_OWN: Final = "the model's chat template"
_SIGNATURE: Final = inspect.signature(_STOCK)
_PLAIN_TEXT: Final = llama_chat_format.chat_formatter_to_chat_completion_handler(templates.plain_text)


class _Rendered(Exception):
    """Ends a handler where it has rendered its prompt."""


class _Renderer:
    """Stands for a Llama whose handler makes tokens of its prompt first of all."""

    def __init__(self, chat_handler: Any) -> None:
        self.chat_handler = chat_handler

    def tokenize(self, text: bytes, *_: Any, **__: Any) -> list[int]:
        raise _Rendered(text.decode("utf-8"))


class Chatting(Generating):
    """A Generating whose chats lose nothing in the model's template."""

    chat_format: str

    def _arrange_chat(self, chosen: bool) -> None:
        """chosen: whether the caller has given a chat format or a handler."""
        self._chat_handlers[templates.PLAIN_TEXT] = _PLAIN_TEXT
        if self.chat_handler is None and self.chat_format not in self._chat_handlers:
            try:
                llama_chat_format.get_chat_completion_handler(self.chat_format)
            except llama_chat_format.LlamaChatCompletionHandlerNotFoundException as error:
                raise ArgumentError(f"chat_format: {error}") from None
        if not chosen and "tokenizer.chat_template" not in self.metadata:
            self.chat_format = templates.PLAIN_TEXT  # llama_cpp would take that of Llama 2

    def create_chat_completion(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        """As llama_cpp.Llama.create_chat_completion(), but the model reads what was asked.

        Message parts are handed on as text, and text as parts, where the model's chat template takes only
        the other. A system message is put before the first question where the template knows none. A
        template that leaves out a message is a ModelError, as is one that fails; one that refuses the
        messages is an ArgumentError. A model without a template gets plain text: "User: ...", "Assistant:".

        The last user message asks: what is kept of the prompt is what it looks at. Parts of it that are
        documents can be marked, {"type": "text", "text": ..., "document": True}: the others ask. Of a long
        message without marks the end asks, or short first lines.

        Where the template begins an answer with a text that it leaves out of earlier answers (a thinking
        block), that text is no part of the compacted prompt: the next turn goes on from there.

        A handler of the caller's own, or one that writes several prompts, gets the messages as they are.
        """
        self._lifetime.require_open()
        handler = (
            self.chat_handler
            or self._chat_handlers.get(self.chat_format)
            or llama_chat_format.get_chat_completion_handler(self.chat_format)
        )
        if getattr(handler, "__code__", None) is not _PLAIN_TEXT.__code__:  # not made of a formatter
            return super().create_chat_completion(messages, *args, **kwargs)
        given: dict[str, Any] = dict(_SIGNATURE.bind(self, messages, *args, **kwargs).arguments)
        for name in ("self", "messages"):
            del given[name]
        self._require_forms(given)
        if handler is _PLAIN_TEXT:
            self._chats.warn("the model has no chat template: its chats are written as plain text")

        def render(form: list[templates.Message]) -> str:
            try:
                _STOCK(_Renderer(handler), form, **given)
            except _Rendered as rendered:
                return str(rendered.args[0])
            raise AssertionError("a formatter's handler makes tokens of its prompt")

        form, prompt, change = templates.fitted(messages, render, self._template_name())
        if change:
            self._chats.warn(f"{self._template_name()} knows no system role: {change}")
        ends, later, rewritten = templates.ending(form, prompt, render)
        with self._chats.reading(list(messages), self._n_unstable(ends, later), rewritten):
            return super().create_chat_completion(form, **given)

    def _require_forms(self, given: dict[str, Any]) -> None:
        """Raises ArgumentError for a form that llama_cpp would leave out, or take any JSON for."""
        with self._lifetime.still():
            vocab = self._model.vocab
            if given.get("response_format") is not None:
                wanted = given["response_format"] = plain_format(given["response_format"])
                if "schema" in wanted:
                    require_schema(vocab, wanted["schema"], "response_format")
            if (tool := chosen_tool(given)) is not None:
                require_schema(vocab, tool["parameters"], f"the parameters of the tool {tool['name']!r}")

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Messages in the model's own chat template, with the opening of an answer after them.

        Its tokens, tokenize(text, add_bos=False, special=True), are what a chat has the model read, unless
        another chat format was chosen. Raises ArgumentError for a model without a template, and for messages
        what create_chat_completion() raises.
        """
        self._lifetime.require_open()
        write = templates.own(self)
        return templates.fitted(messages, lambda form: str(write(messages=form).prompt), _OWN)[1]

    def _template_name(self) -> str:
        if self.chat_handler is not None:
            return "the chat handler"
        if self.chat_format in self._chat_handlers and self.chat_format != templates.PLAIN_TEXT:
            return _OWN
        return f"the chat format {self.chat_format!r}"

    def _n_unstable(self, ends: str, later: str) -> int:
        """Tokens at the end of a prompt that the next turn does not begin with."""
        if not ends:
            return 0
        now, then = (self.tokenize(text.encode("utf-8"), False, True) for text in (ends, later))
        n_same = next(
            (i for i, (a, b) in enumerate(zip(now, then, strict=False)) if a != b), min(len(now), len(then))
        )
        return len(now) - n_same
