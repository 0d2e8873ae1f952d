"""What is kept of a document, by when it is chosen: with its question, before it, or anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headkv_local import Llama, Retention
from headkv_local.bench import chosen
from headkv_local.bench.suites.names import ANEW, BEFORE, CHOSEN, WITH
from helpers import random_tokens


@pytest.mark.parametrize("arch", ["llama", "gemma3", "jamba"])
def test_a_document_that_is_compacted_before_its_question_is_the_same_for_all(
    tiny: Callable[..., Path], load: Callable[..., Llama], arch: str
) -> None:
    """Also where layers have a sliding window or a recurrent state, which cannot go back."""
    document, questions = random_tokens(300), [random_tokens(40, seed) for seed in (1, 2)]
    kept: dict[str, list[Any]] = {}
    for when in CHOSEN:
        archive = "memory" if when == ANEW else None
        # without a draft, whose likeliest tokens would be others where sums are made in another order
        kept_of = Retention(budget=32, scores="uniform", archive=archive, draft=0)
        llm = load(tiny(arch=arch), retention=kept_of)
        for question in questions:
            llm.reset()
            asks = slice(len(document), None)
            chosen.read(llm, document + question, len(document), when, question=asks)
            kept.setdefault(when, []).append(llm.retention_mask()[..., : len(document)])
    assert (kept[BEFORE][0] == kept[BEFORE][1]).all()
    for when in (WITH, ANEW):
        assert (kept[when][0] != kept[when][1]).any()
        assert (kept[when][0] == kept[WITH][0]).mean() > 0.99  # sums are made in another order


def test_a_document_that_fits_into_the_budget_stays_whole_when_its_question_comes(
    tiny_path: Path, load: Callable[..., Llama]
) -> None:
    tokens, kept = random_tokens(340), {}
    for when in (WITH, BEFORE):
        llm = load(tiny_path, retention=Retention(budget=320, scores="uniform"))
        chosen.read(llm, tokens, 300, when)
        assert llm.n_tokens == len(tokens)
        kept[when] = llm.cache_stats().compacted
    assert kept == {WITH: True, BEFORE: False}
