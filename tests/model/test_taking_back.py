"""Tokens that are taken back: where recurrent layers cannot, and where a sliding window has lost what it
would see again."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headkv_local import Cancelled, Llama, Retention
from helpers import cancelled_after, ends, forced_logits, last_logits, nmse, random_tokens
from reference import stock_distance

Load = Callable[..., Llama]
TOKENS = random_tokens(800)
LATER = TOKENS[-8:]

HYBRID = ["qwen35", "lfm2", "jamba"]
SLIDING = ["gemma3", "gpt-oss"]


@pytest.mark.parametrize("arch", HYBRID)
def test_a_conversation_outgrows_the_budget(load: Load, tiny: Callable[..., Path], arch: str) -> None:
    """What is to be observed is in the cache already, in part."""
    llm = load(tiny(arch=arch), n_ubatch=64, retention=Retention(budget=305))
    llm.prefill(TOKENS[:300])
    assert not llm.cache_stats().compacted
    llm.prefill(TOKENS[:310])
    assert llm.cache_stats().compacted
    mask, found = llm.retention_mask(), forced_logits(llm, LATER)
    llm.reset()
    llm.prefill(TOKENS[:310])
    assert np.array_equal(llm.retention_mask(), mask)
    assert nmse(found, forced_logits(llm, LATER)) < 1e-5


@pytest.mark.parametrize("arch", ["llama", *HYBRID])
@pytest.mark.parametrize("tokens", [TOKENS[:300], TOKENS[:310] + TOKENS[400:410]], ids=["same", "other turn"])
def test_why_a_prompt_is_read_whole(
    load: Load, tiny: Callable[..., Path], arch: str, tokens: list[int]
) -> None:
    llm = load(tiny(arch=arch), n_ubatch=64, retention=Retention(budget=64))
    llm.prefill(TOKENS[:300])
    llm.prefill(TOKENS[:330])
    read = [0]
    llm.on_prefill = lambda done, total: read.append(total)
    llm.prefill(tokens)
    assert (llm.reread_reason is not None) == (read[-1] == len(tokens))


@pytest.mark.parametrize("arch", HYBRID)
def test_an_answer_goes_on_after_a_cancel(load: Load, tiny: Callable[..., Path], arch: str) -> None:
    """From all that the cache holds: nothing is to be taken back."""
    llm = load(tiny(arch=arch), n_ubatch=64, retention=Retention(budget=64))
    answer = llm.generate(TOKENS[:300], temp=0.0)
    first = [next(answer) for _ in range(5)]
    mask = llm.retention_mask()
    llm.cancel()
    with pytest.raises(Cancelled):
        next(answer)
    assert ends(llm) == (304,) * 3
    assert next(llm.generate(TOKENS[:300] + first[:4], temp=0.0)) == first[4]
    assert np.array_equal(llm.retention_mask(), mask)


@pytest.fixture(params=SLIDING)
def path(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Path:
    return tiny(arch=request.param)


@pytest.fixture
def open_small(load: Load, path: Path) -> Callable[..., Llama]:
    """With no more cells for sliding windows than these and a ubatch need: 256."""

    def opener(**arguments: Any) -> Llama:
        small = {"n_ctx": 1024, "n_batch": 1024, "n_ubatch": 64, "swa_full": False}
        return load(path, **(small | {"retention": Retention(budget=64)} | arguments))

    return opener


def test_windows_after_a_cancelled_turn(open_small: Callable[..., Llama], path: Path) -> None:
    rows = []
    n_nodes = math.inf
    for cancels in (False, True):
        llm = open_small()
        llm.prefill(TOKENS[:300])
        if cancels:
            with cancelled_after(llm, 0.95 * n_nodes), pytest.raises(Cancelled):
                llm.prefill(TOKENS[:600])
        with cancelled_after(llm, math.inf) as count:
            llm.prefill(TOKENS[:600])
        n_nodes = count[0]
        rows.append(forced_logits(llm, LATER))
    assert nmse(rows[1], rows[0]) < 3 * stock_distance(path, TOKENS[:308], 300)


@pytest.mark.parametrize("retention", [None, Retention(budget=64)])
def test_windows_after_another_turn(
    open_small: Callable[..., Llama], path: Path, retention: Retention | None
) -> None:
    """The windows have forgotten what came before the other turn: the prompt is read whole."""
    tokens = TOKENS[:310] + TOKENS[700:720]
    rows = []
    for others in ([TOKENS[:300], TOKENS[:600]], []):
        llm = open_small(retention=retention, flash_attn=True)
        for other in others:
            llm.prefill(other)
        llm.prefill(tokens)
        rows.append(last_logits(llm))
        assert ((llm.reread_reason or "").find("cannot go back to token 310") >= 0) is bool(
            retention and others
        )
    assert nmse(rows[0], rows[1]) < 3 * stock_distance(path, TOKENS[:308], 300)


def test_windows_after_a_long_question(open_small: Callable[..., Llama], path: Path) -> None:
    """As where sliding windows have cells for the whole context. Without a draft: over other cells, which sum
    otherwise, this model may have another one."""
    rows = []
    for swa_full in (False, True):
        llm = open_small(swa_full=swa_full, retention=Retention(budget=64, draft=0))
        llm.prefill(TOKENS[:500], question=slice(2, 245))
        assert ends(llm) == (500,) * 3
        rows.append(forced_logits(llm, LATER))
    assert nmse(rows[0], rows[1]) < 3 * stock_distance(path, TOKENS[:308], 300)
