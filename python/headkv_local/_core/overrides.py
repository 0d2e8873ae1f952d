"""What a Llama does in another way than llama_cpp.Llama, each method with the part that does it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from operator import attrgetter
from typing import Any
from weakref import proxy

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp.llama import LlamaState
from llama_cpp.llama_tokenizer import LlamaTokenizer

from ..errors import ArgumentError, UnsupportedError
from ..forms import Processors, require_grammar, seed_of
from ..stats import PromptRecord
from . import aside, states
from .bounded import Bounded
from .chats import Chats
from .compactor import Compactor
from .contents import Contents
from .context import Context
from .decoder import Decoder
from .embedding import embeddable
from .folding import Folding
from .generation import Generations, completion_arguments
from .lifetime import Closed, Lifetime
from .pieces import Vocabulary
from .prefill import PromptReader
from .prompts import PromptTracker
from .threads import Threads
from .tokens import Tokens, listed
from .turns import Turn


def _shown(part: str, name: str) -> Any:
    """An attribute of a Llama that one of its parts has."""

    def assign(llm: Any, value: Any) -> None:
        setattr(getattr(llm, part), name, value)

    return property(attrgetter(f"{part}.{name}"), assign)


class Overrides(llama_cpp.Llama):  # type: ignore[misc]
    """The methods that llama_cpp.Llama has, and the parts that they are handed to.

    The base class of Llama and of nothing else: with what llama_cpp.Llama has not, that would be too long
    for one file. A part knows no Llama, and of other parts only those that it is made of. Where a method is
    of a whole Llama (`llm`), it is handed that.
    """

    n_tokens: int = _shown("_tokens", "n_tokens")
    _requires_eval: bool = _shown("_tokens", "requires_eval")
    input_ids: npt.NDArray[np.intc] = _shown("_tokens", "input_ids")
    scores: npt.NDArray[np.single] = _shown("_tokens", "scores")
    _raised: BaseException | None = None  # by a logits processor, for the token that is drawn
    on_prefill: Callable[[int, int], None] | None = _shown("_reader", "on_prefill")

    def _begin(self, threads: Threads) -> None:
        """With the parts that need no context, before there is one."""
        self._lifetime = Lifetime(aside.set_aside, aside.bring_back)
        self._tokens, self._prompts, self._chats = Tokens(), PromptTracker(), Chats()
        self._threads = threads

    def _put_together(self, seed: int | None) -> None:
        """When llama_cpp has made the context."""
        self._seed: int = self._seed if seed is None else seed  # llama_cpp takes 0 for none
        self._weights = states.weights_of(self)
        self._tokens.make_room(self.n_ctx(), self._logits_all)
        self._context = context = Context(self)
        vocabulary = Vocabulary(self._model)
        compactor = Compactor(int(self._ctx.ctx), self.model_path)
        bounded = Bounded(self._ctx.ctx, self._model.model)
        folding = Folding(compactor, self._tokens, self._prompts, vocabulary)
        contents = Contents(context, self._tokens, bounded, compactor, folding, self._prompts)
        decoder = Decoder(contents, compactor, self._threads, self._lifetime)
        reader = PromptReader(
            contents, decoder, compactor, folding, self._prompts, vocabulary, self._lifetime
        )
        self._vocabulary, self._compactor, self._bounded = vocabulary, compactor, bounded
        self._folding, self._contents, self._decoder, self._reader = folding, contents, decoder, reader
        self._generations = Generations(reader, contents, self._lifetime)
        self._lifetime.make_cancellable(compactor.ctx)

    def __getstate__(self) -> dict[str, Any]:
        self._lifetime.require_open()
        state: dict[str, Any] = super().__getstate__()
        if self._threads.cores is not None:  # also where it is loaded
            state |= {"n_threads": None}
        return state | {"retention": self._compactor.retention, "on_prefill": self.on_prefill}

    def close(self) -> None:
        """Free model and context. Every later call raises StateError; closing twice is fine.

        A call that runs in another thread is cancelled first, and waited for: an on_prefill callback must
        not wait in turn for the thread that closes. StateError in the middle of a call of this thread, as in
        a callback: cancel() stops that. Between two tokens of a stream nothing is in the middle. In a child
        made by fork() nothing is freed.
        """
        lifetime = self.__dict__.get("_lifetime")
        if lifetime is None:
            return  # the constructor had nothing to close yet
        if lifetime.abandoned:
            self._abandon()
            return
        with lifetime.ended() as first:
            if not first:
                return
            # what looks something up meanwhile finds these, not what is being freed
            model = self.__dict__.get("_model")
            self.__dict__.update(dict.fromkeys(("_ctx", "_model", "_batch", "tokenizer_"), Closed()))
            for part in ("_compactor", "_context"):
                if part in self.__dict__:
                    self.__dict__[part].end()
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
        self._lifetime.abandon()
        for owner in (self, *(self.__dict__.get(name) for name in ("_model", "_ctx", "_batch"))):
            for stack in ("_stack", "_exit_stack"):
                if stack in getattr(owner, "__dict__", {}):
                    vars(owner)[stack].pop_all()

    def _using(self, beside: bool = False) -> AbstractContextManager[None]:
        """Use the context for a call of its own, see Lifetime.used()."""
        return self._lifetime.used(self, beside=beside)

    @contextmanager
    def _tokenizing(self) -> Iterator[None]:
        """From any thread. Where there is no tokenizer, llama.cpp ends the process."""
        with self._lifetime.still():
            if isinstance(self.tokenizer_, LlamaTokenizer) and not self._vocabulary.spells:
                raise UnsupportedError(
                    "the model has no tokenizer: prefill(), eval() and generate() take tokens"
                )
            yield

    def tokenize(self, *args: Any, **kwargs: Any) -> list[int]:
        """As llama_cpp.Llama.tokenize(); from any thread."""
        with self._tokenizing():
            tokens: list[int] = super().tokenize(*args, **kwargs)
            return tokens

    def detokenize(
        self, tokens: list[int], prev_tokens: list[int] | None = None, special: bool = False
    ) -> bytes:
        """As llama_cpp.Llama.detokenize(), from any thread, and of tokens of any length: it leaves out those
        that spell more than 32 bytes, as deep indents and long rules are. ArgumentError for tokens that the
        model does not have.
        """
        with self._tokenizing():
            if isinstance(self.tokenizer_, LlamaTokenizer):
                return self._vocabulary.text(tokens, special)
            text: bytes = super().detokenize(tokens, prev_tokens, special)
            return text

    def reset(self) -> None:
        """Forget all tokens. A compacted cache gets room for the next prompt when that is read."""
        with self._using():
            self._contents.reset()

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens after those that the KV cache holds.

        Raises ContextFullError, Cancelled, OutOfMemoryError, and ArgumentError for what are no tokens of the
        model. What was evaluated until then stays in the cache.
        """
        with self._using(beside=True):
            self._reader.evaluate(listed(tokens))

    def sample(self, *args: Any, idx: int | None = None, **kwargs: Any) -> int:
        """As llama_cpp.Llama.sample(); StateError where there are no logits, which llama.cpp aborts on."""
        with self._using(beside=True):
            self._tokens.require_logits(idx)
            if not self._lifetime.turns.held:  # it is of a generation that has ended, or made way
                self._sampler = None
            self._raised = None  # of a call that ended otherwise
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
        me: Any = proxy(self)  # a sampler goes around in a circle, which would hold the Llama
        if logits_processor is not None:
            keep = partial(setattr, me, "_raised")
            logits_processor = [Processors(logits_processor, keep, self._lifetime.alone)]
        kwargs |= {"logits_processor": logits_processor, "grammar": grammar}
        return super()._init_sampler.__func__(me, *args, **kwargs)

    @property
    def _scores(self) -> npt.NDArray[np.single]:
        """As llama_cpp's, which takes any prompt to begin with a BOS when it tells of its tokens."""
        rows, turn = self.scores[: self.n_tokens], self._lifetime.turns.current
        if turn is None or not turn.echoes_whole or self.input_ids[0] == self.token_bos():
            return rows
        return np.concatenate((rows[:1], rows))

    def embed(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        """As llama_cpp.Llama.embed(). A cancel ends it before the next batch: Cancelled."""
        with self._using(), embeddable(self, self._context, input) as it, self._lifetime.stopping(self._ctx):
            return super().embed(it, *args, **kwargs)

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Any, None]:
        """As llama_cpp.Llama.generate(); the prompt is compacted before the first token is sampled."""
        return self._generations.generate(self, Turn(), super().generate, tokens, args, kwargs)

    def _create_completion(self, *args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        given = kwargs.get("prompt", ())
        with self._lifetime.still():
            kwargs = completion_arguments(self, kwargs)
        prompt = kwargs.get("prompt", ())
        turn, results = self._chats.turn(prompt), super()._create_completion(*args, **kwargs)
        turn.echoes_logprobs = bool(kwargs.get("echo")) and kwargs.get("logprobs") is not None
        stream = bool(kwargs.get("stream"))
        turn.echoes_whole = turn.echoes_logprobs and not stream
        return self._generations.complete(self, turn, results, kwargs, len(given) - len(prompt))

    def create_chat_completion(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
        """As llama_cpp.Llama.create_chat_completion(), but the model reads what was asked.

        Message parts are handed on as text, and text as parts, where the model's chat template takes only
        the other. A system message is put before the first question where the template knows none. A
        template that leaves out a message is a ModelError, as is one that fails; one that refuses the
        messages is an ArgumentError. A model without a template gets plain text: "User: ...", "Assistant:".

        The user messages after the last answer ask: what is kept is what they look at. Parts of them that are
        documents can be marked, {"type": "text", "text": ..., "document": True}: the others ask. Of a long
        message without marks its first and its last short paragraphs ask.

        Where the template begins an answer with a text that it leaves out of earlier answers (a thinking
        block), that text is no part of the compacted prompt: the next turn goes on from there.

        A handler of the caller's own, or one that writes several prompts, gets the messages as they are.
        """
        self._lifetime.require_open()
        return self._chats.complete(self, super().create_chat_completion, messages, args, kwargs)

    def save_state(self, light: bool = False, hold: bool = False) -> LlamaState:
        """All that load_state() needs to go on from here, compacted or not, also in another process.

        light: leave out the archive, which takes as much memory as the full cache; also one that is in a
            file. Later turns are then read against what was kept.
        hold: copy nothing of the archive. Its rows stay where they are as long as the state does, whatever
            is read meanwhile: for several conversations in turns. Such a state is for this Llama alone, and
            cannot be pickled; once `retention` has another archive, it goes on from what was kept.

        A generate() after it has to begin with the compacted prompt, else it reads its own anew. It goes on
        from what the saving Llama kept, whatever retention the loading one has; of just that prompt, where
        there is an archive, another retention chooses anew.
        Raises OutOfMemoryError for an archive that memory has no room for; save_session() writes a file.
        """
        if light and hold:
            raise ArgumentError("light leaves out what hold would keep: give one of them")
        with self._using(beside=True):
            state = states.sign(self, states.capture(self, archive=not (light or hold)))
            vars(state)["headkv_prompt"] = self._prompts.record
            return states.hold(self, state) if hold else state

    def load_state(self, state: LlamaState) -> None:
        """Go on from a saved state.

        The context may have another n_ctx and n_batch than the one that it was saved from, if it has room:
        layers with a sliding window have as many cells as n_batch asks for. The state's archive goes to this
        Llama's; where that has none, it is left out. StateError (also a KeyError) if the state is of another
        model, adapter or RoPE, of other kv_overrides, or does not fit. What the cache holds stays then, but
        where only llama.cpp finds out it is empty, and also with the ArchiveError of an archive that cannot
        be written.
        """
        with self._using():
            states.require_fitting(self, state)
            aside.restore(self, state, vars(state).get("headkv_prompt", PromptRecord()))
            self._seed = state.seed
