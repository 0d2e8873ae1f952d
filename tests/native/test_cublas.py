"""native/cmake/find_cublas.py: which wheel fits a toolkit, and what is said where it cannot be had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "native" / "cmake" / "find_cublas.py"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | environment)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with a wheel like cuBLAS's installed in it."""
    library = tmp_path / "nvidia" / "cu99" / "lib" / "libcublas.so.99"
    header = tmp_path / "nvidia" / "cu99" / "include" / "cublas_v2.h"
    info = tmp_path / "nvidia_cublas_cu9-9.4.1.dist-info"
    for file in (library, header):
        file.parent.mkdir(parents=True)
        file.write_text("")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nvidia-cublas-cu9\nVersion: 9.4.1\n")
    names = [str(file.relative_to(tmp_path)) for file in (library, header)]
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    return tmp_path


def test_an_installed_wheel_is_found(site: Path) -> None:
    done = run("9", "4", PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    include, library = done.stdout.strip().split(";")
    assert include == str(site / "nvidia/cu99/include")
    assert library == str(site / "nvidia/cu99/lib/libcublas.so.99")


@pytest.mark.parametrize(
    ("version", "wheel"), [("99", "nvidia-cublas~=99.1.0"), ("8", "nvidia-cublas-cu8~=8.1.0")]
)
def test_a_wheel_that_cannot_be_had_is_named(version: str, wheel: str, tmp_path: Path) -> None:
    done = run(version, "1", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"headkv: this CUDA toolkit has no cuBLAS, and {wheel} could not be installed")
