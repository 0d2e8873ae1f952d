"""Contexts to measure: the stock KV cache and ours, from the same library."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import llama_cpp

from headkv_local import ArgumentError, CacheStats, Llama, Retention

from ..llama import explained_load_errors
from ..machine import default_threads
from ..settings import KV_TYPES
from ..tokens import logits_of

_DISABLE = "HEADKV_DISABLE"  # read by the library when a context is made


@dataclass(frozen=True)
class Setup:
    """What all contexts of a run share. n_threads: None is one per physical core."""

    model: str
    n_threads: int | None = None
    type_k: str = "f16"
    type_v: str = "f16"
    n_batch: int = 512
    n_gpu_layers: int = 0

    @property
    def threads(self) -> int:
        """The same for stock contexts and ours."""
        return self.n_threads or default_threads()

    def options(self, n_ctx: int) -> dict[str, Any]:
        return {
            "model_path": self.model,
            "n_ctx": n_ctx,
            "n_batch": self.n_batch,
            "n_ubatch": self.n_batch,
            "n_threads": self.threads,
            "n_threads_batch": self.threads,
            "n_gpu_layers": self.n_gpu_layers,
            "type_k": KV_TYPES[self.type_k],
            "type_v": KV_TYPES[self.type_v],
            "verbose": False,
        }


def open_headkv(setup: Setup, n_ctx: int, retention: Retention | None = None) -> Llama:
    return Llama(**setup.options(n_ctx), retention=retention, flash_attn=True)


def open_stock(setup: Setup, n_ctx: int, flash_attn: bool) -> llama_cpp.Llama:
    """A plain llama_cpp.Llama on a context of the same library that never sees our cache."""
    with stock_cache(), explained_load_errors():
        return llama_cpp.Llama(**setup.options(n_ctx), flash_attn=flash_attn)


def n_ctx_for(n_tokens: int) -> int:
    """The size that llama.cpp would round up to anyway."""
    return -(-n_tokens // 256) * 256


def require_compacted(stats: CacheStats, budget: int | str | None, n_prompt: int) -> None:
    """Raises ArgumentError where the budget left nothing to measure."""
    if not stats.compacted:
        raise ArgumentError(f"a budget of {budget} keeps all of {n_prompt} prompt tokens")


def check_length(llm: llama_cpp.Llama, n_tokens: int) -> None:
    """Raises ArgumentError where the model was not trained for that many tokens."""
    trained = llama_cpp.llama_model_n_ctx_train(llm.model)
    if n_tokens > trained:
        raise ArgumentError(f"the model was trained for {trained} tokens, {n_tokens} would be needed")


def greedy(llm: llama_cpp.Llama, max_tokens: int, stop: str = "") -> list[int]:
    """The likeliest tokens after what was evaluated last, up to an end of generation, which is left out, or
    to the text `stop` behind others, if that is not empty."""
    out: list[int] = []
    while len(out) < max_tokens and (token := likeliest(llm)) is not None:
        out.append(token)
        if stop and stop in text_of(llm, out).lstrip(stop):
            break
        llm.eval([token])
    return out


def likeliest(llm: llama_cpp.Llama) -> int | None:
    """The likeliest token after what was evaluated last; None for an end of generation."""
    vocab = llama_cpp.llama_model_get_vocab(llm.model)
    token = int(logits_of(llm).argmax())
    return None if llama_cpp.llama_vocab_is_eog(vocab, token) else token


def text_of(llm: llama_cpp.Llama, tokens: Sequence[int]) -> str:
    return str(llm.detokenize(list(tokens)), "utf-8", errors="replace")


@contextmanager
def stock_cache() -> Iterator[None]:
    """Contexts that are made meanwhile get llama.cpp's own cache."""
    before = os.environ.get(_DISABLE)
    os.environ[_DISABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_DISABLE]
        else:
            os.environ[_DISABLE] = before
