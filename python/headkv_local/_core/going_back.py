"""How much of a prompt need not be read, since the cache or the archive holds it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .decoder import Decoder
from .prompts import PromptTracker, n_same


class GoingBack(Decoder):
    """A Decoder that goes back to where a prompt differs from the one before."""

    _prompts: PromptTracker
    _cut_from: int | None = None
    """Tokens in the cache, while n_tokens says how many of them the next prompt keeps: see _reuse()."""

    @property
    def reread_reason(self) -> str | None:
        """Why the last prompt was read whole although an earlier one was compacted; None where it was not."""
        return self._prompts.reread

    def _note_reread(self, tokens: list[int], rewritten: bool = False) -> None:
        compacted = self.input_ids[: self._compactor.n_compacted]
        archived = self._compactor.n_archived > 0 and not self._bounded
        if archived and n_same(compacted, tokens) > 0:  # it is read from there on
            compacted = compacted[:0]
        self._prompts.compare(compacted, tokens, rewritten)

    def _rewind(self, tokens: list[int]) -> None:
        """If tokens are the prompt that was compacted, go back to its end, with its logits.

        Its last token cannot be decoded again, as a stock cache does it: others that it looked at are gone.
        """
        n = len(tokens)
        if (
            self._prompts.record.logits is None
            or n != self._prompts.record.n_tokens
            or self._compactor.n_compacted == 0
        ):
            return
        if self.input_ids[:n].tolist() != tokens or not self._go_back(n):
            return
        if self._n_logits == 0 and n < self._n_ctx:  # of a state; whatever is decoded makes room for them
            if self._bounded.recurrent and self._prompts.record.recurrent is None:  # of a light session
                self._prompts.record = replace(self._prompts.record, recurrent=self._bounded.snapshot())
            self._evaluate(tokens[-1:])
            self._go_back(n)
        self._put_back(self._prompts.record.logits)

    def _put_back(self, before: npt.NDArray[np.float32] | None) -> None:
        """The logits of the last token, after others were evaluated and taken back."""
        logits = self._logits()
        if logits is not None and before is not None:
            logits[:] = before
            self._n_logits = 1
            self._requires_eval = False

    def _reuse(self, tokens: list[int]) -> int:
        """How many of the first tokens stay in the cache; all behind them is forgotten."""
        same = n_same(self.input_ids[: self.n_tokens], tokens)
        if same == len(tokens) == self.n_tokens and not self._requires_eval:
            return same
        same = min(same, len(tokens) - 1)  # the last one is decoded again, for its logits
        if same > 0 and self._reads_anew(same):  # the cache stays as it is until the prompt has been read
            self._cut_from, self.n_tokens, self._requires_eval = self.n_tokens, same, True
            return same
        n_prompt = self._prompts.record.n_tokens or 0
        for n in (same, n_prompt):
            if 0 < n <= same and self._go_back(n):
                return n
        if self._compactor.n_compacted > 0 and self._prompts.reread is None:
            self._prompts.cannot_go_back(same)
        self.reset()
        return 0

    def _reads_anew(self, n_tokens: int) -> bool:
        """Whether a prompt that goes on from the first n_tokens is read against the archive."""
        compactor = self._compactor
        n_archived = compactor.n_archived
        return n_archived > 0 and (compactor.reselects or n_tokens < n_archived)

    def _uncut(self) -> None:
        """What the cache holds counts again: the prompt that was to follow on a part of it was not read."""
        if self._cut_from is not None:
            self.n_tokens, self._cut_from = self._cut_from, None

    def _go_back(self, n_tokens: int) -> bool:
        """As _truncate(); also to the end of a compacted prompt, where recurrent layers are put back."""
        if self._truncate(n_tokens):
            return True
        record = self._prompts.record
        if record.recurrent is None or record.n_tokens != n_tokens:
            return False
        self._bounded.put_back(record.recurrent)
        return self._truncate(n_tokens)

    def _logits_copy(self) -> npt.NDArray[np.float32] | None:
        logits = self._logits()
        return None if logits is None else logits.copy()
