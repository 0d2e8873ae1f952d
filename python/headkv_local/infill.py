"""Prompts with a suffix: the model fills in what stands between the two."""

from __future__ import annotations

import llama_cpp

from .errors import ArgumentError, UnsupportedError

_MARK = "\u263a"  # whose tokens stand for the space that some tokenizers put before a text


def prompt_of(llm: llama_cpp.Llama, prompt: str | list[int], suffix: str) -> list[int]:
    """The tokens that have the model fill in: the text before and after, each behind its mark.

    llama_cpp puts token 0 in place of each mark. Raises UnsupportedError for a model without such marks.
    """
    if not isinstance(suffix, str):
        raise ArgumentError(f"suffix must be a text, not {suffix!r}")
    vocab = llm._model.vocab
    before, after, middle = (
        llama_cpp.llama_vocab_fim_pre(vocab),
        llama_cpp.llama_vocab_fim_suf(vocab),
        llama_cpp.llama_vocab_fim_mid(vocab),
    )
    if min(before, after, middle) < 0:
        raise UnsupportedError("the model has no tokens for a suffix: it cannot fill in a text")
    head = [before, *(_plain(llm, prompt) if isinstance(prompt, str) else prompt)]
    tail = [after, *_plain(llm, suffix, inside=True)]
    begin = [llm.token_bos()] if llama_cpp.llama_vocab_get_add_bos(vocab) else []
    return [*begin, *(tail + head if llm.spm_infill else head + tail), middle]


def _plain(llm: llama_cpp.Llama, text: str, inside: bool = False) -> list[int]:
    """Tokens of a text, without special ones. inside: no space comes before it."""
    spaced = inside and llama_cpp.llama_vocab_type(llm._model.vocab) == llama_cpp.LLAMA_VOCAB_TYPE_SPM
    tokens: list[int] = llm.tokenize(((_MARK if spaced else "") + text).encode("utf-8"), False, False)
    return tokens[len(llm.tokenize(_MARK.encode("utf-8"), False, False)) :] if spaced else tokens
