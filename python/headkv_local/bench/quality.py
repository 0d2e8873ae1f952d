"""Answers from the full cache and from compacted ones. A document is read once for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from headkv_local import ArgumentError, Llama
from headkv_local.tokens import log_softmax, logits_of, n_same

from .cases import Case, by_beginning, chat_case, plain_case
from .contexts import Setup, check_length, greedy, n_ctx_for, open_headkv, text_of
from .policies import Policy, label_of
from .prompts import chat_tokens, length_of, plain_tokens
from .questions import Question
from .state import KeptState
from .tasks import Sample, n_right, samples, wide_samples
from .wordings import PLAIN, Wording

_ROOM = 256  # context for what the chat template adds, and for the gold answer
_WORDS = 768  # for what a wording adds

MARKED, TEXT, UNKNOWN = "marked", "text", "unknown"


@dataclass(frozen=True)
class Settings:
    """n_samples: of every task and length. max_tokens: of an answer, for each question in it.

    question: how it is known which tokens ask. MARKED: the document is marked in its message, as in the
    chat. TEXT: the message is one text. UNKNOWN: only tokens are read.
    """

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    n_samples: int = 12
    seed: int = 0
    max_tokens: int = 24
    plain: bool = False
    wordings: tuple[Wording, ...] = (PLAIN,)
    haystacks: tuple[str, ...] = ("prose",)
    question: str = MARKED

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the plain wording is tried."""
        return self.wordings == (PLAIN,)


@dataclass(frozen=True)
class Outcome:
    """One sample under one policy."""

    length: int
    """The prompt length that was asked for."""
    task: str
    kind: str
    policy: str
    budget: int | str | None
    depth: float
    prompt_tokens: int
    expected: str
    answer: str
    right: bool
    nll: float | None
    """Mean negative log-likelihood of the tokens of what is expected, behind the gold answer's beginning.

    None for wordings that ask for an answer of another form."""
    kept_share: float
    kept_bytes: int
    """K and V rows of the prompt that are kept."""
    resident_bytes: int
    seconds: float
    """From the restored state to the answer's end."""
    sample: int
    """Its number among those of the length and task."""
    wording: str
    family: str
    set: str
    haystack: str
    asked: int
    """Questions that the answer had to answer."""
    found: int
    """Those of them that it answered."""
    question: str
    """How it was known which tokens ask: see Settings."""

    @property
    def label(self) -> str:
        return label_of(self.policy, self.budget)


def run(
    setup: Setup, settings: Settings, policies: Sequence[Policy], tell: Callable[[str], None] = lambda _: None
) -> Iterator[Outcome]:
    """Every sample of every length and task in every wording under every policy.

    Raises ArgumentError for lengths that the model or the haystack does not have.
    """
    max_tokens = settings.max_tokens * max(wording.n_asked for wording in settings.wordings)
    n_tokens = max(settings.lengths) + max_tokens + (0 if settings.is_plain else _WORDS)
    with open_headkv(setup, n_ctx_for(n_tokens + _ROOM)) as llm:
        check_length(llm, n_tokens)
        groups = [(length, task) for length in settings.lengths for task in settings.tasks]
        made = {group: _samples(llm, group[1], group[0], settings) for group in groups}  # or none is measured
        for (length, task), found in made.items():
            for i, sample in enumerate(found):
                where = f"prompt {length}, {task}: sample {i + 1} of {len(found)}"
                for beginning, group in by_beginning(_cases(llm, sample, i, settings)):
                    state = KeptState.of_beginning(llm, beginning)
                    for case in group:
                        tell(where if settings.is_plain else f"{where}, {case.wording.name}")
                        for policy in policies:
                            yield _try(llm, state, case, length, settings, policy)


