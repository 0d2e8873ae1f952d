"""The figures of a suite as a PNG: mean scores over the share of the cache kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..policies import FULL, label_of
from ..report import writing


def write_png(lines: Sequence[dict[str, Any]], path: str) -> None:
    """A panel per length: the mean over the tasks that the full cache can do, with its 95 % interval."""
    from matplotlib.figure import Figure

    lengths = list(dict.fromkeys(line["length"] for line in lines))
    figure = Figure(figsize=(5.5 * len(lengths), 4), layout="constrained")
    for axes, length in zip(figure.subplots(1, len(lengths), squeeze=False)[0], lengths, strict=True):
        of_length = [line for line in lines if line["length"] == length and line["able"]]
        _draw(axes, of_length)
        n_tasks = len(of_length[0]["able"]) if of_length else 0
        axes.set_title(f"{length} mean score, {n_tasks} tasks, 95 % intervals".strip(), fontsize="medium")
    with writing(path) as target:
        figure.savefig(target, format="png", dpi=120)


def _draw(axes: Any, lines: Sequence[dict[str, Any]]) -> None:
    curves: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        curves.setdefault(label_of(line["policy"], None, line["chosen"]), []).append(line)
    for name, of_curve in curves.items():
        if name == FULL:
            axes.axhline(of_curve[0]["score"], color="black", linestyle="--", label=name)
            axes.axhspan(*of_curve[0]["score_95"], color="black", alpha=0.08)
            continue
        xs, ys = ([line[key] for line in of_curve] for key in ("kept_share", "score"))
        ends = [[abs(line["score"] - line["score_95"][end]) for line in of_curve] for end in (0, 1)]
        axes.errorbar(xs, ys, yerr=ends, marker="o", capsize=3, label=name)
    kept = sorted({round(line["kept_share"], 3) for line in lines if line["policy"] != FULL})
    if kept:
        axes.set_xscale("log")
        axes.set_xticks(kept, [f"{share:.1%}" for share in kept])
        axes.minorticks_off()
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("share of the cache kept")
    axes.legend(fontsize="small")
