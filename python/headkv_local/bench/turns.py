"""Several questions about one document, as turns of a conversation, in every order.

A document holds four facts. It is read once for all ways without an archive: each conversation starts from a
copy of the cache. With an archive it is read once for each budget: a conversation goes back to the document's
end, and nothing before that is read again.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from headkv_local import ArgumentError, Llama, Retention

from .cases import read_once
from .contexts import Setup, check_length, n_ctx_for, open_headkv
from .policies import label_of
from .prompts import chat_tokens, length_of
from .questions import Question
from .state import KeptState
from .tasks import Sample, n_right, wide_samples
from .wordings import Wording

FULL, ONCE, ANEW, FRESH = "full", "once", "anew", "fresh"
WAYS = (FULL, ONCE, ANEW, FRESH)

N_TURNS = 4
"""Questions that a document answers: of every kind of needle, and of the one that all documents hold."""

_PER_TURN = 192  # tokens that a wording and the chat template may take
_ROOM = 64

Order = tuple[int, ...]
"""Numbers of a document's questions, turn by turn."""


@dataclass(frozen=True)
class Settings:
    """n_samples: questions at each turn, a multiple of N_TURNS. max_tokens: of an answer."""

    lengths: tuple[int, ...]
    budgets: tuple[int | str, ...]
    wordings: tuple[Wording, ...]
    n_samples: int = 24
    seed: int = 0
    max_tokens: int = 32
    haystacks: tuple[str, ...] = ("prose",)
    ways: tuple[str, ...] = WAYS


@dataclass(frozen=True)
class Outcome:
    """One question in one conversation."""

    length: int
    """Tokens of the document that were asked for."""
    way: str
    """FULL, ONCE, ANEW or FRESH."""
    budget: int | str | None
    document: int
    """Its number among those of the length."""
    order: str
    """Numbers of the questions, turn by turn; of FRESH the one question."""
    turn: int | None
    """From 1 on. None: asked alone, which stands for every turn: each question comes once at each."""
    kind: str
    wording: str
    haystack: str
    expected: str
    answer: str
    right: bool
    prompt_tokens: int
    kept_share: float
    """Of the prompt of this turn, or of the first one where nothing is chosen later."""
    kept_bytes: int
    resident_bytes: int
    archive_bytes: int
    seconds: float
    """From the question to the answer's end."""

    @property
    def label(self) -> str:
        return label_of(self.way, self.budget)


@dataclass(frozen=True)
class Document:
    """One text, its questions, and how each of them is worded."""

    number: int
    length: int
    sample: Sample
    wordings: tuple[Wording, ...]

    @property
    def questions(self) -> tuple[Question, ...]:
        return (self.sample.question, *self.sample.others)

    def message(self, i: int, is_first: bool) -> dict[str, Any]:
        """That asks question i, behind the document if it is the first of a conversation."""
        (message,) = self.wordings[i].messages(self.sample.document, [self.questions[i]])
        return message if is_first else {"role": "user", "content": message["content"][-1]["text"]}

    def is_right(self, i: int, answer: str) -> bool:
        others = [one for one in self.questions if one is not self.questions[i]]
        return n_right([self.questions[i]], others, answer) == 1


def run(
    setup: Setup, settings: Settings, tell: Callable[[str], None] = lambda _: None
) -> Iterator[list[Outcome]]:
    """Every document of every length in every way, its questions in four orders; document by document.

    Raises ArgumentError for lengths that the model or the haystack does not have.
    """
    if settings.n_samples % N_TURNS:
        raise ArgumentError(
            f"the number of samples must be a multiple of {N_TURNS}, not {settings.n_samples}: each of "
            f"{N_TURNS} facts comes once at each turn"
        )
    n_tokens = max(settings.lengths) + N_TURNS * (settings.max_tokens + _PER_TURN) + _ROOM
    with open_headkv(setup, n_ctx_for(n_tokens)) as llm:
        check_length(llm, n_tokens)
        for length in settings.lengths:
            made = _documents(llm, length, settings)
            for document in made:
                tell(f"{length} tokens: document {document.number + 1} of {len(made)}")
                yield list(_of_document(llm, document, settings, tell))


def orders(number: int, seed: int) -> list[Order]:
    """In which the questions of document `number` are asked: each question comes once at each turn.

    Six documents one after the other have all 24 orders.
    """
    first = [(0, *rest) for rest in permutations(range(1, N_TURNS))]
    random.Random(f"{seed}/orders").shuffle(first)
    one = first[number % len(first)]
    return [one[i:] + one[:i] for i in range(N_TURNS)]


