"""What is known of the chats whose messages are read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, Final

from .turns import Turn

_logger = logging.getLogger("headkv_local")

_NONE: Final = (), 0, False


class Chats:
    """Of one Llama, whatever threads they are read in."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._here = threading.local()

    @contextmanager
    def reading(
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

    def warn(self, text: str) -> None:
        """Once."""
        if text not in self._said:
            self._said.add(text)
            _logger.warning(text)
