"""One question, answered from a state in which the document has been read already."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from headkv_local import CacheStats, Llama, Retention
from headkv_local.bench.tasks import found

from .material import Question


@dataclass(frozen=True)
class Answer:
    text: str
    right: bool
    decoded: int
    """Tokens decoded between the first piece of the answer and its end."""
    seconds: float
    """What they took."""
    stats: CacheStats


def messages(document: str, question: Question) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{document}\n\nQuestion: {question.text}"}]


def answer(
    llm: Llama, state: Any, retention: Retention | None, document: str, question: Question, max_tokens: int
) -> Answer:
    """Stream the answer to stdout. The cache keeps of the prompt what retention says, all with None.

    state: of save_state(), taken when the document had been read.
    """
    llm.reset()
    llm.load_state(state)
    llm.retention = retention
    chunks = llm.create_chat_completion(
        messages=cast("Any", messages(document, question)),
        max_tokens=max_tokens,
        temperature=0.0,
        stream=True,
    )
    pieces: list[str] = []
    first = started = time.perf_counter()
    for piece in _contents(cast("Iterator[dict[str, Any]]", chunks)):
        if not pieces:
            first = time.perf_counter()
        pieces.append(piece)
        sys.stdout.write(piece.replace("\n", " "))
        sys.stdout.flush()
    seconds = time.perf_counter() - (first if pieces else started)
    stats = llm.cache_stats()
    text = "".join(pieces)
    return Answer(text, found(question.expected, text), llm.n_tokens - stats.prompt_tokens, seconds, stats)


def _contents(chunks: Iterator[dict[str, Any]]) -> Iterator[str]:
    for chunk in chunks:
        content = chunk["choices"][0]["delta"].get("content")
        if content:
            yield content