def usable(wordings: Sequence[Wording]) -> tuple[Wording, ...]:
    """Those with one question behind the document, which a later turn can ask too. Raises ArgumentError."""
    found = tuple(
        one
        for one in wordings
        if len(one.turns) == 1
        and one.turns[0][1].startswith("{document}")
        and one.n_asked == 1
        and not one.about_magic
    )
    if not found:
        raise ArgumentError(
            f"no turn can ask with the wording {wordings[0].name}: one question has to stand behind the "
            "document"
        )
    return found


def _documents(llm: Llama, length: int, settings: Settings) -> list[Document]:
    sets = "/".join(sorted({one.set for one in settings.wordings}))
    n = settings.n_samples // N_TURNS
    n_template = len(chat_tokens(llm, "", "turns of a conversation need one"))
    try:
        made = wide_samples(
            "needle",
            n,
            length - n_template,
            lambda text: length_of(llm, text),
            f"{settings.seed}/{sets}/turns",
            settings.haystacks,
        )
    except ValueError as error:
        raise ArgumentError(f"documents of {length} tokens cannot be made: {error}") from error
    all_of, apart = settings.wordings, max(1, len(settings.wordings) // N_TURNS)
    return [
        Document(i, length, sample, tuple(all_of[(i + k * apart) % len(all_of)] for k in range(N_TURNS)))
        for i, sample in enumerate(made)
    ]


def _of_document(
    llm: Llama, document: Document, settings: Settings, tell: Callable[[str], None]
) -> Iterator[Outcome]:
    state: KeptState | None = None  # of ways without an archive
    in_turns = orders(document.number, settings.seed)
    alone = [(i,) for i in range(N_TURNS)]
    for way, budget, retention in _ways(settings.budgets, settings.ways):
        tell(f"{document.length} tokens, document {document.number + 1}: {way} {budget or ''}")
        _start(llm, retention)
        for order in alone if way == FRESH else in_turns:
            if retention is None or retention.archive is None:
                state = state or _beginning(llm, document)
                _start(llm, None)
                state.restore(llm)
                llm.retention = retention
            yield from _talk(llm, document, order, way, budget, settings.max_tokens)


def _ways(
    budgets: Sequence[int | str], ways: Sequence[str] = WAYS
) -> Iterator[tuple[str, int | str | None, Retention | None]]:
    if FULL in ways:
        yield FULL, None, None
    for budget in budgets:
        chosen = {
            ONCE: Retention(budget=budget, fold=None),  # what was chosen once stays chosen
            ANEW: Retention(budget=budget, archive="memory"),
            FRESH: Retention(budget=budget, fold=None),
        }
        yield from ((way, budget, retention) for way, retention in chosen.items() if way in ways)


def _beginning(llm: Llama, document: Document) -> KeptState:
    """What all conversations about the document begin with, in the full cache."""
    tokens, n_shared = read_once(llm, [document.message(0, True)], document.sample.document)
    return KeptState.of_beginning(llm, tokens[:n_shared])


def _start(llm: Llama, retention: Retention | None) -> None:
    """From an empty cache."""
    llm.reset()
    llm.retention = retention


def _talk(
    llm: Llama, document: Document, order: Order, way: str, budget: int | str | None, max_tokens: int
) -> Iterator[Outcome]:
    messages: list[dict[str, Any]] = []
    for turn, i in enumerate(order, 1):
        messages.append(document.message(i, turn == 1))
        started = time.perf_counter()
        found = llm.create_chat_completion(messages=messages, max_tokens=max_tokens, temperature=0.0)
        seconds = time.perf_counter() - started
        answer = found["choices"][0]["message"]["content"] or ""
        messages.append({"role": "assistant", "content": answer})
        stats = llm.cache_stats()
        yield Outcome(
            length=document.length,
            way=way,
            budget=budget,
            document=document.number,
            order="".join(map(str, order)),
            turn=None if way == FRESH else turn,
            kind=document.questions[i].kind,
            wording=document.wordings[i].name,
            haystack=document.sample.haystack,
            expected=document.questions[i].expected,
            answer=answer,
            right=document.is_right(i, answer),
            prompt_tokens=found["usage"]["prompt_tokens"],
            kept_share=stats.kept_share,
            kept_bytes=stats.kept_bytes,
            resident_bytes=stats.resident_bytes,
            archive_bytes=stats.archive_bytes,
            seconds=seconds,
        )
