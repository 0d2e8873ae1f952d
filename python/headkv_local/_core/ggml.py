"""What ggml says of this build: its devices, and what its kernels were compiled for."""

from __future__ import annotations

from typing import Final, NamedTuple

from .native import ffi, lib, text_of

_CPU: Final = 0  # GGML_BACKEND_DEVICE_TYPE_CPU
_GPUS: Final = (1, 2)  # _GPU, _IGPU


class Device(NamedTuple):
    """Something that models can be computed on; bytes_* are what its driver says now, for all processes."""

    name: str
    description: str
    is_gpu: bool
    bytes_free: int
    bytes_total: int


def device_names() -> list[str]:
    """Of devices(), without asking their drivers."""
    return [
        text_of(lib.ggml_backend_dev_name(lib.ggml_backend_dev_get(i)))
        for i in range(lib.ggml_backend_dev_count())
    ]


def host() -> int:
    """The number of the CPU among them: host memory is its."""
    n = lib.ggml_backend_dev_count()
    kinds = [lib.ggml_backend_dev_type(lib.ggml_backend_dev_get(i)) for i in range(n)]
    return kinds.index(_CPU)


def devices() -> list[Device]:
    """What this build can compute on, the CPU among them."""
    found = []
    for i in range(lib.ggml_backend_dev_count()):
        device = lib.ggml_backend_dev_get(i)
        free, total = ffi.new("size_t *"), ffi.new("size_t *")
        lib.ggml_backend_dev_memory(device, free, total)
        found.append(
            Device(
                name=text_of(lib.ggml_backend_dev_name(device)),
                description=text_of(lib.ggml_backend_dev_description(device)),
                is_gpu=lib.ggml_backend_dev_type(device) in _GPUS,
                bytes_free=int(free[0]),
                bytes_total=int(total[0]),
            )
        )
    return found


def cuda_archs() -> str:
    """What the CUDA kernels were compiled for, as ggml lists it ("800,900"); "" in a build without CUDA."""
    cuda = lib.ggml_backend_reg_by_name(b"CUDA")
    address = cuda and lib.ggml_backend_reg_get_proc_address(cuda, b"ggml_backend_get_features")
    if not address:
        return ""
    feature = ffi.cast("struct ggml_backend_feature *(*)(void *)", address)(cuda)
    while feature and feature.name:
        if text_of(feature.name) == "ARCHS":
            return text_of(feature.value)
        feature += 1
    return ""
