"""One sample through a tiny model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headkv_local import Llama
from headkv_local._core import native
from headkv_local.scoring.attention import needle_share
from headkv_local.scoring.measure import ANSWER_TOKENS, Observed, observe
from headkv_local.scoring.prompt import Prompt
from helpers import greedy, random_tokens

PROMPT = Prompt(random_tokens(200), np.arange(40, 52))


@pytest.fixture
def llm(load: Callable[..., Llama], tiny_path: Path) -> Llama:
    return load(tiny_path, flash_attn=True)


def test_forced_with_what_it_says_itself_scores_the_same(llm: Llama) -> None:
    said = observe(llm, PROMPT, None)
    llm.reset()
    llm.eval(PROMPT.tokens)
    tokens = greedy(llm, ANSWER_TOKENS)
    assert said.text == llm.detokenize(tokens).decode("utf-8", "replace")
    forced = observe(llm, PROMPT, tokens)
    assert np.array_equal(forced.score, said.score)
    assert forced.text == said.text


def test_score_is_of_the_rows_that_produce_the_answer(llm: Llama) -> None:
    answer = random_tokens(5, seed=1)
    found = observe(llm, PROMPT, answer)
    llm.reset()
    llm.eval(PROMPT.tokens[:-1])
    native.observe(int(llm.ctx), native.OBSERVE_ROWS)
    wanted = np.zeros((2, 4))
    for token in [PROMPT.tokens[-1], *answer[:-1]]:
        llm.eval([token])
        rows = native.get_rows(int(llm.ctx))
        assert np.allclose(rows.sum(axis=-1), 1, atol=1e-3)
        wanted += needle_share(rows, PROMPT.needle, 200)
    assert np.array_equal(found.score, wanted)
    assert found.score.max() > 0


def test_the_model_is_usable_afterwards(llm: Llama) -> None:
    llm.eval(PROMPT.tokens)
    before = greedy(llm, 8)
    observe(llm, PROMPT, [1, 2, 3])
    llm.reset()
    llm.eval(PROMPT.tokens)
    assert greedy(llm, 8) == before


def test_an_empty_answer_scores_nothing(llm: Llama) -> None:
    empty: Observed = observe(llm, PROMPT, [])
    assert empty.text == ""
    assert empty.score.shape == (2, 4)
    assert not empty.score.any()
