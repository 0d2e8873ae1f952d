"""What a model can run on, and one sentence for each reason why that is not the GPU that was asked for."""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path
from typing import Any

from ._core import cuda_driver, ggml
from ._core.ggml import Device
from ._core.library import library_dir
from .errors import UnsupportedError

__all__ = ["Device", "all_layers", "devices", "gpus", "layers_to_measure", "require_gpu", "set_aside"]

_logger = logging.getLogger("headkv_local")


def devices() -> tuple[Device, ...]:
    """All that this build can compute on, the CPU among them; memory as the drivers report it now."""
    return tuple(ggml.devices())


def gpus() -> tuple[Device, ...]:
    return tuple(device for device in devices() if device.is_gpu)


def all_layers(wanted: int | None) -> int:
    """n_gpu_layers for a tool: what was asked for, else all layers (-1) if there is a GPU, and none (0)."""
    if wanted is not None:
        return wanted
    return -1 if gpus() else 0


def set_aside(wanted: int | None) -> str:
    """For a tool's user, one sentence where a GPU was asked for, or built for, and none can be used; else "".

    Nothing is said of GPUs that are hidden on purpose: CUDA_VISIBLE_DEVICES set to nothing.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    expected = wanted != 0 if wanted is not None else _cuda().is_file() and not hidden
    if not expected or gpus():
        return ""
    asked = "" if wanted is None else "--gpu-layers is set aside, "
    return f"{asked}all runs on the CPU: {why_no_gpu()}"


def require_gpu(n_gpu_layers: int) -> None:
    """For tools whose figures would mean something else on the CPU. Raises UnsupportedError."""
    if n_gpu_layers != 0 and not gpus():
        raise UnsupportedError(why_no_gpu())


def layers_to_measure(wanted: int | None) -> int:
    """all_layers() for a tool that measures; a warning says where a build for GPUs is measured on the CPU.

    Raises UnsupportedError where a GPU was asked for and none can be used.
    """
    require_gpu(wanted or 0)
    if reason := set_aside(wanted):
        _logger.warning(reason)
    return all_layers(wanted)


def why_no_gpu() -> str:
    """One sentence; to be asked where gpus() is empty."""
    if not _cuda().is_file():
        return (
            "this build of headkv-local has no GPU support: build it with `make install CUDA=1`, or take a "
            "wheel for CUDA"
        )
    if not ggml.cuda_archs() and (problem := _not_loaded(_cuda())):
        return f"CUDA cannot be loaded: {problem}; `pip install 'headkv-local[cuda]'` brings its libraries"
    problem = cuda_driver.ask().problem
    return f"there is no usable GPU: {problem or 'the driver is older than the CUDA of this build'}"


def _cuda() -> Path:
    """What only a build for CUDA has."""
    return library_dir() / "libggml-cuda.so"


def _not_loaded(library: Path) -> str:
    """What the system says of it; the ggml of a wheel, which is for every machine, goes on without."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)
    return ""


def check_before_loading(kwargs: dict[str, Any]) -> None:
    """Raise for a GPU that the kernels do not run on, which CUDA would abort on; say where no GPU is used."""
    check_architectures(ggml.cuda_archs(), cuda_driver.ask().gpus if gpus() else ())
    layers = kwargs.get("n_gpu_layers", 0)
    if layers != 0 and not gpus():
        _logger.warning("n_gpu_layers=%s is set aside, all runs on the CPU: %s", layers, why_no_gpu())


def check_architectures(built_for: str, found: tuple[cuda_driver.Gpu, ...]) -> None:
    """Raises UnsupportedError for a GPU older than any architecture that was built for.

    built_for: as ggml lists it, "750,900" for 7.5 and 9.0.
    """
    if not built_for:
        return
    oldest = min(int(arch) // 10 for arch in built_for.split(","))
    for gpu in found:
        if gpu.architecture < oldest:
            raise UnsupportedError(
                f"the GPU {gpu.name} is of architecture {gpu.architecture}, and this build is for "
                f"{oldest} and newer: build with CUDA_ARCHS={gpu.architecture}, or hide "
                "the GPU with CUDA_VISIBLE_DEVICES="
            )
