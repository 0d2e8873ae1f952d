"""Reading a prompt: evaluate it, observe its last tokens, compact the cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _native
from ._decoder import Decoder
from ._sentences import sentence_ends
from .budgets import ModelShape
from .errors import ArgumentError, ContextFullError, HeadKVError, StateError, UnsupportedError
from .retention import Retention
from .stats import PromptRecord

_logger = logging.getLogger("headkv_local")


class _Progress:
    """Adds up what was done and tells a callback, with 0 first."""

    def __init__(self, callback: Callable[[int, int], None] | None, total: int) -> None:
        self._callback, self._done, self._total = callback, 0, total
        self.add(0)

    def add(self, n: int) -> None:
        self._done += n
        if self._callback is not None and self._total > 0:
            self._callback(self._done, self._total)


class PromptReader(Decoder):
    """A Decoder that compacts its KV cache when a prompt has been read."""

    _retention: Retention | None = None
    _settled_retention: Retention  # with its scores loaded; where there is a retention
    _scores_from: str | None = None
    on_prefill: Callable[[int, int], None] | None = None

    # set from the start of generate() until it evaluates its prompt: to an object of that call's own
    _unread: object | None = None

    _prompt = PromptRecord()
    _reading = False

    def prefill(self, tokens: Sequence[int]) -> None:
        """Read tokens as a prompt and compact the cache, as generate() does before it samples.

        What the cache already holds of the prompt is not evaluated again. Afterwards n_tokens is
        len(tokens), and the logits of the last one are there. Raises what eval() raises, and
        ArgumentError for an empty prompt or a budget that is too small for this one.
        """
        with self._calls:
            self._require_open()
            self._forget_cancel()
            tokens = list(tokens)
            self._rewind(tokens)
            self._read(tokens[self._reuse(tokens) :])

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Any, None]:
        """As llama_cpp.Llama.generate(); the prompt is compacted before the first token is sampled."""
        self._require_open()
        self._forget_cancel()
        mark = self._unread = object()
        completing, self._completing = self._completing, False
        tokens = list(tokens)
        steps = super().generate(tokens, *args, **kwargs)
        sent, answer = None, list[int]()
        try:
            if kwargs.get("reset", args[6] if len(args) > 6 else True):
                with self._calls:
                    self._require_open()
                    self._rewind(tokens)
            while True:
                with self._calls:
                    self._require_open()
                    try:
                        token = steps.send(sent)
                    except StopIteration:
                        return
                    except ContextFullError:
                        if not (completing and answer):
                            raise
                        # llama_cpp asks for the rest of a character beyond its max_tokens
                        self._cut_off = self.detokenize(answer, prev_tokens=tokens)
                        return
                if completing:
                    answer.append(token)
                sent = yield token
        except ValueError as error:
            if not isinstance(error, HeadKVError):
                self._require_room(1)  # llama_cpp writes drafts behind the end of its array of tokens
            raise
        finally:
            steps.close()
            if self._unread is mark:  # this may run late, when another generate() has begun
                self._unread = None

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after those that the KV cache holds.

        Raises ContextFullError, Cancelled, OutOfMemoryError, and ArgumentError for tokens that the model
        does not have. What was evaluated until then stays in the cache.
        """
        with self._calls:
            self._require_open()
            if self._unread is None:
                self._evaluate(tokens)
                return
            self._unread = None
            self._read(list(tokens))

    def reset(self) -> None:
        """Forget all tokens. A compacted cache gets room for the next prompt when that is read."""
        super().reset()
        self._prompt = PromptRecord()

    def _compacted(self) -> bool:
        try:
            return _native.get_stats(self._address).n_prompt > 0
        except UnsupportedError:
            return False

    def _shape(self) -> ModelShape:
        stats = _native.get_stats(self._address)
        return ModelShape(stats.n_layer, stats.n_head, stats.n_head_kv, stats.row_bytes)

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
        logits = self._logits()
        if logits is not None:
            logits[:] = self._prompt.logits
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

    def _read(self, tokens: list[int]) -> None:
        """Evaluate what of a prompt is not in the cache yet, and compact the cache."""
        self._reading = True
        try:
            self._read_prompt(tokens)
        finally:
            self._reading = False

    def _read_prompt(self, tokens: list[int]) -> None:
        if self.n_tokens == 0:
            self.reset()
        n_prompt = self.n_tokens + len(tokens)
        if n_prompt == 0:
            raise ArgumentError("the prompt is empty: it must have at least one token")
        self._require_known(tokens)
        self._require_room(len(tokens))
        if self._compacted():  # a later turn: the new tokens go behind what was kept
            self._evaluate(tokens, _Progress(self.on_prefill, len(tokens)).add)
            return
        caps = self._caps_for(n_prompt)
        if self._retention is not None:
            _native.reserve(self._address, n_prompt)
        if caps is not None:
            self._read_and_compact(tokens, n_prompt, self._settled_retention, caps)
            return
        self._prompt = PromptRecord()
        started = perf_counter()
        self._evaluate(tokens, _Progress(self.on_prefill, len(tokens)).add)
        self._wait()
        self._prompt = PromptRecord(n_tokens=n_prompt, prefill_seconds=perf_counter() - started)

    def _piece(self, token: int) -> bytes:
        """The text of a token, with the space before it, whatever tokenizer the user has set."""
        piece: bytes = self._model.detokenize([token])
        return piece

    def _caps_for(self, n_prompt: int) -> npt.NDArray[np.int32] | None:
        """None if there is nothing to compact."""
        if self._retention is None:
            return None
        caps = self._settled_retention.caps_for(self._shape(), n_prompt)
        if (caps < n_prompt).any():
            return caps
        _logger.info("the prompt of %d tokens fits into the budget and is kept whole", n_prompt)
        return None

    def _read_and_compact(
        self, tokens: list[int], n_prompt: int, retention: Retention, caps: npt.NDArray[np.int32]
    ) -> None:
        """If this fails, the cache holds whole what was evaluated until then."""
        self._prompt = PromptRecord()
        n_last = retention.n_observed(n_prompt)
        _native.set_budgets(self._address, caps)

        # all last tokens are decoded under observation, also what of them is in the cache already
        again = self.input_ids[n_prompt - n_last : self.n_tokens].tolist()
        if again and not self._truncate(n_prompt - n_last):
            raise StateError("the end of the prompt cannot be taken back: call reset() first")
        tokens = again + tokens

        progress = _Progress(self.on_prefill, len(tokens))
        started = perf_counter()
        self._evaluate(tokens[:-n_last], progress.add)
        self._wait()
        observing = perf_counter()
        _native.observe(self._address, _native.OBSERVE_WINDOW)
        try:
            self._evaluate(tokens[-n_last:])
        finally:
            _native.observe(self._address, _native.OBSERVE_OFF)  # waits for the device
        logits = self._logits()
        _native.set_sentences(self._address, sentence_ends(self.input_ids[:n_prompt], self._piece))
        observed = perf_counter()
        self._prompt = PromptRecord(  # before the cache is compacted: other threads may ask at once
            n_tokens=n_prompt,
            policy=retention.policy,
            scores_from=self._scores_from,
            prefill_seconds=observed - started,
            observe_seconds=observed - observing,
            logits=None if logits is None else logits.copy(),
        )
        try:
            _native.compact(self._address)
        except HeadKVError:
            self._prompt = PromptRecord()
            raise
        _logger.info("the prompt of %d tokens was compacted to %d rows", n_prompt, int(caps.sum()))
        progress.add(n_last)
