"""Runs that are killed, and what the next one makes of what they left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headkv_local.errors import DataError
from headkv_local.scores import HeadScores
from headkv_local.scoring.options import Options
from headkv_local.scoring.run import run

Score = Callable[..., int]
N_SAMPLES = 12
OPTIONS = ("--teacher-forced", "--samples", str(N_SAMPLES), "--lengths", "400", "--threads", "1")


# goes no further than into the sample that follows the so many-th
HELD = """
import sys, time
from headkv_local import Llama, cli
from headkv_local.scoring.progress import Progress
after, save = int(sys.argv.pop(1)), Progress.save
def hold(*_):
    while True:
        time.sleep(0.01)
def save_and_hold(progress):
    save(progress)
    if progress.tally("r2").done >= after:
        Llama.eval = hold
Progress.save = save_and_hold
sys.exit(cli.main(sys.argv[1:]))
"""


def samples_done(partial: Path) -> int:
    """How many the progress file tells of. It is whole whenever it is there."""
    if not partial.exists():
        return 0
    tallies = json.loads(partial.read_text(encoding="utf-8"))["tallies"]
    return int(tallies["r2"]["done"]) if tallies else 0


def killed(model: Path, out: Path, after: int) -> int:
    """Start a run, kill it within the sample after so many: how many were done."""
    partial = out.with_name(out.name + ".partial.json")
    command = [sys.executable, "-c", HELD, str(after), "score", str(model), "-o", str(out), *OPTIONS]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 300
        while samples_done(partial) < after and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr.read().decode() if process.stderr else ""
    return samples_done(partial)


@pytest.fixture
def whole(score: Score, tmp_path: Path) -> HeadScores:
    """What a run comes to that nothing interrupts."""
    assert score(*OPTIONS, out="whole.gguf") == 0
    return HeadScores.from_gguf(tmp_path / "whole.gguf")


def test_killed_runs_go_on(
    score: Score, tiny_path: Path, tmp_path: Path, whole: HeadScores, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    first = killed(tiny_path, out, after=2)
    second = killed(tiny_path, out, after=first + 3)
    assert (first, second) == (2, 5)
    assert not out.exists()

    capsys.readouterr()
    assert score(*OPTIONS) == 0
    assert f"going on after sample {second} of {N_SAMPLES}" in capsys.readouterr().err
    assert np.array_equal(HeadScores.from_gguf(out).scores, whole.scores)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.gguf", "out.gguf"}


def test_progress_of_other_settings_is_not_touched(
    score: Score, tiny_path: Path, tmp_path: Path, whole: HeadScores, capsys: pytest.CaptureFixture[str]
) -> None:
    out, partial = tmp_path / "out.gguf", tmp_path / "out.gguf.partial.json"
    killed(tiny_path, out, after=2)
    left = partial.read_bytes()
    assert score(*OPTIONS, "--seed", "1") == 1
    assert "holds the progress of a run with other settings" in capsys.readouterr().err
    assert partial.read_bytes() == left

    assert score(*OPTIONS, "--seed", "1", "--force") == 0
    assert "going on" not in capsys.readouterr().err
    assert not np.array_equal(HeadScores.from_gguf(out).scores, whole.scores)
    assert not partial.exists()


def test_progress_goes_on_with_the_same_examples_and_threads_alone(
    tiny_path: Path, tmp_path: Path, examples_file: Callable[..., Path]
) -> None:
    """Also with the same examples of plain retrieval, which takes the place of reasoning here."""

    def examples(plain: str) -> str:
        texts = {"pattern": "x", "lang": "en", "question": "What hums?", "answer": "zebras"}
        facts = {"r": plain, "r2": "Yaks hum."}
        one = [{"kind": kind, "facts": [fact], "needle": [0], **texts} for kind, fact in facts.items()]
        return str(examples_file(*one))

    def stop(stage: str, *_: object) -> None:
        if stage == "r":
            raise TimeoutError

    given = {"n_samples": 2, "lengths": (300,), "examples": examples("Zebras hum.")}
    options = Options(str(tiny_path), tmp_path / "out.gguf", n_threads=1, **given)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            run(options, bar=stop)
    with pytest.raises(DataError, match="a run with other settings"):
        run(replace(options, n_threads=2), bar=stop)
    examples("Zebras whistle.")
    with pytest.raises(DataError, match="a run with other settings"):
        run(options, bar=stop)


@pytest.mark.parametrize("theirs", ["another", None])
def test_progress_of_another_build_is_not_gone_on_with(
    score: Score,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    theirs: str | None,
) -> None:
    """None: of a file that does not say."""

    def fail(*_: object) -> None:
        raise TimeoutError("ended")

    partial = tmp_path / "out.gguf.partial.json"
    with monkeypatch.context() as ended:
        ended.setattr("headkv_local.scoring.held_out.choose", fail)
        assert score("--teacher-forced") == 1
    kept = json.loads(partial.read_text())
    kept["settings"].pop("build")
    if theirs is not None:
        kept["settings"]["build"] = theirs
    partial.write_text(json.dumps(kept))
    capsys.readouterr()
    assert score("--teacher-forced") == 1
    assert capsys.readouterr().err == (
        f"headkv: {partial} holds the progress of a run of another build of headkv-local: run that one "
        "again to finish it, delete the file, or force this run\n"
    )
    assert json.loads(partial.read_text()) == kept
    assert score("--teacher-forced", "--force") == 0
    assert not partial.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": {}, "tallies": {}}', "\x00", "[" * 10**5])
def test_damaged_progress_is_refused(
    score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    partial = tmp_path / "out.gguf.partial.json"
    partial.write_text(text)
    assert score("--teacher-forced") == 1
    assert f"{partial} holds the progress" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {partial.name}
    assert partial.read_text() == text
