"""Prompts that are read layer by layer without an archive: what is kept, and what is decoded after it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

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
