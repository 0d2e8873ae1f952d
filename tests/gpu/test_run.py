"""tests/gpu/run.sh itself: without a GPU, and with steps that pass, fail, hang or are missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUN = HERE / "run.sh"
PROGRAMS = next(iter(sorted((HERE.parents[1] / "build").glob("*/bin/test-headkv-attn"))), HERE).parent

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a shell script")


def environment(tmp_path: Path, **settings: str) -> dict[str, str]:
    (tmp_path / "path").mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADKV_")}
    path = f"{tmp_path / 'path'}:{os.environ['PATH']}"
    return kept | {"OUT": str(tmp_path / "out"), "PATH": path} | settings


def run(tmp_path: Path, *steps: str, **settings: str) -> subprocess.CompletedProcess[str]:
    env = environment(tmp_path, **settings)
    return subprocess.run([RUN, *steps], capture_output=True, text=True, timeout=300, env=env)


def rows_of(done: subprocess.CompletedProcess[str]) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}


def program(path: Path, *lines: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def test_without_a_gpu_nothing_is_run(tmp_path: Path) -> None:
    program(tmp_path / "path" / "nvidia-smi", "echo NVIDIA-SMI has failed; exit 9")
    done = run(tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("no GPU: ")
    for step in ("build", "op", "mask", "memcheck", "bench-speed"):
        assert step in done.stdout.split()
    assert not (tmp_path / "out").exists()


def test_a_failing_step_stops_nothing_and_is_told(tmp_path: Path) -> None:
    program(tmp_path / "path" / "nvidia-smi", "echo Some GPU, 580.00")
    program(tmp_path / "bin" / "test-headkv-attn", "echo 3 passed, 1 failed", "exit 1")
    program(tmp_path / "bin" / "test-headkv-gather", "echo 289 passed, 0 failed")
    done = run(
        tmp_path,
        *("build", "op", "gather", "bench-op"),
        **{"HEADKV_PYTHON": sys.executable, "HEADKV_BIN": str(tmp_path / "bin")},
    )
    assert done.returncode == 1
    rows = rows_of(done)
    assert rows["build"][0] == "skipped"
    assert (rows["op"][0], rows["op"][-4:]) == ("failed", ["3", "passed,", "1", "failed"])
    assert (rows["gather"][0], rows["gather"][-4:]) == ("passed", ["289", "passed,", "0", "failed"])
    assert (rows["bench-op"][0], rows["bench-op"][-1]) == ("skipped", f"{tmp_path}/bin/bench-headkv-attn")
    assert (tmp_path / "out" / "op.log").read_text() == "3 passed, 1 failed\n"


def test_a_step_that_hangs_is_ended(tmp_path: Path) -> None:
    program(tmp_path / "path" / "nvidia-smi", "echo Some GPU, 580.00")
    program(tmp_path / "bin" / "test-headkv-attn", "exec sleep 100")
    given = {"HEADKV_PYTHON": sys.executable, "HEADKV_BIN": str(tmp_path / "bin"), "HEADKV_STEP_SECONDS": "1"}
    done = run(tmp_path, "op", **given)
    assert done.returncode == 1
    assert "more than 1 s" in done.stdout


def test_a_run_that_is_ended_tells_how_far_it_came(tmp_path: Path) -> None:
    program(tmp_path / "path" / "nvidia-smi", "echo Some GPU, 580.00")
    program(tmp_path / "bin" / "test-headkv-attn", "echo all right")
    program(tmp_path / "bin" / "test-headkv-gather", "echo half of it; exec sleep 100")
    given = {"HEADKV_PYTHON": sys.executable, "HEADKV_BIN": str(tmp_path / "bin")}
    env = environment(tmp_path, **given)
    steps, log = tmp_path / "out" / "steps.tsv", tmp_path / "out" / "gather.log"
    with subprocess.Popen([RUN, "op", "gather"], stdout=subprocess.PIPE, text=True, env=env) as running:
        while not (log.exists() and log.read_text()):
            assert running.poll() is None
            time.sleep(0.05)
        assert [row.split("\t")[:2] for row in steps.read_text().splitlines()] == [
            ["op", "passed"],
            ["gather", "running"],
        ]
        running.send_signal(signal.SIGTERM)
        table, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    assert [line.split()[:2] for line in table.splitlines() if line] == [
        ["step", "result"],
        ["op", "passed"],
        ["gather", "failed"],
    ]
    assert "half of it" in table
    assert (tmp_path / "out" / "table.txt").read_text() == table


def test_after_a_failed_build_nothing_older_is_run(tmp_path: Path) -> None:
    program(tmp_path / "path" / "nvidia-smi", "echo 9.0")
    program(tmp_path / "path" / "make", "echo no compiler; exit 2")
    program(tmp_path / "bin" / "test-headkv-attn", "echo all right")
    done = run(tmp_path, "build", "op", "gather", "mask", HEADKV_BIN=str(tmp_path / "bin"))
    assert done.returncode == 1
    rows = rows_of(done)
    assert rows["build"][0] == "failed"
    assert rows["op"] == rows["gather"] == rows["mask"] == ["failed", "not", "built"]


def test_what_needs_python_says_that_there_is_none(tmp_path: Path) -> None:
    program(tmp_path / "path" / "nvidia-smi", "echo Some GPU, 580.00")
    program(tmp_path / "bin" / "bench-headkv-attn", "echo all right")
    program(tmp_path / "python", "echo no module; exit 1")
    given = {"HEADKV_PYTHON": str(tmp_path / "python"), "HEADKV_BIN": str(tmp_path / "bin")}
    done = run(tmp_path, "mask", "architectures", "bench-op", "bench-speed", **given)
    assert done.returncode == 1
    rows = rows_of(done)
    for step in ("mask", "architectures", "bench-speed"):
        assert rows[step] == ["failed", f"{tmp_path}/python", *"has no headkv_local: no module".split()]
    assert rows["bench-op"][:5] == ["failed", "no", "shapes", "of", "heads:"]


def test_a_named_step_that_is_not_run_is_no_success(tmp_path: Path) -> None:
    program(tmp_path / "path" / "nvidia-smi", "echo Some GPU, 580.00")
    given = {"HEADKV_PYTHON": sys.executable, "HEADKV_BIN": str(tmp_path / "bin")}
    done = run(tmp_path, "gather", **given)
    assert rows_of(done)["gather"][0] == "skipped"
    assert done.returncode == 1


@pytest.mark.skipif(PROGRAMS.name != "bin", reason="the native tests are not built")
def test_programs_that_see_no_gpu_do_not_pass(tmp_path: Path) -> None:
    """A driver that is too old for the toolkit, a build without CUDA: nvidia-smi shows a GPU, ggml none."""
    program(tmp_path / "path" / "nvidia-smi", "echo Some GPU, 580.00")
    program(tmp_path / "path" / "compute-sanitizer", 'while [ -n "${1%%/*}" ]; do shift; done; exec "$@"')
    given = {"HEADKV_PYTHON": sys.executable, "HEADKV_BIN": str(PROGRAMS), "CUDA_VISIBLE_DEVICES": ""}
    steps = ("op", "gather", "compute", "alloc", "alloc-archive", "memcheck", "bench-op")
    done = run(tmp_path, *steps, **given)
    assert done.returncode == 1
    rows = rows_of(done)
    for step in steps:
        assert rows[step][0] == "failed", rows[step]
        assert rows[step][-3:] == ["no", "CUDA", "device"]


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    program(tmp_path / "path" / "nvidia-smi", "echo Some GPU, 580.00")
    done = run(tmp_path, "nonsense")
    assert done.returncode == 2
    assert "there is no step nonsense" in done.stderr


@pytest.mark.parametrize("type_kv", ["f16", "q8_0"])
@pytest.mark.parametrize("check", ["mask", "splits", "turn", "memory"])
def test_the_checks_hold_between_the_cpu_and_itself(
    check: str, type_kv: str, tiny: Callable[..., Path], smollm2: Path
) -> None:
    """That they work: the mask of a real model with its head scores, all else of a tiny one."""
    model = smollm2 if (check, type_kv) == ("mask", "f16") else tiny(n_layer=4)
    command = [sys.executable, str(HERE / "checks.py"), check, "--model", str(model)]
    command += ["--gpu-layers", "0", "--prompt-tokens", "500", "--type-kv", type_kv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CPU" in done.stdout


def test_a_check_without_a_gpu_is_no_pass(tiny_path: Path) -> None:
    command = [sys.executable, str(HERE / "checks.py"), "splits", "--model", str(tiny_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.returncode == 1
    assert "GPU" in done.stderr
