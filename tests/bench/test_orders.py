"""`headkv bench speed --order`, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headkv_local.bench.watch import Watch
from headkv_local.cli import main

ROW = 2 * 64 * 2  # K and V of a head of 64 in f16
N, BUDGET = 600, 64


def test_every_order_and_archive(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    command = ["bench", "speed", "--order", "tokens,layers", "--model", str(tiny_path), "--threads", "1"]
    command += ["--prompt-tokens", str(N), "--budget", str(BUDGET), "--repeat", "2", "--json", "-"]
    assert main(command) == 0
    assert list(tmp_path.iterdir()) == []  # no archive stays
    out, tables = capsys.readouterr()
    results = {(one["order"], one["archive"]): one for one in json.loads(out)["results"]}
    assert len(results) == 6
    for (order, archive), one in results.items():
        cache = one["cache"]
        assert cache["kept_bytes"] == BUDGET * 4 * ROW
        assert (cache["archive_bytes"] >= N * 4 * ROW) == (archive != "none")
        n_heads = 2 if order == "layers" else 4  # whose rows have to be there at once
        assert N * n_heads * ROW <= cache["peak_bytes"] < 2 * N * n_heads * ROW
        assert len(one["seconds"]["wall"]) == len(one["seconds"]["processor"]) == 2
        assert one["own_process"]["rss_before"] <= one["own_process"]["rss_peak"]
        assert one["own_process"]["device_least"] is None
    usual = results["tokens", "none"]["of_usual"]
    assert usual["wall"]["median"] == usual["processor"]["median"] == usual["peak_bytes"] == 1
    assert results["layers", "file"]["of_usual"]["peak_bytes"] < 0.6
    names = [line.split("  ")[0] for line in tables.splitlines()]
    assert names.count("layers, file") == 3


def test_without_the_usual_way_nothing_is_compared(
    tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "speed", "--order", "layers", "--archive", "memory", "--model", str(tiny_path)]
    command += ["--threads", "1", "--prompt-tokens", str(N), "--repeat", "1", "--no-rss", "--json", "-"]
    assert main(command) == 0
    (one,) = json.loads(capsys.readouterr().out)["results"]
    assert one["of_usual"] is None
    assert one["own_process"] is None


def test_the_worst_is_kept_of_a_figure_that_falls_again() -> None:
    figures = iter([5, 9])
    with Watch(lambda: next(figures, 2), max) as watch:
        pass
    assert watch.value == 9
    with Watch(lambda: None, min) as nothing:
        pass
    assert nothing.value is None
