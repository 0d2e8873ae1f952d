"""What a bug report needs, as names and values."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path
from typing import Any, Final

from .. import __version__, library_dir, machine
from ..errors import ModelError
from ..models import default_model_path
from ..wording import size
from .build import Build

_SETTINGS: Final = ("HEADKV_CHAT_", "HEADKV_SERVER_")
_STEER: Final = (
    "HEADKV_DISABLE",
    "GGML_",
    "OMP_",
    "CUDA_VISIBLE_DEVICES",
    # not LLAMA_ as such: keys of other programs begin with it
    *(f"LLAMA_{name}" for name in ("CPP_LIB_PATH", "ATTN_", "BATCH_", "GRAPH_", "KV_CACHE_", "TRACE")),
)


def facts(build: Build, about: dict[str, Any]) -> list[tuple[str, str]]:
    """about: of the process that has used the library, empty where it did not get so far."""
    limits = machine.limits()
    quota = "no limit" if limits.cpus is None else f"limit {limits.cpus:g} CPUs"
    memory = "no limit" if limits.memory is None else f"limit {size(limits.memory)}"
    total = machine.physical_memory()
    driver = machine.nvidia_driver()
    gpus = "; ".join(f"{gpu.name} ({gpu.architecture / 10:g})" for gpu in driver.gpus)
    not_known = "not known"
    return [
        ("headkv-local", __version__),
        ("build", f"{build.date}, {build.compiler}, {build.type}, {build.options()}"),
        ("llama.cpp", build.llama_cpp),
        ("system", f"{platform.platform()}, Python {platform.python_version()}"),
        ("CPU", machine.cpu_name()),
        ("CPUs", f"{os.cpu_count()}, {machine.default_threads()} threads by default, {quota}"),
        ("memory", f"{'not known' if total is None else size(total)}, {memory}"),
        ("CPU features used", _features(about["features"]) if about else not_known),
        ("devices", "; ".join(about.get("devices", [not_known]))),
        ("NVIDIA driver", gpus or driver.problem),
        ("library", about.get("library", str(library_dir()))),
        ("llama_cpp", about.get("llama_cpp", not_known)),
        ("environment", ", ".join(_environment()) or "nothing set"),
        ("default model", _model()),
    ]


def _features(info: str) -> str:
    """Of llama.cpp's "CUDA : ARCHS = 860 | CPU : SSE3 = 1 | AVX = 1 |" the CPU's, without what is off."""
    entries = [entry.partition("=") for entry in info.rpartition("CPU :")[2].split("|")]
    return " ".join(name.strip() for name, _, value in entries if value.strip() not in ("", "0"))


def _environment() -> list[str]:
    """What steers the libraries, with its value. Of settings the names alone: they hold keys and texts."""
    shown = {name: value for name, value in os.environ.items() if name.startswith(_STEER)}
    set_ones = {name: "..." for name in os.environ if name.startswith(_SETTINGS)}
    return [f"{name}={value}" for name, value in sorted((shown | set_ones).items())]


def _model() -> str:
    try:
        path = default_model_path()
    except ModelError as error:
        return str(error)
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{path}, sha256 {digest.hexdigest()}"
