"""Llama: llama_cpp.Llama that compacts its KV cache after a prompt."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from . import devices
from ._core import sessions, snapshot
from ._core.compactor import small_at_first
from ._core.load import (
    arguments_of,
    explained_load_errors,
    refuse_what_cannot_be,
    require_adapter,
    warn_of_unknown,
)
from ._core.overrides import Overrides
from ._core.question import checked
from ._core.room import with_context
from ._core.threads import Threads
from ._core.tokens import listed
from ._core.turns import Turn
from .budgets import ModelShape
from .errors import StateError, UnsupportedError
from .messages import require_messages
from .retention import Retention
from .stats import CacheStats

__all__ = ["Llama", "explained_load_errors"]

_Self = TypeVar("_Self", bound="Llama")


class Llama(Overrides):
    """A llama_cpp.Llama whose KV heads each keep only their share of a prompt.

    When generate() (and all that is built on it) or prefill() has read a prompt, the KV cache is
    compacted as `retention` says, and the memory of the rest is freed. Later turns go on from what was
    kept, and the same prompt once more gets another answer without being read again; a prompt that does not
    begin with the one in the cache is read anew. A prompt that fits into the budget is kept whole.
    retention=None behaves as llama_cpp.Llama.

    Several threads may use it: one generation goes after another. A call waits while another thread computes
    or takes tokens from a stream. A stream that nobody has taken tokens from for a second makes way and is
    set aside, as is one of the thread that calls; it goes on where it was with its next token, and that
    costs as much as save_state(light=True) and load_state(). Its rows in the archive stay there. eval() and
    sample() of the thread that takes the stream go on in what it has left. cancel(), close(),
    cache_stats(), retention_mask() and tokenize() do not wait. Start processes by "spawn", not by "fork":
    llama.cpp's threads do not survive that, and a child gets StateError.

    model_path: the GGUF file.
    retention: what to keep, in the layers whose attention reaches to all positions (`shape`). Needs flash
        attention, one sequence, and a model with such layers, without MLA. Layers with a sliding window get
        cells for the window, not for the context (llama_cpp's swa_full=False, unless given).
    on_prefill: called as (done, total) tokens from the thread that reads, those that are read once more among
        them: with 0 first, after every batch or layer, and with total at the end. Not where nothing is read.
    flash_attn: None stands for True with a retention, and without one for False, llama_cpp's default.
    n_ctx: tokens that the context holds, 512 if left open, rounded up to a multiple of 256; 0 for what the
        model was trained for; "auto" for as many of these as memory_estimate() fits into 0.9 of free memory.
    verbose: print llama.cpp's log to stderr; it goes to the logger "headkv_local.llama_cpp" in any case.
    kwargs: all others of llama_cpp.Llama, with a warning of unknown ones. n_gpu_layers (0: none, -1: all)
        puts layers and their KV cache on a GPU; if none can be used, a warning says why: all is on the CPU.

    Raises ModelError for a file that is missing or broken, UnsupportedError for a model or settings that
    cannot be compacted or a GPU that this build does not run on, OutOfMemoryError and ArgumentError for a
    context that cannot be made.
    """

    def __init__(
        self,
        model_path: str | os.PathLike[str],
        *,
        retention: Retention | None = None,
        on_prefill: Callable[[int, int], None] | None = None,
        flash_attn: bool | None = None,
        verbose: bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs["flash_attn"] = flash_attn
        model_path = os.fsdecode(model_path)
        refuse_what_cannot_be(model_path, retention, kwargs)
        warn_of_unknown(kwargs)
        kwargs = arguments_of(retention, kwargs)
        threads = Threads(kwargs)
        devices.check_before_loading(kwargs)
        if not kwargs.get("vocab_only"):
            kwargs = with_context(model_path, retention, kwargs)
        self._begin(threads)
        self._session_messages: list[Any] = []
        with explained_load_errors() as lines, small_at_first(retention):
            try:
                super().__init__(model_path, verbose=verbose, **kwargs)
                if self.lora_path and not self._lora_adapter:
                    require_adapter(self.lora_path, lines)
                self._chats.arrange(
                    self, chosen=any(kwargs.get(key) for key in ("chat_format", "chat_handler"))
                )
                self._put_together(kwargs.get("seed"))
                if kwargs.get("draft_model") is not None and self._bounded.recurrent:
                    raise UnsupportedError(
                        "a draft model cannot be used with recurrent layers: they cannot take a draft back"
                    )
                if retention is not None:
                    self._context.require_generating()
                self._compactor.retain(retention)
                self.on_prefill = on_prefill
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Llama:
        self._lifetime.require_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def retention(self) -> Retention | None:
        """What is kept of prompts. Set between prompts, while the cache is not compacted, else StateError.

        It says what was given: of a setting that was left to the head scores' file it has the default.
        Its without_archive() can be set at any time: the conversation goes on from what is kept.
        """
        return self._compactor.retention

    @retention.setter
    def retention(self, retention: Retention | None) -> None:
        with self._using():
            self._reader.retain(retention)

    @property
    def scores_from(self) -> str | None:
        """The file whose head scores make the budgets, "given" for those of no file, None without any."""
        return self._compactor.scores_from

    @property
    def shape(self) -> ModelShape:
        """The layers that retain: query and KV heads in each, bytes of K and V of one entry of one KV head.

        Raises UnsupportedError for a context that can never be compacted.
        """
        with self._lifetime.still():
            return self._compactor.shape

    def cancel(self) -> None:
        """Make the call that runs now raise Cancelled; to be called from another thread, or a signal handler.

        It takes effect inside of the running decode, or before the next one where the model or the settings
        cannot be compacted. What was decoded until then stays in the cache, but of a prompt that is archived.
        A request that nothing was stopped by is forgotten when the next prompt begins; not by a CancelToken.
        """
        self._lifetime.cancel()

    @property
    def reread_reason(self) -> str | None:
        """Why the last prompt was read whole although an earlier one was compacted, or there without logits
        that it asks for; None where it was not."""
        return self._prompts.reread

    def prefill(
        self,
        tokens: Sequence[int],
        question: slice | Sequence[slice] | None = None,
        messages: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Read tokens as a prompt and compact the cache, as generate() does before it samples.

        question: the tokens that ask, as a slice of the prompt, or several; wherever they stand, what they
        look at is kept. None: the last tokens ask (`Retention.observe`), or what was chosen before stays.
        messages: that the prompt was made of; without a question the last one of the user asks, as in
        create_chat_completion().

        What the cache already holds of the prompt is not evaluated again. Afterwards n_tokens is
        len(tokens), and the logits of the last one are there. Raises what eval() raises, and ArgumentError
        for an empty prompt, a budget that is too small for this one, a question that is no slice, empty, not
        inside the prompt, or longer than the rest of it, and messages that are none.
        """
        tokens = listed(tokens)
        turn = Turn(question=checked(question, len(tokens)), messages=require_messages(messages))
        if self._lifetime.turns.inside:
            raise StateError("a prompt cannot be read in a callback of the call that computes")
        with self._using():
            self._reader.prefill(tokens, turn)

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Messages in the model's own chat template, with the opening of an answer after them.

        Its tokens, tokenize(text, add_bos=False, special=True), are what a chat has the model read, unless
        another chat format was chosen. Raises ArgumentError for a model without a template, and for messages
        what create_chat_completion() raises.
        """
        self._lifetime.require_open()
        return self._chats.prompt(self, messages)

    def cache_stats(self) -> CacheStats:
        """What the KV cache holds now, and what it costs. Works at any time, with any retention.

        May be called from any thread, also while another one reads a prompt or generates.

        Sizes are of the layers that retain. Of a context that can never be compacted (flash attention off,
        ...) llama.cpp tells none: they are computed then for a cache of n_ctx cells in all layers, which
        overstates sliding-window models and leaves out the state of recurrent ones.
        """
        with self._lifetime.still():
            return snapshot.stats(self, self._compactor.ctx, self._prompts)

    def retention_mask(self) -> npt.NDArray[np.bool_]:
        """True where a KV head kept a position of the prompt: bool (n_layer, n_head_kv, n_prompt).

        All True while nothing is compacted. May be called from any thread, as cache_stats().
        """
        with self._lifetime.still():
            return snapshot.mask(self.cache_stats, self._compactor)

    @contextmanager
    def attention_rows(self) -> Iterator[Callable[[], npt.NDArray[np.float32]]]:
        """Record what each token that is decoded meanwhile attends to.

            with llm.attention_rows() as rows:
                llm.eval([token])
                rows()

        rows() is the attention of the token evaluated last to all tokens in the cache, itself among them,
        after softmax: float32 (n_layer, n_head, n_tokens), newly made each time. Reading a prompt that is
        compacted ends the recording, and so does a fold. Raises StateError while the cache is compacted, and
        from rows() where nothing was recorded; UnsupportedError for a context that can never be compacted.
        """

        def rows() -> npt.NDArray[np.float32]:
            with self._using(beside=True):
                return self._compactor.rows()

        with self._using():
            self._compactor.begin_rows()
        try:
            yield rows
        finally:
            with suppress(StateError), self._using():  # unless it was closed meanwhile
                self._compactor.end_rows()

    @property
    def session_messages(self) -> list[Any]:
        """The chat messages that came with the session that was opened last; empty without one."""
        return list(self._session_messages)

    def save_session(
        self,
        path: str | os.PathLike[str],
        light: bool = False,
        messages: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Write a file that open_session() goes on from, without reading the prompt again.

        It holds tokens, kept rows and tail, all rows in the archive, settings, and the model's identity. It
        appears whole or not at all: an earlier session of that name is there until then.

        light: leave out the archive, and what it takes to go back to the prompt's end. Later turns are then
            read against what was kept.
        messages: of the chat, for whoever opens the session; anything that JSON can hold.

        Raises SessionError for a file that cannot be written, or a name that is another file's; StateError
        for an empty context; UnsupportedError for one that can never be compacted; ArgumentError for
        messages that are none.
        """
        sessions.save(self, path, light, messages)

    @classmethod
    def open_session(
        cls: type[_Self],
        path: str | os.PathLike[str],
        model_path: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> _Self:
        """A Llama that goes on where the one that saved the session was. Nothing is read again.

        model_path: where the model is now; None: where it was. It must be the same model.
        kwargs: as for the constructor. What is not given is as it was: retention, n_ctx, the types of K and
            V and whatever else rows depend on. A retention without an archive leaves out the session's.

        Logits are those that the saving Llama would have computed, bit for bit on the same CPU with the same
        settings. Raises SessionError for a file that is damaged, of another format or model, or does not fit
        into the context, and what the constructor raises. A session names files, its model and the archive:
        of one from others, give model_path and retention.
        """
        llm: _Self = sessions.open_with(cls, path, model_path, kwargs)
        return llm

    def load_session(self, path: str | os.PathLike[str]) -> None:
        """As open_session(), in this Llama. Its settings stay, but the seed; those of rows must be as then.

        A SessionError leaves the context as it was; empty, where a file without damage says what cannot be.
        """
        sessions.load(self, path)
