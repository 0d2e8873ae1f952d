"""The tables of `headkv bench speed --order`, and their JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from headkv_local.machine import cpu_name

from . import report
from .contexts import Setup
from .orders import USUAL, Figures, Settings, usual_of
from .report import mebibytes


def details(setup: Setup, settings: Settings, results: Sequence[Figures]) -> str:
    """All ways of one prompt and budget."""
    one = results[0]
    title = (
        f"prompt {one.n_prompt} tokens, budget {one.budget} ({one.stats.kept_share:.1%} kept), "
        f"K {setup.type_k}, V {setup.type_v}, threads {setup.n_threads or 'default'}, "
        f"cache on {', '.join(one.stats.devices)}, median of {settings.repeat} passes, {cpu_name()}"
    )
    tables = [title, _times(results), _bytes(results)]
    if any(figures.memory is not None for figures in results):
        tables.append(_processes(results))
    return "\n\n".join(tables)


def document(setup: Setup, settings: Settings, results: Sequence[Sequence[Figures]]) -> dict[str, Any]:
    """What --json writes."""
    found = [one.as_dict(usual_of(group)) for group in results for one in group]
    return report.document("orders", setup, asdict(settings), results=found)


def _times(results: Sequence[Figures]) -> str:
    usual = usual_of(results)
    rows = []
    for one in results:
        compared = None if usual is None else one.compared(usual)
        rows.append(
            (
                one.way.label,
                f"{median(one.wall):.2f} s",
                *_quotient(compared, "wall"),
                f"{median(one.processor):.2f} s",
                *_quotient(compared, "processor"),
            )
        )
    of = f"of {USUAL.label}"
    return report.table(("order, archive", "wall", of, "passes", "processor", of, "passes"), rows)


def _quotient(compared: dict[str, Any] | None, what: str) -> tuple[str, str]:
    if compared is None:
        return "-", "-"
    found = compared[what]
    return f"{found['median']:.3f}", f"{found['least']:.3f} to {found['most']:.3f}"


def _bytes(results: Sequence[Figures]) -> str:
    usual = usual_of(results)
    rows = [
        (
            one.way.label,
            mebibytes(one.stats.peak_bytes),
            "-" if usual is None else f"{one.compared(usual)['peak_bytes']:.3f}",
            mebibytes(one.stats.resident_bytes),
            mebibytes(one.stats.archive_bytes),
        )
        for one in results
    ]
    header = ("order, archive", "K/V, peak", f"of {USUAL.label}", "K/V, compacted", "archive")
    return report.table(header, rows)


def _processes(results: Sequence[Figures]) -> str:
    rows = [
        (
            one.way.label,
            *(
                mebibytes(figure)
                for figure in (
                    memory.rss_before,
                    memory.rss_peak,
                    memory.anonymous_peak,
                    memory.storage_read,
                    memory.storage_written,
                    memory.device_before,
                    memory.device_least,
                )
            ),
        )
        for one in results
        if (memory := one.memory) is not None
    ]
    header = ("process of its own", "RSS before", "RSS, peak", "not of files", "storage read", "written")
    return report.table((*header, "device free before", "least"), rows)
