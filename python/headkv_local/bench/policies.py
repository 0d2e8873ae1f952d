"""What is compared: the full cache, and ways to keep less of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from headkv_local import ArgumentError, Retention


@dataclass(frozen=True)
class Policy:
    """retention: None keeps the full cache."""

    name: str
    retention: Retention | None


def full() -> Policy:
    return Policy("full", None)


def uniform(budget: int | str, base: Retention) -> Policy:
    """The same budget for every KV head (SnapKV per KV head); window, kernel and sinks as in base."""
    return Policy(f"uniform {budget}", replace(base, budget=budget, scores="uniform"))


def parse_budget(text: str) -> int | str:
    """An int of entries, or what Retention takes as text ("5%", "64MiB"). Raises ArgumentError."""
    budget: int | str = int(text) if text.strip().isdecimal() else text.strip()
    Retention(budget=budget)  # refuses what can never work
    return budget


def parse_budgets(text: str) -> list[int | str]:
    """Budgets separated by commas. Raises ArgumentError."""
    budgets = [parse_budget(part) for part in text.split(",") if part.strip()]
    if not budgets:
        raise ArgumentError(f"no budget in {text!r}")
    return budgets
