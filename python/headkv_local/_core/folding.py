"""Generation without an end: the tail after a compacted prompt becomes a part of it, again and again."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

from ..errors import ArchiveError, HeadKVError, OutOfMemoryError
from . import native
from .compactor import Compactor
from .native.plan import sentence_ends
from .pieces import Vocabulary
from .prompts import PromptTracker
from .tokens import Tokens

_logger = logging.getLogger("headkv_local")

_ASKING: Final = 32
"""Last tokens of the tail, whose attention chooses."""


class Folding:
    """Of one context."""

    def __init__(
        self, compactor: Compactor, tokens: Tokens, prompts: PromptTracker, vocabulary: Vocabulary
    ) -> None:
        self._compactor, self._tokens = compactor, tokens
        self._prompts, self._vocabulary = prompts, vocabulary
        # tokens of the prompt, and of all, at which its tail is folded
        self._due: tuple[int, int] | None = None

    def fold_if_due(self) -> None:
        """To be called before tokens are decoded after those that the context holds."""
        retention = self._compactor.retention
        if retention is None or retention.fold is None:
            return
        n_tokens, n_prompt = self._tokens.n_tokens, self._compactor.n_compacted
        n_tail = n_tokens - n_prompt
        if n_prompt == 0 or n_tail + _ASKING < retention.fold:
            return
        if self._due == (n_prompt, n_tokens) and self._fold():
            n_prompt, n_tail = n_tokens, 0
        n_asking = max(retention.fold - n_tail, _ASKING)
        is_due = n_tail + _ASKING >= retention.fold and (self._due is None or not self._due[1] > n_tokens)
        # where the context is full before, nothing is due
        if is_due and n_tokens + n_asking <= native.get_numbers(self._compactor.ctx).n_ctx:
            self._due = n_prompt, n_tokens + n_asking
            try:
                native.observe(self._compactor.ctx, native.OBSERVE_TOKENS, n_tokens, n_asking)
            except OutOfMemoryError as error:  # it is tried again then
                _logger.warning("the tokens after the prompt stay as they are for now: %s", error)

    def forget(self) -> None:
        """The prompt is another one, or has another tail."""
        self._due = None

    def _fold(self) -> bool:
        self._due = None
        held = self._tokens.held
        try:
            self._compactor.fold(sentence_ends(self._vocabulary.pieces(held)))
        except ArchiveError as error:
            _logger.warning("%s: what is kept goes on without the archive", error)
            self._compactor.give_up_archive()
            return self._fold()
        except HeadKVError as error:  # it is no reason to end an answer
            _logger.warning("the tokens after the prompt stay as they are for now: %s", error)
            return False
        record = self._prompts.record
        self._prompts.record = replace(record, n_tokens=len(held), logits=None, recurrent=None)
        return True
