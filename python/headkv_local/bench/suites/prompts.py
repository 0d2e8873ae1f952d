"""Items as tokens of a model: which of them are the document, and what does not fit."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from headkv_local import Llama
from headkv_local.tokens import n_same

from ..cases import OBSERVED, up_to
from ..prompts import chat_prompt, length_of, plain_text, plain_tokens, tokens_of
from .item import Item

_TRIES = 4  # cutting text moves borders of tokens


@dataclass(frozen=True)
class Prompt:
    """tokens: (n,). n_document: those up to the document's end that do not depend on the question.

    messages: that say which part is the document. known: those of what is known before the question.
    n_removed: tokens that were cut out of the document's middle.
    """

    item: Item
    tokens: list[int]
    n_document: int
    messages: list[dict[str, Any]]
    known: list[dict[str, Any]]
    n_removed: int = 0

    @property
    def n_shared(self) -> int:
        """Tokens that no policy observes."""
        return max(self.n_document - OBSERVED, 0)

    @property
    def digest(self) -> str:
        """Of the tokens, and of how an answer ends and is judged."""
        item = self.item
        judged = (item.answers, item.metrics, item.classes, item.chance, item.stop, item.max_tokens)
        return hashlib.sha256(repr((self.tokens, judged)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Fitting:
    """An item that fits, and the tokens that it takes with its answer."""

    item: Item
    n_tokens: int
    n_removed: int


@dataclass(frozen=True)
class Sorted:
    """too_long: with the tokens that they would take."""

    fitting: list[Fitting]
    too_long: list[Fitting]


def fitted(llm: Llama, items: Iterable[Item], limit: int, plain: bool, truncate: bool) -> Sorted:
    """Which items take at most `limit` tokens with their answers.

    truncate: cut as much out of the middle of a prompt, which is in its document, as makes it fit.
    """
    found = Sorted([], [])
    for item in items:
        needed = _needed(llm, item, plain)
        if needed <= limit:
            found.fitting.append(Fitting(item, needed, 0))
        elif truncate and (shorter := _shorter(llm, item, limit, plain)) is not None:
            found.fitting.append(shorter)
        else:
            found.too_long.append(Fitting(item, needed, 0))
    return found


def made(llm: Llama, fitting: Fitting, plain: bool) -> Prompt:
    item = fitting.item
    if plain or not item.chat:
        tokens = plain_tokens(llm, item.text) if item.chat else _continued(llm, item.text)
        if item.lead:
            tokens = _continued(llm, f"{plain_text(item.text)} {item.lead}")
        document = _continued(llm, item.before + item.document)
    else:
        prompt = chat_prompt(llm, [{"role": "user", "content": item.text}]) + item.lead
        tokens, document = tokens_of(llm, prompt), up_to(llm, prompt, item.document)
    return Prompt(
        item,
        tokens,
        n_same(tokens, document),
        messages=_message(item, with_question=True),
        known=_message(item, with_question=False),
        n_removed=fitting.n_removed,
    )


def _message(item: Item, with_question: bool) -> list[dict[str, Any]]:
    after = item.after if with_question else ""
    parts = ((item.before, False), (item.document, item.marks), (after, False))
    content = [{"type": "text", "text": text, "document": mark} for text, mark in parts if text.strip()]
    if not item.marks:
        content = [{"type": "text", "text": item.text}] if with_question else []
    return [{"role": "user", "content": content}] if content else []


def by_document(fitting: Sequence[Fitting]) -> Iterator[list[Fitting]]:
    """Neighbours that ask about the same document in the same way."""
    for _, group in groupby(fitting, lambda one: (one.item.chat, one.item.before, one.item.document)):
        yield list(group)


def _needed(llm: Llama, item: Item, plain: bool) -> int:
    return len(made(llm, Fitting(item, 0, 0), plain).tokens) + item.max_tokens


def _continued(llm: Llama, text: str) -> list[int]:
    return list(llm.tokenize(text.encode(), add_bos=True, special=False))


def _shorter(llm: Llama, item: Item, limit: int, plain: bool) -> Fitting | None:
    """With as much of the prompt before the cut as after it. None where the document is too short for it."""
    tokens = llm.tokenize(item.document.encode(), add_bos=False, special=False)
    n_before, n_after = length_of(llm, item.before), length_of(llm, item.after)
    excess = _needed(llm, item, plain) - limit
    for _ in range(_TRIES):
        n_kept = len(tokens) + n_before + n_after - excess
        n_head, n_tail = n_kept // 2 - n_before, n_kept - n_kept // 2 - n_after
        if n_head < 1 or n_tail < 1:
            return None
        document = _text(llm, tokens[:n_head]) + _text(llm, tokens[-n_tail:])
        shorter = replace(item, document=document)
        needed = _needed(llm, shorter, plain)
        if needed <= limit:
            return Fitting(shorter, needed, excess)
        excess += needed - limit
    return None


def _text(llm: Llama, tokens: Sequence[int]) -> str:
    """Bytes of a letter that was cut through are left out."""
    return str(llm.detokenize(list(tokens)), "utf-8", errors="ignore")
