"""Loads the model for the chat. Importing this module imports llama_cpp, so it waits for valid arguments."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp

from headkv_local import Llama, Retention
from headkv_local._limits import MAX_THREADS
from headkv_local.chat.args import Options
from headkv_local.chat.context import choose_context, physical_cores
from headkv_local.devices import all_layers


@dataclass
class Meter:
    """Counts and times of one answer. Times are those of time.perf_counter, 0.0 before they are known."""

    prompt_tokens: int = 0
    read_tokens: int = 0
    sampled: int = 0
    started: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0

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
        self.watch_prefill: Callable[[int, int], None] | None = None
        super().__init__(model_path, on_prefill=self._prefilled, **kwargs)

    @property
    def trained_tokens(self) -> int:
        """The longest context that the model was trained for, 0 if that is not known."""
        return int(llama_cpp.llama_model_n_ctx_train(self.model))

    def generate(
        self, tokens: Sequence[int], *args: Any, **kwargs: Any
    ) -> Generator[int, Sequence[int] | None, None]:
        meter = self.meter = Meter(prompt_tokens=len(tokens), started=time.perf_counter())
        for token in super().generate(tokens, *args, **kwargs):
            meter.last_at = time.perf_counter()
            meter.first_at = meter.first_at or meter.last_at
            meter.sampled += 1
            yield token

    def _prefilled(self, done: int, total: int) -> None:
        self.meter.read_tokens = done
        if self.watch_prefill is not None:
            self.watch_prefill(done, total)


def load_model(path: str, options: Options, retention: Retention | None) -> ChatLlama:
    """The model at `path`, ready to answer. Raises HeadKVError."""
    cores = options.threads or min(physical_cores(), MAX_THREADS)
    return ChatLlama(
        path,
        retention=retention,
        n_ctx=choose_context(os.fsencode(path), options.ctx),
        n_threads=cores,
        n_threads_batch=cores,
        n_gpu_layers=all_layers(options.gpu_layers),
        seed=secrets.randbelow(2**32 - 1) if options.seed is None else options.seed,
        flash_attn=True,  # also for the full cache, so that /budget can change to another one
    )
