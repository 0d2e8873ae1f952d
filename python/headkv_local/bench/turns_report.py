"""The table of `headkv bench turns`, and its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

from . import report
from .contexts import Setup
from .turns import FRESH, FULL, N_TURNS, Outcome, Settings


def heading(model: str, settings: Settings) -> str:
    """What was asked of which model, in one line."""
    return "; ".join(
        (
            f"{settings.n_samples} questions at each turn",
            f"wordings: {', '.join(dict.fromkeys(one.set for one in settings.wordings))} "
            f"({len(settings.wordings)})",
            f"haystacks: {', '.join(settings.haystacks)}",
            f"seed: {settings.seed}",
            f"model: {Path(model).name}",
        )
    )


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One entry per length and way, in the order in which they were tried."""
    groups: dict[tuple[int, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.length, outcome.label), []).append(outcome)
    lines = [_line(group) for group in groups.values()]
    for line in lines:
        for way in (FULL, FRESH):
            _compare(line, way, lines)
    return lines


def table(lines: Sequence[dict[str, Any]]) -> str:
    """One table per length."""
    lengths = dict.fromkeys(line["length"] for line in lines)
    turns = [f"turn {turn + 1}" for turn in range(N_TURNS)]
    return "\n\n".join(
        report.table(
            (f"{length} tokens", "cache", *turns, "all", "of full, least turn", "of fresh"),
            [tuple(_cells(line)) for line in lines if line["length"] == length],
        )
        for length in lengths
    )


def document(setup: Setup, settings: Settings, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What --json writes."""
    return report.document(
        "turns",
        setup,
        {**asdict(settings), "wordings": [wording.name for wording in settings.wordings]},
        summary=summary(outcomes),
        outcomes=[asdict(outcome) for outcome in outcomes],
    )


def _line(group: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "length": group[0].length,
        "way": group[0].way,
        "budget": group[0].budget,
        "label": group[0].label,
        "turns": [
            _share([one for one in group if one.turn in (turn, None)]) for turn in range(1, N_TURNS + 1)
        ],
        "all": {"found": sum(one.right for one in group), "asked": len(group)},
        "kept_share": mean(one.kept_share for one in group),
        "kept_bytes": mean(one.kept_bytes for one in group),
        "resident_bytes": mean(one.resident_bytes for one in group),
        "archive_bytes": mean(one.archive_bytes for one in group),
        "seconds": mean(one.seconds for one in group),
    }


def _share(group: Sequence[Outcome]) -> dict[str, Any]:
    found = sum(one.right for one in group)
    return {
        "found": found,
        "asked": len(group),
        "share": found / len(group) if group else None,
        "wilson_95": report.wilson(found, len(group)),
    }


def _compare(line: dict[str, Any], way: str, lines: Sequence[dict[str, Any]]) -> None:
    """Put in what the line finds of what that way finds, with the same budget if it has one."""
    other = next(
        (
            one
            for one in lines
            if one["way"] == way
            and one["length"] == line["length"]
            and one["budget"] in (None, line["budget"])
        ),
        None,
    )
    for turn, cell in enumerate(line["turns"]):
        share = None if other is None else other["turns"][turn]["share"]
        cell[f"of_{way}"] = cell["share"] / share if share and cell["share"] is not None else None
    told = [cell[f"of_{way}"] for cell in line["turns"] if cell[f"of_{way}"] is not None]
    line[f"least_of_{way}"] = min(told, default=None)


def _cells(line: dict[str, Any]) -> Iterator[str]:
    yield line["label"]
    yield report.mebibytes(line["resident_bytes"])
    for cell in line["turns"]:
        low, high = cell["wilson_95"]
        yield f"{cell['found']}/{cell['asked']} ({low:.0%} to {high:.0%})"
    yield f"{line['all']['found']}/{line['all']['asked']}"  # no interval: the same questions at every turn
    for way in (FULL, FRESH):
        least = line[f"least_of_{way}"]
        yield "-" if least is None or line["way"] == way else f"{least:.1%}"
