"""docs/results.md and the README show what their records say, and each figure says where it comes from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from headkv_local import cli
from headkv_local.demo import __main__ as demo
from headkv_local.demo.material import document

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "docs" / "results"))  # as for a script that is run there


def script(name: str) -> Any:
    spec = spec_from_file_location(name, ROOT / "docs" / "results" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = script("make")


@pytest.mark.parametrize("page", make.PAGES, ids=lambda page: page.name)
def test_pages_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert make.fill_in(text) == text, "run: make results"


def test_every_record_is_shown() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in make.PAGES)
    shown = set(re.findall(r"<!-- ([a-z0-9-]+)(?:\.output)? begin", text))
    assert shown == {path.stem for path in make.RECORDS.glob("*.json")}


def test_every_commit_is_one_of_this_repository() -> None:
    named = {
        str(record["commit"])
        for path in make.RECORDS.glob("*.json")
        for data in [make.load(path)]
        for record in data.get("figures", [data])
        if record.get("commit")
    }
    shallow = subprocess.run(
        ["git", "rev-parse", "--is-shallow-repository"], cwd=ROOT, capture_output=True, text=True
    )
    if shallow.stdout.strip() != "false":
        pytest.skip("no git history here")
    unknown = [
        commit
        for commit in sorted(named)
        if subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], cwd=ROOT).returncode
    ]
    assert named
    assert not unknown


def test_a_figure_without_its_source_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    figure = {"figure": "decode", "value": "1", "commit": "abc", "date": "2026-01-01", "cpu": "one"}
    path.write_text(json.dumps({"figures": [figure]}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"speed\.json: decode has no command"):
        make.load(path)
    path.write_text(json.dumps({"figures": [{**figure, "value": None, "command": "run | it"}]}))
    table = make.fill_in("<!-- speed begin -->\nold\n<!-- speed end -->", tmp_path)
    assert "| decode | not measured |  |  |  | `run \\| it` |" in table
    assert "old" not in table


def test_what_a_command_printed_is_shortened() -> None:
    assert make.shortened("a\nb\n\nc\n") == ["a", "b", "", "c"]
    lines = make.shortened("\n\n".join("123456"))
    assert lines == ["1", "", "2", "", "...", "", "4", "", "5", "", "6"]


def test_measuring_commands_give_what_the_tables_need(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "document", lambda: document()[:2000])
    common = ["--model", str(tiny_path), "--threads", "1", "--json"]
    speed = ["--prompt-tokens", "64", "--budget", "16", "--repeat", "1", "--compactions", "1", "--no-rss"]
    quality = ["--lengths", "900", "--budgets", "64", "--samples", "1", "--tasks", "needle", "--plain"]
    names = ("speed", "quality", "demo", "threads", "orders", "turns", "endless", "sessions", "cancel")
    found = [tmp_path / f"{name}.json" for name in names]
    assert cli.main(["bench", "speed", *speed, "--decode-tokens", "8", *common, str(found[0])]) == 0
    assert cli.main(["bench", "quality", *quality, *common, str(found[1])]) == 0
    orders = ["--order", "tokens,layers", "--archive", "memory", *speed[:6], "--no-rss"]
    turns = ["--tokens", "600", "--budget", "64", "--samples", "4", "--max-tokens", "1"]
    assert cli.main(["bench", "speed", *orders, *common, str(found[4])]) == 0
    assert cli.main(["bench", "turns", *turns, *common, str(found[5])]) == 0
    cancel = [*speed[:4], "--order", "layers", "--archive", "none", "--cancels", "1", "--answer-tokens", "8"]
    assert cli.main(["bench", "cancel", *cancel, *common, str(found[8])]) == 0
    assert demo.main(["--questions", "1", "--budget", "64", *common, str(found[2])]) == 0
    script("threads").main(["--tokens", "4", "--runs", "1", *common[:2], "--json", str(found[3])])
    for path, arguments in ((found[6], ["--tokens", "2000"]), (found[7], [])):
        settings = [str(tiny_path), "--prompt", "300", "--json", str(path)]
        script(path.stem).main([*settings, *arguments])
    capsys.readouterr()
    run = {"commit": "abc", "date": "2026-01-01", "cpu": "one"}
    firsts = (
        "64, 16",
        "full",
        "full",
        "open",
        "64, 16",
        "600 tokens, full",
        "none",
        "whole, archive in memory",
        "reading 64",
    )
    for path, first in zip(found, firsts, strict=True):
        columns, rows = make.rows_of(json.loads(path.read_text(encoding="utf-8")))
        assert rows[0][0] == first
        assert {len(row) for row in rows} == {len(columns)}
        make.write(path, run | {"command": "x", "columns": columns, "rows": rows})
        assert make.table(make.load(path)).startswith(f"| {columns[0]} |")
