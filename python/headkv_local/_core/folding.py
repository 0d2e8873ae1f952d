"""Generation without an end: what comes after a prompt becomes a part of it, again and again."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any, Final

from ..errors import ArchiveError, HeadKVError
from . import native
from .compactor import Compactor
from .native.plan import sentence_ends
from .pieces import Vocabulary
from .prompts import PromptTracker
from .tokens import Tokens

_logger = logging.getLogger("headkv_local")

_ASKING: Final = 32
"""Last tokens, whose attention chooses."""


class Folding:
    """Of one context."""

    def __init__(
        self, compactor: Compactor, tokens: Tokens, prompts: PromptTracker, vocabulary: Vocabulary
    ) -> None:
        self._compactor, self._tokens = compactor, tokens
        self._prompts, self._vocabulary = prompts, vocabulary

    def fold_if_due(self, n_new: int) -> None:
        """To be called before n_new tokens are decoded after those that the context holds."""
        retention = self._compactor.retention
        if retention is None or retention.fold is None or n_new == 0:
            return
        n_tokens, n_read = self._tokens.n_tokens, self._prompts.record.n_tokens or 0
        due = self._prompts.record.due
        if due is None and n_tokens + max(_ASKING, n_new) < n_read + retention.fold:
            return  # in most steps: not worth a call of the library
        n_prompt = self._n_prompt()
        # as many as the window at least: what was kept of the prompt may be by a retention with a smaller one
        fold = max(retention.fold, self._compactor.window)
        n_more = self._compactor.window  # tokens that may come after those that ask: all heads keep them
        if self._is_due(n_prompt, n_tokens, n_more) and self._fold(n_prompt):
            n_prompt = n_tokens
        n_tail = n_tokens - self._n_spared(max(n_prompt, self._prompts.record.stays), fold)
        if n_prompt == 0 or n_tail + max(_ASKING, n_new) < fold:
            return
        due = self._prompts.record.due
        comes = due is not None and n_tokens < due[1] >= n_tokens + n_new - n_more
        if not comes:
            self._ask(n_prompt, n_tokens, n_new)

    def forget(self) -> None:
        """The prompt is another one, or has another tail, or another retention counts."""
        self._note(due=None, stays=0)

    def _note(self, **what: Any) -> None:
        self._prompts.record = replace(self._prompts.record, **what)

    def _n_prompt(self) -> int:
        """Tokens of the prompt, which is compacted, or whole because it fits into the budget; else 0."""
        record = self._prompts.record
        return self._compactor.n_compacted or (record.n_tokens or 0 if record.fits else 0)

    def _n_spared(self, n_from: int, fold: int) -> int:
        """Tokens, the first n_from among them, that are no reason to fold: those of the last turn stay whole
        for its answer. Where they alone would be reason enough, what lies before them is none either."""
        end = min(self._last_turn()[0], self._tokens.n_tokens)
        n_asked = self._n_asked(n_from)
        return max(n_from, end) if n_asked >= fold else n_from + n_asked

    def _n_asked(self, n_from: int) -> int:
        """Tokens from n_from on that came with the last turn."""
        end, n_new = self._last_turn()
        return max(0, min(end, self._tokens.n_tokens) - max(end - n_new, n_from))

    def _last_turn(self) -> tuple[int, int]:
        turns = self._prompts.record.turns
        return turns[-1] if turns else (0, 0)

    def _is_due(self, n_prompt: int, n_tokens: int, n_more: int) -> bool:
        due = self._prompts.record.due
        return due is not None and due[0] == n_prompt and 0 <= n_tokens - due[1] <= n_more

    def _ask(self, n_prompt: int, n_tokens: int, n_new: int) -> None:
        """The last of the next n_new tokens, or all of the next times as many."""
        compactor, first, n = self._compactor, n_tokens, -(-_ASKING // n_new) * n_new
        if n_new > _ASKING:
            first, n = n_tokens + n_new - _ASKING, _ASKING
        if first + n > native.get_numbers(compactor.ctx).n_ctx:
            return  # it is full before
        try:
            if compactor.fold_caps(n_prompt, first + n, self._n_asked(n_prompt)) is not None:
                compactor.begin_tail(first, n)
                self._note(due=(n_prompt, first + n))
                return
        except HeadKVError as error:  # it is no reason to end an answer
            self._stays(error)
        self._note(stays=n_tokens)  # until as many more are there

    def _fold(self, n_prompt: int) -> bool:
        self._note(due=None)
        held, compactor = self._tokens.held, self._compactor
        try:
            caps = compactor.fold_caps(n_prompt, len(held), self._n_asked(n_prompt))
            if caps is None:
                return False
            compactor.fold(caps, sentence_ends(self._vocabulary.pieces(held)))
        except ArchiveError as error:
            _logger.warning("%s: what is kept goes on without the archive", error)
            compactor.give_up_archive()
            return self._fold(n_prompt)
        except HeadKVError as error:
            self._stays(error)
            return False
        record = self._prompts.record
        self._prompts.record = replace(record, n_tokens=len(held), question=None, logits=None, recurrent=None)
        return True

    def _stays(self, error: HeadKVError) -> None:
        _logger.warning("the tokens after the prompt stay as they are for now: %s", error)
