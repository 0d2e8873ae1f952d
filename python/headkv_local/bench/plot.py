"""The figures of `headkv bench quality` as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ..scoresfile.plot import require_matplotlib
from .policies import FULL
from .report import check_target, writing

_PNG: Final = b"\x89PNG"


def check(path: str) -> None:
    """Before the measuring. Raises UnsupportedError without matplotlib, OSError for a bad path."""
    require_matplotlib()
    check_target(path, lambda found: found.startswith(_PNG))


def write_png(lines: Sequence[dict[str, Any]], path: str) -> None:
    """A row per prompt length: share of right answers, and likelihood, over the share of the cache kept."""
    from matplotlib.figure import Figure

    lengths = list(dict.fromkeys(line["length"] for line in lines))
    figure = Figure(figsize=(11, 3.6 * len(lengths)), layout="constrained")
    for row, length in zip(figure.subplots(len(lengths), 2, squeeze=False), lengths, strict=True):
        of_length = [line for line in lines if line["length"] == length]
        for axes, key, label in zip(
            row,
            ("share", "nll"),
            ("right answers", "negative log-likelihood of the gold answer"),
            strict=True,
        ):
            _draw(axes, of_length, key)
            axes.set_title(f"{label}, prompts of {length} tokens", fontsize="medium")
        row[0].set_ylim(-0.02, 1.02)
        row[1].set_ylim(bottom=0)
    with writing(path) as target:
        figure.savefig(target, format="png", dpi=120)


def _draw(axes: Any, lines: Sequence[dict[str, Any]], key: str) -> None:
    policies: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        policies.setdefault(line["policy"], []).append(line)
    for name, of_policy in policies.items():
        if name == FULL:
            axes.axhline(of_policy[0][key], color="black", linestyle="--", label=name)
        else:
            xs, ys = ([line[k] for line in of_policy] for k in ("kept_share", key))
            axes.plot(xs, ys, marker="o", label=name)
    kept = sorted({round(line["kept_share"], 3) for line in lines if line["policy"] != FULL})
    axes.set_xscale("log")
    axes.set_xticks(kept, [f"{share:.1%}" for share in kept])
    axes.minorticks_off()
    axes.set_xlabel("share of the cache kept")
    axes.legend(fontsize="small")
