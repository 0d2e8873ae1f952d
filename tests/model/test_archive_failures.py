"""A prompt that fails with an archive: what the archive holds of the prompt before is never another one's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headkv_local import ArchiveError, Cancelled, Llama, Retention, StateError
from helpers import last_logits, random_tokens

Load = Callable[..., Llama]
PROMPT = random_tokens(1000)
NEXT = [*PROMPT, *random_tokens(60, seed=1)]


def test_a_cancelled_prompt_that_began_alike(load: Load, tiny_path: Path) -> None:
    llm, other = (
        load(tiny_path, n_ctx=2048, n_batch=64, retention=Retention(budget=64, archive="memory", draft=0))
        for _ in range(2)
    )
    llm.prefill(PROMPT)
    llm.prefill(NEXT)
    mask = llm.retention_mask()
    llm.prefill(PROMPT)

    def stop(done: int, total: int) -> None:
        if done > 0.8 * total:
            llm.cancel()

    llm.on_prefill = stop
    with pytest.raises(Cancelled):
        llm.prefill([*PROMPT[:320], *random_tokens(900, seed=2)])
    llm.on_prefill = None
    assert (llm.n_tokens, llm.cache_stats().archive_tokens) == (1000, 1000)
    llm.prefill(NEXT)
    assert np.array_equal(llm.retention_mask(), mask)
    for prompt in (PROMPT, NEXT, PROMPT, NEXT):
        other.prefill(prompt)
    assert np.array_equal(last_logits(llm), last_logits(other))


@pytest.mark.parametrize("share", [0.1, 0.75, 0.99])
def test_a_file_that_is_cut_short(load: Load, tiny_path: Path, tmp_path: Path, share: float) -> None:
    """Also where what is read next writes beyond the missing rows: they would be zeros."""
    path = tmp_path / "archive"
    llm = load(tiny_path, n_ctx=2048, retention=Retention(budget=64, archive=path))
    llm.prefill(PROMPT)
    os.truncate(path, int(share * path.stat().st_size))
    for _ in range(2):
        with pytest.raises(ArchiveError, match="cut short"):
            llm.prefill(NEXT)
        assert llm.n_tokens == 1000


def test_the_archive_is_given_up(load: Load, tiny_path: Path, tmp_path: Path) -> None:
    """The conversation goes on from what is kept; nothing else can change then."""
    path = tmp_path / "archive"
    llm = load(tiny_path, n_ctx=2048, retention=Retention(budget=64, archive=path))
    llm.prefill(PROMPT)
    mask = llm.retention_mask()
    for other in (None, Retention(budget=32), Retention(budget=64, archive="memory")):
        with pytest.raises(StateError, match="while the cache is compacted"):
            llm.retention = other
    llm.retention = Retention(budget=64)
    assert not path.exists()
    assert llm.cache_stats().archive_tokens == 0
    llm.prefill(NEXT)
    assert np.array_equal(llm.retention_mask(), mask)
    assert (llm.n_tokens, llm.cache_stats().tail_tokens) == (1060, 60)
