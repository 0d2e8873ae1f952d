"""Chats: what was asked is what the model reads, and the next turn can go on from it."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, Final

import llama_cpp
from llama_cpp import llama_chat_format

from ..errors import ArgumentError
from ..forms import bare_handler, chat_handler_of, is_of_formatter, require_forms, stops_of
from ..messages import require_messages
from ..tokens import n_same
from . import templates
from .turns import Turn

_logger = logging.getLogger("headkv_local")

_NONE: Final = (), 0, False
_STOCK: Final = llama_cpp.Llama.create_chat_completion  # llama_cpp.Llama may be set to ours later
_OWN: Final = "the model's chat template"
_SIGNATURE: Final = inspect.signature(_STOCK)
_PLAIN_TEXT: Final = llama_chat_format.chat_formatter_to_chat_completion_handler(templates.plain_text)


def require_format(name: str) -> None:
    """Raise ArgumentError for a chat format that neither llama_cpp has nor Llama."""
    if name == templates.PLAIN_TEXT:
        return
    try:
        llama_chat_format.get_chat_completion_handler(name)
    except llama_chat_format.LlamaChatCompletionHandlerNotFoundException as error:
        raise ArgumentError(f"chat_format: {error}") from None


class _Rendered(Exception):
    """Ends a handler where it has rendered its prompt."""


class _Renderer:
    """Stands for a Llama whose handler makes tokens of its prompt first of all."""

    def __init__(self, chat_handler: Any) -> None:
        self.chat_handler = chat_handler

    def tokenize(self, text: bytes, *_: Any, **__: Any) -> list[int]:
        raise _Rendered(text.decode("utf-8"))


class Chats:
    """Of one Llama, `llm`, whatever threads they are read in."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._here = threading.local()

    @staticmethod
    def arrange(llm: Any, chosen: bool) -> None:
        """chosen: whether the caller has given a chat format or a handler."""
        llm._chat_handlers[templates.PLAIN_TEXT] = _PLAIN_TEXT
        if llm.chat_handler is None and llm.chat_format not in llm._chat_handlers:
            require_format(llm.chat_format)
        if not chosen and "tokenizer.chat_template" not in llm.metadata:
            llm.chat_format = templates.PLAIN_TEXT  # llama_cpp would take that of Llama 2

    def complete(
        self,
        llm: Any,
        stock: Callable[..., Any],
        messages: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """stock: llama_cpp's create_chat_completion(), called with messages that lose nothing in the model's
        template, and these arguments."""
        handler = chat_handler_of(llm)
        given: dict[str, Any] = dict(_SIGNATURE.bind(llm, messages, *args, **kwargs).arguments)
        for name in ("self", "messages"):
            del given[name]
        if given.get("stop") is not None:
            given["stop"] = stops_of(given["stop"])
        with llm._lifetime.still():
            require_forms(llm._model.vocab, handler, given)
        if not is_of_formatter(handler):
            usable = isinstance(messages, list | tuple) and all(isinstance(one, Mapping) for one in messages)
            with self._reading(list(messages) if usable else [], 0, False):
                return stock(messages, **given)
        if bare_handler(handler) is _PLAIN_TEXT:
            self._warn("the model has no chat template: its chats are written as plain text")

        def render(form: list[templates.Message], given: dict[str, Any] = given) -> str:
            try:
                _STOCK(_Renderer(handler), form, **given)
            except _Rendered as rendered:
                return str(rendered.args[0])
            raise AssertionError("a formatter's handler makes tokens of its prompt")

        messages, template = require_messages(messages), _template_name(llm)
        if not messages:
            raise ArgumentError("messages is an empty list: there is nothing to answer")
        form, prompt, change = templates.fitted(messages, render, template)
        if change:
            self._warn(f"{template} knows no system role: {change}")
        offered, without = _tools(given)
        if offered and _same(prompt, render, form, without):
            what = "no tools" if given.get("tools") else "`tools`, and no `functions`"
            self._warn(f"{template} knows {what}: the model is not told of them")
        ends, later, rewritten = templates.ending(form, prompt, render)
        with self._reading(messages, _n_unstable(llm, ends, later), rewritten):
            return stock(form, **given)

    @staticmethod
    def prompt(llm: Any, messages: Sequence[Mapping[str, Any]]) -> str:
        """In the model's own template, with the opening of an answer after them."""
        write, messages = templates.own(llm), require_messages(messages)
        return templates.fitted(messages, lambda form: str(write(messages=form).prompt), _OWN)[1]

    @contextmanager
    def _reading(
        self, messages: Sequence[Mapping[str, Any]], n_unstable: int, rewritten: bool
    ) -> Iterator[None]:
        """Turns that begin meanwhile, in this thread, are of this chat.

        n_unstable: tokens at the end of its prompt that the next turn does not begin with.
        rewritten: whether the next turn begins with less than the messages.
        """
        self._here.chat = messages, n_unstable, rewritten
        try:
            yield
        finally:
            self._here.chat = _NONE

    def turn(self, prompt: Sized) -> Turn:
        """prompt: its tokens."""
        messages, n_unstable, rewritten = getattr(self._here, "chat", _NONE)
        turn = Turn(messages=messages)
        turn.n_stable = len(prompt) - n_unstable if n_unstable else None
        turn.rewritten = rewritten
        return turn

    def _warn(self, text: str) -> None:
        """Once."""
        if text not in self._said:
            self._said.add(text)
            _logger.warning(text)


def _tools(given: dict[str, Any]) -> tuple[bool, dict[str, Any]]:
    """Whether a chat offers tools, and its arguments without them."""
    names = ("tools", "tool_choice"), ("functions", "function_call")
    offered = any(given.get(tools) and given.get(choice) != "none" for tools, choice in names)
    return offered, {name: value for name, value in given.items() if all(name not in pair for pair in names)}


def _same(prompt: str, render: Callable[..., str], *args: Any) -> bool:
    """Whether a template writes this prompt of other arguments too, as far as it can be without."""
    try:
        return render(*args) == prompt
    except Exception:
        return False


def _template_name(llm: Any) -> str:
    own = llm._chat_handlers.get(llm.chat_format)
    if llm.chat_handler is not None and (own is None or bare_handler(llm.chat_handler) is not own):
        return "the chat handler"
    if llm.chat_format in llm._chat_handlers and llm.chat_format != templates.PLAIN_TEXT:
        return _OWN
    return f"the chat format {llm.chat_format!r}"


def _n_unstable(llm: Any, ends: str, later: str) -> int:
    """Tokens at the end of a prompt that the next turn does not begin with."""
    if not ends:
        return 0
    now, then = (llm.tokenize(text.encode("utf-8"), False, True) for text in (ends, later))
    return len(now) - n_same(now, then)
