"""What chat messages are: who says something, and what, as a text or in parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .errors import ArgumentError
from .wording import shown

SYSTEM: Final = ("system", "developer")
"""Roles of who says how to answer."""

_NEEDED: Final = "a text or a list of parts"


def require_messages(messages: Any) -> list[Mapping[str, Any]]:
    """The messages as a list. ArgumentError for what are none, with the number of the one it is about.

    Each has a role, and a content: a text, or a list of parts that have a type; those of the type "text" have
    a text, and may be marked as documents by true. An assistant that calls tools needs no content. There may
    be no messages.
    """
    found = listed(messages)
    for i, message in enumerate(found, start=1):
        if not isinstance(message.get("role"), str):
            raise _no_message(i, message)
        _require_content(message, f"message {i} ({message['role']})")
    return found


def listed(messages: Any) -> list[Mapping[str, Any]]:
    """The messages as a list, whatever is in them. ArgumentError for what is no list of objects."""
    if not isinstance(messages, list | tuple):
        raise ArgumentError(f"messages must be a list of chat messages, not {shown(messages)}")
    messages = [_plain(message) for message in messages]
    for i, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping):
            raise _no_message(i, message)
    return messages


def _no_message(number: int, message: Any) -> ArgumentError:
    return ArgumentError(f"message {number} is none: it must have a role, and {_NEEDED}: {shown(message)}")


def _plain(message: Any) -> Any:
    """A message as a dict where it is an object of pydantic, as those of OpenAI's client are."""
    dump = getattr(message, "model_dump", None)
    return message if dump is None else dump(exclude_none=True)


def _require_content(message: Mapping[str, Any], name: str) -> None:
    content = message.get("content")
    if isinstance(content, str):
        return
    if content is None:
        if message["role"] == "assistant" and (message.get("tool_calls") or message.get("function_call")):
            return
        raise ArgumentError(f"{name} has no content: {_NEEDED} is needed")
    if not isinstance(content, list | tuple):
        raise ArgumentError(f"the content of {name} must be {_NEEDED}, not {shown(content)}")
    if not content:
        raise ArgumentError(f"the content of {name} is an empty list: {_NEEDED} is needed")
    for i, part in enumerate(content, start=1):
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise ArgumentError(f"part {i} of {name} must have a type, such as 'text': {shown(part)}")
        if part["type"] == "text" and not isinstance(part.get("text"), str):
            raise ArgumentError(f"part {i} of {name} is of type 'text', but has no text: {shown(part)}")
        if part["type"] == "text" and not isinstance(part.get("document"), bool | None):
            raise ArgumentError(
                f"part {i} of {name} must be marked by true or false as a document: {shown(part)}"
            )
