"""A prompt: what the cache holds of it, what has to be read, and what is noted. headkv_read() reads it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import numpy as np
import numpy.typing as npt

from ..errors import ArgumentError, StateError
from ..retention import Retention
from ..stats import PromptRecord
from .compactor import Compactor
from .contents import Contents
from .decoder import Decoder
from .folding import Folding
from .lifetime import Lifetime
from .load import require_last_logits
from .native.plan import Part
from .native.reading import ReadInfo, Reading
from .pieces import Vocabulary
from .progress import Progress
from .prompts import PromptTracker
from .question import question_of
from .turns import Turn

_logger = logging.getLogger("headkv_local")


class PromptReader:
    """Of one context: compacts its KV cache when a prompt has been read."""

    def __init__(
        self,
        contents: Contents,
        decoder: Decoder,
        compactor: Compactor,
        folding: Folding,
        prompts: PromptTracker,
        vocabulary: Vocabulary,
        lifetime: Lifetime,
    ) -> None:
        self.on_prefill: Callable[[int, int], None] | None = None
        self._contents, self._context = contents, contents.context
        self._tokens, self._bounded = contents.tokens, contents.bounded
        self._decoder, self._compactor, self._folding = decoder, compactor, folding
        self._prompts, self._vocabulary, self._lifetime = prompts, vocabulary, lifetime

    def retain(self, retention: Retention | None) -> None:
        """For prompts to come, see Llama.retention."""
        if not isinstance(retention, Retention | None):
            raise ArgumentError(f"retention must be a Retention or None, not {retention!r}")
        require_last_logits(retention, self._context.logits_all)
        if self._prompts.reading:
            raise StateError("retention cannot be changed while a prompt is being read")
        if self._compactor.n_compacted > 0 and not self._compactor.only_without_archive(retention):
            self._compactor.settled(retention)  # what can never be is told of first
            raise StateError("retention cannot be changed while the cache is compacted: call reset() first")
        self._compactor.retain(retention)
        self._folding.forget()
        self._prompts.record = replace(self._prompts.record, fits=False)

    def prefill(self, tokens: list[int], turn: Turn) -> None:
        """Read the prompt of a turn, as far as the cache does not hold it."""
        try:
            self.announce(turn, tokens)
            self._prompts.announced()
            self._read(tokens[self._tokens.n_tokens :], turn)
        finally:
            self.withdraw(turn)  # else what is evaluated next would be this prompt

    def announce(self, turn: Turn, tokens: list[int], anew: bool = True) -> None:
        """The tokens of a prompt are evaluated next.

        anew: not behind what the cache holds. What counts then are those of its tokens that stay.
        Nothing is changed for a prompt that cannot be read.
        """
        self._lifetime.begin()
        self._tokens.uncut()
        self._contents.require_prompt(tokens, 0 if anew else self._tokens.n_tokens)
        self._prompts.announce(turn)
        if anew:
            self._contents.compare(tokens, turn.rewritten)
            if turn.echoes_logprobs:
                self._contents.score_anew(tokens)
            n_stable = turn.n_compacted(len(tokens))
            if self._asks_else(tokens, turn):
                self._contents.ask_anew(n_stable)
                return
            self._rewind(tokens, n_stable)
            self._contents.reuse(tokens, n_stable)

    def withdraw(self, turn: Turn) -> None:
        """It has ended, maybe before its prompt was evaluated."""
        if self._prompts.withdraw(turn):
            self._tokens.uncut()

    def evaluate(self, tokens: list[int]) -> None:
        """The prompt that was announced, or tokens after those that the cache holds."""
        turn = self._prompts.announced()
        if turn is not None:
            self._read(tokens, turn)
            return
        self._tokens.uncut()
        if self._tokens.n_tokens < (n_prompt := self._compactor.n_compacted):
            raise StateError(
                f"the compacted prompt of {n_prompt} tokens cannot be taken back to token "
                f"{self._tokens.n_tokens}: call reset() first"
            )
        if self._lifetime.turns.current is not None:  # a token that was drawn, and a draft: logits of each
            tokens = tokens[: self._context.n_batch]
        self._folding.fold_if_due(len(tokens))
        self._decoder.evaluate(tokens)

    def _asks_else(self, tokens: list[int], turn: Turn) -> bool:
        """Whether tokens are the prompt that was compacted, but others of them ask than those that chose.

        With an archive also whether another retention chose, whether they are all that the cache holds, so
        that nothing new would be read, or whether an answer chose, which was folded.
        """
        record, n, held = self._prompts.record, turn.n_compacted(len(tokens)), self._tokens
        prompt = tokens[:n]
        if self._compactor.n_compacted == 0 or held.input_ids[:n].tolist() != prompt:
            return False
        reads_anew = self._contents.reads_anew(n - 1, n)
        if n == record.n_tokens and reads_anew and record.chosen_otherwise(self._compactor.retention):
            return True
        if not (turn.question or turn.messages) or self._compactor.observes_all:
            return False
        chose = record.question if n == record.n_tokens else None
        if chose is None and not (n in (record.n_tokens, held.n_tokens) and reads_anew):
            return False
        told = self._told(prompt, turn)
        return len(told) > 0 and told != chose

    def _told(self, tokens: list[int], turn: Turn) -> tuple[Part, ...]:
        """Which tokens of what a turn compacts ask, as far as it tells."""
        if turn.question or not turn.messages:
            return turn.question
        spelled = self._vocabulary.pieces(tokens)
        written = self._vocabulary.pieces(tokens, control=True)
        return question_of(spelled, written, turn.messages, self._compactor.observe)

    def _rewind(self, tokens: list[int], n: int) -> None:
        """If the first n tokens, those that later turns begin with, are the compacted prompt, go back to its
        end; where no others follow, with its logits.

        Its last token cannot be decoded again, as a stock cache does it: others that it looked at are gone.
        """
        record, held, is_whole = self._prompts.record, self._tokens, n == len(tokens)
        if n != record.n_tokens or self._compactor.n_compacted == 0 or (is_whole and record.logits is None):
            return
        if held.input_ids[:n].tolist() != tokens[:n] or not self._contents.go_back(n) or not is_whole:
            return
        if held.n_logits == 0 and n < self._context.n_ctx:  # of a state; whatever is decoded makes room
            if self._bounded.recurrent and record.recurrent is None:  # of a light session
                self._prompts.record = replace(record, recurrent=self._bounded.snapshot())
            self._decoder.evaluate(tokens[-1:])
            self._contents.go_back(n)
        self._contents.put_back(record.logits)

    def _read(self, tokens: list[int], turn: Turn) -> None:
        """Evaluate what of a turn's prompt is not in the cache yet, and compact the cache."""
        with self._prompts.being_read():
            try:
                self._read_prompt(tokens, turn)
            except BaseException:
                self._tokens.uncut()  # also what is refused before anything is read
                raise

    def _read_prompt(self, tokens: list[int], turn: Turn) -> None:
        held, compactor = self._tokens, self._compactor
        if held.n_tokens == 0 and not held.is_cut:
            self._contents.reset()
        n_prompt = held.n_tokens + len(tokens)
        n_compacted = turn.n_compacted(n_prompt)
        compacted = compactor.n_compacted > 0
        if compacted and not (len(tokens) > 0 and self._contents.reads_anew(held.n_tokens, n_compacted)):
            turns = self._turns(n_compacted, len(tokens))  # beforehand: it may be cancelled, and go on
            self._prompts.record = replace(self._prompts.record, turns=turns)
            self._evaluate_all(tokens)  # a later turn: the new tokens go behind what was kept
            return
        caps = compactor.caps_for(n_compacted)
        if compacted or caps is not None:
            self._read_and_compact(tokens, n_compacted, turn, caps)
            return
        compactor.expect(n_prompt)
        turns = self._turns(n_compacted, n_compacted)
        self._folding.forget()
        self._prompts.record = PromptRecord()
        started = perf_counter()
        self._evaluate_all(tokens)
        self._context.wait()
        self._prompts.record = PromptRecord(
            n_tokens=n_prompt,
            policy=compactor.policy,
            scores_from=compactor.scores_from,
            prefill_seconds=perf_counter() - started,
            fits=compactor.retention is not None,
            turns=turns,
        )

    def _turns(self, end: int, n_new: int) -> tuple[tuple[int, int], ...]:
        """Those that the cache holds, and one whose prompt ends there; if it was read before, what was new
        then is new again."""
        record, held = self._prompts.record, self._tokens
        there = dict(record.turns_within(held.n_tokens + 1 if held.n_tokens > 0 else 0))
        # one that was cancelled may go on; those behind a cut were other ones
        n_new = (there if held.is_cut else dict(record.turns)).get(end, n_new)
        there.pop(end, None)
        return *there.items(), (end, n_new)

    def _evaluate_all(self, tokens: list[int]) -> None:
        with self._lifetime.alone():
            progress = Progress(self.on_prefill, len(tokens))
            self._decoder.evaluate(tokens, progress.add)
            progress.end()

    def _read_and_compact(
        self, tokens: list[int], n_compacted: int, turn: Turn, caps: npt.NDArray[np.int32] | None
    ) -> None:
        """Read n_compacted tokens, the last of them anew, select from all of them, and compact.

        tokens: those behind what the cache holds. caps: None to keep all. If this fails, the cache holds what
        it held before; where nothing is archived, not even meanwhile, what was read until then.
        """
        held, compactor, before = self._tokens, self._compactor, self._prompts.record
        whole = held.held.tolist() + tokens
        prompt = whole[:n_compacted]
        n_before = compactor.n_compacted
        if n_before > held.n_tokens:  # a turn that is read again asks as a whole, also what of it stays
            n_before = max((end for end, _ in before.turns_within(held.n_tokens)), default=0)
        turns = self._turns(n_compacted, n_compacted - (n_before if n_before < n_compacted else 0))
        told = self._told(prompt, turn)
        going_back = bool(self._bounded) and compactor.archives and compactor.n_compacted > 0
        progress: Progress | None = None
        n_scored = 0

        def reach(done: int, total: int, info: ReadInfo) -> None:
            nonlocal progress, n_scored
            if progress is None:
                progress = Progress(self.on_prefill, total + len(whole) - n_compacted)
                n_scored = info.n_past
            if self._context.logits_all and (end := min(info.n_past + done, n_compacted)) > n_scored:
                held.scores[n_scored:end] = self._context.all_logits(end - n_scored)
                n_scored = end
            if done == total:  # before the cache is compacted: other threads may ask at once
                now = perf_counter() - started
                self._prompts.record = replace(
                    self._prompts.record, n_tokens=n_compacted, prefill_seconds=now
                )
            progress.reach(done, total)

        started = perf_counter()
        self._prompts.record = PromptRecord(
            retention=compactor.retention, policy=compactor.policy, scores_from=compactor.scores_from
        )
        n_held = min(held.n_tokens, len(prompt))
        reading = Reading(prompt, n_held, turns[-1][1], told, logits=self._context.logits_all)
        try:
            with self._decoder.in_one_call():
                info = compactor.read(reading, caps, reach)
        except BaseException:
            held.evaluated(n_logits=0)
            self._prompts.record = before if compactor.archives else PromptRecord()
            if not compactor.archives:
                held.take(whole[: compactor.n_tokens])
            raise
        read = perf_counter() - started
        self._tell(info)
        if going_back and info.n_past == 0 and self._prompts.reread is None:
            self._prompts.cannot_go_back(min(reading.n_held, n_compacted - 1))
        self._folding.forget()
        held.take(prompt)
        held.evaluated(n_logits=1)
        logits = self._contents.logits()
        self._prompts.record = replace(
            self._prompts.record,
            n_tokens=n_compacted,
            turns=turns,
            question=told,
            prefill_seconds=read - compactor.compact_seconds,
            logits=None if logits is None else logits.copy(),
            recurrent=self._bounded.snapshot() if self._bounded.recurrent else None,
        )
        assert progress is not None  # it was told of the beginning
        with self._lifetime.alone():
            self._decoder.evaluate(whole[n_compacted:], progress.add)
            progress.end()

    def _tell(self, info: ReadInfo) -> None:
        n, n_again = info.n_left_out, info.n_again
        if n > 0 and self._compactor.observes_all:
            _logger.warning("no room to read the prompt of %d tokens once more: its question selects", n)
        elif n > 0:
            told = "no room for the question of %d tokens before the document: its last %d select"
            _logger.warning(told, n_again + n, n_again)
