"""Reading a prompt with an archive, and signals."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from headkv_local import Llama, Retention
from helpers import random_tokens


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