def _samples(llm: Llama, task: str, length: int, settings: Settings) -> list[Sample]:
    template = len(_template(llm, settings))
    given = settings.n_samples, length - template, lambda text: length_of(llm, text)
    try:
        if settings.is_plain:
            return samples(task, *given, settings.seed, settings.haystacks)
        # so that no set is tuned on the documents of another
        sets = sorted({wording.set for wording in settings.wordings})
        return wide_samples(task, *given, f"{settings.seed}/{'/'.join(sets)}", settings.haystacks)
    except ValueError as error:
        raise ArgumentError(f"prompts of {length} tokens cannot be made: {error}") from error


def _template(llm: Llama, settings: Settings) -> list[int]:
    """What stands around a message."""
    if settings.plain:
        return plain_tokens(llm, "")
    if settings.is_plain:
        return chat_tokens(llm, "")
    return chat_tokens(llm, "", "--plain, which goes with --wordings plain, asks it without one")


def _cases(llm: Llama, sample: Sample, number: int, settings: Settings) -> list[Case]:
    if settings.plain:
        return [plain_case(llm, sample, number)]
    return [chat_case(llm, sample, number, wording) for wording in settings.wordings]


def _try(
    llm: Llama, state: KeptState, case: Case, length: int, settings: Settings, policy: Policy
) -> Outcome:
    """state: a beginning of the case's prompt, in the full cache."""
    tokens, asked = case.tokens, case.asked
    started = time.perf_counter()
    state.restore(llm)
    llm.retention = None
    llm.retention = policy.retention(llm.shape, len(tokens))
    llm.prefill(tokens, messages=_told(case, settings.question))
    stats = llm.cache_stats()
    answer = text_of(llm, greedy(llm, settings.max_tokens * len(asked)))
    found = n_right(asked, case.others, answer)
    likelihood = None
    if case.wording is PLAIN:
        llm.prefill(tokens, messages=_told(case, settings.question))  # goes back to its end
        likelihood = nll(llm, *_gold(llm, asked[0], settings))
    return Outcome(
        length=length,
        task=case.sample.task,
        kind=asked[0].kind,
        policy=policy.name,
        budget=policy.budget,
        depth=case.depth,
        prompt_tokens=len(tokens),
        expected=", ".join(one.expected for one in asked),
        answer=answer,
        right=found == len(asked),
        nll=likelihood,
        kept_share=stats.kept_share,
        kept_bytes=stats.kept_bytes,
        resident_bytes=stats.resident_bytes,
        seconds=time.perf_counter() - started,
        sample=case.number,
        wording=case.wording.name,
        family=case.wording.family,
        set=case.wording.set,
        haystack=case.sample.haystack,
        asked=len(asked),
        found=found,
        question=settings.question,
    )


def _told(case: Case, asked: str) -> list[dict[str, Any]]:
    """The messages that are named when the prompt is read."""
    if asked == UNKNOWN:
        return []
    return case.messages if asked == MARKED else [_unmarked(message) for message in case.messages]


def _unmarked(message: dict[str, Any]) -> dict[str, Any]:
    """All parts in one text."""
    content = message["content"]
    text = content if isinstance(content, str) else "\n".join(part["text"] for part in content)
    return {**message, "content": text}


def _gold(llm: Llama, question: Question, settings: Settings) -> tuple[list[int], list[int]]:
    """The tokens of the gold answer: its beginning, and what is expected."""
    space = " " if settings.plain else ""  # behind "Answer:"
    begin = space + question.lead
    lead = llm.tokenize(begin.encode(), add_bos=False, special=False)
    whole = llm.tokenize(f"{begin} {question.expected}".encode(), add_bos=False, special=False)
    same = n_same(lead, whole)
    return list(whole[:same]), list(whole[same:])


def nll(llm: Llama, lead: Sequence[int], gold: Sequence[int]) -> float:
    """Mean negative log-likelihood of the gold tokens behind the lead, in nats per token."""
    llm.eval(lead)
    total = 0.0
    for token in gold:
        total -= float(log_softmax(logits_of(llm))[token])
        llm.eval([token])
    return total / len(gold)
