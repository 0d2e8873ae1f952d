"""Which device holds what, and one sentence for each reason why it is not a GPU."""

from __future__ import annotations

import logging
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from headkv_local import Llama, OutOfMemoryError, Retention, UnsupportedError, devices
from headkv_local._core import cuda_driver, ggml, native
from headkv_local._core.cuda_driver import Gpu
from headkv_local._core.load import load_error

has_gpu = bool(devices.gpus())
no_gpu = pytest.mark.skipif(has_gpu, reason="there is a GPU")


@pytest.fixture
def built_for_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], Path]:
    """Make it look so, or not, with a library that cannot be loaded."""

    def build(so: bool) -> Path:
        library = tmp_path / "libggml-cuda.so"
        if so:
            library.write_bytes(b"no library")
        monkeypatch.setattr(devices, "library_dir", lambda: tmp_path)
        return library

    return build


def test_the_cpu_is_a_device() -> None:
    cpu = next(device for device in devices.devices() if device.name == "CPU")
    assert not cpu.is_gpu
    assert cpu.description
    assert cpu.bytes_total >= cpu.bytes_free > 0
    assert ggml.device_names() == [device.name for device in devices.devices()]


def test_the_stats_name_where_the_cache_lies(tiny_path: Path, load: Callable[..., Llama]) -> None:
    llm = load(tiny_path, retention=Retention(budget=32), n_gpu_layers=0)
    llm.prefill(list(range(200)))
    stats = llm.cache_stats()
    assert stats.compacted
    assert stats.devices == ("CPU",)
    held = dict(zip(ggml.device_names(), native.get_device_bytes(llm.ctx), strict=True))
    assert held["CPU"] == sum(held.values()) == stats.resident_bytes
    assert stats.n_splits >= 1


def test_a_stock_cache_is_named_too(tiny_path: Path, load: Callable[..., Llama]) -> None:
    llm = load(tiny_path, flash_attn=False, n_gpu_layers=0)
    llm.prefill([1, 2, 3])
    assert llm.cache_stats().devices == ("CPU",)
    assert sum(native.get_device_bytes(llm.ctx)) == llm.cache_stats().full_bytes


@no_gpu
def test_layers_for_a_gpu_that_is_not_there_are_told_once(
    tiny_path: Path, load: Callable[..., Llama], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "headkv_local"):
        llm = load(tiny_path, retention=Retention(budget=32), n_gpu_layers=-1)
        llm.prefill(list(range(200)))
    (record,) = (record for record in caplog.records if record.name == "headkv_local")
    assert record.getMessage() == f"n_gpu_layers=-1 is set aside, all runs on the CPU: {devices.why_no_gpu()}"
    assert llm.cache_stats().devices == ("CPU",)
    assert llm.cache_stats().compacted


@no_gpu
def test_a_tool_that_measures_refuses() -> None:
    devices.require_gpu(0)
    with pytest.raises(UnsupportedError, match="GPU"):
        devices.require_gpu(1)
    assert devices.all_layers(None) == 0


def test_what_was_asked_for_is_taken() -> None:
    assert [devices.all_layers(n) for n in (0, 7, -1)] == [0, 7, -1]
    assert devices.all_layers(None) == (-1 if has_gpu else 0)


@no_gpu
@pytest.mark.parametrize(
    ("wanted", "built", "visible", "said"),
    [
        (None, True, None, "all runs"),
        (None, True, "", None),  # hidden on purpose
        (None, False, None, None),
        (0, True, None, None),
        (-1, False, "", "--gpu-layers is set aside, all runs"),
        (5, True, "0", "--gpu-layers is set aside, all runs"),
    ],
)
def test_a_tool_says_why_it_uses_no_gpu(
    wanted: int | None,
    built: bool,
    visible: str | None,
    said: str | None,
    monkeypatch: pytest.MonkeyPatch,
    built_for_cuda: Callable[[bool], Path],
) -> None:
    built_for_cuda(built)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    expected = "" if said is None else f"{said} on the CPU: {devices.why_no_gpu()}"
    assert devices.set_aside(wanted) == expected


def test_the_reason_fits_the_build() -> None:
    if ggml.cuda_archs():
        assert "driver" in devices.why_no_gpu()
    else:
        assert "CUDA=1" in devices.why_no_gpu()


