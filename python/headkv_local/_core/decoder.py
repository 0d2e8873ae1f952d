"""llama_cpp.Llama with an eval() that can be cancelled, and with errors that leave it usable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp.llama_tokenizer import LlamaTokenizer

from ..errors import (
    ArgumentError,
    Cancelled,
    ContextFullError,
    EncoderError,
    StateError,
    UnsupportedError,
)
from ..forms import Processors, require_grammar, seed_of
from .bounded import Bounded, Snapshot
from .compactor import Compactor
from .failures import decode_error
from .lifetime import Closed, Lifetime
from .logging import collected_errors
from .threads import Threads
from .turns import Turn

_ONE_PART = 256  # cells of a full cache that one thread looks at alone, whatever their number


@dataclass
class _Step:
    """What is decoded now."""

    piece: Sequence[int] = ()
    before: Snapshot | None = None
    """What bounded layers held before it."""


class Decoder(llama_cpp.Llama):  # type: ignore[misc]
    """Whatever goes wrong in eval(): n_tokens and the KV cache agree, and the next call works."""

    _lifetime: Lifetime
    _threads: Threads
    _compactor: Compactor
    _bounded: Bounded

    n_tokens: int
    _requires_eval: bool
    input_ids: npt.NDArray[np.intc]
    scores: npt.NDArray[np.single]

    _n_logits = 0  # tokens that the last decode has left logits of
    _raised: BaseException | None = None  # by a logits processor, for the token that is drawn

    def close(self) -> None:
        """Free model and context. Every later call raises StateError; closing twice is fine.

        A call that runs in another thread is cancelled first, and waited for: an on_prefill callback must
        not wait in turn for the thread that closes. In a child made by fork() nothing is freed.
        """
        lifetime = self.__dict__.get("_lifetime")
        if lifetime is None:
            return  # the constructor had nothing to close yet
        if lifetime.turns.forked:
            lifetime.abandon()
            self._abandon()
            return
        with lifetime.ended() as first:
            if not first:
                return
            # what looks something up meanwhile finds these, not what is being freed
            model, compactor = (self.__dict__.get(name) for name in ("_model", "_compactor"))
            self.__dict__.update(dict.fromkeys(("_ctx", "_model", "_batch", "tokenizer_"), Closed()))
            if compactor is not None:
                compactor.end()
            if model is not None:
                model.vocab = Closed()  # a tokenizer that was handed out holds it
            if "_stack" in self.__dict__:
                super().close()
            if model is not None:
                model.model = Closed()

    def __del__(self) -> None:
        try:
            self.close()
        except (AttributeError, TypeError):  # the process ends, and Python has emptied our modules before
            self._abandon()

    def _abandon(self) -> None:
        """Free nothing: the process ends, or threads and device memory are its parent's."""
        for owner in (self, *(self.__dict__.get(name) for name in ("_model", "_ctx", "_batch"))):
            for stack in ("_stack", "_exit_stack"):
                if stack in getattr(owner, "__dict__", {}):
                    vars(owner)[stack].pop_all()

    def _using(self, turn: Turn | None = None, beside: bool = False) -> AbstractContextManager[None]:
        """Use the context, see Lifetime.used()."""
        return self._lifetime.used(self, turn, beside)

    def _has_tokenizer(self) -> bool:
        return bool(llama_cpp.llama_vocab_type(self._model.vocab) != llama_cpp.LLAMA_VOCAB_TYPE_NONE)

    @contextmanager
    def _tokenizing(self) -> Iterator[None]:
        """From any thread. Where there is no tokenizer, llama.cpp ends the process."""
        with self._lifetime.still():
            self._lifetime.require_open()
            if isinstance(self.tokenizer_, LlamaTokenizer) and not self._has_tokenizer():
                raise UnsupportedError(
                    "the model has no tokenizer: prefill(), eval() and generate() take tokens"
                )
            yield

    def tokenize(self, *args: Any, **kwargs: Any) -> list[int]:
        """As llama_cpp.Llama.tokenize(); from any thread."""
        with self._tokenizing():
            tokens: list[int] = super().tokenize(*args, **kwargs)
            return tokens

    def detokenize(self, *args: Any, **kwargs: Any) -> bytes:
        """As llama_cpp.Llama.detokenize(); from any thread."""
        with self._tokenizing():
            text: bytes = super().detokenize(*args, **kwargs)
            return text

    def _adds_up_alike(self) -> bool:
        """Whether any number of threads decodes a token to the same logits: flash attention over more cells,
        also those of a sliding window, adds up as many parts as there are threads."""
        return (
            self.n_tokens < _ONE_PART
            or not self.context_params.flash_attn_type
            or (self._compactor.n_compacted > 0 and self._bounded.window == 0)
        )

    def _wait(self) -> None:
        """Until all that was asked for is computed: a decode returns while a GPU is still at it."""
        llama_cpp.llama_synchronize(self._ctx.ctx)

    def _logits(self) -> npt.NDArray[np.float32] | None:
        """llama.cpp's own logits of the token decoded last, (n_vocab,); None where there are none."""
        if self._n_logits == 0:  # llama.cpp would complain
            return None
        row = llama_cpp.llama_get_logits_ith(self._ctx.ctx, -1)
        return np.ctypeslib.as_array(row, (self._n_vocab,)) if row else None

    def _keep_logits(self, start: int, end: int) -> None:
        """Of the batch that was decoded last, the tokens from position start on and before end."""
        rows = llama_cpp.llama_get_logits(self._ctx.ctx)
        self.scores[start:end] = np.ctypeslib.as_array(rows, (end - start, self._n_vocab))

    def _make_room(self) -> None:
        """llama.cpp rounds the context up; llama_cpp's own arrays of it become as long here."""
        n_ctx = self.n_ctx()
        self.input_ids = _lengthened(self.input_ids, n_ctx, self.n_tokens)
        if self._logits_all:
            self.scores = _lengthened(self.scores, n_ctx, self.n_tokens)

    def reset(self) -> None:
        """Forget all tokens. A compacted cache gets room again with the next prompt."""
        with self._using():
            super().reset()
            if self._ctx.memory is not None:
                self._ctx.kv_cache_seq_rm(-1, 0, -1)

    def embed(self, *args: Any, **kwargs: Any) -> Any:
        """As llama_cpp.Llama.embed()."""
        with self._using():
            if llama_cpp.llama_model_has_decoder(self._model.model) and self._ctx.memory is not None:
                self._require_generating("no text can be embedded: ")
            return super().embed(*args, **kwargs)

    def _evaluate(self, tokens: Sequence[int], done: Callable[[int], None] = lambda n: None) -> None:
        """Evaluate in pieces of n_batch tokens. done: called with the size of each piece."""
        self._require_generating("no text can be generated: ")
        self._require_known(tokens)
        self._require_room(len(tokens))
        with self._in_step() as step:
            for start in range(0, len(tokens), self.n_batch):
                if self._lifetime.cancelled:
                    raise Cancelled("cancelled")
                piece = tokens[start : start + self.n_batch]
                self._n_logits = 0
                if len(piece) == 1:
                    self._threads.fit(self._ctx.ctx, self._adds_up_alike)
                # a single token is not worth a copy of a recurrent state: the native library finishes it
                before = self._bounded.snapshot() if self._bounded.recurrent and len(piece) > 1 else None
                step.piece, step.before = piece, before
                super().eval(piece)
                step.piece, step.before = [], None
                self._n_logits = len(piece) if self._logits_all else 1
                done(len(piece))

    def _require_generating(self, what: str = "") -> None:
        """Raise EncoderError where a decode would end the process, or find no cache."""
        if llama_cpp.llama_model_has_encoder(self._model.model):
            raise EncoderError(f"{what}the model has an encoder")
        if self._ctx.memory is None:
            raise EncoderError(f"{what}the model keeps no cache")

    def _require_known(self, tokens: Sequence[int]) -> None:
        if len(tokens) > 0 and not (min(tokens) >= 0 and max(tokens) < self._n_vocab):
            bad = next(token for token in tokens if not 0 <= token < self._n_vocab)
            raise ArgumentError(f"token {bad} is none of the model's: they go from 0 to {self._n_vocab - 1}")

    def sample(self, *args: Any, idx: int | None = None, **kwargs: Any) -> int:
        """As llama_cpp.Llama.sample(); StateError where there are no logits, which llama.cpp aborts on."""
        with self._using(beside=True):
            if self._requires_eval or (idx is not None and not 0 < self.n_tokens - idx <= self._n_logits):
                raise StateError(
                    f"there are no logits {'yet' if idx is None else f'of position {idx}'}: evaluate tokens "
                    "first, with logits_all=True for those of other tokens than the last one"
                )
            token: int = super().sample(*args, idx=idx, **kwargs)
            if (raised := self._raised) is not None:
                self._raised = None
                raise raised
            return token

    def set_seed(self, seed: int) -> None:
        """As llama_cpp.Llama.set_seed(); any int is taken modulo 2**32, so -1 is one too."""
        super().set_seed(seed_of(seed))

    def _init_sampler(
        self, *args: Any, logits_processor: Any = None, grammar: Any = None, **kwargs: Any
    ) -> Any:
        """As llama_cpp's, but a grammar is one, and what a processor raises comes out of sample()."""
        if grammar is not None:
            require_grammar(self._model.vocab, grammar)
        if logits_processor is not None:
            logits_processor = [Processors(logits_processor, self._keep_raised)]
        return super()._init_sampler(*args, logits_processor=logits_processor, grammar=grammar, **kwargs)

    def _keep_raised(self, error: BaseException) -> None:
        self._raised = error

    def _require_room(self, n_new: int) -> None:
        room, n_all = self._n_ctx, self.n_tokens + n_new
        if n_all > room:
            raise ContextFullError(
                f"the context of {room} tokens is full: it holds {self.n_tokens}, and {n_new} more do not "
                f"fit (Requested tokens ({n_all}) exceed context window of {room})"
            )

    def _truncate(self, n_tokens: int) -> bool:
        """Keep the first n_tokens. False, and nothing is done, if a part of a compacted prompt would go, or
        where bounded layers cannot go back so far."""
        if n_tokens < self.n_tokens and not self._bounded.reaches(n_tokens):
            return False
        if not self._ctx.kv_cache_seq_rm(-1, n_tokens, -1):
            return False
        self.n_tokens = n_tokens
        self._requires_eval = True
        return True

    def _drop_unfinished(self, step: _Step) -> None:
        """After a decode that failed: n_tokens and the memory agree again, and nothing that was read is lost.

        llama.cpp has taken back the ubatch that failed, but from a recurrent state it cannot. What of the
        piece was decoded before that stays where a sliding window cannot go back so far.
        """
        if step.before is not None:
            self._bounded.put_back(step.before)
        elif not self._bounded.reaches(self.n_tokens):
            n_more = min(max(0, self._bounded.n_held - self.n_tokens), len(step.piece))
            self.input_ids[self.n_tokens : self.n_tokens + n_more] = step.piece[:n_more]
            self.n_tokens += n_more
        if not self._truncate(self.n_tokens):
            self.reset()

    @contextmanager
    def _in_step(self) -> Iterator[_Step]:
        """If decoding fails, drop what n_tokens does not count, and say what went wrong."""
        step = _Step()
        try:
            with collected_errors() as lines:
                yield step
        except BaseException as error:
            raised = decode_error(error, lines)
            if isinstance(raised, Cancelled):
                self._lifetime.forget_cancel()
            self._drop_unfinished(step)
            if raised is error:
                raise
            raise raised from error


def _lengthened(array: Any, n: int, n_used: int) -> Any:
    """n rows, the first n_used those of the array. What is not used takes no memory yet."""
    if len(array) == n:
        return array
    longer = np.zeros((n, *array.shape[1:]), dtype=array.dtype)
    longer[:n_used] = array[:n_used]
    return longer
