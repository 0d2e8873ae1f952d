"""A sample as a prompt, in the model's own chat template or plain, and where its facts stand in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bench.prompts import has_template, length_of, plain_text
from ..errors import ArgumentError, ModelError
from ..llama import Llama
from ..tokens import n_same
from .samples import Plan, content

Tokenize = Callable[[str], list[int]]
ByteLength = Callable[[int], int]

ANSWER_TOKENS = 48  # an answer that is longer is cut


@dataclass(frozen=True)
class Prompt:
    """tokens: the message with the opening of the answer behind it. needle: positions in it, ascending."""

    tokens: list[int]
    needle: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """messages: that the prompt was made of, the document marked. answer: tokens of the right one.

    n_before: tokens before the question, which no token that asks is among.
    """

    prompt: Prompt
    messages: list[dict[str, Any]]
    answer: list[int]
    n_before: int


class Prompter:
    """Makes prompts for one model.

    plain: as a text that goes on with the answer, for base models. Raises ArgumentError for a model without a
    chat template otherwise.
    """

    def __init__(self, llm: Llama, plain: bool = False) -> None:
        if not plain and not has_template(llm):
            raise ArgumentError("the model has no chat template: --plain measures base models without one")
        self._llm, self._plain = llm, plain

    @cached_property
    def n_template(self) -> int:
        """Tokens of a prompt without a message."""
        return len(self.tokenize(self.text("")))

    def text(self, content: str) -> str:
        if self._plain:
            return plain_text(content)
        return self._llm.chat_prompt([{"role": "user", "content": content}])

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text that text() has made, or of its beginning."""
        return list(self._llm.tokenize(text.encode(), add_bos=self._plain, special=not self._plain))

    def count(self, text: str) -> int:
        """Number of tokens of a text that goes into a message."""
        return length_of(self._llm, text)

    def answer(self, text: str) -> list[int]:
        """Tokens of an answer that is fed to the model."""
        space = " " if self._plain else ""
        return list(self._llm.tokenize(f"{space}{text}".encode(), add_bos=False, special=False))

    def prompt(self, content: str, facts: Iterable[str]) -> Prompt:
        """The prompt of a message, and the positions of the facts. Each must stand in it exactly once."""
        text = self.text(content)
        tokens = self.tokenize(text)
        positions: list[int] = []
        for fact in facts:
            if text.count(fact) != 1:
                raise ModelError(f"the chat template does not leave the message as it is: {fact!r}")
            start = text.index(fact)
            positions.extend(span(text, start, start + len(fact), tokens, self.tokenize, self._length))
        return Prompt(tokens, np.unique(np.array(positions, dtype=np.int64)))

    def _length(self, token: int) -> int:
        """In bytes."""
        return 0 if token == -1 else len(self._llm.detokenize([token], special=True))


def ask(plan: Plan, prompter: Prompter) -> Asked:
    """The sample's prompt.

    Raises ArgumentError that names the example where its facts leave no room, or one stands in the text round
    them too; ModelError as Prompter.prompt() does.
    """
    example = plan.example
    question = f"Question: {example.question}"
    facts = [example.facts[i] for i in example.needle]
    try:
        whole = content(plan, plan.length - prompter.n_template, prompter.count)
        for fact in facts:
            if whole.count(fact) != 1:
                raise ArgumentError(f"the fact {fact!r} stands in the text round it too")
    except ArgumentError as error:
        raise ArgumentError(f"{example.where}: {error}") from error
    document = {"type": "text", "text": whole.removesuffix(question).strip(), "document": True}
    parts = [document, {"type": "text", "text": question}]
    return Asked(
        prompt=prompter.prompt(whole, facts),
        messages=[{"role": "user", "content": parts}],
        answer=prompter.answer(example.answer)[:ANSWER_TOKENS],
        n_before=int(prompter.prompt(whole, [question]).needle[0]),
    )


def span(
    text: str, start: int, end: int, tokens: Sequence[int], tokenize: Tokenize, byte_length: ByteLength
) -> range:
    """Positions of the tokens that hold a character of text[start:end], tokens being those of the text.

    A token that reaches over one of the borders counts: it holds a part of the text, and no other does.
    """
    first, _ = _border(tokens, tokenize(text[:start]), byte_length)
    last, divided = _border(tokens, tokenize(text[:end]), byte_length)
    return range(first, last + divided)


def _border(tokens: Sequence[int], before: Sequence[int], byte_length: ByteLength) -> tuple[int, bool]:
    """The token at which the text before a border ends, and whether the border divides that token.

    before: the tokens of the text up to the border. Where they are not the first of all tokens, what
    differs has been merged in another way, and is counted in bytes.
    """
    at = n_same(tokens, before)
    left = sum(map(byte_length, before[at:]))
    while left > 0 and byte_length(tokens[at]) <= left:
        left -= byte_length(tokens[at])
        at += 1
    return at, left > 0
