"""The CUDA runtime in native/tests/ptx/runtime, which needs no GPU: its streams are as lazy as CUDA's may be.

What is done too early there would hide who does not wait for a GPU.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PTX = Path(__file__).parents[2] / "native" / "tests" / "ptx"
NVCC = shutil.which("nvcc")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="is preloaded, which only Linux does this way"),
    pytest.mark.skipif(NVCC is None, reason="there is no nvcc, whose headers this takes"),
]

ANY = 4  # cudaMemcpyDefault
INVALID_DEVICE, NO_MEMORY = 101, 2


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ptx") / "libruntime.so"
    sources = [PTX / "runtime" / f"{name}.cpp" for name in ("cuda", "jit", "stream")]
    settings = [f'-DHEADKV_PTX_{name}="none"' for name in ("SOURCES", "PYTHON", "COMPILE")]
    command = [str(NVCC), "-std=c++17", "-shared", "-cudart", "none", "-Xcompiler", "-fPIC", f"-I{PTX}"]
    subprocess.run([*command, *settings, *map(str, sources), "-ldl", "-o", str(path)], check=True)
    return path


def in_child(library: Path, body: Callable[[ctypes.CDLL], None], **environment: str) -> str:
    """Run body in a process of its own, which the runtime may end; gives what was said on stderr."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        os.dup2(write, 2)
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # `make test` hides GPUs
        os.environ.update(environment)
        try:
            body(ctypes.CDLL(str(library)))
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        said = file.read()
    os.waitpid(child, 0)
    return said


class Gpu:
    def __init__(self, runtime: ctypes.CDLL) -> None:
        self.call = runtime

    def stream(self) -> ctypes.c_void_p:
        res = ctypes.c_void_p()
        assert self.call.cudaStreamCreateWithFlags(ctypes.byref(res), 1) == 0
        return res

    def event(self, stream: ctypes.c_void_p) -> ctypes.c_void_p:
        res = ctypes.c_void_p()
        assert self.call.cudaEventCreateWithFlags(ctypes.byref(res), 0) == 0
        assert self.call.cudaEventRecord(res, stream) == 0
        return res

    def memory(self, pinned: bool = False) -> ctypes.c_void_p:
        res = ctypes.c_void_p()
        allocate = self.call.cudaMallocHost if pinned else self.call.cudaMalloc
        assert allocate(ctypes.byref(res), ctypes.c_size_t(8)) == 0
        return res

    def copy(self, to: object, source: object, stream: object) -> None:
        assert self.call.cudaMemcpyAsync(to, source, ctypes.c_size_t(8), ANY, stream) == 0


def value(pointer: ctypes.c_void_p) -> int:
    """Device memory is the host's: what lies there now, whoever should have waited."""
    return ctypes.c_int64.from_address(pointer.value or 0).value


def test_work_is_done_when_it_is_waited_for(library: Path) -> None:
    def body(runtime: ctypes.CDLL) -> None:
        gpu = Gpu(runtime)
        stream, other, device = gpu.stream(), gpu.stream(), gpu.memory()
        gpu.copy(device, ctypes.byref(ctypes.c_int64(7)), stream)
        runtime.cudaStreamSynchronize(other)
        assert value(device) == -1, "done too early"
        runtime.cudaStreamSynchronize(stream)
        assert value(device) == 7

    assert in_child(library, body) == ""


def test_host_memory_is_read_at_once_unless_it_is_page_locked(library: Path) -> None:
    def body(runtime: ctypes.CDLL) -> None:
        gpu = Gpu(runtime)
        stream, pinned = gpu.stream(), gpu.memory(pinned=True)
        plain = ctypes.c_int64(1)
        ctypes.c_int64.from_address(pinned.value or 0).value = 1
        early, late = gpu.memory(), gpu.memory()
        gpu.copy(early, ctypes.byref(plain), stream)
        gpu.copy(late, pinned, stream)
        plain.value = ctypes.c_int64.from_address(pinned.value or 0).value = 2
        back = ctypes.c_int64(0)
        gpu.copy(ctypes.byref(back), late, stream)  # returns when it is done, and all before it
        assert (value(early), back.value) == (1, 2)

    assert in_child(library, body) == ""


def test_a_stream_waits_for_what_was_recorded_of_another_and_no_more(library: Path) -> None:
    def body(runtime: ctypes.CDLL) -> None:
        gpu = Gpu(runtime)
        first, second = gpu.stream(), gpu.stream()
        a, b, c = gpu.memory(), gpu.memory(), gpu.memory()
        gpu.copy(a, ctypes.byref(ctypes.c_int64(5)), first)
        event = gpu.event(first)
        gpu.copy(b, ctypes.byref(ctypes.c_int64(6)), first)
        runtime.cudaStreamWaitEvent(second, event, 0)
        gpu.copy(c, a, second)
        runtime.cudaStreamSynchronize(second)
        assert (value(a), value(b), value(c)) == (5, -1, 5)

    assert in_child(library, body) == ""


def test_memory_is_freed_after_what_uses_it(library: Path) -> None:
    def body(runtime: ctypes.CDLL) -> None:
        gpu = Gpu(runtime)
        stream, a, b = gpu.stream(), gpu.memory(), gpu.memory()
        gpu.copy(a, ctypes.byref(ctypes.c_int64(3)), stream)
        gpu.copy(b, a, stream)
        assert runtime.cudaFree(a) == 0
        assert value(b) == 3

    assert in_child(library, body) == ""


def test_a_captured_graph_does_nothing_until_it_is_launched_and_done(library: Path) -> None:
    def body(runtime: ctypes.CDLL) -> None:
        gpu = Gpu(runtime)
        stream, a, b = gpu.stream(), gpu.memory(), gpu.memory()
        graph, instance = ctypes.c_void_p(), ctypes.c_void_p()
        runtime.cudaStreamBeginCapture(stream, 2)
        gpu.copy(b, a, stream)
        runtime.cudaStreamEndCapture(stream, ctypes.byref(graph))
        runtime.cudaGraphInstantiate(ctypes.byref(instance), graph, ctypes.c_ulonglong(0))
        for n in (8, 9):
            gpu.copy(a, ctypes.byref(ctypes.c_int64(n)), stream)
            runtime.cudaGraphLaunch(instance, stream)
            assert value(b) != n
            runtime.cudaStreamSynchronize(stream)
            assert value(b) == n

    assert in_child(library, body) == ""


def test_devices_are_apart(library: Path) -> None:
    def body(runtime: ctypes.CDLL) -> None:
        gpu, n = Gpu(runtime), ctypes.c_int()
        assert (runtime.cudaGetDeviceCount(ctypes.byref(n)), n.value) == (0, 2)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        stream, pointer = gpu.stream(), ctypes.c_void_p()
        assert runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(2 << 20)) == NO_MEMORY
        assert runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(1 << 20)) == 0
        assert runtime.cudaSetDevice(1) == 0
        assert runtime.cudaSetDevice(2) == INVALID_DEVICE
        runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
        assert (free.value, total.value) == (1 << 20, 1 << 20)
        gpu.copy(pointer, ctypes.byref(ctypes.c_int64(4)), stream)
        runtime.cudaDeviceSynchronize()  # of device 1
        assert value(pointer) == -1
        gpu.event(stream)  # of device 1, on a stream of device 0

    said = in_child(library, body, HEADKV_PTX_DEVICES="2", HEADKV_PTX_MIB="1")
    assert said == "ptx: an event: recorded on the stream of another device\n"
