"""What is compared: the full cache, and ways to keep less of it. None folds: what was chosen answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headkv_local import ArgumentError, HeadScores, Retention
from headkv_local.budgets import ModelShape
from headkv_local.settings import ALL, given, parse_budget

from .suites.names import WITH

FULL = "full"
RECENT = "recent"
UNIFORM = "uniform"
SCORES = "scores"
REREAD = "reread"
USUAL = (FULL, RECENT, UNIFORM, SCORES)
EVERY = (*USUAL, REREAD)


@dataclass(frozen=True)
class Policy:
    """A way to choose what is kept, and a budget.

    retention: for a prompt of that many tokens; None keeps all of it.
    """

    name: str
    budget: int | str | None
    retention: Callable[[ModelShape, int], Retention | None]

    @property
    def label(self) -> str:
        return label_of(self.name, self.budget)


def label_of(name: str, budget: int | str | None, chosen: str = WITH) -> str:
    """chosen: when what is kept is chosen, of names.CHOSEN."""
    label = name if budget is None else f"{name} {budget}"
    return label if chosen == WITH else f"{label}, {chosen}"


def full() -> Policy:
    return Policy(FULL, None, lambda _shape, _n_prompt: None)


def recent(budget: int | str, base: Retention) -> Policy:
    """The first and the last positions (attention sinks and a recent window), with the caps of `uniform`.

    A head whose cap is above the smallest one selects the rest of its entries.
    """
    as_uniform = replace(base, budget=budget, scores="uniform")

    def retention(shape: ModelShape, n_prompt: int) -> Retention:
        caps = as_uniform.caps_for(shape, n_prompt)
        window = max(int(caps[shape.heads].min()) - base.sinks, 1)
        return Retention(budget=None, caps=caps, window=window, sinks=base.sinks, kernel=1, fold=None)

    return Policy(RECENT, budget, retention)


def uniform(budget: int | str, base: Retention) -> Policy:
    """The same budget for every KV head (SnapKV with our max-pool); window, kernel and sinks of base."""
    retention = replace(base, budget=budget, scores="uniform", fold=None)
    return Policy(UNIFORM, budget, lambda _shape, _n_prompt: retention)


def reread(budget: int | str, settings: Mapping[str, Any]) -> Policy:
    """What the whole prompt looks at once it is read once more, whatever asks (KVzip)."""
    retention = Retention(budget=budget, scores="uniform", fold=None, **{**settings, "observe": ALL})
    return Policy(REREAD, budget, lambda _shape, _n_prompt: retention)


def by_scores(name: str, scores: HeadScores, budget: int | str, settings: Mapping[str, Any]) -> Policy:
    """Budgets by head scores. settings: of Retention, instead of what the scores recommend."""
    retention = Retention(budget=budget, scores=scores, fold=None, **settings)
    return Policy(name, budget, lambda _shape, _n_prompt: retention)


def all_of(
    budgets: Sequence[int | str],
    scores: Mapping[str, HeadScores],
    settings: Mapping[str, Any],
    kinds: Collection[str] = USUAL,
) -> list[Policy]:
    """The full cache, then every way at each budget in turn; of these the given kinds.

    What selects is the same for uniform budgets as for the first scores: window, kernel and sinks that these
    recommend, unless settings say otherwise. Raises ArgumentError if nothing is left to try.
    """
    made = [full()] if FULL in kinds else []
    made += [policy for budget in budgets for policy in _at(budget, scores, settings, kinds)]
    if not made:
        raise ArgumentError("of the policies only scores are wanted, and the model has no head scores")
    return made


def _at(
    budget: int | str, scores: Mapping[str, HeadScores], settings: Mapping[str, Any], kinds: Collection[str]
) -> Iterator[Policy]:
    base = Retention(**{**given(next(iter(scores.values()), None)), **settings})
    if RECENT in kinds:
        yield recent(budget, base)
    if UNIFORM in kinds:
        yield uniform(budget, base)
    if SCORES in kinds:
        for name, one in scores.items():
            yield by_scores(name, one, budget, settings)
    if REREAD in kinds:
        yield reread(budget, settings)


def checked_budget(text: str) -> int | str:
    """An int of entries, or what Retention takes as text ("5%", "64MiB"). Raises ArgumentError."""
    budget = parse_budget(text)
    if budget is None:
        raise ArgumentError(f"budget must be less than everything, not {text.strip()!r}")
    Retention(budget=budget)  # refuses what can never work
    return budget


def parse_budgets(text: str) -> list[int | str]:
    """Different budgets, separated by commas. Raises ArgumentError."""
    budgets = dict.fromkeys(checked_budget(part) for part in text.split(",") if part.strip())
    if not budgets:
        raise ArgumentError(f"no budget in {text!r}")
    return list(budgets)
