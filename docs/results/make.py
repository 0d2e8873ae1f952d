"""The tables of docs/results.md and README.md, made from the records beside this file.

    python docs/results/make.py                            bring the tables up to date
    python docs/results/make.py measure NAME COMMAND...    run a measuring command, write NAME.json from it

A table stands between the markers `<!-- NAME begin ... -->` and `<!-- NAME end -->`, what a run printed
between `<!-- NAME.output begin ... -->` and `<!-- NAME.output end -->`. NAME.json holds either

    {"figures": [{"figure", "value", "unit", "goal", "commit", "date", "cpu", "command"}, ...]}
        single figures, each with its own run; a value of null has not been measured
    {"commit", "date", "cpu", "command", "columns": [...], "rows": [[...], ...], "output": [line, ...]}
        one run: what `measure` writes, "output" where a page shows it. COMMAND is a `headkv bench`, the demo
        (`python -m headkv_local.demo`), or a script beside this one (`python docs/results/threads.py`),
        with its options, as installed beside the Python that runs this script
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

from tables import rows_of

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
    tables = {"columns": columns, "rows": rows}
    if any(f"<!-- {name}.output begin" in page.read_text(encoding="utf-8") for page in PAGES):
        tables["output"] = shortened(output)
    write(RECORDS / f"{name}.json", record | tables)


def write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


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
