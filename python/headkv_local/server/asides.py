"""Conversations that wait in memory, beside the one in the context.

What heads keep of them is copied; their rows stay in the context's archive. So a change of conversations
reads and writes no file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from operator import attrgetter
from typing import Final, NamedTuple

from llama_cpp.llama import LlamaState

from .. import Llama
from ..errors import StateError
from ..machine import memory_free
from .conversations import Conversation
from .shelf import sizes_of

_logger = logging.getLogger("headkv_local.server")

_SHARE: Final = 4  # they may take one part in so many of what would be free without them


class _Aside(NamedTuple):
    one: Conversation
    state: LlamaState
    n_bytes: int


class Asides:
    """Of one Llama. most: conversations; most_bytes: of all, None: as many as a full context takes, and no
    more than a share of the memory that is free.

    To be changed by who uses the context. One that was loaded waits here still, until it is dropped: that is
    before anything is added to it.
    """

    def __init__(self, llm: Llama, most: int, most_bytes: int | None) -> None:
        self._llm, self._most, self._most_bytes = llm, most, most_bytes
        self._there: dict[str, _Aside] = {}

    def __iter__(self) -> Iterator[Conversation]:
        return iter([aside.one for aside in tuple(self._there.values())])

    def __len__(self) -> int:
        return len(self._there)

    def __contains__(self, one: Conversation) -> bool:
        return one.name in self._there

    @property
    def n_bytes(self) -> int:
        return sum(aside.n_bytes for aside in tuple(self._there.values()))

    def put(self, one: Conversation) -> bool:
        """What the context holds; it stays there too. False where there is no room for it, or where its rows
        are in a file: then memory is what lacks."""
        retention = self._llm.retention
        n_bytes, n_light = sizes_of(self._llm)
        in_file = retention is not None and retention.archive not in (None, "memory")
        if in_file or self._most == 0 or n_bytes > self._room:
            return False
        try:
            state = self._llm.save_state(hold=True)
        except MemoryError as error:
            _logger.info("a conversation of %d tokens does not wait in memory: %s", len(one.tokens), error)
            return False
        state.scores = state.scores[:0].copy()  # as of a session: whoever asks for them has the prompt read
        self._there[one.name] = _Aside(one, state, state.llama_state_size + n_bytes - n_light)
        return True

    def load(self, one: Conversation) -> bool:
        """Into the context. False if it is not here. MemoryError leaves it here, and the context empty."""
        aside = self._there.get(one.name)
        if aside is None:
            return False
        try:
            self._llm.load_state(aside.state)
        except StateError as error:
            _logger.warning("a conversation of %d tokens is read anew: %s", len(one.tokens), error)
            self.drop(one)
            return False
        return True

    def sizes(self, one: Conversation) -> tuple[int, int]:
        """Bytes of one that is here, with its rows and without."""
        aside = self._there[one.name]
        return aside.n_bytes, aside.state.llama_state_size

    def drop(self, one: Conversation) -> None:
        self._there.pop(one.name, None)

    def too_much(self, comes: Conversation | None) -> Conversation | None:
        """The one used longest ago, where they take more than they may. comes: the one that goes next."""
        stay = [aside for aside in self._there.values() if aside.one is not comes]
        if sum(aside.n_bytes for aside in stay) <= self._room:
            return None
        return min((aside.one for aside in stay), key=attrgetter("used"))

    @property
    def _room(self) -> int:
        if self._most_bytes is not None:
            return self._most_bytes
        full, free = self._llm.cache_stats().full_bytes, memory_free()
        return full if free is None else min(full, (free + self.n_bytes) // _SHARE)
