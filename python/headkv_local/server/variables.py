"""Variables of a chat template that a model's settings or a request give, such as enable_thinking."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Final

from llama_cpp import llama_chat_format
from pydantic import AfterValidator

from ..errors import ArgumentError
from ..forms import chat_handler_of, is_of_formatter

_HANDLER: Final = llama_chat_format.chat_formatter_to_chat_completion_handler(llama_chat_format.format_llama2)
_OF_A_CHAT: Final = {
    *(name for name, one in inspect.signature(_HANDLER).parameters.items() if one.kind != one.VAR_KEYWORD),
    *("self", "add_generation_prompt", "bos_token", "eos_token", "raise_exception", "strftime_now"),
}


def _possible(given: dict[str, Any] | None) -> dict[str, Any] | None:
    for name in given or ():
        if name in _OF_A_CHAT:
            raise ValueError(f"{name[:100]!r} is no variable to give: each chat has its own")
    return given


Variables = Annotated[dict[str, Any] | None, AfterValidator(_possible)]


def tell(llm: Any, variables: Mapping[str, Any]) -> None:
    """From now on the template of its chats has these too. ArgumentError where a format calls tools.

    Formats that are no template, such as "chatml", have none.
    """
    handler = chat_handler_of(llm)
    if not is_of_formatter(handler):
        raise ArgumentError(f"the chat format {llm.chat_format!r} has no template with variables")
    llm.chat_handler = functools.partial(handler, **variables)


@contextmanager
def told(llm: Any, variables: Mapping[str, Any] | None) -> Iterator[None]:
    """As tell(), for one request. None: as it is."""
    before = llm.chat_handler
    try:
        if variables:
            tell(llm, variables)
        yield
    finally:
        llm.chat_handler = before
