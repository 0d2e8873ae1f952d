"""Compile the CUDA kernels for every architecture they are meant for, and refuse any that spills registers.

Needs nvcc, no GPU: prints registers and stack of every kernel.

    python native/cmake/check_cuda_kernels.py [ARCH ...]
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

KERNELS = Path(__file__).parents[1] / "ggml" / "cuda"
TYPES = ("f16", "bf16", "q8_0", "q4_0")  # enum headkv_type
ARCHS = ("80", "86", "89", "90", "120")
OLDEST_ARCH = "75"  # ggml-cuda is built for it as well; there the kernels are empty

# as ggml-cuda is compiled
FLAGS = ["-std=c++17", "-O3", "-use_fast_math", "-Xptxas", "-v"]


@dataclass(frozen=True)
class Kernel:
    name: str
    arch: str
    registers: int
    stack: int  # bytes
    spills: int  # bytes


def types() -> list[str]:
    return sorted(path.stem.removeprefix("headkv-attn-") for path in KERNELS.glob("headkv-attn-*.cu"))


def parse(log: str, arch: str) -> Iterator[Kernel]:
    """What `ptxas -v` says of each kernel."""
    found = re.compile(
        r"Compiling entry function '(?P<name>\w+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers",
        re.S,
    )
    for m in found.finditer(log):
        yield Kernel(
            m["name"], arch, int(m["registers"]), int(m["stack"]), int(m["stores"]) + int(m["loads"])
        )


def make_cubin(nvcc: str, name: str, arch: str, cubin: str) -> str:
    """Compile the kernels of a K/V type; gives what ptxas says. CalledProcessError where nvcc fails."""
    source = KERNELS / f"headkv-attn-{name}.cu"
    command = [nvcc, *FLAGS, f"-arch=sm_{arch}", "-cubin", "-o", cubin, str(source)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return result.stdout + result.stderr


def compile_kernels(nvcc: str, name: str, arch: str) -> list[Kernel]:
    """Raises CalledProcessError where nvcc fails."""
    with tempfile.TemporaryDirectory() as folder:
        return list(parse(make_cubin(nvcc, name, arch, f"{folder}/kernels.cubin"), arch))


def compile_all(nvcc: str, archs: Sequence[str] = ARCHS) -> dict[tuple[str, str], list[Kernel]]:
    """The kernels of each K/V type and architecture."""
    jobs = [(name, arch) for arch in archs for name in types()]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(zip(jobs, pool.map(lambda job: compile_kernels(nvcc, *job), jobs), strict=True))


def variant(name: str) -> tuple[str, int, int] | None:
    """K/V type, head size and columns, from the mangled name of a kernel that attends."""
    m = re.search(r"partialsIL\w*?(\d+)ELi(\d+)ELi(\d+)E", name)
    return (TYPES[int(m[1])], int(m[2]), int(m[3])) if m else None


def short(name: str) -> str:
    """A mangled name in words."""
    if found := variant(name):
        return f"partials {found[0]} {found[1]} {found[2]}"
    m = re.search(r"combineILi(\d+)E", name)
    return f"combine {m[1]}" if m else name


def main() -> int:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("nvcc was not found: nothing was compiled", file=sys.stderr)
        return 1

    kernels = {k for found in compile_all(nvcc, sys.argv[1:] or ARCHS).values() for k in found}

    for k in sorted(kernels, key=lambda k: (int(k.arch), k.name)):
        sizes = f"{k.registers:4} registers {k.stack:4} stack {k.spills:4} spilled"
        print(f"sm_{k.arch:4} {short(k.name):22} {sizes}")

    spilling = [k for k in kernels if k.spills or k.stack]
    print(f"{len(kernels)} kernels, {len(spilling)} spill registers", file=sys.stderr)
    return 1 if spilling or not kernels else 0


if __name__ == "__main__":
    raise SystemExit(main())
