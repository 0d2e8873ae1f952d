"""Texts that are embedded: llama.cpp ends the process for batches that llama_cpp makes of some."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from architectures import FAMILIES
from gguf_factory import TinyModel
from headkv_local import ArgumentError, Llama
from headkv_local.errors import EncoderError

Load = Callable[..., Llama]
Tiny = Callable[..., Path]
NON_CAUSAL = 1
MEAN = 1


def of_model(arch: str) -> dict[str, Any]:
    return {"attention_type": NON_CAUSAL} if arch == "llama" else {}


@pytest.mark.parametrize("arch", ["llama", "bert"])
def test_many_texts_of_more_tokens_than_a_ubatch(load: Load, tiny: Tiny, arch: str) -> None:
    """Each looks at all tokens of its text, which stays in one ubatch."""
    sizes: dict[str, Any] = {"embedding": True, "n_ctx": 1024, "n_batch": 1024, "pooling_type": 2}
    llm = load(tiny(arch=arch), n_ubatch=64, **sizes, **of_model(arch))
    texts = ["a short text", "another one", "the last"] * 20
    rows = llm.embed(texts)
    alone = {text: llm.embed(text) for text in texts}
    assert all(row == pytest.approx(alone[text], abs=1e-4) for row, text in zip(rows, texts, strict=True))
    assert llm.n_batch == 1024
    n_tokens = len(llm.tokenize(b"word " * 60))
    assert n_tokens > 64
    with pytest.raises(
        ArgumentError, match=f"^input 2 has {n_tokens} tokens, and this model reads 64 at once"
    ):
        llm.embed(["a", "word " * 60])
    assert llm.embed(texts[0]) == alone[texts[0]]
    larger = load(tiny(arch=arch), n_ubatch=1024, **sizes, **of_model(arch))
    assert larger.embed("word " * 60)
    assert larger.embed(texts[0]) == pytest.approx(rows[0], abs=1e-4)


def test_a_causal_model_reads_a_text_in_many_ubatches(load: Load, tiny: Tiny) -> None:
    sizes: dict[str, Any] = {"embedding": True, "n_ctx": 1024, "n_batch": 1024, "pooling_type": 3}
    pieces = load(tiny(), n_ubatch=64, **sizes).embed("word " * 60)
    assert pieces == pytest.approx(load(tiny(), n_ubatch=1024, **sizes).embed("word " * 60), abs=1e-4)


def test_what_ends_between_two_batches_leaves_no_tokens(load: Load, tiny_path: Path) -> None:
    """The cache was cleared for the first batch: a prompt that begins alike must not go on from it."""
    llm, tokens = load(tiny_path, embedding=True, n_batch=64), list(range(1, 41))

    def answer() -> list[int]:
        return list(islice(llm.generate([*tokens, 41], temp=0.0), 6))

    wanted = answer()
    llm.reset()
    llm.eval(tokens)
    with pytest.raises(ValueError, match="exceed batch size"):
        llm.embed(["d" * 50, "d" * 50, "d" * 200], truncate=False)
    assert llm.n_tokens == 0
    assert answer() == wanted


@pytest.mark.parametrize("arch", ["llama", "mamba2"])
def test_a_prompt_whose_tokens_look_at_all_others(load: Load, tiny: Tiny, arch: str) -> None:
    llm = load(tiny(arch=arch), attention_type=NON_CAUSAL, n_ctx=512, n_batch=512, n_ubatch=32)
    for generate in (lambda n: llm("a" * n, max_tokens=2), lambda n: llm.eval([1] * n)):
        with pytest.raises(ArgumentError, match="tokens, and this model reads 32 at once"):
            generate(100)
        llm.reset()
        generate(20)
        llm.reset()


@pytest.mark.parametrize("of_file", [False, True])
def test_means_of_more_sequences_than_a_ubatch_has_tokens(
    load: Load, tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_file: bool
) -> None:
    """Of what the caller asks for, and of what the file says."""
    path, means = tiny_path, {"pooling_type": MEAN}
    given: dict[str, Any] = {"embedding": True, "n_ctx": 2048, "n_batch": 512}
    if of_file:
        bert = FAMILIES["bert"]
        monkeypatch.setitem(FAMILIES, "bert", replace(bert, keys=lambda model: {**bert.keys(model), **means}))
        path = TinyModel(arch="bert").write(tmp_path / "means.gguf")
    else:
        given |= means
    with pytest.raises(ArgumentError, match="^n_ubatch must be at least 256 .* not 64$"):
        load(path, n_ubatch=64, **given)
    assert load(path, n_ubatch=256, **given).embed("a text")
    assert load(path, **given | {"n_ubatch": 64, "n_batch": 64}).embed("a text")
    assert load(path, **given | {"n_ubatch": 128, "n_ctx": np.int64(128)}).embed(text for text in ["a", "b"])


def test_a_vocabulary_alone_embeds_nothing(load: Load, tiny_path: Path) -> None:
    llm = load(tiny_path, embedding=True, vocab_only=True)
    with pytest.raises(EncoderError, match="^no text can be embedded: .* vocab_only"):
        llm.embed("a")