@no_gpu
def test_cuda_that_cannot_be_loaded_is_told_with_the_reason(
    built_for_cuda: Callable[[bool], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    library = built_for_cuda(True)
    monkeypatch.setattr(ggml, "cuda_archs", lambda: "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    reason = devices.why_no_gpu()
    assert str(library) in reason
    assert "headkv-local[cuda]" in reason
    with caplog.at_level(logging.WARNING, "headkv_local"):
        assert devices.layers_to_measure(None) == 0
    assert caplog.messages == [f"all runs on the CPU: {reason}"]
    with pytest.raises(UnsupportedError, match=re.escape(reason)):
        devices.layers_to_measure(-1)


@pytest.mark.parametrize(
    ("built_for", "architectures", "refused"),
    [
        ("900", (90,), None),
        ("750,900", (80, 90), None),  # whether PTX for 7.5 came along is not known: CUDA will tell
        ("900", (90, 75), 75),
        ("800,900", (75,), 75),
        ("", (30,), None),
        ("900", (), None),
    ],
)
def test_a_gpu_older_than_the_build(
    built_for: str, architectures: tuple[int, ...], refused: int | None
) -> None:
    found = tuple(Gpu(f"GPU {architecture}", architecture) for architecture in architectures)
    if refused is None:
        devices.check_architectures(built_for, found)
        return
    with pytest.raises(UnsupportedError, match=f"the GPU GPU {refused} .* CUDA_ARCHS={refused}"):
        devices.check_architectures(built_for, found)


@pytest.mark.parametrize(
    ("failed", "line", "sentence"),
    [  # the lines as ggml and llama.cpp write them
        (
            "Failed to load model from file: m.gguf",
            "alloc_tensor_range: failed to allocate CUDA0 buffer of size 4294967296",
            "no memory for the model on CUDA0: .*n_gpu_layers",
        ),
        (
            "Failed to load model from file: m.gguf",
            "llama_model_load: error loading model: unable to allocate CUDA1 buffer",
            "no memory for the model on CUDA1: ",
        ),
        (
            "Failed to create llama_context",
            "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 16384.00 MiB on device 0: cudaMalloc "
            "failed: out of memory",
            "no memory for the context on device 0: make n_ctx or n_gpu_layers smaller",
        ),
        (
            "Failed to create llama_context",
            "ggml_backend_cpu_buffer_type_alloc_buffer: failed to allocate buffer of size 174467072",
            "no memory for the context: make n_ctx smaller",
        ),
    ],
)
def test_too_little_device_memory(failed: str, line: str, sentence: str) -> None:
    error = load_error(ValueError(failed), [line])
    assert isinstance(error, OutOfMemoryError)
    with pytest.raises(OutOfMemoryError, match=sentence):
        raise error


DRIVER = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuGetErrorName(int code, const char ** name) {
    *name = code == 100 ? "CUDA_ERROR_NO_DEVICE" : NULL;
    return 0;
}
int cuDeviceGetCount(int * n) { *n = COUNT; return 0; }
int cuDeviceGet(int * dev, int i) { *dev = i; return 0; }
int cuDeviceGetName(char * name, int size, int dev) { strncpy(name, "Some GPU", size); return 0; }
int cuDeviceGetAttribute(int * value, int what, int dev) { *value = what == 75 ? 8 : 6; return 0; }
"""


def test_without_a_driver() -> None:
    driver = cuda_driver.ask("libno-such-driver.so.1")
    assert driver.gpus == ()
    assert driver.problem == "the NVIDIA driver is not installed: there is no libno-such-driver.so.1"


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(
    ("init", "count", "problem", "gpus"),
    [
        (0, 2, "", (Gpu("Some GPU", 86),) * 2),
        (0, 0, "the NVIDIA driver shows no device: does CUDA_VISIBLE_DEVICES hide it?", ()),
        (100, 0, "the NVIDIA driver reports CUDA_ERROR_NO_DEVICE", ()),
        (12345, 0, "the NVIDIA driver reports error 12345", ()),
    ],
)
def test_a_driver_is_asked_through_its_c_interface(
    init: int, count: int, problem: str, gpus: tuple[Gpu, ...], tmp_path: Path
) -> None:
    """Against a library with the driver's interface: where there is a GPU, tests/gpu asks the real one."""
    source, library = tmp_path / "driver.c", tmp_path / "libdriver.so"
    source.write_text(DRIVER)
    flags = ["-shared", "-fPIC", "-w", f"-DINIT={init}", f"-DCOUNT={count}"]
    subprocess.run(["cc", *flags, str(source), "-o", str(library)], check=True)
    assert cuda_driver.ask(str(library)) == cuda_driver.Driver(problem, gpus)
