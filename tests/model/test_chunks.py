"""Layers that see back to where a chunk of 8,192 tokens begins (Llama 4), beside those that retain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from headkv_local import Llama, Retention
from helpers import forced_logits, last_logits, nmse, random_tokens
from reference import masks_of, reference_logits

N_PROMPT, N_ALONE, N_TURN = 8400, 4, 16
TOKENS = random_tokens(N_PROMPT + N_ALONE + N_TURN)
SETTINGS = {"n_ctx": 9216, "n_ubatch": 512}


def test_a_prompt_of_more_than_a_chunk(
    load: Callable[..., Llama], tiny: Callable[..., Path], tmp_path: Path
) -> None:
    path = tiny(arch="llama4", n_layer=4, n_head=2, n_head_kv=1, head_dim=32, n_ctx_train=16384)
    llm, other = (
        load(path, retention=Retention(budget=1024, scores="uniform"), **SETTINGS) for _ in range(2)
    )
    llm.prefill(TOKENS[:N_PROMPT])
    masks = masks_of(path, llm)
    assert [mask.sum() for mask in masks.values()] == [1024]
    rows = [*forced_logits(llm, TOKENS[N_PROMPT:][:N_ALONE])]
    llm.prefill(TOKENS)
    assert llm.reread_reason is None
    rows.append(last_logits(llm))
    wanted = reference_logits(path, TOKENS, N_PROMPT, masks, **SETTINGS)
    assert nmse(np.array(rows), wanted[[*range(N_ALONE + 1), -1]]) < 1e-4

    llm._bounded.put_back(llm._bounded.snapshot())  # llama.cpp leaves out what is before the chunk
    llm.save_session(tmp_path / "session")
    other.load_session(tmp_path / "session")
    assert np.array_equal(forced_logits(other, TOKENS[:3])[1:], forced_logits(llm, TOKENS[:3])[1:])
