"""Puts the right conversation into the context before a prompt is read, and keeps the one that it leaves."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from operator import attrgetter

import numpy as np

from .. import Llama, Retention
from ..errors import ArgumentError, HeadKVError
from ..machine import trim_heap
from .asides import Asides
from .conversations import Conversation, Tokens, choose
from .shelf import Shelf

_logger = logging.getLogger("headkv_local.server")


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
        stays = stays and not (retains and self._moves(kept))
        if branches or not stays:
            self._set_aside(None if branches else one)
        stays = stays and not (retains and self._moves(kept))  # what was set aside has its rows there too
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
            self.save_all(at_end=True)
            for one in self._waiting():
                self._asides.drop(one)
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

    def save_all(self, at_end: bool = False) -> None:
        """Those that wait in memory too, the latest first; the context may hold any of them afterwards.

        at_end: also where that costs the one in the context, which cannot be kept then.
        """
        self.save()
        shelf = self._shelf
        if shelf is None or all(map(self._is_saved, self._asides)):
            return
        self._set_aside()
        if not (at_end or self._can_leave()):
            return
        for one in reversed(self._waiting()):
            if one in self._asides and shelf.keeps(one, *self._asides.sizes(one)):
                self._write(one)

    def put_away(self) -> bool:
        """Those that wait in memory go to their sessions, as the one in the context does, which is empty
        afterwards: there is room then. False where none can."""
        self.save()
        waiting, one, n = self._waiting(), self.held, 0
        if not waiting or not (self._can_leave() or (one is not None and self._asides.put(one))):
            return False
        for other in waiting:
            if self._write(other):
                self._asides.drop(other)
                n += 1
        self._llm.reset()
        self.held = None
        return n > 0

    def _waiting(self) -> list[Conversation]:
        """In memory, those used longest ago first."""
        return sorted(self._asides, key=attrgetter("used"))

    def _can_leave(self) -> bool:
        """Whether what the context holds is known elsewhere."""
        one = self.held
        return one is None or one in self._asides or self._is_saved(one)

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
            if not self._write(other) and self.held is not other:
                break  # there is no memory to load it: it waits on
            self._asides.drop(other)

    def _trim(self) -> None:
        """Of more conversations than may be beside the one in the context, those used longest ago go."""
        shelf, held = self._shelf, self.held
        if shelf is None:
            return
        while True:
            beside = {one.name: one for one in (*shelf.left_out, *shelf, *self._asides)}
            if held is not None:
                beside.pop(held.name, None)
            if len(beside) <= shelf.most:
                return
            oldest = min(shelf.left_out or beside.values(), key=attrgetter("used"))
            self._asides.drop(oldest)
            shelf.drop(oldest)

    def _write(self, one: Conversation) -> bool:
        """One that waits, to its session, by way of the context, unless that is as it is. False, and it waits
        still, where that cannot be."""
        if self._is_saved(one):
            return True
        kept = one.retention or self._llm.retention
        try:  # the archive stays where it is, for the others
            self._empty(None if kept is None else kept.having(archive=_place(self._llm.retention)))
            if not self._asides.load(one):
                return False
        except MemoryError as error:
            _logger.warning("a conversation of %d tokens is not saved now: %s", len(one.tokens), error)
            return False
        self.held = one
        self.save()
        return self._is_saved(one)

    def _leave_archive(self) -> None:
        """It moves, and the rows in it go: those that wait go to their sessions, else on without their rows.
        The context is empty afterwards."""
        for one in self._waiting():
            if self._write(one) or (self._shelf is not None and one in self._shelf):
                self._asides.drop(one)
            else:
                one.archived = False
        self._llm.reset()
        self.held = None

    def _loaded(self, one: Conversation) -> Conversation | None:
        """In the context, as it was when it left. None where that cannot be."""
        if self._asides.load(one):
            return one
        return None if self._shelf is None else self._shelf.load(self._llm, one)

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
        """The context is empty, if the archive moves by that."""
        if self._moves(wanted):
            self._leave_archive()
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
