"""What a measuring command's --json holds, as columns and rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def rows_of(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of what a command's --json holds."""
    benches = {
        "cancel": _cancel,
        "demo": _demo,
        "endless": _endless,
        "next-turn": _next_turn,
        "orders": _orders,
        "quality": _quality,
        "sessions": _sessions,
        "speed": _speed,
        "suite": _suite,
        "threads": _threads,
        "turns": _turns,
    }
    columns, rows = benches[data["bench"]](data)
    return columns, rows


def _demo(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    columns = ["cache", "kept of the prompt", "cache while answering", "peak", "tokens/s", "right answers"]
    rows = [
        [
            name,
            f"{side['kept_share']:.1%}",
            _mebibytes(side["resident_bytes"]),
            _mebibytes(side["peak_bytes"]),
            f"{side['tokens_per_second']:.1f}",
            f"{side['right']} of {side['total']}",
        ]
        for name, side in data["sides"].items()
    ]
    return columns, rows


def _quality(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    lines = data["summary"]
    if "families" in lines[0]:
        return _wordings(lines)
    tasks = list(dict.fromkeys(task for line in lines for task in line["tasks"]))
    rows = [
        [
            line["label"],
            f"{line['kept_share']:.1%}",
            *(_right(line["tasks"][task]) for task in tasks),
            f"{line['right']}/{line['total']}",
            f"{line['nll']:.3f}",
        ]
        for line in lines
    ]
    return ["policy", "kept", *tasks, "all", "NLL"], rows


def _wordings(lines: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    rows = [["all", *map(_of_full, lines)]]
    for name in lines[0]["families"]:
        rows.append([name, *(_family(line["families"][name]) for line in lines)])
    return ["questions", *(line["label"] for line in lines)], rows


def _family(family: dict[str, Any]) -> str:
    """With its worst wording, where the full cache answers any."""
    worst = family["wordings"].get(family["worst"])
    return _of_full(family) + (f"; worst {_of_full(worst)}" if worst else "")


def _of_full(one: dict[str, Any]) -> str:
    share = "" if one["of_full"] is None else f" ({one['of_full']:.0%})"
    return f"{one['found']}/{one['asked']}{share}"


def _suite(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Scores in percent with their intervals; a star where the full cache cannot do the task."""
    lines = data["summary"]
    tasks = list(dict.fromkeys(task for line in lines for task in line["tasks"]))
    rows = [
        [
            f"{line['length']} {line['label']}".strip(),
            f"{line['kept_share']:.1%}",
            _mebibytes(line["kept_bytes"]),
            *(_scored(line["tasks"].get(task)) for task in tasks),
            "-" if line["of_full"] is None else _percent(line["of_full"], line["of_full_95"]),
            f"{line['of_full_differ']}/{line['of_full_pairs']}",
        ]
        for line in lines
    ]
    return ["prompt, policy", "kept", "K and V", *tasks, "of full", "differ"], rows


def _scored(task: dict[str, Any] | None) -> str:
    if task is None:
        return "-"
    return _percent(task["score"], task["interval_95"]) + "*" * (task["full_can"] is False)


def _percent(value: float, interval: Sequence[float | None] | None) -> str:
    """A limit of None is infinite."""
    if interval is None:
        return f"{100 * value:.0f}"
    low, high = ("∞" if limit is None else f"{100 * limit:.0f}" for limit in interval)
    return f"{100 * value:.0f} ({low} to {high})"


def _speed(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for one in data["results"]:
        decode, cache = one["decode_tokens_per_second"], one["cache"]
        rows.append(
            [
                f"{one['prompt_tokens']}, {one['budget']}",
                f"{one['prefill_tokens_per_second']['stock']:.1f}",
                f"{one['prefill_tokens_per_second']['headkv']:.1f}",
                f"{decode['stock']:.1f}",
                f"{decode['headkv']:.1f}",
                f"{one['decode_ratio_to_short']:.3f}",
                f"{one['cost_share_of_prefill']:.2%}",
                *(_mebibytes(cache[f"{name}_bytes"]) for name in ("full", "peak", "resident")),
            ]
        )
    columns = ["prompt, budget", "prefill, stock t/s", "prefill, ours", "decode, stock t/s", "decode, ours"]
    return [*columns, "of short stock", "added", "cache, full", "peak", "compacted"], rows


def _next_turn(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [one["policy"], f"{one['kept_share']:.1%}", _mebibytes(one["kept_bytes"]), f"{one['nll']:.3f}"]
        for one in data["results"]
    ]
    return ["policy", "kept", "K and V kept", "NLL of the turn"], rows


def _endless(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for archive in dict.fromkeys(one["archive"] for one in data["results"]):
        of_it = [one for one in data["results"] if one["archive"] == archive]
        second, last = of_it[1], of_it[-1]
        for one in (second, last):
            quotients = (one[key] / second[key] for key in ("tokens_per_second", "resident_bytes"))
            rows.append(
                [
                    archive,
                    f"{one['tokens']:,}",
                    f"{one['tokens_per_second']:.1f}",
                    _mebibytes(one["resident_bytes"]),
                    *(f"{quotient:.3f}" for quotient in quotients),
                    _mebibytes(one["archive_bytes"]),
                ]
            )
    columns = [
        "archive",
        "tokens",
        "tokens/s of the last 1,000",
        "resident",
        "speed, of 2nd",
        "resident, of 2nd",
    ]
    return [*columns, "archive, size"], rows


def _sessions(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            f"{one['kind']}, archive in {'memory' if one['archive'] == 'memory' else 'a file'}",
            f"{one['prefill_seconds']:.2f} s",
            f"{one['open_seconds']:.2f} s",
            f"{one['open_seconds'] / one['prefill_seconds']:.2%}",
            f"{one['save_seconds']:.2f} s",
            _mebibytes(one["file_bytes"]),
            f"{one['file_bytes'] / one['kept_bytes']:.3f}",
        ]
        for one in data["results"]
    ]
    columns = ["session", "prefill and first token", "open and first token", "of prefill", "save", "file"]
    return [*columns, "of kept bytes"], rows


def _orders(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = []
    for one in data["results"]:
        of_usual, apart, cache = one["of_usual"], one["own_process"], one["cache"]
        times = ("wall", "processor")
        rows.append(
            [
                f"{one['prompt_tokens']}, {one['budget']}",
                f"{one['order']}, {one['archive']}",
                *(f"{one['samples'][name]['median']:.2f} s" for name in times),
                *("-" if of_usual is None else f"{of_usual[name]['median']:.3f}" for name in times),
                _mebibytes(cache["peak_bytes"]),
                _mebibytes(cache["archive_bytes"]),
                "-" if apart is None or apart["rss_peak"] is None else _mebibytes(apart["rss_peak"]),
            ]
        )
    columns = ["prompt, budget", "order, archive", "wall", "processor", "wall, of tokens"]
    return [*columns, "processor, of tokens", "K/V, peak", "archive", "process, peak"], rows


def _cancel(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            f"{one['doing']} {one['prompt_tokens']}" if one["doing"] == "reading" else one["doing"],
            f"{one['order']}, {one['archive']}",
            _milliseconds(one["step_seconds"]),
            *(_milliseconds(one["latency_seconds"][name]) for name in ("median", "p99", "max")),
            str(one["latency_seconds"]["n"]),
        ]
        for one in data["results"]
    ]
    return ["cancelled while", "order, archive", "a batch or token", "median", "p99", "max", "cancels"], rows


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"


def _turns(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            f"{line['length']} tokens, {line['label']}",
            *(f"{cell['found']}/{cell['asked']} ({_interval(cell)})" for cell in line["turns"]),
            *(
                "-" if least is None else f"{least:.1%}"
                for least in (line["least_of_full"], line["least_of_fresh"])
            ),
        ]
        for line in data["summary"]
    ]
    turns = [f"turn {i}" for i in range(1, len(data["summary"][0]["turns"]) + 1)]
    return ["document, cache", *turns, "of full, least turn", "of fresh"], rows


def _interval(cell: dict[str, Any]) -> str:
    low, high = cell["wilson_95"]
    return f"{low:.0%} to {high:.0%}"


def _threads(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    kinds = ("idle", "busy")
    rows = [[str(one["threads"]), *(_rates(one[kind]) for kind in kinds)] for one in data["results"]]
    return ["n_threads", *(f"{kind} cores, tokens/s: mean (range)" for kind in kinds)], rows


def _rates(rates: list[float]) -> str:
    return f"{sum(rates) / len(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"


def _right(task: dict[str, Any]) -> str:
    return f"{task['right']}/{task['total']} ({task['nll']:.2f})"


def _mebibytes(n_bytes: float | None) -> str:
    return "not measured" if n_bytes is None else f"{n_bytes / 2**20:.1f} MiB"
