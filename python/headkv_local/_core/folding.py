"""Generation without an end: the tail after a compacted prompt becomes a part of it, again and again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from ..errors import ArchiveError, HeadKVError, OutOfMemoryError
from . import native
from .compactor import Compactor

_logger = logging.getLogger("headkv_local")

_ASKING: Final = 32
"""Last tokens of the tail, whose attention chooses."""


class Folding:
    """Of one context."""

    def __init__(self, compactor: Compactor) -> None:
        self._compactor = compactor
        # tokens of the prompt, and of all, at which its tail is folded
        self._due: tuple[int, int] | None = None

    def before(self, n_tokens: int, ends: Callable[[], npt.NDArray[np.uint8]]) -> bool:
        """To be called before tokens are decoded after the n_tokens that the context holds. Whether the tail
        was folded. ends: of the sentences, of all these tokens."""
        retention = self._compactor.retention
        if retention is None or retention.fold is None:
            return False
        n_prompt = self._compactor.n_compacted
        n_tail = n_tokens - n_prompt
        if n_prompt == 0 or n_tail + _ASKING < retention.fold:
            return False
        folded = False
        if self._due == (n_prompt, n_tokens):
            folded = self._fold(ends())
            n_prompt, n_tail = (n_tokens, 0) if folded else (n_prompt, n_tail)
        n_asking = max(retention.fold - n_tail, _ASKING)
        is_due = n_tail + _ASKING >= retention.fold and (self._due is None or not self._due[1] > n_tokens)
        # where the context is full before, nothing is due
        if is_due and n_tokens + n_asking <= native.get_numbers(self._compactor.ctx).n_ctx:
            self._due = n_prompt, n_tokens + n_asking
            try:
                native.observe(self._compactor.ctx, native.OBSERVE_TOKENS, n_tokens, n_asking)
            except OutOfMemoryError as error:  # it is tried again then
                _logger.warning("the tokens after the prompt stay as they are for now: %s", error)
        return folded

    def forget(self) -> None:
        """The prompt is another one, or has another tail."""
        self._due = None

    def _fold(self, ends: npt.NDArray[np.uint8]) -> bool:
        self._due = None
        try:
            self._compactor.fold(ends)
        except ArchiveError as error:
            _logger.warning("%s: what is kept goes on without the archive", error)
            self._compactor.give_up_archive()
            return self._fold(ends)
        except HeadKVError as error:  # it is no reason to end an answer
            _logger.warning("the tokens after the prompt stay as they are for now: %s", error)
            return False
        return True
