"""PTX run on the CPU (native/tests/ptx): a kernel with what is hard about a warp, and this project's own.

The whole, with ggml's kernels and a model, is tests/gpu/run.sh --ptx.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

NATIVE = Path(__file__).parents[2] / "native"
PTX = NATIVE / "tests" / "ptx"
CUDA = NATIVE / "ggml" / "cuda"
sys.path.insert(0, str(PTX))

from ptx_parse import Module, Unknown  # noqa: E402
from ptx_translate import Translator  # noqa: E402

CXX = shutil.which("c++") or shutil.which("g++")
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has shared memory below 4 GiB")

# out[i] = 4 * the sum over the block of how often in[j] is halved until it is 1: lanes part and meet again
KERNEL = """
.version 9.0
.target sm_90
.address_size 64
.global .align 4 .b8 bonus[8] = {1, 0, 0, 0, 2, 0, 0, 0};
.entry steps(.param .u64 steps_param_0, .param .u64 steps_param_1)
{
    .shared .align 4 .b8 sums[8];
    .reg .pred %p<8>;
    .reg .b32 %r<32>;
    .reg .b64 %rd<16>;
    ld.param.u64 %rd1, [steps_param_0];
    ld.param.u64 %rd2, [steps_param_1];
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mad.lo.s32 %r4, %r2, %r3, %r1;
    mul.wide.s32 %rd3, %r4, 4;
    add.s64 %rd4, %rd1, %rd3;
    ld.global.u32 %r5, [%rd4];
    mov.u32 %r6, 0;
$again:
    setp.le.u32 %p1, %r5, 1;
    @%p1 bra $done;
    shr.u32 %r5, %r5, 1;
    add.s32 %r6, %r6, 1;
    bra.uni $again;
$done:
    shfl.sync.bfly.b32 %r7|%p2, %r6, 16, 31, -1;
    add.s32 %r6, %r6, %r7;
    shfl.sync.bfly.b32 %r7|%p2, %r6, 8, 31, -1;
    add.s32 %r6, %r6, %r7;
    shfl.sync.bfly.b32 %r7|%p2, %r6, 4, 31, -1;
    add.s32 %r6, %r6, %r7;
    shfl.sync.bfly.b32 %r7|%p2, %r6, 2, 31, -1;
    add.s32 %r6, %r6, %r7;
    shfl.sync.bfly.b32 %r7|%p2, %r6, 1, 31, -1;
    add.s32 %r6, %r6, %r7;
    lop3.b32 %r8, %r1, -32, %r1, 0x6A;
    shr.u32 %r9, %r1, 5;
    shl.b32 %r10, %r9, 2;
    mov.u32 %r11, sums;
    add.s32 %r12, %r11, %r10;
    setp.eq.s32 %p3, %r8, 0;
    @%p3 st.shared.u32 [%r12], %r6;
    bar.sync 0;
    ld.shared.v2.u32 {%r13, %r14}, [sums];
    add.s32 %r15, %r13, %r14;
    mov.u64 %rd5, bonus;
    ld.global.u32 %r16, [%rd5+4];
    { .reg .b32 twice; add.s32 twice, %r16, %r16; mul.lo.s32 %r17, %r15, twice; }
    add.s64 %rd6, %rd2, %rd3;
    st.global.u32 [%rd6], %r17;
    ret;
}
"""


class Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("params", ctypes.c_void_p),
        ("dynamic_smem", ctypes.c_size_t),
    )


U64 = ctypes.c_uint64
FIND = ctypes.CFUNCTYPE(ctypes.c_bool, U64, ctypes.POINTER(U64), ctypes.POINTER(U64))
FAIL = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, U64, U64)
SHARED = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)


class Host(ctypes.Structure):
    _fields_ = (("find_memory", FIND), ("fail", FAIL), ("shared_memory", SHARED))


class Table(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("run", ctypes.CFUNCTYPE(None, ctypes.POINTER(Launch), ctypes.POINTER(Host))),
    )


Run = Callable[[np.ndarray, np.ndarray], list[bytes]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the kernel in two blocks of 64 threads; gives the faults it had."""
    folder = tmp_path_factory.mktemp("ptx")
    (folder / "steps.cpp").write_text(Translator(Module.read(KERNEL).kernel("steps")).text())
    command = [CXX, "-std=c++17", "-O1", "-fno-strict-aliasing", "-fPIC", "-shared", "-w", f"-I{PTX}"]
    subprocess.run([*command, str(folder / "steps.cpp"), "-o", str(folder / "steps.so")], check=True)
    library = ctypes.CDLL(str(folder / "steps.so"))
    kernel = Table.in_dll(library, "ptx_kernel_table")
    assert kernel.name == b"steps"
    # shared addresses have 32 bits, so the memory has to lie low, as the runtime's does
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    low = libc.mmap(None, 4096, 3, 0x62, -1, 0)  # private, anonymous, MAP_32BIT

    def once(numbers: np.ndarray, out: np.ndarray) -> list[bytes]:
        faults: list[bytes] = []

        def find(address: int, begin: ctypes._Pointer[U64], end: ctypes._Pointer[U64]) -> bool:
            for array in (numbers, out):
                first = array.ctypes.data
                if first <= address < first + array.nbytes:
                    begin[0], end[0] = first, first + array.nbytes
                    return True
            return False

        host = Host(FIND(find), FAIL(lambda _, what, *__: faults.append(what)), SHARED(lambda size: low))
        params = (ctypes.c_void_p * 2)(numbers.ctypes.data, out.ctypes.data)
        launch = Launch((2, 1, 1), (64, 1, 1), ctypes.addressof(params), 0)
        kernel.run(ctypes.byref(launch), ctypes.byref(host))
        return faults

    return once


