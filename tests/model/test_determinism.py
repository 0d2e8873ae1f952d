"""The same prompt gives the same mask: on every run, with any number of threads."""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from headkv_local import Llama, Retention

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
