"""When what is kept of a document is chosen: with the question about it, before it, or anew when it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headkv_local import Llama

from .suites.names import BEFORE, WITH

Messages = Sequence[Mapping[str, Any]]


def read(
    llm: Llama,
    tokens: list[int],
    n_document: int,
    chosen: str,
    known: Messages = (),
    question: slice | None = None,
    messages: Messages = (),
) -> None:
    """Read a prompt and compact it. chosen: of names.CHOSEN; ANEW needs a retention with an archive.

    n_document: tokens before the question. Unless it is chosen with the question, they are compacted by
    themselves first, or the cache has them already. known: messages that hold what is known then. question,
    messages: of the prompt, as in prefill().
    """
    document = tokens[:n_document]
    if chosen != WITH and document and not _holds(llm, document):
        llm.prefill(document, messages=known)
    if chosen == BEFORE and document:
        llm.eval(tokens[n_document:])  # chooses nothing, also where all of the document was kept
    else:
        llm.prefill(tokens, question=question, messages=messages)


def _holds(llm: Llama, document: list[int]) -> bool:
    n = len(document)
    return llm.n_tokens >= n and llm.input_ids[:n].tolist() == document
