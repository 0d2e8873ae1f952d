"""Reading a prompt: evaluate it, observe its last tokens, compact the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from ..budgets import ModelShape
from ..errors import ArgumentError, HeadKVError, StateError
from ..retention import Retention
from ..stats import PromptRecord
from . import native
from .decoder import Decoder
from .observation import tokens_observed
from .pieces import Pieces
from .progress import Progress
from .question import checked, checked_messages, who_observes
from .sentences import sentence_ends
from .turns import Turn

_logger = logging.getLogger("headkv_local")


class PromptReader(Decoder):
    """A Decoder that compacts its KV cache when a prompt has been read."""

    _retention: Retention | None = None
    _settled_retention: Retention  # with its scores loaded; where there is a retention
    _scores_from: str | None = None
    on_prefill: Callable[[int, int], None] | None = None

    _unread: Turn | None = None  # a generation, from its start until it evaluates its prompt
    _reread: str | None = None

    _prompt = PromptRecord()
    _reading = False

    def prefill(
        self,
        tokens: Sequence[int],
        question: slice | Sequence[slice] | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Read tokens as a prompt and compact the cache, as generate() does before it samples.

        question: the tokens that ask, as a slice of the prompt, or several; wherever they stand, what they
        look at is kept. None: the last tokens ask (`Retention.observe`).
        messages: that the prompt was made of; without a question the last one of the user asks, as in
        create_chat_completion().

        What the cache already holds of the prompt is not evaluated again. Afterwards n_tokens is
        len(tokens), and the logits of the last one are there. Raises what eval() raises, and ArgumentError
        for an empty prompt, a budget that is too small for this one, a question that is empty, not inside the
        prompt, or longer than the rest of it, and messages that are none.
        """
        tokens = list(tokens)
        turn = Turn(question=checked(question, len(tokens)), messages=checked_messages(messages))
        if self._turns.inside:
            raise StateError("a prompt cannot be read in a callback of the call that computes")
        with self._using():
            self._begin()
            self._note_reread(tokens)
            self._rewind(tokens)
            self._read(tokens[self._reuse(tokens) :], turn)

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after those that the KV cache holds.

        Raises ContextFullError, Cancelled, OutOfMemoryError, and ArgumentError for tokens that the model
        does not have. What was evaluated until then stays in the cache.
        """
        with self._using(beside=True):
            turn, self._unread = self._unread, None
            if turn is None:
                self._evaluate(tokens)
            else:
                self._read(list(tokens), turn)

    def _configure(self, retention: Retention) -> None:
        """retention: with its scores loaded."""
        retention.caps_for(self.shape, retention.window + 1)  # refuses what fits no prompt of this model
        self._settled_retention = retention

    def _read_for(self, turn: Turn, tokens: list[int], anew: bool) -> None:
        """Prepare for a generation, whose eval() reads its prompt. anew: not behind what the cache holds."""
        self._begin()
        self._unread = turn
        if anew:
            self._note_reread(tokens, turn.rewritten)
            self._rewind(tokens)

    def reset(self) -> None:
        """Forget all tokens. A compacted cache gets room for the next prompt when that is read."""
        with self._using():
            super().reset()
            self._prompt = PromptRecord()

    @property
    def reread_reason(self) -> str | None:
        """Why the last prompt was read whole although an earlier one was compacted; None where it was not."""
        return self._reread

    def _note_reread(self, tokens: list[int], rewritten: bool = False) -> None:
        self._reread = None
        if not self._compacted():
            return
        n = native.get_stats(self._address)[0].n_prompt
        held = self.input_ids[: min(n, len(tokens))]
        differ = np.flatnonzero(held != np.asarray(tokens[: len(held)], dtype=np.int64))
        if len(differ) == 0 and len(tokens) >= n:
            return
        n_same = int(differ[0]) if len(differ) else len(tokens)
        self._reread = (
            f"the prompt goes on otherwise than the compacted one from token {n_same} of {n} on"
            + (
                ": the model's chat template writes messages in another way when others follow"
                if rewritten
                else ""
            )
        )
        _logger.info("the prompt is read whole: %s", self._reread)

    @property
    def shape(self) -> ModelShape:
        """The layers that retain: query and KV heads in each, bytes of K and V of one entry of one KV head.

        Raises UnsupportedError for a context that can never be compacted.
        """
        self._require_open()
        return native.model_shape(self._address)

    def _rewind(self, tokens: list[int]) -> None:
        """If tokens are the prompt that was compacted, go back to its end, with its logits.

        Its last token cannot be decoded again, as a stock cache does it: others that it looked at are gone.
        """
        n = len(tokens)
        if self._prompt.logits is None or n != self._prompt.n_tokens or not self._compacted():
            return
        if self.input_ids[:n].tolist() != tokens or not self._truncate(n):
            return
        if self._n_logits == 0 and n < self._n_ctx:  # of a state; whatever is decoded makes room for them
            self._evaluate(tokens[-1:])
            self._truncate(n)
        self._put_back(self._prompt.logits)

    def _put_back(self, before: npt.NDArray[np.float32] | None) -> None:
        """The logits of the last token, after others were evaluated and taken back."""
        logits = self._logits()
        if logits is not None and before is not None:
            logits[:] = before
            self._n_logits = 1
            self._requires_eval = False

    def _reuse(self, tokens: list[int]) -> int:
        """How many of the first tokens stay in the cache; all behind them is forgotten."""
        held = self.input_ids[: self.n_tokens]
        n_both = min(len(held), len(tokens))
        differ = np.flatnonzero(held[:n_both] != np.asarray(tokens[:n_both], dtype=np.int64))
        n_same = int(differ[0]) if len(differ) else n_both
        if n_same == len(tokens) == self.n_tokens and not self._requires_eval:
            return n_same
        n_same = min(n_same, len(tokens) - 1)  # the last one is decoded again, for its logits
        if n_same > 0 and self._truncate(n_same):
            return n_same
        self.reset()
        return 0

    def _read(self, tokens: list[int], turn: Turn) -> None:
        """Evaluate what of a turn's prompt is not in the cache yet, and compact the cache."""
        self._reading = True
        try:
            self._read_prompt(tokens, turn)
        finally:
            self._reading = False

    def _read_prompt(self, tokens: list[int], turn: Turn) -> None:
        if self.n_tokens == 0:
            self.reset()
        n_prompt = self.n_tokens + len(tokens)
        if n_prompt == 0:
            raise ArgumentError("the prompt is empty: it must have at least one token")
        self._require_known(tokens)
        self._require_room(len(tokens))
        if self._compacted():  # a later turn: the new tokens go behind what was kept
            self._evaluate_all(tokens)
            return
        n_compacted = n_prompt if turn.n_stable is None or turn.n_stable <= 0 else turn.n_stable
        caps = self._caps_for(n_compacted)
        if caps is not None:
            self._read_and_compact(tokens, n_prompt, n_compacted, turn, caps)
            return
        if self._retention is not None:
            native.reserve(self._address, n_prompt)
        self._prompt = PromptRecord()
        started = perf_counter()
        self._evaluate_all(tokens)
        self._wait()
        self._prompt = PromptRecord(n_tokens=n_prompt, prefill_seconds=perf_counter() - started)

    def _evaluate_all(self, tokens: list[int]) -> None:
        progress = Progress(self.on_prefill, len(tokens))
        self._evaluate(tokens, progress.add)
        progress.end()

    def _piece(self, token: int) -> bytes:
        """The text of a token, with the space before it, whatever tokenizer the user has set."""
        piece: bytes = self._model.detokenize([token]) if self._has_tokenizer() else b""
        return piece

    def _caps_for(self, n_prompt: int) -> npt.NDArray[np.int32] | None:
        """None if there is nothing to compact."""
        if self._retention is None:
            return None
        caps = self._settled_retention.caps_for(self.shape, n_prompt)
        if (caps[self.shape.heads] < n_prompt).any():  # the others are 0
            return caps
        _logger.info("the prompt of %d tokens fits into the budget and is kept whole", n_prompt)
        return None

    def _read_and_compact(
        self,
        tokens: list[int],
        n_prompt: int,
        n_compacted: int,
        turn: Turn,
        caps: npt.NDArray[np.int32],
    ) -> None:
        """Read n_prompt tokens, compact the first n_compacted; tokens: those that the cache does not hold.

        If this fails, the cache holds whole what was evaluated until then.
        """
        retention = self._settled_retention
        self._prompt = PromptRecord()
        held = self.input_ids[: self.n_tokens].tolist()
        prompt = Pieces((held + tokens)[:n_compacted], self._piece)
        first, again, weights = who_observes(
            prompt, turn.question, turn.messages, retention.observe, 2 * retention.window, self._n_ctx
        )
        native.reserve(self._address, max(n_prompt, n_compacted + len(again)))

        # all observed tokens are decoded under observation, also what of them is in the cache already
        tokens = held[first:] + tokens
        if first < self.n_tokens and not self._truncate(first):
            raise StateError("the end of the prompt cannot be taken back: call reset() first")
        n_behind = n_prompt - n_compacted

        progress = Progress(self.on_prefill, len(tokens) + len(again))
        started = perf_counter()
        with tokens_observed(self._address, first, weights):
            self._evaluate(tokens[: len(tokens) - n_behind], progress.add)
            logits = self._logits()
            logits = None if logits is None else logits.copy()
            if again:
                try:
                    self._evaluate([int(self.input_ids[i]) for i in again], progress.add)
                finally:
                    self._truncate(n_compacted)
                self._put_back(logits)
        read = perf_counter()
        self._prompt = PromptRecord(  # before the cache is compacted: other threads may ask at once
            n_tokens=n_compacted,
            policy=retention.policy,
            scores_from=self._scores_from,
            prefill_seconds=read - started,
            logits=logits,
        )
        plan = native.Plan(caps, retention.window, retention.kernel, retention.sinks, sentence_ends(prompt))
        try:
            native.compact(self._address, plan)
        except HeadKVError:
            self._prompt = PromptRecord()
            raise
        _logger.info("the prompt of %d tokens was compacted to %d rows", n_compacted, int(caps.sum()))
        self._evaluate(tokens[len(tokens) - n_behind :], progress.add)
        progress.end()
