"""Puts the right conversation into the context before a prompt is read, and keeps the one that it leaves."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from operator import attrgetter

import numpy as np

from .. import Llama, Retention
from ..errors import ArgumentError, HeadKVError
from ..machine import trim_heap
from .asides import Asides
from .conversations import Conversation, Tokens, choose
from .shelf import Shelf


class Keeper:
    """Of one Llama. Conversations that leave the context wait in memory, else on the shelf.

    shelf: None where those that leave the context are gone. aside_bytes: of those that wait in memory, None
    for what Asides takes.

    To be called by one thread at a time, while nothing computes in the context.
    """

    def __init__(self, llm: Llama, shelf: Shelf | None, aside_bytes: int | None = None) -> None:
        self._llm, self._shelf = llm, shelf
        if shelf is not None:
            shelf.find(llm)
        self._asides = Asides(llm, 0 if shelf is None else shelf.most, aside_bytes)
        self.held: Conversation | None = None
        """The conversation in the context."""
        self._root: Conversation | None = None  # which it has begun as, until its prompt is read
        self._going_back = _can_go_back(llm)

    @property
    def n_kept(self) -> int:
        """Conversations in the context, in memory and in the folder. From any thread."""
        return len(self._known())

    @property
    def n_bytes(self) -> int:
        """Of all sessions in the folder."""
        return 0 if self._shelf is None else self._shelf.n_bytes

    @property
    def aside_bytes(self) -> int:
        """Of the conversations that wait in memory, with their rows in the archive. From any thread."""
        return self._asides.n_bytes

    def _known(self) -> tuple[Conversation, ...]:
        """Each once, as it is now."""
        held = self.held
        known = {one.name: one for one in (*(self._shelf or ()), *self._asides)}
        return tuple((known if held is None else known | {held.name: held}).values())

    def prepare(self, tokens: Sequence[int], wanted: Retention | None, archive: bool = True) -> None:
        """Before a prompt is read. Raises what cannot be retained; the context is empty then.

        archive: False where it cannot be had. A conversation that has lost its own goes on without in any
        case.
        """
        self.settle()
        self._look()
        prompt = np.asarray(tokens, dtype=np.int32)
        found = choose(self._known(), self.held, prompt, wanted, self._going_back)
        lighter = None if wanted is None else wanted.without_archive()
        kept = wanted if archive else lighter
        if found is None:
            self.leave(kept)
            self._hold(Conversation(), wanted)
            return
        one, n_common = found
        self._use(one)  # so that it is not what goes for another
        branches = not one.goes_on(n_common) and one.has_own(n_common)
        there = self._llm.retention
        stays = one is self.held and (there in (wanted, lighter) or not one.compacted)
        retains = not (stays and one.compacted and there == lighter)
        if stays and retains and self._moves(kept):
            stays = False
        if branches or not stays:
            self._set_aside(one)
        if not stays or self.held is not one:
            self._empty(kept)
            loaded = self._loaded(one)
            if loaded is None:
                self.prepare(tokens, wanted, archive)  # with what else there is
                return
            one = loaded
        elif retains:
            self._retain(kept)
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
        self._set_aside()
        self._empty(wanted)

    def close(self) -> None:
        try:
            self.save_all()
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
        if one is not None and shelf is not None and not self._is_saved(one):
            shelf.save(self._llm, one)
            self._trim()

    def save_all(self) -> None:
        """Those that wait in memory too; the context may hold any of them afterwards."""
        self.save()
        one = self.held
        waiting = [other for other in self._asides if not self._is_saved(other)]
        if waiting and (one is None or self._asides.put(one) or self._is_saved(one)):
            for other in sorted(waiting, key=attrgetter("used")):
                self._write(other)

    def put_away(self) -> bool:
        """All that wait in memory go to their sessions, and make room for what is in the context; that is
        saved too. False where none waits, or where that cannot be."""
        self.save()
        if len(self._asides) == 0 or not (self.held is None or self._is_saved(self.held)):
            return False
        self._clear()
        return True

    def _is_saved(self, one: Conversation) -> bool:
        return one.saved and self._shelf is not None and one in self._shelf

    def _set_aside(self, comes: Conversation | None = None) -> None:
        """What the context holds is kept: in memory, or in its session. comes: what takes its place."""
        self.settle()
        self._look()
        one = self.held
        if one is None or self._shelf is None:
            return
        if not self._asides.put(one):
            self.save()
            return
        while (other := self._asides.too_much(comes)) is not None:
            self._write(other)
            self._asides.drop(other)

    def _trim(self) -> None:
        """Of more conversations than may be, those used longest ago go."""
        shelf = self._shelf
        if shelf is None:
            return
        while (other := self._asides.too_many()) is not None:
            self._asides.drop(other)
            shelf.drop(other)
        shelf.trim(sum(other not in shelf for other in self._asides))

    def _clear(self) -> None:
        """None waits in memory any more. The context is empty afterwards."""
        for other in sorted(self._asides, key=attrgetter("used")):
            self._write(other)
            self._asides.drop(other)
        self._llm.reset()
        self.held = None

    def _write(self, one: Conversation) -> None:
        """One that waits, to its session, by way of the context, unless that is as it is. One that has lost
        its archive leaves a session that has it."""
        if self._is_saved(one):
            return
        there, kept = self._llm.retention, one.retention
        self._empty(None if kept is None else replace(kept, archive=_place(there)))
        if self._asides.load(one) and not (self._is_less(one) and one in (self._shelf or ())):
            self.held = one
            self.save()

    def _loaded(self, one: Conversation) -> Conversation | None:
        """In the context, as it was when it left. None where that cannot be."""
        if self._asides.load(one):
            if self._shelf is None or one not in self._shelf or not self._is_less(one):
                return one
            self._asides.drop(one)
        return None if self._shelf is None else self._shelf.load(self._llm, one)

    def _is_less(self, one: Conversation) -> bool:
        """Whether what is in the context has lost its archive, since it was set aside."""
        return one.archived and self._llm.cache_stats().archive_tokens == 0

    def _look(self) -> None:
        """Whether what is kept is still there."""
        if self._shelf is not None:
            with suppress(ArgumentError):  # who saves is told
                self._shelf.renew()

    def _hold(self, one: Conversation, wanted: Retention | None) -> None:
        one.retention = wanted
        self._asides.drop(one)  # what waits there is soon not as it is
        self._use(one)
        self.held = one
        self._trim()

    def _use(self, one: Conversation) -> None:
        if self._shelf is not None:
            self._shelf.use(one)

    def _empty(self, wanted: Retention | None) -> None:
        self._llm.reset()  # unless the request is cancelled, whose client has left
        self.held = None
        trim_heap()  # else what conversations leave behind adds up to a third more than is used
        self._retain(wanted)

    def _retain(self, wanted: Retention | None) -> None:
        """The context is empty, if the archive moves by that: those that wait in memory have rows in it."""
        if self._moves(wanted):
            self._clear()
        if wanted != self._llm.retention:
            self._llm.retention = wanted

    def _moves(self, wanted: Retention | None) -> bool:
        return len(self._asides) > 0 and _place(wanted) != _place(self._llm.retention)


def _place(retention: Retention | None) -> str | os.PathLike[str] | None:
    """Where the archive is."""
    return None if retention is None else retention.archive


def _can_go_back(llm: Llama) -> bool:
    """Whether all layers keep all positions: sliding windows and recurrent states do not."""
    try:
        return llm.shape.bounded_bytes == 0
    except HeadKVError:
        return False
