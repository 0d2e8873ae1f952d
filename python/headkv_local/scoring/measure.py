"""One sample through the model: the prompt, then the answer token by token with its attention observed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..bench.contexts import likeliest
from ..llama import Llama
from .attention import needle_share
from .prompt import ANSWER_TOKENS, Prompt


@dataclass(frozen=True)
class Observed:
    """score: what the answer adds to each head's score, (n_layer, n_head). text: the answer."""

    score: npt.NDArray[np.float64]
    text: str


def observe(llm: Llama, prompt: Prompt, forced: list[int] | None) -> Observed:
    """Read the prompt and produce the answer: the likeliest tokens, or the forced ones.

    llm: with flash attention on and no retention. The row of attention that counts for an answer token
    is that of the token before it, whose decoding produces it; the first one's is the prompt's last.
    """
    n_prompt = len(prompt.tokens)
    llm.reset()
    llm.eval(prompt.tokens[:-1])
    score: npt.NDArray[np.float64] | None = None
    answer: list[int] = []
    token = prompt.tokens[-1]
    with llm.attention_rows() as rows:
        for _ in range(ANSWER_TOKENS if forced is None else len(forced)):
            llm.eval([token])
            following = likeliest(llm) if forced is None else forced[len(answer)]
            if following is None:
                break
            share = needle_share(rows(), prompt.needle, n_prompt)
            score = share if score is None else score + share
            token = following
            answer.append(token)
    if score is None:  # the answer is empty
        score = np.zeros((llm.shape.n_layer, llm.shape.n_head))
    return Observed(score, str(llm.detokenize(answer), "utf-8", errors="replace"))
