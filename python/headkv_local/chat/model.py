"""Loads the model for the chat. Importing this module imports llama_cpp, so it waits for valid arguments."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
from llama_cpp.llama_grammar import LlamaGrammar

from headkv_local import Llama
from headkv_local.chat.grammar import compiled
from headkv_local.chat.options import Options
from headkv_local.chat.repetition import Loop, LoopDetector
from headkv_local.chat.sampling import Sampling, choose_sampling
from headkv_local.defaults import default_context
from headkv_local.devices import all_layers, gpus
from headkv_local.errors import ModelError
from headkv_local.settings import UINT32_MAX
from headkv_local.tokens import count_tokens

_BATCH = 512  # llama_cpp's default
_CPU_BATCHES = ((400 * 1024**2, 256), (2 * 1024**3, 128))  # for files smaller than so many bytes
_CPU_LEAST_BATCH = 64
_OPENING = 16  # tokens of it may begin a thinking block


@dataclass
class Meter:
    """Counts and times of one answer. Times are those of time.perf_counter, 0.0 before they are known.

    loop: what the answer has begun to repeat without end. opening: the end of the prompt, "" where a form of
    the answer does not go on from there: a block of thinking that a template has opened is none of its own.
    """

    prompt_tokens: int = 0
    read_tokens: int = 0
    sampled: int = 0
    started: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0
    loop: Loop | None = None
    opening: str = ""

    def prefill_seconds(self) -> float:
        """From the start to the first token, or to now where there is none."""
        return (self.first_at or time.perf_counter()) - self.started

    @property
    def decode_rate(self) -> float | None:
        """Tokens per second after the first one, which still belongs to the prefill."""
        took = self.last_at - self.first_at
        return (self.sampled - 1) / took if self.sampled > 1 and took > 0 else None


class ChatLlama(Llama):
    """A Llama that meters its answers.

    The chunks of a streamed answer tell neither how many tokens they hold nor how long the prompt was.
    """

    def __init__(self, model_path: str, **kwargs: Any) -> None:
        self.meter = Meter()
        self.sampling = Sampling()
        self.grammar: LlamaGrammar | None = None
        self.watch_prefill: Callable[[int, int], None] | None = None
        self.loops: LoopDetector | None = None  # looks at the next answer
        super().__init__(model_path, on_prefill=self._prefilled, **kwargs)

    def use(self, sampling: Sampling) -> None:
        """For the answers to come."""
        self.sampling = sampling
        last_n = sampling.repeat_last_n
        self.last_n_tokens_size = self.n_ctx() if last_n < 0 else last_n

    def seed_anew(self, seed: int | None) -> None:
        """None: with a new one."""
        self.set_seed(_new_seed() if seed is None else seed)

    def compile(self, options: Options) -> LlamaGrammar | None:
        """What answers have to look like. Raises ArgumentError."""
        return compiled(options, self._model.vocab)

    def count_tokens(self, text: str, enough: int) -> tuple[int, bool]:
        """As tokens.count_tokens()."""
        return count_tokens(lambda part: self.tokenize(part, add_bos=False, special=True), text, enough)

    @property
    def file_name(self) -> str:
        """What the user knows the model by; the name inside of the file is often its maker's own."""
        return os.path.basename(str(self.model_path))

    @property
    def trained_tokens(self) -> int:
        """The longest context that the model was trained for, 0 if that is not known."""
        return int(llama_cpp.llama_model_n_ctx_train(self.model))

    def generate(
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        opening = "" if self.grammar is not None else self._text_of(tokens[-_OPENING:])
        meter = self.meter = Meter(prompt_tokens=len(tokens), started=time.perf_counter(), opening=opening)
        for token in super().generate(tokens, *args, **kwargs):
            meter.last_at = time.perf_counter()
            meter.first_at = meter.first_at or meter.last_at
            meter.sampled += 1
            if self.loops is not None:
                meter.loop = meter.loop or self.loops.add(token)
            yield token

    def _text_of(self, tokens: Sequence[int]) -> str:
        return self.detokenize(list(tokens), special=True).decode(errors="ignore")

    def _prefilled(self, done: int, total: int) -> None:
        self.meter.read_tokens = done
        if self.watch_prefill is not None:
            self.watch_prefill(done, total)


def load_model(
    path: str, options: Options, archive: str | None, context: Mapping[str, Any] | None = None
) -> ChatLlama:
    """The model at `path`, ready to answer. Raises HeadKVError.

    archive: as Retention takes it. context: arguments of Llama that a session was made with.
    """
    if not os.path.isfile(path):
        raise ModelError(f"there is no model file '{path}'")
    gpu_layers = all_layers(options.gpu_layers) if gpus() else 0  # the chat has said why
    settings: dict[str, Any] = {
        "retention": options.retention(archive),
        "n_ctx": default_context(path) if options.ctx is None else options.ctx,
        "n_threads": options.threads,
        "n_threads_batch": options.threads,
        "n_gpu_layers": gpu_layers,
        "n_batch": _batch(path) if gpu_layers == 0 else _BATCH,
        "seed": _new_seed() if options.seed is None else options.seed,
        "flash_attn": True,  # also for the full cache, so that /set budget can change to another one
    }
    llm = ChatLlama(path, **(settings | dict(context or {})))
    try:
        llm.use(choose_sampling(options, llm.metadata))
        llm.grammar = llm.compile(options)
    except BaseException:
        llm.close()
        raise
    return llm


def _new_seed() -> int:
    return secrets.randbelow(UINT32_MAX)


def _batch(path: str) -> int:
    """Prompt tokens that a CPU evaluates in one go: progress is told after each.

    Smaller ones take a few percent more time, and one of a large model takes many seconds.
    """
    size = os.path.getsize(path)
    return next((n_batch for limit, n_batch in _CPU_BATCHES if size < limit), _CPU_LEAST_BATCH)
