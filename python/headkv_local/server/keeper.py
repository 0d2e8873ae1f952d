"""Puts the right conversation into the context before a prompt is read, and keeps the one that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from .. import Llama, Retention
from ..errors import ArgumentError, HeadKVError
from ..machine import trim_heap
from .conversations import Conversation, Tokens, choose
from .shelf import Shelf


class Keeper:
    """Of one Llama. shelf: None where conversations that leave the context are gone.

    To be called by one thread at a time, while nothing computes in the context.
    """

    def __init__(self, llm: Llama, shelf: Shelf | None) -> None:
        self._llm, self._shelf = llm, shelf
        if shelf is not None:
            shelf.find(llm)
        self.held: Conversation | None = None
        """The conversation in the context."""
        self._root: Conversation | None = None  # which it has begun as, until its prompt is read
        self._going_back = _can_go_back(llm)

    @property
    def n_kept(self) -> int:
        """Conversations in the context and in the folder. From any thread."""
        held = self.held
        alone = held is not None and (self._shelf is None or held not in self._shelf)
        return alone + (0 if self._shelf is None else len(self._shelf))

    @property
    def n_bytes(self) -> int:
        """Of all sessions in the folder."""
        return 0 if self._shelf is None else self._shelf.n_bytes

    def prepare(self, tokens: Sequence[int], wanted: Retention | None, archive: bool = True) -> None:
        """Before a prompt is read. Raises what cannot be retained; the context is empty then.

        archive: False where it cannot be had. A conversation that has lost its own goes on without in any
        case.
        """
        self.settle()
        self._look()
        prompt = np.asarray(tokens, dtype=np.int32)
        there = [] if self.held is None else [self.held]
        if self._shelf is not None:
            there += [one for one in self._shelf if self.held is None or one.name != self.held.name]
        found = choose(there, self.held, prompt, wanted, self._going_back)
        lighter = None if wanted is None else wanted.without_archive()
        kept = wanted if archive else lighter
        if found is None:
            self.leave(kept)
            self._hold(Conversation(), wanted)
            return
        one, n_common = found
        self._use(one)  # so that it is not what goes for another
        branches = not one.goes_on(n_common) and one.has_own(n_common)
        if one is self.held and (self._llm.retention in (wanted, lighter) or not one.compacted):
            if branches:
                self.save()
            if not (one.compacted and self._llm.retention == lighter):
                self._retain(kept)
        else:
            self.save()
            self._empty(kept)
            loaded = None if self._shelf is None else self._shelf.load(self._llm, one)
            if loaded is None:
                self.prepare(tokens, wanted, archive)  # with what else there is
                return
            one = loaded
        self._root = one if branches else None
        self._hold(one.branch() if branches else one, wanted)

    def settle(self) -> None:
        """Whatever has used the context: the conversation is what it holds."""
        one, tokens = self.held, self._tokens()
        root, self._root = self._root, None
        if len(tokens) == 0 or one is None:
            self.held = None
            return
        if root is not None and np.array_equal(tokens, root.tokens):  # its prompt has not been read
            self.held = root
            return
        stats = self._llm.cache_stats()
        n_prompt = min(stats.turn_tokens, len(tokens))
        if n_prompt != one.n_prompt or not np.array_equal(tokens, one.tokens):
            one.saved = False
        one.tokens, one.n_prompt = tokens, n_prompt
        one.n_whole = min(stats.archive_tokens or stats.prompt_tokens, len(tokens))
        one.compacted, one.archived = stats.compacted, stats.archive_tokens > 0

    def leave(self, wanted: Retention | None) -> None:
        """The context is empty afterwards, for prompts of which that is kept, and nothing is lost."""
        self.save()
        self._empty(wanted)

    def close(self) -> None:
        try:
            self.save()
        finally:
            if self._shelf is not None:
                self._shelf.close()

    def _tokens(self) -> Tokens:
        return np.array(self._llm.input_ids[: self._llm.n_tokens], dtype=np.int32)

    def save(self) -> None:
        """The conversation in the context, to its session, if that is not as it is."""
        self.settle()
        self._look()
        one, shelf = self.held, self._shelf
        if one is not None and shelf is not None and not (one.saved and one in shelf):
            shelf.save(self._llm, one)

    def _look(self) -> None:
        """Whether what is kept is still there."""
        if self._shelf is not None:
            with suppress(ArgumentError):  # who saves is told
                self._shelf.renew()

    def _hold(self, one: Conversation, wanted: Retention | None) -> None:
        one.retention = wanted
        self._use(one)
        self.held = one

    def _use(self, one: Conversation) -> None:
        if self._shelf is not None:
            self._shelf.use(one)

    def _empty(self, wanted: Retention | None) -> None:
        self._llm.reset()  # unless the request is cancelled, whose client has left
        self.held = None
        trim_heap()  # else what conversations leave behind adds up to a third more than is used
        self._retain(wanted)

    def _retain(self, wanted: Retention | None) -> None:
        if wanted != self._llm.retention:
            self._llm.retention = wanted


def _can_go_back(llm: Llama) -> bool:
    """Whether all layers keep all positions: sliding windows and recurrent states do not."""
    try:
        return llm.shape.bounded_bytes == 0
    except HeadKVError:
        return False
