"""What tokens spell."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from headkv_local import ArgumentError, Llama
from helpers import random_tokens

Load = Callable[..., Llama]
INDENT = "def f():\n" + " " * 60 + "return 1\n"


@pytest.mark.parametrize("text", [INDENT, "-" * 70, "=" * 80, "\n" + "\t" * 40, "|" + "-" * 64 + "|"])
def test_texts_of_long_tokens(load: Load, smollm2: Path, text: str) -> None:
    llm = load(smollm2, vocab_only=True)
    tokens = llm.tokenize(text.encode(), add_bos=False)
    assert len(tokens) < len(text) / 4
    assert llm.detokenize(tokens).decode() == text
    assert b"".join(llm.detokenize([token]) for token in tokens).decode() == text


def test_an_answer_of_long_tokens(load: Load, smollm2: Path) -> None:
    llm = load(smollm2)
    indent = max(llm.tokenize(INDENT.encode(), add_bos=False), key=lambda token: len(llm.detokenize([token])))
    piece = llm.detokenize([indent]).decode()
    assert len(piece) > 32
    biased: dict[int, float] = {indent: 100.0}
    answer = llm.create_completion("def f():", max_tokens=2, logit_bias=biased)
    assert answer["choices"][0]["text"] == piece * 2
    stream = llm.create_completion("def f():", max_tokens=2, logit_bias=biased, stream=True)
    assert "".join(chunk["choices"][0]["text"] for chunk in stream) == piece * 2


@pytest.mark.parametrize("token", [-1, 288, 2**31 - 1, 2**40])
def test_tokens_that_the_model_does_not_have(load: Load, tiny_path: Path, token: int) -> None:
    llm = load(tiny_path)
    bad = token if token != 288 else llm.n_vocab()
    with pytest.raises(ArgumentError, match=f"^token {bad} is none of the model's"):
        llm.detokenize([104, bad])
    assert llm.detokenize(llm.tokenize(b"text", add_bos=False)) == b"text"


def test_texts_that_grow_in_turns(load: Load, tiny_path: Path) -> None:
    """As two answers do at the same time, and one that goes on otherwise."""
    llm = load(tiny_path)
    first, second = random_tokens(700, seed=1), random_tokens(700, seed=2)
    forked = first[:400] + second[400:]
    alone = {token: llm.detokenize([token]) for token in {*first, *second}}
    for before, n in pairwise(range(0, 701, 50)):
        for tokens in (first[:n], first[: n - 1], second[:n], first[:before], forked[:n]):
            assert llm.detokenize(tokens) == b"".join(alone[token] for token in tokens)
