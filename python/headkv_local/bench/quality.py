"""Answers from the full cache and from compacted ones: one prefill per sample for all policies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from headkv_local import ArgumentError, Llama, Retention
from headkv_local.budgets import ModelShape

from .contexts import Setup, check_length, greedy, last_logits, n_ctx_for, open_headkv, text_of
from .policies import Policy
from .prompts import chat_tokens, plain_tokens
from .state import KeptState
from .tasks import Sample, right, samples

_ROOM = 256  # context for what the chat template adds, and for the gold answer


@dataclass(frozen=True)
class Settings:
    """n_samples: of every task and length."""

    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    n_samples: int = 12
    seed: int = 0
    max_tokens: int = 24
    plain: bool = False


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
    nll: float
    """Mean negative log-likelihood of the tokens of what is expected, behind the gold answer's beginning."""
    kept_share: float
    kept_bytes: int
    """K and V rows of the prompt that are kept."""
    resident_bytes: int
    seconds: float
    """From the restored state to the answer's end."""

    @property
    def label(self) -> str:
        return self.policy if self.budget is None else f"{self.policy} {self.budget}"


def run(
    setup: Setup, settings: Settings, policies: Sequence[Policy], tell: Callable[[str], None] = lambda _: None
) -> Iterator[Outcome]:
    """Every sample of every length and task under every policy.

    Raises ArgumentError for lengths that the model or the haystack does not have.
    """
    with open_headkv(setup, n_ctx_for(max(settings.lengths) + settings.max_tokens + _ROOM)) as llm:
        check_length(llm, max(settings.lengths) + settings.max_tokens)
        for length in settings.lengths:
            for task in settings.tasks:
                made = _samples(llm, task, length, settings)
                for i, sample in enumerate(made):
                    tell(f"prompt {length}, {task}: sample {i + 1} of {len(made)}")
                    yield from _try_all(llm, sample, length, settings, policies)


def _samples(llm: Llama, task: str, length: int, settings: Settings) -> list[Sample]:
    template = len(_prompt(llm, "", settings))
    try:
        return samples(task, settings.n_samples, length - template, lambda s: _count(llm, s), settings.seed)
    except ValueError as error:
        raise ArgumentError(f"prompts of {length} tokens cannot be made: {error}") from error


def _prompt(llm: Llama, content: str, settings: Settings) -> list[int]:
    return (plain_tokens if settings.plain else chat_tokens)(llm, content)


def _try_all(
    llm: Llama, sample: Sample, length: int, settings: Settings, policies: Sequence[Policy]
) -> Iterator[Outcome]:
    tokens = _prompt(llm, sample.content, settings)
    lead, gold = _gold(llm, sample, settings)
    llm.reset()
    llm.retention = None
    stats = llm.cache_stats()
    n_layer, n_head_kv = stats.kept.shape
    shape = ModelShape(n_layer, n_head_kv, n_head_kv, stats.row_bytes)  # nothing here depends on query heads
    retentions = [policy.retention(shape, len(tokens)) for policy in policies]
    llm.eval(tokens[: max(1, len(tokens) - Retention().observe)])
    state = KeptState(llm)
    for policy, retention in zip(policies, retentions, strict=True):
        started = time.perf_counter()
        state.restore(llm)
        llm.retention = retention
        llm.prefill(tokens)
        stats = llm.cache_stats()
        answer = text_of(llm, greedy(llm, settings.max_tokens))
        llm.n_tokens = len(tokens)  # the next eval() drops what lies behind
        yield Outcome(
            length=length,
            task=sample.task,
            kind=sample.question.kind,
            policy=policy.name,
            budget=policy.budget,
            depth=sample.depth,
            prompt_tokens=len(tokens),
            expected=sample.question.expected,
            answer=answer,
            right=right(sample.question, answer),
            nll=nll(llm, lead, gold),
            kept_share=stats.kept_share,
            kept_bytes=int(stats.kept.sum()) * stats.row_bytes,
            resident_bytes=stats.resident_bytes,
            seconds=time.perf_counter() - started,
        )


def _gold(llm: Llama, sample: Sample, settings: Settings) -> tuple[list[int], list[int]]:
    """The tokens of the gold answer: its beginning, and what is expected."""
    space = " " if settings.plain else ""  # behind "Answer:"
    begin = space + sample.question.lead
    lead = llm.tokenize(begin.encode(), add_bos=False, special=False)
    whole = llm.tokenize(f"{begin} {sample.question.expected}".encode(), add_bos=False, special=False)
    same = 0
    while same < len(lead) and lead[same] == whole[same]:
        same += 1
    return list(whole[:same]), list(whole[same:])


def nll(llm: Llama, lead: Sequence[int], gold: Sequence[int]) -> float:
    """Mean negative log-likelihood of the gold tokens behind the lead, in nats per token."""
    llm.eval(lead)
    total = 0.0
    for token in gold:
        logits = last_logits(llm).astype(np.float64)
        top = logits.max()
        total += float(top + np.log(np.exp(logits - top).sum()) - logits[token])
        llm.eval([token])
    return total / len(gold)


def _count(llm: Llama, text: str) -> int:
    return len(llm.tokenize(text.encode(), add_bos=False, special=False))