def test_a_kernel_gives_what_it_computes(run: Run) -> None:
    numbers = np.random.default_rng(0).integers(1, 2**31, 128, dtype=np.uint32)
    numbers[::3] = 1  # lanes that are through at once
    out = np.zeros(128, dtype=np.uint32)
    assert run(numbers, out) == []
    steps = np.floor(np.log2(numbers)).astype(np.uint32)
    assert out.tolist() == np.repeat(4 * steps.reshape(2, 64).sum(axis=1), 64).tolist()


def test_memory_that_is_not_there_is_a_fault(run: Run) -> None:
    numbers, out = np.ones(127, dtype=np.uint32), np.zeros(128, dtype=np.uint32)
    backing = np.ones(128, dtype=np.uint32)  # so that the read itself harms nobody
    short = backing[: len(numbers)]
    assert run(short, out) == [b"access to memory that is not there"]


def test_an_address_that_is_not_aligned_is_a_fault(run: Run) -> None:
    numbers, out = np.ones(513, dtype=np.uint8)[1:].view(np.uint8), np.zeros(128, dtype=np.uint32)
    assert set(run(numbers, out)) == {b"access that is not aligned"}


def test_what_is_not_known_is_named() -> None:
    kernel = Module.read(KERNEL.replace("shr.u32 %r5", "brev.b32 %r5")).kernel("steps")
    with pytest.raises(Unknown, match="brev"):
        Translator(kernel).text()


@pytest.mark.skipif(NVCC is None, reason="no nvcc: there is no PTX of the CUDA kernels")
def test_this_projects_kernels_are_translated(tmp_path: Path) -> None:
    """Those of q4_0, which have the most kinds of instructions."""
    ptx = tmp_path / "kernels.ptx"
    command = [NVCC, "-std=c++17", "-arch=compute_90", "-use_fast_math", f"-I{CUDA}", "-ptx"]
    subprocess.run([*command, str(CUDA / "headkv-attn-q4_0.cu"), "-o", str(ptx)], check=True)
    module = Module.read(ptx.read_text())
    names = [line.split("(")[0].split()[-1] for line in module.text.splitlines() if ".entry" in line]
    assert len(names) == 12
    for name in names:
        text = Translator(module.kernel(name)).text()
        assert ("mma_m16n8k16_f32_f16(d, a, b, c)" in text) == ("partials" in name)
