"""The tables of `headkv bench quality`, and their JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from statistics import mean
from typing import Any

from . import report, wordings_report
from .contexts import Setup
from .quality import Outcome, Settings


def summary(outcomes: Iterable[Outcome]) -> list[dict[str, Any]]:
    """One entry per length and policy, in the order in which they were tried."""
    groups: dict[tuple[int, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.length, outcome.label), []).append(outcome)
    return [_line(group) for group in groups.values()]


def table(lines: Sequence[dict[str, Any]]) -> str:
    """One table per length."""
    lengths = dict.fromkeys(line["length"] for line in lines)
    return "\n\n".join(
        _table(length, [line for line in lines if line["length"] == length]) for length in lengths
    )


def document(
    setup: Setup, settings: Settings, policies: dict[str, Any], outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """What --json writes. policies: where their settings come from."""
    return report.document(
        "quality",
        setup,
        {**asdict(settings), "wordings": [wording.name for wording in settings.wordings]},
        sets=list(dict.fromkeys(wording.set for wording in settings.wordings)),
        policies=policies,
        summary=summary(outcomes) if settings.is_plain else wordings_report.summary(outcomes),
        outcomes=[asdict(outcome) for outcome in outcomes],
    )


def _line(group: Sequence[Outcome]) -> dict[str, Any]:
    tasks: dict[str, list[Outcome]] = {}
    for outcome in group:
        tasks.setdefault(outcome.task, []).append(outcome)
    hits = sum(outcome.right for outcome in group)
    return {
        "length": group[0].length,
        "policy": group[0].policy,
        "budget": group[0].budget,
        "label": group[0].label,
        "right": hits,
        "total": len(group),
        "share": hits / len(group),
        "wilson_95": report.wilson(hits, len(group)),
        "nll": _nll(group),
        "tasks": {
            task: {
                "right": sum(outcome.right for outcome in of_task),
                "total": len(of_task),
                "nll": _nll(of_task),
            }
            for task, of_task in tasks.items()
        },
        "prompt_tokens": mean(outcome.prompt_tokens for outcome in group),
        "kept_share": mean(outcome.kept_share for outcome in group),
        "kept_bytes": mean(outcome.kept_bytes for outcome in group),
        "resident_bytes": mean(outcome.resident_bytes for outcome in group),
        "seconds": mean(outcome.seconds for outcome in group),
    }


def _nll(group: Sequence[Outcome]) -> float:
    return mean(outcome.nll for outcome in group if outcome.nll is not None)


def _table(length: int, lines: Sequence[dict[str, Any]]) -> str:
    tasks = list(dict.fromkeys(task for line in lines for task in line["tasks"]))
    overall = ("all", "95 % interval", "NLL") if len(tasks) > 1 else ("95 % interval",)
    header = (f"prompt {length}", "kept", "K/V", "cache", *tasks, *overall)
    return report.table(header, [tuple(_cells(line, tasks)) for line in lines])


def _cells(line: dict[str, Any], tasks: Sequence[str]) -> Iterator[str]:
    yield line["label"]
    yield f"{line['kept_share']:.1%}"
    yield report.mebibytes(line["kept_bytes"])
    yield report.mebibytes(line["resident_bytes"])
    for task in tasks:
        one = line["tasks"].get(task)
        yield f"{one['right']}/{one['total']} ({one['nll']:.2f})" if one else "-"
    if len(tasks) > 1:
        yield f"{line['right']}/{line['total']}"
    low, high = line["wilson_95"]
    yield f"{low:.0%} to {high:.0%}"
    if len(tasks) > 1:
        yield f"{line['nll']:.3f}"
