"""The table of `headkv bench speed`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from statistics import median
from typing import Any

from . import report
from .contexts import Setup
from .report import mebibytes
from .speed import Settings
from .speed_figures import Speed

DECODE_GOAL = 0.97
"""Least decode speed, as a share of stock at the depth of the budget."""
COST_GOAL, COST_GOAL_GPU = 0.015, 0.03
"""Most that observation, selection and compaction may take, as a share of the prefill."""
FREED_GOAL = 0.90
"""Least share of the freed bytes by which the resident memory of the process falls."""


def details(setup: Setup, settings: Settings, results: Iterable[Speed]) -> str:
    """All that was measured, result by result."""
    return "\n\n".join(_one(setup, settings, result) for result in results)


def document(setup: Setup, settings: Settings, results: Iterable[Speed]) -> dict[str, Any]:
    """What --json writes."""
    goals = {
        "decode_ratio": DECODE_GOAL,
        "cost_share": COST_GOAL,
        "cost_share_gpu": COST_GOAL_GPU,
        "freed_share": FREED_GOAL,
    }
    found = [result.as_dict() for result in results]
    return report.document("speed", setup, asdict(settings), goals=goals, results=found)


def _one(setup: Setup, settings: Settings, speed: Speed) -> str:
    return "\n\n".join((_title(setup, settings, speed), _rates(speed), _costs(speed), _bytes(speed)))


def _title(setup: Setup, settings: Settings, speed: Speed) -> str:
    return (
        f"prompt {speed.n_prompt} tokens, budget {speed.budget} ({speed.stats.kept_share:.1%} kept), "
        f"K {setup.type_k}, V {setup.type_v}, threads {setup.n_threads or 'default'}, "
        f"cache on {', '.join(speed.stats.devices)}, "
        f"median of {settings.repeat} passes"
    )


def _rates(speed: Speed) -> str:
    s, n, short = speed.samples, speed.n_prompt, speed.short_depth
    rows = [
        _rate("prefill", speed.prefill_stock / n, speed.prefill_headkv / n),
        _rate(f"decode at {n}", median(s.decode_stock), median(s.decode_headkv)),
        _rate(f"decode, stock at {short}", median(s.decode_short), median(s.decode_headkv)),
    ]
    return (
        report.table(("tokens per second", "stock", "headkv", "headkv/stock"), rows)
        + f"\ndecode against stock at {short}: {speed.short_ratio:.3f} (goal at least {DECODE_GOAL}; "
        f"passes {min(s.short_ratios):.3f} to {max(s.short_ratios):.3f}, "
        f"lower quartiles {speed.short_ratio_q1:.3f})"
    )


def _rate(name: str, stock: float, ours: float) -> tuple[str, ...]:
    """From seconds per token."""
    return name, f"{1 / stock:.1f}", f"{1 / ours:.1f}", f"{stock / ours:.3f}"


def _costs(speed: Speed) -> str:
    s, prefill = speed.samples, speed.prefill_stock
    goal = COST_GOAL if "CPU" in speed.stats.devices else COST_GOAL_GPU
    parts = {
        "end of the prompt, recording": median(s.end_recorded),
        "end of the prompt, plain": median(s.end_plain),
        "recording (difference)": median(s.recording),
        "selection": median(s.select),
        "compaction": median(s.compact),
        "added by all of it": speed.cost,
    }
    rows = [(name, f"{part * 1e3:.1f}", f"{part / prefill:.2%}") for name, part in parts.items()]
    return (
        report.table(("once per prompt", "ms", "of stock prefill"), rows)
        + f"\ntime to the first token: stock {prefill:.3f} s, headkv {speed.first_token_headkv:.3f} s"
        + f"\nadded share of the prefill: {speed.cost / prefill:.2%} (goal at most {goal:.1%})"
    )


def _bytes(speed: Speed) -> str:
    stats, apart = speed.stats, speed.memory
    rows = [
        ("cache at full size", mebibytes(stats.full_bytes)),
        ("cache resident, compacted", mebibytes(stats.resident_bytes)),
        ("cache peak", mebibytes(speed.peak_bytes)),
    ]
    if apart is None:
        return report.table(("memory", "bytes"), rows)
    rows.append(("process before compaction (RSS)", mebibytes(apart.rss_before)))
    rows.append(("process after compaction (RSS)", mebibytes(apart.rss_after)))
    rows.append(("device free before the prompt", mebibytes(apart.device_before)))
    rows.append(("device free before compaction", mebibytes(apart.device_full)))
    rows.append(("device free, least", mebibytes(apart.device_least)))
    rows.append(("device free after compaction", mebibytes(apart.device_after)))
    text = report.table(("memory", "bytes"), rows)
    if apart.freed_share is None:
        return text
    what = "RSS" if apart.device_full is None else "RSS and GPU memory"
    return (
        f"{text}\n{what} fell by {apart.freed_share:.1%} of what was freed (goal at least {FREED_GOAL:.0%})"
    )


def side_by_side(results: Iterable[Speed]) -> str:
    """All prompts and budgets, a line for each."""
    rows = [
        (
            f"{speed.n_prompt}, {speed.budget}",
            f"{1 / median(speed.samples.decode_stock):.1f}",
            f"{1 / median(speed.samples.decode_headkv):.1f}",
            f"{speed.short_ratio:.3f}",
            f"{speed.first_token_headkv:.2f} s",
            f"{speed.cost / speed.prefill_stock:.2%}",
            mebibytes(speed.stats.full_bytes),
            mebibytes(speed.peak_bytes),
            mebibytes(speed.stats.resident_bytes),
        )
        for speed in results
    ]
    header = ("prompt, budget", "stock t/s", "headkv t/s", "of short stock", "first token", "added")
    return report.table((*header, "cache full", "peak", "resident"), rows)
