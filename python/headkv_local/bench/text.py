"""Prompt tokens for the benches: any number of them, from the haystack text."""

from __future__ import annotations

from itertools import cycle, islice

import llama_cpp

from .haystack import paragraphs


def text_tokens(llm: llama_cpp.Llama, n_tokens: int) -> list[int]:
    """The first n_tokens tokens of the haystack text, from its start again where it is too short."""
    enough = paragraphs()[: n_tokens // 8 + 1]  # a paragraph has at least 12 words
    tokens = llm.tokenize("\n\n".join(enough).encode(), add_bos=True, special=False)
    return list(islice(cycle(tokens), n_tokens))
