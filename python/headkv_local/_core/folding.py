"""Generation without an end: what comes after a prompt becomes a part of it, again and again."""

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
"""Last tokens, whose attention chooses."""


class Folding:
    """Of one context."""

    def __init__(
        self, compactor: Compactor, tokens: Tokens, prompts: PromptTracker, vocabulary: Vocabulary
    ) -> None:
        self._compactor, self._tokens = compactor, tokens
        self._prompts, self._vocabulary = prompts, vocabulary
        # tokens of the prompt, and of all, at which what came after it is folded
        self._due: tuple[int, int] | None = None
        self._n_fit = 0  # tokens that were found to fit into the budget

    def fold_if_due(self) -> None:
        """To be called before tokens are decoded after those that the context holds."""
        retention = self._compactor.retention
        if retention is None or retention.fold is None:
            return
        n_tokens, n_prompt = self._tokens.n_tokens, self._n_prompt()
        n_tail = n_tokens - max(n_prompt, self._n_fit)
        if n_prompt == 0 or n_tail + _ASKING < retention.fold:
            return
        if self._due == (n_prompt, n_tokens) and self._fold(n_prompt):
            n_prompt, n_tail = n_tokens, 0
        n_asking = max(retention.fold - n_tail, _ASKING)
        is_due = n_tail + _ASKING >= retention.fold and (self._due is None or not self._due[1] > n_tokens)
        # where the context is full before, nothing is due
        if is_due and n_tokens + n_asking <= native.get_numbers(self._compactor.ctx).n_ctx:
            self._ask(n_prompt, n_tokens, n_asking)

    def forget(self) -> None:
        """The prompt is another one, or has another tail."""
        self._due, self._n_fit = None, 0

    def _n_prompt(self) -> int:
        """Tokens of the prompt, which is compacted, or whole where it fits into the budget."""
        return self._compactor.n_compacted or self._prompts.record.n_tokens or 0

    def _ask(self, n_prompt: int, n_tokens: int, n_asking: int) -> None:
        """Of the next n_asking tokens; then it is due."""
        compactor, n_all = self._compactor, n_tokens + n_asking
        if compactor.fold_caps(n_prompt, n_all) is None:
            self._n_fit = n_tokens
            return
        self._due = n_prompt, n_all
        try:
            if compactor.n_compacted == 0:
                compactor.expect(n_all)  # cells that move while tokens ask have them ask in vain
            native.observe(compactor.ctx, native.OBSERVE_TOKENS, n_tokens, n_asking)
        except OutOfMemoryError as error:  # it is tried again then
            _logger.warning("the tokens after the prompt stay as they are for now: %s", error)

    def _fold(self, n_prompt: int) -> bool:
        self._due = None
        held, compactor = self._tokens.held, self._compactor
        caps = compactor.fold_caps(n_prompt, len(held))
        if caps is None:  # the retention is another one since
            return False
        try:
            compactor.fold(caps, sentence_ends(self._vocabulary.pieces(held)))
        except ArchiveError as error:
            _logger.warning("%s: what is kept goes on without the archive", error)
            compactor.give_up_archive()
            return self._fold(n_prompt)
        except HeadKVError as error:  # it is no reason to end an answer
            _logger.warning("the tokens after the prompt stay as they are for now: %s", error)
            return False
        self._prompts.record = replace(
            self._prompts.record,
            n_tokens=len(held),
            policy=compactor.policy,
            scores_from=compactor.scores_from,
            logits=None,
            recurrent=None,
        )
        return True
