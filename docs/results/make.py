"""The tables of docs/results.md and README.md, made from the records beside this file.

    python docs/results/make.py                            bring the tables up to date
    python docs/results/make.py measure NAME COMMAND...    run a measuring command, write NAME.json from it

A table stands between the markers `<!-- NAME begin ... -->` and `<!-- NAME end -->`, what a run printed
between `<!-- NAME.output begin ... -->` and `<!-- NAME.output end -->`. NAME.json holds either

    {"figures": [{"figure", "value", "unit", "goal", "commit", "date", "cpu", "command"}, ...]}
        single figures, each with its own run; a value of null has not been measured
    {"commit", "date", "cpu", "command", "columns": [...], "rows": [[...], ...], "output": [line, ...]}
        one run: what `measure` writes. COMMAND is `headkv bench speed`, `quality` or `turns`, the demo
        (`python -m headkv_local.demo`), `python docs/results/threads.py` or `next_turn.py`, with its
        options, as installed beside the Python that runs this script
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "docs" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")

_MARKERS = re.compile(r"(<!-- ([a-z0-9.-]+) begin[^>]*-->\n).*?(<!-- \2 end -->)", re.DOTALL)
_RUN = ("commit", "date", "cpu", "command")


def fill_in(text: str, records: Path = RECORDS) -> str:
    """`text` with the table between each pair of markers brought up to date."""

    def table_of(found: re.Match[str]) -> str:
        name, _, part = found[2].partition(".")
        data = load(records / f"{name}.json")
        return f"{found[1]}\n{_printed(data) if part else table(data)}\n{found[3]}"

    return _MARKERS.sub(table_of, text)


def load(path: Path) -> dict[str, Any]:
    """A record file. Raises ValueError where a figure does not say where it comes from."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for record in data.get("figures", [data]):
        needed = _RUN if record.get("value", "") is not None else ("command",)
        if missing := [key for key in needed if not record.get(key)]:
            raise ValueError(f"{path.name}: {record.get('figure', 'the run')} has no {', '.join(missing)}")
    return data


def table(data: dict[str, Any]) -> str:
    """The Markdown table of a record file."""
    if "figures" in data:
        return _markdown(("what", "found", "goal", "commit", "CPU", "command"), map(_row, data["figures"]))
    rows = [(*row, f"`{data['commit']}`") for row in data["rows"]]
    run = f"\n`{data['command']}` on {data['cpu']}, {data['date']}.\n"
    return _markdown((*data["columns"], "commit"), rows) + run


def _printed(data: dict[str, Any]) -> str:
    return "\n".join(("```", *data["output"], "```\n"))


def shortened(output: str) -> list[str]:
    """The first two and the last three paragraphs of what a command printed."""
    parts = output.strip().split("\n\n")
    kept = parts if len(parts) <= 5 else [*parts[:2], "...", *parts[-3:]]
    return "\n\n".join(kept).splitlines()


def _row(record: dict[str, Any]) -> Sequence[str]:
    goal, command = record.get("goal") or "", f"`{record['command']}`"
    if record["value"] is None:
        return record["figure"], "not measured", goal, "", "", command
    value = f"{record['value']} {record.get('unit') or ''}".strip()
    return record["figure"], value, goal, f"`{record['commit']}`", record["cpu"], command


def _markdown(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def measure(name: str, command: Sequence[str]) -> None:
    """Run a command of the project that knows --json, and write what it found to NAME.json."""
    if _git("status", "--porcelain"):
        raise ValueError("commit first: the record would name a commit that is not what was measured")
    commit, date = _git("show", "-s", "--format=%h %cs", "HEAD").split()
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        here = Path(sys.executable).parent
        program = here / command[0] if (here / command[0]).exists() else command[0]
        run = [str(program), *command[1:], "--json", str(found)]
        output = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout
        data = json.loads(found.read_text(encoding="utf-8"))
    columns, rows = rows_of(data)
    record = {
        "commit": commit,
        "date": date,
        "cpu": f"{data['environment']['processor']}, {data['environment']['cpus']} CPUs",
        "command": " ".join(command),
    }
    tables = {"columns": columns, "rows": rows, "output": shortened(output)}
    write(RECORDS / f"{name}.json", record | tables)


def rows_of(data: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of what a command's --json holds."""
    benches = {
        "demo": _demo,
        "next-turn": _next_turn,
        "orders": _orders,
        "quality": _quality,
        "speed": _speed,
        "threads": _threads,
        "turns": _turns,
    }
    columns, rows = benches[data["bench"]](data)
    return columns, rows


def write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


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


def _mebibytes(n_bytes: float) -> str:
    return f"{n_bytes / 2**20:.1f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action")
    measuring = actions.add_parser("measure")
    measuring.add_argument("name")
    measuring.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if options.action == "measure":
        measure(options.name, options.command)
    for page in PAGES:
        page.write_text(fill_in(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
