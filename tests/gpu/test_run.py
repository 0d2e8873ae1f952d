"""tests/gpu/run.sh itself: without a GPU, and with steps that pass, fail, hang or are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUN = HERE / "run.sh"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a shell script")


def run(tmp_path: Path, *steps: str, **settings: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "path").mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADKV_")}
    path = f"{tmp_path / 'path'}:{os.environ['PATH']}"
    environment = kept | {"OUT": str(tmp_path / "out"), "PATH": path} | settings
    return subprocess.run([RUN, *steps], capture_output=True, text=True, timeout=300, env=environment)


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
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line}
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
