"""Conversations, each in a session file: what was said, and all that the model needs to go on."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from headkv_local import SessionError
from headkv_local.sessions import read_header

try:
    from fcntl import LOCK_EX, LOCK_NB, flock
except ImportError:  # Windows: nobody looks whether two windows share a folder
    flock = None  # type: ignore[assignment]

Message = dict[str, Any]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    name: str
    text: str

    @classmethod
    def read(cls, path: Path) -> Document:
        """Raises OSError, and ValueError for what is no text in UTF-8."""
        return cls(path.name, path.read_text(encoding="utf-8-sig"))


@dataclass(eq=False)
class Conversation:
    """path: of its session, which is there once something was answered."""

    path: Path
    messages: list[Message] = field(default_factory=list)
    document: Document | None = None  # goes with the next question

    @property
    def title(self) -> str:
        names = [part["name"] for message in self.messages for part in _parts(message) if "name" in part]
        if names or self.document is not None:
            return str(names[0] if names else self.document.name)  # type: ignore[union-attr]
        return shown(self.messages[0])[1] if self.messages else "New conversation"

    def question(self, text: str) -> Message:
        """A message of the user, with the document that waits."""
        parts: list[Message] = [{"type": "text", "text": text}]
        if self.document is not None:
            head = {"type": "text", "text": self.document.text, "document": True, "name": self.document.name}
            parts.insert(0, head)
        return {"role": "user", "content": parts}


def for_model(messages: list[Message]) -> list[Message]:
    """The messages as create_chat_completion() takes them: without the names of documents."""
    return [
        message
        if isinstance(message["content"], str)
        else {
            **message,
            "content": [{k: v for k, v in part.items() if k != "name"} for part in message["content"]],
        }
        for message in messages
    ]


def shown(message: Message) -> tuple[str | None, str]:
    """For a reader: the name of the document that came with a message, and its text without that."""
    parts = _parts(message)
    names = [part["name"] for part in parts if "name" in part]
    return (names[0] if names else None), "\n".join(part["text"] for part in parts if "name" not in part)


def _parts(message: Message) -> list[Message]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _of_this_window(message: Any) -> bool:
    """Whether it can be shown: what other programs save may hold images, or calls of tools and no text."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    return isinstance(content, str) or (
        isinstance(content, list)
        and all(
            isinstance(part, dict)
            and isinstance(part.get("text"), str)
            and isinstance(part.get("name", ""), str)
            for part in content
        )
    )


def _changed(path: Path) -> float:
    """When, in seconds; of what cannot be opened any time, which read_header() then tells of."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


class Conversations:
    """Those whose sessions are in a folder, the latest first.

    The folder is of one window at a time: each saves all that it knows of a conversation, and would write
    over what another has added meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OSError for a folder that cannot be used; BlockingIOError where another window uses it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._lock = (folder / "lock").open("a")
        if flock is not None:
            flock(self._lock, LOCK_EX | LOCK_NB)
        self.all: list[Conversation] = []
        for path in sorted(folder.glob("*.session"), key=_changed, reverse=True):
            try:
                messages = read_header(path).messages
                if not all(map(_of_this_window, messages)):
                    raise SessionError("it holds messages without text")
                self.all.append(Conversation(path, messages))
            except SessionError as error:  # stays in the folder
                _logger.warning("%s cannot be opened: %s", path, error)

    def close(self) -> None:
        """Once nothing is saved any more."""
        self._lock.close()

    def new(self) -> Conversation:
        """Another one, or that in which nothing has been asked yet."""
        for one in self.all:
            if not one.messages and one.document is None:
                return one
        path = self._folder / f"{datetime.now():%Y-%m-%d-%H%M%S-%f}.session"
        self.all.insert(0, Conversation(path))
        return self.all[0]

    def delete(self, conversation: Conversation) -> None:
        """Raises OSError where its file cannot go; it stays then."""
        conversation.path.unlink(missing_ok=True)
        self.all.remove(conversation)
