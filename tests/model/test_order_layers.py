"""Prompts that are read layer by layer: without an archive, and when a signal comes meanwhile."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headkv_local import Llama, Retention
from helpers import last_logits, random_tokens


def test_layers_without_an_archive_find_what_tokens_find(tiny_path: Path) -> None:
    found = {}
    prompt = random_tokens(300)
    for order in ("tokens", "layers"):
        retention = Retention(budget=48, scores="uniform", order=order)
        with Llama(tiny_path, n_ctx=512, n_threads=1, flash_attn=True, retention=retention) as llm:
            for _ in range(2):  # another prompt behind it finds no trace of the first
                llm.reset()
                llm.prefill(prompt)
            read = last_logits(llm)
            llm.eval(prompt[:3])
            found[order] = read, last_logits(llm), llm.retention_mask()
            stats = llm.cache_stats()
            assert (stats.archive_bytes, stats.archive_tokens) == (0, 0)
            assert stats.kept_share == 48 / 300
    assert all(np.array_equal(*pair) for pair in zip(found["tokens"], found["layers"], strict=True))


class Rung(Exception):
    pass


def ring(*_: Any) -> None:
    raise Rung


def test_what_a_signal_handler_raises_ends_the_reading(tiny_path: Path) -> None:
    """As the KeyboardInterrupt of Ctrl+C does."""
    before = signal.signal(signal.SIGALRM, ring)
    try:
        with Llama(tiny_path, n_ctx=6144, n_threads=1, retention=Retention(archive="memory")) as llm:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Rung):
                llm.prefill(random_tokens(6000))
            assert llm.n_tokens == 0
            llm.prefill(random_tokens(300))
            assert llm.cache_stats().archive_tokens == 300
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
