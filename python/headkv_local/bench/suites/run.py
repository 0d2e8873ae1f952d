"""Answers to a suite's questions: each document is read once for all policies, whenever they choose."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from headkv_local import ArgumentError, HeadScores, Llama, ModelError, Retention
from headkv_local.budgets import ModelShape
from headkv_local.settings import ADVANCED

from ..cases import by_beginning
from ..chosen import read
from ..contexts import Setup, greedy, n_ctx_for, open_headkv, text_of
from ..policies import FULL, REREAD, Policy, label_of
from ..state import KeptState
from .names import ANEW, BEFORE, WITH
from .prompts import Fitting, Prompt, by_document, made
from .results import Outcome, Results, digest_of

_ROOM = 256  # for a question before the document, which is read once more
_ROOM_OF_ALL = 2048  # for a document that is: as much as is read at a time


@dataclass(frozen=True)
class Way:
    """A policy, and when it chooses: names.WITH, BEFORE or ANEW."""

    policy: Policy
    chosen: str

    @property
    def label(self) -> str:
        return label_of(self.policy.name, self.policy.budget, self.chosen)


def ways_of(policies: Sequence[Policy], chosen: Sequence[str]) -> list[Way]:
    """The full cache once, every other policy at each time of choosing; one that chooses once, not anew."""
    times = {FULL: (WITH,), REREAD: tuple(when for when in chosen if when != ANEW)}
    return [Way(p, when) for p in policies for when in times.get(p.name, chosen)]


def run(
    setup: Setup,
    fitting: Sequence[Fitting],
    ways: Sequence[Way],
    results: Results,
    plain: bool,
    tell: Callable[[str], None] = lambda _: None,
    others: Sequence[Way] = (),
) -> Iterator[Outcome]:
    """Every question in every way, document by document; what is in the results is not measured again.

    others: that the results may hold beside these. Raises ArgumentError where what is kept is not the same.
    """
    if not fitting:
        return
    longest = max(one.n_tokens for one in fitting)
    rereads = any(way.policy.name == REREAD for way in ways)
    room = max(_ROOM, min(longest, _ROOM_OF_ALL)) if rereads else _ROOM
    with open_headkv(setup, n_ctx_for(longest + room)) as llm:
        recipes = {way.label: _recipe(way, llm.shape) for way in (*others, *ways)}
        results.require_same(recipes)
        n_done = 0
        for group in by_document(fitting):
            tell(f"{group[0].item.task} {group[0].item.length}: question {n_done + 1} of {len(fitting)}")
            n_done += len(group)
            todo: list[tuple[Prompt, Way]] = []
            for prompt in (made(llm, one, plain) for one in group):
                for way in ways:
                    _require_document(prompt, way)
                    key = (*prompt.item.key, way.label, way.chosen)
                    outcome = results.found(key, prompt.digest)
                    if outcome is None:
                        todo.append((prompt, way))
                    else:
                        yield outcome
            for outcome in _measured(llm, todo, recipes):
                results.add(outcome)
                yield outcome


def _measured(llm: Llama, todo: Sequence[tuple[Prompt, Way]], recipes: dict[str, str]) -> Iterator[Outcome]:
    """Questions about one document."""
    for beginning, group in by_beginning(list({p.item.key: p for p, _ in todo}.values())):
        state = KeptState.of_beginning(llm, beginning)
        for prompt in group:
            for way in (way for p, way in todo if p is prompt):
                yield _outcome(llm, prompt, way, recipes[way.label], state)


def _outcome(llm: Llama, prompt: Prompt, way: Way, recipe: str, state: KeptState) -> Outcome:
    """state: the beginning of the prompt in the full cache."""
    policy, n_prompt = way.policy, len(prompt.tokens)
    started = time.perf_counter()
    state.restore(llm)
    llm.retention = None
    llm.retention = _retention(way, llm, n_prompt)
    read(llm, prompt.tokens, prompt.n_document, way.chosen, known=prompt.known, messages=prompt.messages)
    stats = llm.cache_stats()
    tokens = greedy(llm, prompt.item.max_tokens, prompt.item.stop)
    return Outcome.of(
        prompt,
        text_of(llm, tokens),
        policy=policy.name,
        budget=policy.budget,
        chosen=way.chosen,
        recipe=recipe,
        answer_tokens=len(tokens),
        kept_share=stats.kept_share * stats.prompt_tokens / n_prompt,
        kept_bytes=stats.kept_bytes,
        resident_bytes=stats.resident_bytes,
        archive_bytes=stats.archive_bytes,
        seconds=time.perf_counter() - started,
    )


def _retention(way: Way, llm: Llama, n_prompt: int) -> Retention | None:
    """Equal bytes in every way: a document that is compacted by itself keeps as much as the prompt."""
    retention = way.policy.retention(llm.shape, n_prompt)
    if retention is None or way.chosen == WITH:
        return retention
    if way.chosen == ANEW:
        return retention.having(archive="memory")
    if isinstance(retention.scores, HeadScores):
        retention = retention.with_scores(retention.scores.for_model(llm.shape, llm.model_path))
    return retention.having(budget=None, caps=retention.caps_for(llm.shape, n_prompt), scores=None)


def _require_document(prompt: Prompt, way: Way) -> None:
    """ArgumentError or ModelError for a prompt with nothing to compact before its question is known."""
    item = prompt.item
    if way.chosen == WITH:
        return
    if item.question and item.question in item.before:
        raise ArgumentError(
            f"{item.task}: the prompt has its question before the document, so nothing can be chosen before "
            f"it is known: leave out --chosen {way.chosen}"
        )
    if prompt.n_document == 0:
        raise ModelError(
            f"{item.task}: the model's chat template changes the document, which cannot be compacted "
            "before its question is known then"
        )


def _recipe(way: Way, shape: ModelShape) -> str:
    """Digest of what a policy keeps, so that results of other settings or scores are not taken for it."""
    retention = way.policy.retention(shape, 1000)
    parts = []
    if retention is not None:
        scores = retention.scores
        if isinstance(scores, HeadScores):
            retention, scores = retention.with_scores(scores), digest_of(scores)
        names = ("budget", *ADVANCED)
        parts += [*(str(getattr(retention, name)) for name in names), str(scores)]
    if way.chosen == BEFORE:
        parts.append("as many of the document as of the prompt")
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]
