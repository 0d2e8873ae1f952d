"""The CUDA kernels compile, and no variant spills registers. Needs nvcc, no GPU.

All types for the oldest and the newest architecture that they are meant for, one type for each between:
check_cuda_kernels.py by itself compiles all, which takes minutes.
"""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "native" / "cmake"))

import check_cuda_kernels as check

NVCC = shutil.which("nvcc")

needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc: the CUDA kernels are not compiled here")


def test_every_kv_type_has_its_file() -> None:
    assert check.types() == ["bf16", "f16", "q4_0", "q8_0"]


def test_spills_are_seen_in_what_ptxas_says() -> None:
    log = """
ptxas info    : Compiling entry function '_Z1kv' for 'sm_90'
ptxas info    : Function properties for _Z1kv
    24 bytes stack frame, 20 bytes spill stores, 32 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 24 bytes cumulative stack size
"""
    assert list(check.parse(log, "90")) == [check.Kernel("_Z1kv", "90", 128, 24, 52)]


JOBS = [(name, arch) for arch in (check.ARCHS[0], check.ARCHS[-1]) for name in check.types()]
JOBS += zip(("f16", "q8_0", "q4_0"), check.ARCHS[1:-1], strict=True)
EMPTY = ("f16", check.OLDEST_ARCH)


@pytest.fixture(scope="module")
def kernels() -> dict[tuple[str, str], list[check.Kernel]]:
    jobs = [*JOBS, EMPTY]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(
            zip(jobs, pool.map(lambda job: check.compile_kernels(str(NVCC), *job), jobs), strict=True)
        )


@needs_nvcc
@pytest.mark.parametrize("job", JOBS, ids="-sm_".join)
def test_no_kernel_spills(kernels: dict[tuple[str, str], list[check.Kernel]], job: tuple[str, str]) -> None:
    n_kernels = (
        17 if job[0] in ("f16", "bf16") else 12
    )  # of each head size: few and many columns, and the sum
    assert len(kernels[job]) == n_kernels  # heads of 512: few columns only
    assert not [k for k in kernels[job] if k.spills or k.stack]


@needs_nvcc
def test_the_oldest_architecture_gets_empty_kernels(
    kernels: dict[tuple[str, str], list[check.Kernel]],
) -> None:
    assert kernels[EMPTY]
