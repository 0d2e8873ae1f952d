"""The prompts that are made of a sample: one for each wording. How much of a prompt is read only once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from headkv_local import Llama
from headkv_local.tokens import n_same

from .prompts import chat_prompt, plain_tokens, tokens_of
from .questions import Question
from .tasks import Sample
from .wordings import PLAIN, Wording, catalogue

OBSERVED = 160  # tokens at the end of a document that a policy may have to see


@dataclass(frozen=True)
class Case:
    """One prompt.

    number: of the sample. messages: none where the prompt is without a template. n_shared: tokens that it may
    have in common with the prompts of other wordings, and that no policy observes. asked: what the answer has
    to answer. others: what the document answers as well, and the answer must not.
    """

    wording: Wording
    sample: Sample
    number: int
    messages: list[dict[str, Any]]
    tokens: list[int]
    n_shared: int
    asked: tuple[Question, ...]
    others: tuple[Question, ...]

    @property
    def depth(self) -> float:
        """Of the first fact of the first question asked."""
        if self.wording is PLAIN:
            return self.sample.depth
        return self.sample.document.index(self.asked[0].facts[0]) / len(self.sample.document)


def plain_case(llm: Llama, sample: Sample, number: int) -> Case:
    """For base models: no template."""
    tokens = plain_tokens(llm, sample.content)
    document = llm.tokenize(sample.document.encode(), add_bos=True, special=False)
    n_shared = _n_shared(tokens, document)
    return Case(PLAIN, sample, number, [], tokens, n_shared, (sample.question,), ())


def chat_case(llm: Llama, sample: Sample, number: int, wording: Wording) -> Case:
    """Wordings and samples take turns with the questions that a document answers."""
    questions = _questions(sample, number, wording)
    messages = wording.messages(sample.document, questions)
    tokens, n_shared = read_once(llm, messages, sample.document)
    n = wording.n_asked
    unasked = tuple(one for one in (sample.question, *sample.others) if one not in questions[:n])
    return Case(wording, sample, number, messages, tokens, n_shared, questions[:n], unasked)


def read_once(llm: Llama, messages: list[dict[str, Any]], document: str) -> tuple[list[int], int]:
    """The prompt, and how many of its tokens other prompts about the document may have in common with it."""
    prompt = chat_prompt(llm, messages)
    tokens = tokens_of(llm, prompt)
    return tokens, _n_shared(tokens, up_to(llm, prompt, document))


def up_to(llm: Llama, prompt: str, document: str) -> list[int]:
    """The tokens of a chat's prompt up to the document's end."""
    before, written, _ = prompt.partition(document.strip())  # templates may strip
    return tokens_of(llm, before + written) if written else []


class _Shares(Protocol):
    """A prompt whose first n_shared tokens others have too."""

    @property
    def tokens(self) -> list[int]: ...
    @property
    def n_shared(self) -> int: ...


_C = TypeVar("_C", bound=_Shares)


def by_beginning(cases: Sequence[_C]) -> Iterator[tuple[list[int], list[_C]]]:
    """Tokens to read once, and the cases whose prompts begin with them."""
    groups: dict[tuple[int, ...], list[_C]] = {}
    for case in cases:
        groups.setdefault(tuple(case.tokens[: case.n_shared]), []).append(case)
    for beginning, group in groups.items():
        yield list(beginning), group


def _questions(sample: Sample, number: int, wording: Wording) -> tuple[Question, ...]:
    if not sample.others:
        return (sample.question,)
    *of_task, magic = (sample.question, *sample.others)
    if wording.about_magic:
        return (magic,)
    first = (list(catalogue()).index(wording.name) + number) % len(of_task)
    return (*of_task[first:], *of_task[:first])


def _n_shared(tokens: Sequence[int], document: Sequence[int]) -> int:
    """document: tokens of the prompt up to the document's end; only the last of them may differ."""
    return max(min(n_same(tokens, document), len(document) - OBSERVED), 0)
