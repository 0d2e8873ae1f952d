"""The tables of `headkv bench quality` with several wordings, and their JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import report
from .policies import FULL
from .quality import Outcome, Settings
from .wordings import catalogue

_ALL = "all"
_WORST = "worst wording"


@dataclass
class _Cell:
    """full: what the full cache finds in the same prompts, None where it was not tried."""

    found: int = 0
    asked: int = 0
    full: int | None = None

    @property
    def of_full(self) -> float | None:
        return self.found / self.full if self.full else None

    @property
    def text(self) -> str:
        return f"{self.found}/{self.asked}" + ("" if self.of_full is None else f" ({self.of_full:.0%})")

    def data(self) -> dict[str, Any]:
        return {"found": self.found, "asked": self.asked, "of_full": self.of_full}


_Cells = dict[tuple[int, str, str, str], _Cell]
"""By length, policy's label, family and wording; "all" for all of them together."""


def heading(model: str, settings: Settings) -> str:
    """What was asked of which model, in one line."""
    sets: dict[str, int] = {}
    for wording in settings.wordings:
        sets[wording.set] = sets.get(wording.set, 0) + 1
    return "; ".join(
        (
            f"wordings: {', '.join(f'{name} ({n})' for name, n in sets.items())}",
            f"haystacks: {', '.join(settings.haystacks)}",
            f"tasks: {', '.join(settings.tasks)}",
            f"model: {Path(model).name}",
            f"question: {settings.question}",
        )
    )


def summary(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """One entry per length and policy, in the order in which they were tried."""
    outcomes = list(outcomes)
    cells = _cells(outcomes)
    lines = {(o.length, o.label): o for o in outcomes}
    families = _families(outcomes)
    return [
        {
            "length": length,
            "policy": one.policy,
            "budget": one.budget,
            "label": label,
            **cells[length, label, _ALL, _ALL].data(),
            "families": {
                family: {
                    **cells[length, label, family, _ALL].data(),
                    "worst": _worst(cells, length, label, family, wordings),
                    "wordings": {
                        name: cells[length, label, family, name].data()
                        for name in wordings
                        if (length, label, family, name) in cells
                    },
                }
                for family, wordings in families.items()
                if (length, label, family, _ALL) in cells
            },
        }
        for (length, label), one in lines.items()
    ]


def table(outcomes: Sequence[Outcome]) -> str:
    """One table per length: families, their worst wordings, and every wording; a column per policy."""
    cells, families = _cells(outcomes), _families(outcomes)
    labels = list(dict.fromkeys(outcome.label for outcome in outcomes))
    return "\n\n".join(
        report.table((f"prompt {length}", *labels), list(_rows(cells, length, labels, families)))
        for length in dict.fromkeys(outcome.length for outcome in outcomes)
    )


def _rows(
    cells: _Cells, length: int, labels: Sequence[str], families: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, ...]]:
    def row(title: str, family: str, wording: str) -> tuple[str, ...]:
        found = (cells.get((length, label, family, wording)) for label in labels)
        return title, *("-" if cell is None else cell.text for cell in found)

    yield row(_ALL, _ALL, _ALL)
    for family, wordings in families.items():
        yield row(family, family, _ALL)
        if len(wordings) > 1:
            worst = [_worst(cells, length, label, family, wordings) for label in labels]
            found = [
                cells.get((length, label, family, one or ""))
                for label, one in zip(labels, worst, strict=True)
            ]
            yield f"  {_WORST}", *("-" if cell is None else cell.text for cell in found)
        for name in wordings:
            yield row(f"  {name}", family, name)


def _cells(outcomes: Iterable[Outcome]) -> _Cells:
    outcomes = list(outcomes)
    full = {_prompt(o): o.found for o in outcomes if o.policy == FULL}
    cells: _Cells = {}
    for o in outcomes:
        for family, wording in ((_ALL, _ALL), (o.family, _ALL), (o.family, o.wording)):
            cell = cells.setdefault((o.length, o.label, family, wording), _Cell())
            cell.found += o.found
            cell.asked += o.asked
            if _prompt(o) in full:
                cell.full = (cell.full or 0) + full[_prompt(o)]
    return cells


def _prompt(outcome: Outcome) -> tuple[int, str, int, str]:
    return outcome.length, outcome.task, outcome.sample, outcome.wording


def _worst(cells: _Cells, length: int, label: str, family: str, wordings: Iterable[str]) -> str | None:
    """The wording with the smallest share of what the full cache finds; of the full cache itself, of what
    was asked."""
    tried = {name: cell for name in wordings if (cell := cells.get((length, label, family, name)))}
    if label == FULL or all(cell.full is None for cell in tried.values()):
        shares = {name: cell.found / cell.asked for name, cell in tried.items()}
    else:
        shares = {name: cell.of_full for name, cell in tried.items() if cell.of_full is not None}
    return min(shares, key=shares.__getitem__) if shares else None


def _families(outcomes: Iterable[Outcome]) -> dict[str, list[str]]:
    """The wordings that were tried, in the order of the catalogue."""
    place = {name: i for i, name in enumerate(catalogue())}
    tried = {outcome.wording: outcome.family for outcome in outcomes}
    found: dict[str, list[str]] = {}
    for name in sorted(tried, key=lambda name: place.get(name, len(place))):
        found.setdefault(tried[name], []).append(name)
    return found
