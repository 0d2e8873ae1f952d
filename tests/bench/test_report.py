"""Intervals, tables and where the JSON goes."""

from __future__ import annotations

import io
import json
import os
import sys
from functools import partial
from pathlib import Path

import pytest

from headkv_local.bench import report
from headkv_local.bench.contexts import Setup
from headkv_local.bench.memory import Memory
from headkv_local.bench.timing import quartiles
from headkv_local.errors import ArgumentError


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [  # roots of (p - hits/total)^2 = z^2 p (1 - p) / total, worked out apart
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (5, 10, 0.236593, 0.763407),
        (7, 8, 0.529112, 0.977583),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson(hits: int, total: int, low: float, high: float) -> None:
    assert report.wilson(hits, total) == pytest.approx((low, high), abs=2e-6)


def test_table_is_aligned() -> None:
    text = report.table(("name", "n"), [("a", "1"), ("longer", "1000")])
    assert text == "name       n\n------  ----\na          1\nlonger  1000"


def test_table_refuses_a_row_of_another_length() -> None:
    with pytest.raises(ValueError, match="zip"):
        report.table(("name", "n"), [("a", "1", "too much")])


def test_mebibytes() -> None:
    assert report.mebibytes(3 * 2**19) == "1.5 MiB"
    assert report.mebibytes(None) == "not available"


def test_json_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.json"
    report.check_target(str(target))
    assert not target.exists()
    report.write("the table", {"a": [1, 2]}, str(target))
    assert capsys.readouterr() == ("the table\n", "")
    assert json.loads(target.read_text(encoding="utf-8")) == {"a": [1, 2]}


def test_a_file_is_replaced_as_a_whole_and_what_is_none_written_as_it_lies(tmp_path: Path) -> None:
    target, link, pipe = (tmp_path / name for name in ("out.json", "link", "pipe"))
    report.save({"a": 1}, str(target))
    with pytest.raises(UnicodeEncodeError):
        report.save({"a": "\ud83d"}, str(target))
    assert json.loads(target.read_text()) == {"a": 1}
    link.symlink_to(target)
    report.save({"a": 2}, str(link))
    assert (link.is_symlink(), json.loads(target.read_text())) == (True, {"a": 2})
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    report.save({"a": 3}, str(pipe))
    assert json.loads(os.read(reader, 100)) == {"a": 3}
    os.close(reader)
    assert {path.name for path in tmp_path.iterdir()} == {"out.json", "link", "pipe"}


def test_json_is_there_whatever_becomes_of_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that has seen enough is no reason to measure no more where a file is wanted."""
    target = tmp_path / "out.json"
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", open(writer, "w"))  # noqa: SIM115
    with pytest.raises(BrokenPipeError):
        report.write("the table", {"a": 1}, None)
    monkeypatch.setattr(sys, "stdout", open(os.dup(writer), "w"))  # noqa: SIM115
    report.write("the table", {"a": 1}, str(target))
    report.write("another one", {"a": 2}, str(target))
    assert json.loads(target.read_text()) == {"a": 2}
    full = open("/dev/full", "w")  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(OSError, match="No space left"):
        report.write("the table", {"a": 3}, str(target))
    assert json.loads(target.read_text()) == {"a": 3}


@pytest.mark.parametrize("target", ["-", "file"])
def test_json_outlives_the_terminal_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    """Its other end is closed, as with SIGHUP: what is written there is an error of input and output."""
    controller, terminal = os.openpty()
    os.close(controller)
    monkeypatch.setattr(sys, "stderr" if target == "-" else "stdout", open(terminal, "w"))  # noqa: SIM115
    path = tmp_path / "out.json"
    for _ in range(2):
        report.write("the table", {"a": 1}, target if target == "-" else str(path))
        found = capsys.readouterr().out if target == "-" else path.read_text()
        assert json.loads(found) == {"a": 1}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_json_on_a_stdout_that_lacks_letters(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    report.save({"a": "\u4e00 \U0001f600"}, "-")
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    assert json.loads(stream.buffer.getvalue()) == {"a": "\u4e00 \U0001f600"}


def test_json_to_stdout_leaves_it_pure(capsys: pytest.CaptureFixture[str]) -> None:
    report.check_target("-")
    report.write("the table", {"a": 1}, "-")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"a": 1}
    assert err == "the table\n"


def test_a_target_that_cannot_be_written_fails_first(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="missing"):
        report.check_target(str(tmp_path / "missing" / "out.json"))


def test_another_file_is_not_lost(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    report.save(report.document("speed", Setup("model"), {"repeat": 3}), str(target))
    report.check_target(str(target))  # of an earlier run
    others = (
        b"GGUF\x03\0\0\0",
        b"a text",
        b'{"an": "other"}',
        b"[1]",
        b"3",
        b'{"bench": "speed"}',
        b'{"bench": ["speed"], "environment": {"headkv_local": "1"}, "settings": {}}',
        b'{"bench": "mine", "environment": {"headkv_local": "1"}, "settings": {}}',
        b'{"bench": "speed", "environment": {"machine": "mine"}, "settings": {}}',
        b'{"bench": "speed", "environment": {"headkv_local": "1"}, "settings": 3}',
    )
    for other in others:
        target.write_bytes(other)
        with pytest.raises(ArgumentError, match=r"figures\.json is another file, and would be lost"):
            report.check_target(str(target))
        assert target.read_bytes() == other


def test_a_link_to_nothing_stays_and_nothing_is_made_before_the_end(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target.json"
    link.symlink_to(target)
    report.check_target(str(link))
    assert (link.is_symlink(), target.exists()) == (True, False)
    report.save({"a": 1}, str(link))
    assert (link.is_symlink(), json.loads(target.read_text())) == (True, {"a": 1})


def test_two_options_never_name_one_file(tmp_path: Path) -> None:
    path, link = tmp_path / "a.json", tmp_path / "link"
    link.symlink_to(path)
    report.require_different(json="-", results=path, png=str(tmp_path / "b.png"))
    report.require_different(json="-", results=None, png="-")
    for named in (
        {"json": str(path), "png": link},
        {"results": path, "png": str(tmp_path / "x" / ".." / "a.json")},
    ):
        with pytest.raises(ArgumentError, match=r"^--(json|results) and --png both name .*: give two files$"):
            report.require_different(**named)


def test_quartiles() -> None:
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0, "n": 5}
    assert quartiles([7.0]) == {"median": 7.0, "q1": 7.0, "q3": 7.0, "n": 1}


def test_what_a_gpu_gives_back_is_counted_where_it_holds_the_cache() -> None:
    sizes = dict(full_bytes=1000, resident_bytes=200, peak_bytes=1100, pool_bytes=150, tail_bytes=50)
    memory = partial(Memory, **sizes, kept_bytes=190, row_bytes=2)
    assert memory(rss_before=5000, rss_after=4200).freed_share == 1.0
    # the backend took 300 for itself while the prompt was read: that is not the cache's
    on_gpu = memory(rss_before=5000, rss_after=4960, device_before=9000, device_full=8700, device_after=9440)
    assert on_gpu.freed_share == 0.975
    assert memory(rss_before=None, rss_after=None).freed_share is None
