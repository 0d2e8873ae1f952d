"""The loss of a right answer after compaction. A prompt is read once, and compacted anew each time."""

from __future__ import annotations

import llama_cpp

from ..bench.state import KeptState
from ..errors import InternalError
from ..llama import Llama
from ..retention import Retention
from ..tokens import log_softmax, logits_of
from .prompt import Asked


class SavedPrompt:
    """A prompt that has been read up to its question, to be compacted in many ways.

    Of a prompt all but the last token is compacted: that one and the answer are decoded afterwards, in one
    batch, so that every token of the answer depends on what was kept.
    """

    def __init__(self, llm: Llama, asked: Asked, window: int) -> None:
        self._llm, self._asked, self._tokens = llm, asked, asked.prompt.tokens
        self.n_prompt = len(self._tokens) - 1
        n_shared = max(1, min(asked.n_before, self.n_prompt - 2 * window))  # the last two windows observe
        self._state = KeptState.of_beginning(llm, self._tokens[:n_shared])

    def loss(self, retention: Retention) -> float:
        """Mean negative log-likelihood of the answer's tokens, in nats."""
        llm, asked = self._llm, self._asked
        self._state.restore(llm)
        llm.retention = retention
        llm.prefill(self._tokens[: self.n_prompt], messages=asked.messages)
        return _teacher_forced(llm, self._tokens[self.n_prompt :], asked.answer)


def _teacher_forced(llm: Llama, before: list[int], answer: list[int]) -> float:
    """before: tokens that come first. What is decoded here is no part of what the Llama knows of."""
    tokens = [*before, *answer[:-1]]
    first = len(before) - 1
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, llm.n_tokens + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i >= first
        if (code := llama_cpp.llama_decode(llm.ctx, batch)) != 0:
            raise InternalError(f"the answer could not be decoded: llama_decode returned {code}")
    finally:
        llama_cpp.llama_batch_free(batch)
    likelihoods = (log_softmax(logits_of(llm, first + i))[token] for i, token in enumerate(answer))
    return -float(sum(likelihoods)) / len(answer)
