"""Shares with their intervals, the tables of a suite, and its JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import report
from ..policies import FULL
from .names import PEER, PEER_FULL
from .prompts import Sorted
from .results import Outcome

_DRAWS = 2000
_ABOVE = 0.05  # that the full cache has to be above chance, and its interval above chance

NOTE = (
    "Scores in percent with their 95 % intervals (Wilson).\nof full: the mean score, divided by the full "
    "cache's in the same samples, over the tasks that it can do; bootstrap over these pairs "
    f"({_DRAWS:,} draws), none where no pair differs. differ: pairs in which the two scores do."
)

_OF_PEERS = f"Rows of {PEER.strip()} are divided by {PEER_FULL}."

_Scores = npt.NDArray[np.float64]


def summary(outcomes: Sequence[Outcome], labels: Sequence[str]) -> list[dict[str, Any]]:
    """One entry per length and label, in the order of the labels; labels not among them come last."""
    order = list(dict.fromkeys([*labels, *(one.label for one in outcomes)]))
    lengths = dict.fromkeys(one.length for one in outcomes)
    lines = []
    for length in lengths:
        of_length = [one for one in outcomes if one.length == length]
        groups = {label: [one for one in of_length if one.label == label] for label in order}
        full = groups.get(FULL, [])
        full_of_peers = groups.get(PEER_FULL) or full
        for label, group in groups.items():
            if group:
                lines.append(_line(group, full, full_of_peers if label.startswith(PEER) else full))
    return lines


def table(lines: Sequence[dict[str, Any]]) -> str:
    """One table per length, and what the model itself cannot do."""
    lengths = dict.fromkeys(line["length"] for line in lines)
    tables = [_table(length, [line for line in lines if line["length"] == length]) for length in lengths]
    has_peers = any(line["policy"] == PEER_FULL for line in lines)
    notes = [NOTE, *([_OF_PEERS] if has_peers else []), *_cannot(lines)]
    return "\n\n".join([*tables, "\n".join(notes)])


def left_out(sorted_items: Sorted, limit: int) -> dict[str, dict[str, Any]]:
    """By task and length: items that did not fit, and those that were cut."""
    found: dict[str, dict[str, Any]] = {}
    for one in (*sorted_items.fitting, *sorted_items.too_long):
        name = f"{one.item.task} {one.item.length}".strip()
        entry = found.setdefault(
            name, {"asked": 0, "too_long": 0, "longest": 0, "truncated": 0, "limit": limit}
        )
        entry["asked"] += 1
        entry["truncated"] += one.n_removed > 0
        entry["longest"] = max(entry["longest"], one.n_tokens + one.n_removed)
    for one in sorted_items.too_long:
        found[f"{one.item.task} {one.item.length}".strip()]["too_long"] += 1
    return found


def left_out_sentences(found: Mapping[str, Mapping[str, Any]], can_cut: bool) -> list[str]:
    """can_cut: whether --truncate-middle would help."""
    said = []
    for name, entry in found.items():
        if entry["too_long"]:
            cure = "; --truncate-middle cuts them" if can_cut else ""
            said.append(
                f"{name}: {entry['too_long']} of {entry['asked']} are left out: with their answers they take "
                f"more than {entry['limit']} tokens, the longest {entry['longest']}{cure}"
            )
        if entry["truncated"]:
            said.append(
                f"{name}: the middle of {entry['truncated']} of {entry['asked']} was cut out to fit "
                f"{entry['limit']} tokens"
            )
    return said


def _line(group: Sequence[Outcome], full: Sequence[Outcome], whole: Sequence[Outcome]) -> dict[str, Any]:
    """full: what the model can do. whole: what the same program answers with everything kept."""
    first = group[0]
    tasks = {task: _task(group, full, task) for task in dict.fromkeys(one.task for one in group)}
    able = [task for task, found in tasks.items() if found["full_can"] is not False]
    by_task = [_scores(group, task) for task in able]
    pairs = [_paired(group, whole, task) for task in able]
    pairs = [pair for pair in pairs if pair[0].size]
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    n_differ = sum(int((a != b).sum()) for a, b in pairs)
    varied = all(len({*zip(a, b, strict=True)}) > 1 for a, b in pairs if (a != b).any())
    has_full = _macro(theirs) > 0
    return {
        "length": first.length,
        "policy": first.policy,
        "budget": first.budget,
        "chosen": first.chosen,
        "label": first.label,
        "tasks": tasks,
        "able": able,
        "score": _macro(by_task),
        "score_95": _macro_interval(by_task),
        "of_full": _macro(ours) / _macro(theirs) if has_full else None,
        "of_full_95": _ratio_interval(ours, theirs) if has_full and n_differ and varied else None,
        "of_full_pairs": sum(scores.size for scores in ours),
        "of_full_differ": n_differ,
        "total": len(group),
        **{
            name: mean(getattr(one, name) for one in group)
            for name in (
                "prompt_tokens",
                "kept_share",
                "kept_bytes",
                "resident_bytes",
                "archive_bytes",
                "seconds",
            )
        },
    }


def _task(group: Sequence[Outcome], full: Sequence[Outcome], task: str) -> dict[str, Any]:
    of_task = [one for one in group if one.task == task]
    scores, of_full = _scores(group, task), _scores(full, task)
    chance = mean(one.chance for one in of_task)
    return {
        "n": len(of_task),
        "score": float(scores.mean()),
        "interval_95": _interval(scores),
        "chance": chance,
        "metrics": {name: mean(one.scores[name] for one in of_task) for name in of_task[0].scores},
        "full_can": _can(of_full, chance) if of_full.size else None,
    }


def _can(full: _Scores, chance: float) -> bool:
    """Whether the full cache does a task at all: a share of what is no better than chance says nothing."""
    low, _ = _interval(full)
    return bool(full.mean() > chance + _ABOVE and low > chance)


def _interval(scores: _Scores) -> tuple[float, float]:
    return report.wilson(float(scores.sum()), scores.size)


def _scores(group: Sequence[Outcome], task: str) -> _Scores:
    return np.array([one.score for one in group if one.task == task])


def _paired(group: Sequence[Outcome], full: Sequence[Outcome], task: str) -> tuple[_Scores, _Scores]:
    """The scores of both in the samples that both have."""
    of_full = {one.sample: one.score for one in full if one.task == task}
    pairs = [(one.score, of_full[one.sample]) for one in group if one.task == task and one.sample in of_full]
    ours, theirs = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(ours), np.array(theirs)


def _macro(by_task: Sequence[_Scores]) -> float:
    """The mean over tasks of their mean scores."""
    return float(np.mean([scores.mean() for scores in by_task])) if by_task else 0.0


def _macro_interval(by_task: Sequence[_Scores]) -> tuple[float, float]:
    """Of the intervals of the tasks, whose distances from the means add up as standard deviations do.

    Zou and Donner, "Construction of confidence limits about effect measures", Statistics in Medicine 27
    (2008).
    """
    if not by_task:
        return report.wilson(0, 0)
    means = np.array([scores.mean() for scores in by_task])
    low, high = np.array([_interval(scores) for scores in by_task]).T
    below, above = (float(np.sqrt((away**2).sum())) / len(by_task) for away in (means - low, high - means))
    return float(means.mean()) - below, float(means.mean()) + above


def _ratio_interval(ours: Sequence[_Scores], theirs: Sequence[_Scores]) -> tuple[float | None, ...]:
    """None for a limit that is infinite. theirs: not all 0. Draws in which both are 0 say nothing."""
    above, below = _draws(ours), _draws(theirs)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = above / below
    limits = np.percentile(
        ratios[~np.isnan(ratios)], (2.5, 97.5), method="nearest"
    )  # none between infinities
    return tuple(float(one) if np.isfinite(one) else None for one in limits)


def _draws(by_task: Sequence[_Scores]) -> _Scores:
    """Bootstrap: (_DRAWS,) such means of samples drawn anew in each task; equal sizes get the same draws."""
    rng = np.random.default_rng(0)
    means = [scores[rng.integers(scores.size, size=(_DRAWS, scores.size))].mean(axis=1) for scores in by_task]
    found: _Scores = np.mean(means, axis=0)
    return found


def _table(length: str, lines: Sequence[dict[str, Any]]) -> str:
    tasks = list(dict.fromkeys(task for line in lines for task in line["tasks"]))
    header = (f"prompt {length}".strip(), "n", "kept", "K/V", *tasks, "of full", "differ")
    return report.table(header, [tuple(_cells(line, tasks)) for line in lines])


def _cells(line: dict[str, Any], tasks: Sequence[str]) -> Iterator[str]:
    yield line["label"]
    yield str(line["total"])
    yield f"{line['kept_share']:.1%}"
    yield report.mebibytes(line["kept_bytes"])
    for task in tasks:
        one = line["tasks"].get(task)
        yield (
            "-"
            if one is None
            else _share(one["score"], one["interval_95"]) + "*" * (one["full_can"] is False)
        )
    yield "-" if line["of_full"] is None else _share(line["of_full"], line["of_full_95"])
    yield f"{line['of_full_differ']}/{line['of_full_pairs']}"


def _share(value: float, interval: Sequence[float | None] | None) -> str:
    if interval is None:
        return f"{100 * value:.0f}"
    low, high = ("∞" if limit is None else f"{100 * limit:.0f}" for limit in interval)
    return f"{100 * value:.0f} ({low} to {high})"


def _cannot(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    for line in lines:
        for task, found in line["tasks"].items() if line["policy"] == FULL else ():
            if found["full_can"] is False:
                yield (
                    f"* {task} {line['length']}: the full cache itself scores {found['score']:.0%} in "
                    f"{found['n']} samples, where guessing gives {found['chance']:.0%}: no sign that the "
                    "model can do this task, which counts nowhere else"
                )
