"""Answers to a suite's questions: each document is read once for all policies that do without an archive."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from headkv_local import HeadScores, Llama, ModelError, Retention
from headkv_local.budgets import ModelShape

from ..cases import by_beginning
from ..contexts import Setup, likeliest, n_ctx_for, open_headkv, text_of
from ..policies import FULL, Policy
from ..state import KeptState
from .item import Item
from .names import ANEW, BEFORE, WITH
from .prompts import Fitting, Prompt, by_document, made
from .results import Outcome, Results, label_of

_ROOM = 256  # for a question before the document, which is read once more


@dataclass(frozen=True)
class Way:
    """A policy, and when it chooses: names.WITH, BEFORE or ANEW."""

    policy: Policy
    chosen: str

    @property
    def label(self) -> str:
        return label_of(self.policy.name, self.policy.budget, self.chosen)


def ways_of(policies: Sequence[Policy], chosen: Sequence[str]) -> list[Way]:
    """The full cache once, every other policy at each time of choosing."""
    return [Way(p, when) for p in policies for when in ((WITH,) if p.name == FULL else chosen)]


def run(
    setup: Setup,
    fitting: Sequence[Fitting],
    ways: Sequence[Way],
    results: Results,
    plain: bool,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[Outcome]:
    """Every question in every way, document by document; what is in the results is not measured again."""
    if not fitting:
        return
    with open_headkv(setup, n_ctx_for(max(one.n_tokens for one in fitting) + _ROOM)) as llm:
        recipes = {way.label: _recipe(way.policy, llm.shape) for way in ways}
        n_done = 0
        for group in by_document(fitting):
            tell(f"{group[0].item.task} {group[0].item.length}: question {n_done + 1} of {len(fitting)}")
            n_done += len(group)
            todo: list[tuple[Prompt, Way]] = []
            for prompt in (made(llm, one, plain) for one in group):
                for way in ways:
                    key = (*prompt.item.key, way.label, way.chosen)
                    outcome = results.found(key, prompt.digest, recipes[way.label])
                    if outcome is None:
                        todo.append((prompt, way))
                    else:
                        yield outcome
            for outcome in _measured(llm, todo, recipes):
                results.add(outcome)
                yield outcome


def _measured(llm: Llama, todo: Sequence[tuple[Prompt, Way]], recipes: dict[str, str]) -> Iterator[Outcome]:
    """Questions about one document."""
    from_copy = {p.item.key: p for p, way in todo if way.chosen != ANEW}
    for beginning, group in by_beginning(list(from_copy.values())):
        state = _beginning(llm, beginning)
        for prompt in group:
            for way in (way for p, way in todo if p is prompt and way.chosen != ANEW):
                yield _outcome(llm, prompt, way, recipes[way.label], state)
    for label in dict.fromkeys(way.label for _, way in todo if way.chosen == ANEW):
        _start(llm, None)
        for prompt, way in todo:
            if way.label == label:
                yield _outcome(llm, prompt, way, recipes[label], None)
        _start(llm, None)


def _outcome(llm: Llama, prompt: Prompt, way: Way, recipe: str, state: KeptState | None) -> Outcome:
    """state: the beginning in the full cache; None where the rows come from an archive."""
    policy = way.policy
    started = time.perf_counter()
    retention = policy.retention(llm.shape, len(prompt.tokens))
    if state is not None:
        state.restore(llm)
        llm.retention = None
        llm.retention = retention
    elif retention is not None and llm.retention is None:
        llm.retention = replace(retention, archive="memory")
    if way.chosen != WITH:
        _read_document(llm, prompt, way)
    llm.prefill(prompt.tokens, messages=prompt.messages)
    stats = llm.cache_stats()
    tokens = _answer(llm, prompt.item)
    return Outcome.of(
        prompt,
        text_of(llm, tokens),
        policy=policy.name,
        budget=policy.budget,
        chosen=way.chosen,
        recipe=recipe,
        answer_tokens=len(tokens),
        kept_share=stats.kept_share,
        kept_bytes=stats.kept_bytes,
        resident_bytes=stats.resident_bytes,
        archive_bytes=stats.archive_bytes,
        seconds=time.perf_counter() - started,
    )


def _read_document(llm: Llama, prompt: Prompt, way: Way) -> None:
    """Compact the document before its question is known. With an archive, once for all its questions."""
    document = prompt.tokens[: prompt.n_document]
    if not document:
        raise ModelError(
            f"{prompt.item.task}: the model's chat template changes the document, which cannot be compacted "
            "before its question is known then"
        )
    if way.chosen == BEFORE or llm.n_tokens == 0:
        llm.prefill(document)


def _answer(llm: Llama, item: Item) -> list[int]:
    """The likeliest tokens, up to an end of generation or what ends the answer."""
    out: list[int] = []
    while len(out) < item.max_tokens and (token := likeliest(llm)) is not None:
        out.append(token)
        if item.stop and item.stop in text_of(llm, out).lstrip(item.stop):
            break
        llm.eval([token])
    return out


def _beginning(llm: Llama, tokens: list[int]) -> KeptState:
    _start(llm, None)
    if tokens:
        llm.eval(tokens)
    return KeptState(llm)


def _start(llm: Llama, retention: Retention | None) -> None:
    llm.reset()
    llm.retention = retention


def _recipe(policy: Policy, shape: ModelShape) -> str:
    """Digest of what a policy keeps, so that results of other settings are not taken for it."""
    retention = policy.retention(shape, 1000)
    if retention is None:
        return "full"
    parts = [str(retention.budget), str(retention.observe)]
    if isinstance(retention.scores, HeadScores):
        retention = retention.with_scores(retention.scores)
    parts += [str(getattr(retention, name)) for name in ("beta", "window", "kernel", "sinks")]
    scores = retention.scores
    parts.append(scores.tobytes().hex() if isinstance(scores, np.ndarray) else str(scores))
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]
