"""What NVIDIA's driver says about this machine, asked without loading CUDA, to say what is wrong."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any, Final

_LIBRARY: Final = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*


@dataclass(frozen=True)
class Gpu:
    """architecture: its compute capability as CUDA builds name it, 90 for 9.0."""

    name: str
    architecture: int


@dataclass(frozen=True)
class Driver:
    """problem: why no GPU can be used, "" if one can; gpus: in CUDA's order."""

    problem: str
    gpus: tuple[Gpu, ...] = ()


def ask(library: str = _LIBRARY) -> Driver:
    """Never raises. CUDA_VISIBLE_DEVICES is respected, as CUDA does."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return Driver(f"the NVIDIA driver is not installed: there is no {library}")
    code = cuda.cuInit(0)
    if code != 0:
        return Driver(f"the NVIDIA driver reports {_error(cuda, code)}")
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    if count.value == 0:
        return Driver("the NVIDIA driver shows no device: does CUDA_VISIBLE_DEVICES hide it?")
    return Driver("", tuple(_gpu(cuda, i) for i in range(count.value)))


def _gpu(cuda: Any, i: int) -> Gpu:
    device, name = ctypes.c_int(), ctypes.create_string_buffer(128)
    cuda.cuDeviceGet(ctypes.byref(device), i)
    cuda.cuDeviceGetName(name, len(name), device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return Gpu(name.value.decode("utf-8", errors="replace"), 10 * major.value + minor.value)


def _error(cuda: Any, code: int) -> str:
    name = ctypes.c_char_p()
    cuda.cuGetErrorName(code, ctypes.byref(name))
    return name.value.decode() if name.value else f"error {code}"
