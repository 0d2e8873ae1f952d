"""Llama.attention_rows(): what each decoded token attends to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headkv_local import Llama, Retention, StateError, UnsupportedError
from headkv_local._core import native
from helpers import greedy, random_tokens

Load = Callable[..., Llama]


def test_rows_of_every_token_until_the_end(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, flash_attn=True)
    llm.eval(random_tokens(40))
    with llm.attention_rows() as rows:
        with pytest.raises(StateError):
            rows()  # nothing was decoded since
        for n in (41, 42):
            llm.eval([n])
            found = rows()
            assert found.shape == (llm.shape.n_layer, llm.shape.n_head, n)
            assert np.allclose(found.sum(axis=-1), 1, atol=1e-5)
            assert found[..., -1].min() > 0  # a token attends to itself
    llm.eval([43])
    with pytest.raises(StateError):
        rows()


def test_rows_after_tokens_were_taken_back(load: Load, tiny_path: Path) -> None:
    """Of the tokens that came next, as if there had been no others."""
    tokens, found = random_tokens(40), []
    for n in (40, 30):
        llm = load(tiny_path, flash_attn=True)
        with llm.attention_rows() as rows:
            llm.eval(tokens[:n])
            assert llm._contents.truncate(30)
            if n > 30:
                with pytest.raises(StateError):
                    rows()  # of a token that is not there any more
            llm.eval([1])
            found.append(rows())
            llm.eval([2])
            assert rows().shape[-1] == 32
    assert np.allclose(*found, atol=1e-3)


def test_rows_in_a_cache_that_grows(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    llm.prefill(random_tokens(200))
    llm.reset()
    native.reserve(int(llm.ctx), 200)
    with llm.attention_rows() as rows:
        for token in random_tokens(300):
            llm.eval([token])
            assert rows().shape[-1] == llm.n_tokens


def test_what_cannot_be_recorded_is_refused_and_nothing_changes(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, retention=Retention(budget=32))
    llm.prefill(random_tokens(200))
    with pytest.raises(StateError), llm.attention_rows():
        pass
    for call in (native.get_rows, native.get_attention):
        with pytest.raises(StateError, match="the cache is compacted"):
            call(llm._ctx.ctx)
    assert len(greedy(llm, 3)) == 3
    stock = load(tiny_path, flash_attn=False)
    with pytest.raises(UnsupportedError), stock.attention_rows():
        pass
    with pytest.raises(UnsupportedError):
        _ = stock.shape


def test_a_llama_may_be_closed_meanwhile(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, flash_attn=True)
    with llm.attention_rows() as rows:
        llm.eval([1, 2])
        llm.close()
    with pytest.raises(StateError, match="closed"):
        rows()
