"""The same prompt gives the same mask: on every run, with any number of threads."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headkv_local import Llama, Retention
from helpers import random_tokens

Load = Callable[..., Llama]
DOCUMENT = pydoc_data.topics.topics["comparisons"].encode()


def test_a_real_model_with_1_and_2_threads(load: Load, smollm2: Path) -> None:
    masks = []
    for n_threads in (1, 2):
        with load(
            smollm2, retention=Retention(budget=64), n_threads=n_threads, n_threads_batch=n_threads
        ) as llm:
            for _ in range(n_threads):
                llm.reset()
                llm.prefill(llm.tokenize(DOCUMENT)[:500])
                masks.append(llm.retention_mask())
    assert masks[0].shape == (30, 3, 500)
    assert masks[0].sum() == 64 * masks[0].shape[0] * masks[0].shape[1]
    assert np.array_equal(masks[0], masks[1])
    assert np.array_equal(masks[1], masks[2])


@pytest.mark.parametrize("arch", ["llama", "qwen2"])
def test_tiny_models(load: Load, tiny: Callable[..., Path], arch: str) -> None:
    tokens = random_tokens(500)
    scores = np.random.default_rng(5).random((2, 4))
    retention = Retention(budget="10%", scores=scores, kernel=5, sinks=2)
    runs = []
    for n_threads in (1, 2, 1):
        llm = load(tiny(arch=arch), retention=retention, n_threads=n_threads, n_threads_batch=n_threads)
        for _ in range(2):
            llm.reset()
            llm.prefill(tokens)
            runs.append(
                (
                    llm.retention_mask(),
                    [t for _, t in zip(range(20), llm.generate(tokens, temp=0.0), strict=False)],
                )
            )
    for mask, answer in runs[1:]:
        assert np.array_equal(mask, runs[0][0])
        assert answer == runs[0][1]


def test_other_batch_sizes_select_nearly_the_same(load: Load, tiny_path: Path) -> None:
    """Batches change the order of sums, so that near ties may fall otherwise; no more than that."""
    tokens, masks = random_tokens(500), []
    for n_batch in (512, 100, 3):
        llm = load(tiny_path, retention=Retention(budget=64), n_batch=n_batch)
        llm.prefill(tokens)
        masks.append(llm.retention_mask())
    for mask in masks[1:]:
        assert (mask & masks[0]).sum() / mask.sum() > 0.95
