"""What a context holds, and how it goes back to where a prompt differs from the one before."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, ContextFullError
from ..stats import PromptRecord
from ..tokens import n_same
from .bounded import Bounded
from .compactor import Compactor
from .context import Context
from .folding import Folding
from .prompts import PromptTracker
from .tokens import Tokens


class Contents:
    """Of one context: cells, kept rows and bounded layers hold the tokens that count, or all are empty."""

    def __init__(
        self,
        context: Context,
        tokens: Tokens,
        bounded: Bounded,
        compactor: Compactor,
        folding: Folding,
        prompts: PromptTracker,
    ) -> None:
        self.context, self.tokens, self.bounded = context, tokens, bounded
        self._compactor, self._folding, self._prompts = compactor, folding, prompts

    def reset(self) -> None:
        """Forget all tokens."""
        self.tokens.clear()
        self.context.clear()
        self.forget_prompt()

    def forget_prompt(self) -> None:
        """What is held is not of the prompt that was read last."""
        self._folding.forget()
        self._compactor.release()
        self._prompts.record = PromptRecord()

    def truncate(self, n_tokens: int) -> bool:
        """Keep the first n_tokens. False, and nothing is done, if a part of a compacted prompt would go, or
        where bounded layers cannot go back so far."""
        if n_tokens < self.tokens.n_tokens and not self._reaches(n_tokens):
            return False
        if not self.context.cut(n_tokens):
            return False
        self.tokens.keep(n_tokens)
        return True

    def _reaches(self, n_tokens: int) -> bool:
        """Whether sliding windows go back so far; the library puts them back to an archived prompt's end."""
        if self.bounded.reaches(n_tokens):
            return True
        return 0 < n_tokens == self._compactor.n_archived == self._compactor.n_compacted

    def go_back(self, n_tokens: int) -> bool:
        """As truncate(); also to the end of a compacted prompt without an archive, where recurrent layers are
        put back."""
        if self.truncate(n_tokens):
            return True
        record = self._prompts.record
        if record.recurrent is None or record.n_tokens != n_tokens:
            return False
        self.bounded.put_back(record.recurrent)
        return self.truncate(n_tokens)

    def logits(self) -> npt.NDArray[np.float32] | None:
        """llama.cpp's own of the token decoded last, (n_vocab,); None where there are none."""
        return None if self.tokens.n_logits == 0 else self.context.logits()

    def put_back(self, before: npt.NDArray[np.float32] | None) -> None:
        """The logits of the last token, after others were evaluated and taken back."""
        logits = self.logits()
        if logits is not None and before is not None:
            logits[:] = before
            if self.context.logits_all:
                self.tokens.scores[self.tokens.n_tokens - 1] = before
            self.tokens.evaluated(n_logits=1)

    def require_prompt(self, tokens: list[int], n_before: int) -> None:
        """Raise for a prompt that can never be read, where n_before tokens are held before it."""
        n_prompt, room = n_before + len(tokens), self.context.n_ctx
        if n_prompt == 0:
            raise ArgumentError("the prompt is empty: it must have at least one token")
        self.context.require_known(tokens)
        if n_prompt > room:
            raise ContextFullError(
                f"the prompt of {n_prompt} tokens does not fit into the context "
                f"(Requested tokens ({n_prompt}) exceed context window of {room})"
            )

    def require_room(self, n_new: int) -> None:
        room, n_held = self.context.n_ctx, self.tokens.n_tokens
        if n_held + n_new > room:
            raise ContextFullError(
                f"the context of {room} tokens is full: it holds {n_held}, and {n_new} more do not fit "
                f"(Requested tokens ({n_held + n_new}) exceed context window of {room})"
            )

    def compare(self, tokens: list[int], rewritten: bool) -> None:
        """Note why a prompt has to be read whole, if it does not go on from the compacted one."""
        n_archived = self._compactor.n_archived
        compacted = self.tokens.input_ids[: n_archived or self._compactor.n_compacted]
        archived = n_archived > 0 and not self.bounded
        if archived and n_same(compacted, tokens) > 0:  # it is read from there on
            compacted = compacted[:0]
        self._prompts.compare(compacted, tokens, rewritten)

    def reads_anew(self, n_tokens: int, n_prompt: int) -> bool:
        """Whether a prompt that goes on from the first n_tokens, and is n_prompt tokens as later turns begin
        with it, is read against the archive. What comes after the compacted one itself is not."""
        compactor = self._compactor
        n_compacted = compactor.n_compacted
        selects = n_tokens < n_compacted or (compactor.reselects and n_prompt != n_compacted)
        return selects and compactor.n_archived > 0

    def ask_anew(self, n_tokens: int) -> None:
        """Of the compacted prompt of n_tokens other parts ask now.

        Its last token is read again, and what is kept chosen anew; without an archive all is forgotten.
        """
        if self.reads_anew(n_tokens - 1, n_tokens):
            self.tokens.cut(min(n_tokens - 1, self.tokens.n_tokens))
            return
        self._prompts.asks_else()
        self.reset()

    def score_anew(self, tokens: list[int]) -> None:
        """Forget all if a prompt begins with tokens that the cache holds without their logits."""
        if not self.tokens.are_scored(n_same(self.tokens.held, tokens)):
            self._prompts.wants_logits()
            self.reset()

    def reuse(self, tokens: list[int], n_stable: int) -> None:
        """Keep what a prompt begins with; all behind it is forgotten, at once or when that has been read.

        n_stable: tokens that later turns begin with.
        """
        held = self.tokens
        same = n_same(held.held, tokens)
        if same == len(tokens) == held.n_tokens and not held.requires_eval:
            return
        same = min(same, len(tokens) - 1)  # the last one is decoded again, for its logits
        if self.reads_anew(same, n_stable):
            held.cut(same)
            return
        n_prompt = self._prompts.record.n_tokens or 0
        if any(0 < n <= same and self.go_back(n) for n in (same, n_prompt)):
            return
        if self._compactor.n_compacted > 0 and self._prompts.reread is None:
            # else it is the compacted prompt once more, whose last token cannot be decoded again
            is_behind = same >= self._compactor.n_compacted
            if is_behind or (self.bounded and self._prompts.record.logits is not None):
                self._prompts.cannot_go_back(same)
            else:
                self._prompts.has_no_logits()
        if self.reads_anew(0, n_stable):
            held.cut(0)
            return
        self.reset()
