"""Reading a prompt: evaluate it, observe its last tokens, compact the cache."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, Cancelled, StateError
from ..messages import require_messages
from ..stats import PromptRecord
from .folding import Folding
from .going_back import GoingBack
from .native.archive import Prompt
from .native.plan import sentence_ends
from .pieces import Pieces
from .progress import Progress
from .question import checked
from .turns import Turn


class PromptReader(GoingBack):
    """A Decoder that compacts its KV cache when a prompt has been read."""

    _folding: Folding
    on_prefill: Callable[[int, int], None] | None = None

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
        turn = Turn(question=checked(question, len(tokens)), messages=require_messages(messages))
        if self._lifetime.turns.inside:
            raise StateError("a prompt cannot be read in a callback of the call that computes")
        with self._using():
            self._read_for(turn, tokens, anew=True)
            self._prompts.announced()
            self._read(tokens[self.n_tokens :], turn)

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after those that the KV cache holds.

        Raises ContextFullError, Cancelled, OutOfMemoryError, and ArgumentError for tokens that the model
        does not have. What was evaluated until then stays in the cache.
        """
        with self._using(beside=True):
            turn = self._prompts.announced()
            if turn is None:
                self._uncut()
                self._fold()
                self._evaluate(tokens)
            else:
                self._read(list(tokens), turn)

    def _read_for(self, turn: Turn, tokens: list[int], anew: bool) -> None:
        """Prepare for a prompt that is evaluated next.

        anew: not behind what the cache holds. n_tokens then says how many of its tokens stay.
        """
        self._lifetime.begin()
        self._prompts.announce(turn)
        if anew:
            self._uncut()
            self._note_reread(tokens, turn.rewritten)
            self._rewind(tokens)
            self._reuse(tokens)

    def reset(self) -> None:
        """Forget all tokens. A compacted cache gets room for the next prompt when that is read."""
        with self._using():
            super().reset()
            self._forget_prompt()

    def _forget_prompt(self) -> None:
        """What the context holds is not of the prompt that was read last."""
        self._cut_from = None
        self._folding.forget()
        self._compactor.release()
        self._prompts.record = PromptRecord()

    def _read(self, tokens: list[int], turn: Turn) -> None:
        """Evaluate what of a turn's prompt is not in the cache yet, and compact the cache."""
        with self._prompts.being_read():
            try:
                self._read_prompt(tokens, turn)
            except BaseException:
                self._uncut()  # also what is refused before anything is read
                raise

    def _read_prompt(self, tokens: list[int], turn: Turn) -> None:
        if self.n_tokens == 0:
            self.reset()
        n_prompt = self.n_tokens + len(tokens)
        if n_prompt == 0:
            raise ArgumentError("the prompt is empty: it must have at least one token")
        self._require_known(tokens)
        self._require_room(len(tokens))
        n_compacted = n_prompt if turn.n_stable is None or turn.n_stable <= 0 else turn.n_stable
        compacted = self._compactor.n_compacted > 0
        if compacted and not (len(tokens) > 0 and self._reads_anew(self.n_tokens)):
            self._evaluate_all(tokens)  # a later turn: the new tokens go behind what was kept
            return
        caps = self._compactor.caps_for(n_compacted)
        if compacted or caps is not None:
            self._read_and_compact(tokens, n_compacted, turn, caps)
            return
        self._compactor.expect(n_prompt)
        self._prompts.record = PromptRecord()
        started = perf_counter()
        self._evaluate_all(tokens)
        self._wait()
        self._prompts.record = PromptRecord(n_tokens=n_prompt, prefill_seconds=perf_counter() - started)

    def _evaluate_all(self, tokens: list[int]) -> None:
        progress = Progress(self.on_prefill, len(tokens))
        self._evaluate(tokens, progress.add)
        progress.end()

    def _piece(self, token: int) -> bytes:
        """The text of a token, with the space before it, whatever tokenizer the user has set."""
        if not self._has_tokenizer():
            return b""
        room = ctypes.create_string_buffer(1024)  # llama_cpp has 32 bytes, and gives nothing for a longer one
        n = llama_cpp.llama_token_to_piece(self._model.vocab, token, room, len(room), 0, False)
        return room.raw[: max(n, 0)]

    def _fold(self) -> None:
        """Fold the tail of a compacted prompt, if it is long enough."""
        n_tokens = self.n_tokens

        def sentences() -> npt.NDArray[np.uint8]:
            return sentence_ends(Pieces(self.input_ids[:n_tokens].tolist(), self._piece))

        if self._folding.before(n_tokens, sentences):
            self._prompts.record = replace(
                self._prompts.record, n_tokens=n_tokens, logits=None, recurrent=None
            )

    def _read_and_compact(
        self, tokens: list[int], n_compacted: int, turn: Turn, caps: npt.NDArray[np.int32] | None
    ) -> None:
        """Read n_compacted tokens, the last of them anew, select from all of them, and compact.

        tokens: those behind the first n_tokens. caps: None to keep all. If this fails, the cache holds what
        it held before; where nothing is archived, not even meanwhile, what was read until then.
        """
        compactor, before = self._compactor, self._prompts.record
        whole = self.input_ids[: self.n_tokens].tolist() + tokens
        prompt = Pieces(whole[:n_compacted], self._piece)
        turns = {end: n for end, n in before.turns if end <= self.n_tokens + 1}
        if n_compacted not in turns:  # else it was read before, and what asked then asks again
            turns[n_compacted] = n_compacted - min(compactor.n_compacted, self.n_tokens)
        n_whole = compactor.n_archived or self.n_tokens
        stays = compactor.archives and self._bounded and n_whole <= self.n_tokens and n_whole < n_compacted
        seen = compactor.who_observes(prompt, turn, self._n_ctx, turns[n_compacted], n_whole if stays else 0)
        first, again, weights = seen[:3]
        if not self._bounded:
            n_past = min(n_whole, self.n_tokens, first, n_compacted - 1)
        elif compactor.archives:
            n_past = seen.n_stay
        else:  # whoever observes is decoded under observation
            n_past = self.n_tokens if first >= self.n_tokens or self._truncate(first) else 0
        with self._lifetime.alone():
            progress = Progress(self.on_prefill, len(whole) - n_past + len(again))
        asking = [whole[i] for i in again]
        self._threads.fit_prompt(self._ctx.ctx)
        n_scored = n_past

        def reach(done: int, total: int) -> None:
            nonlocal n_scored
            if self._logits_all and (end := min(n_past + done, n_compacted)) > n_scored:
                self._keep_logits(n_scored, end)
                n_scored = end
            if done == total:  # before the cache is compacted: other threads may ask at once
                now = perf_counter() - started
                self._prompts.record = replace(
                    self._prompts.record, n_tokens=n_compacted, prefill_seconds=now
                )
            progress.reach(done, total)

        started = perf_counter()
        self._prompts.record = PromptRecord(policy=compactor.policy, scores_from=compactor.scores_from)
        try:
            new, ends = whole[n_past:n_compacted], sentence_ends(prompt)
            reading = Prompt(new, n_past, first, weights, asking, again, logits=self._logits_all)
            with self._lifetime.alone():
                compactor.prefill(reading, caps, ends, reach)
        except BaseException as error:
            self._requires_eval, self._n_logits = True, 0
            self._prompts.record = before if compactor.archives else PromptRecord()
            if not compactor.archives:
                self.n_tokens = compactor.n_tokens
                self.input_ids[: self.n_tokens] = whole[: self.n_tokens]
            if isinstance(error, Cancelled):
                self._lifetime.forget_cancel()
            raise
        read = perf_counter() - started
        self._folding.forget()
        self.input_ids[:n_compacted] = whole[:n_compacted]
        self.n_tokens, self._cut_from = n_compacted, None
        self._requires_eval, self._n_logits = False, 1
        self._prompts.record = replace(
            self._prompts.record,
            n_tokens=n_compacted,
            turns=tuple(turns.items()),
            prefill_seconds=read - compactor.compact_seconds,
            logits=self._logits_copy(),
            recurrent=self._bounded.snapshot() if self._bounded.recurrent else None,
        )
        self._evaluate(whole[n_compacted:], progress.add)
        progress.end()
