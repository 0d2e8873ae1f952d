"""Whether the library decodes, and decodes right: it runs in a process of its own, which may die of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..errors import ModelError
from ..machine import cpu_flags, cpu_name
from ..models import default_model_path
from .build import Build

NMSE_MAX: Final = 0.02
"""Weights are unpacked to another precision than the reference's, which gives 1e-3 at most; noise gives 1."""

LAST_STAGE: Final = "leave"  # of child.py
_TIMEOUT_SECONDS: Final = 300
_SUSPECTS: Final = (("amx", "amx_tile"), ("avx512", "avx512f"))  # name for WITHOUT, flag of the CPU


@dataclass(frozen=True)
class Verdict:
    """ok: None where nothing was checked. text: one sentence. about: what the library says of itself."""

    ok: bool | None
    text: str
    about: dict[str, Any] = field(default_factory=dict)


def check(build: Build) -> Verdict:
    """Decode a few tokens of the default model and compare the logits with plain matrix products."""
    if getattr(sys, "frozen", False):  # by PyInstaller: there is no Python to start
        return Verdict(None, "nothing was decoded: a packed program cannot start another Python")
    model, absent = None, ""
    try:
        model = default_model_path()
    except ModelError as error:
        absent = f"nothing was decoded: {error}"
    with tempfile.TemporaryDirectory(prefix="headkv-doctor-") as name:
        folder = Path(name)
        fault = _fault([str(folder)] if model is None else [str(folder), str(model)], build)
        told = folder / "about.json"
        about = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
        if fault:
            return Verdict(False, fault, about)
        if model is None:
            return Verdict(None, absent, about)
        return _compared(model, folder / "logits.npy", about, build)


def _fault(arguments: list[str], build: Build) -> str:
    """What goes wrong in the process of its own, "" for nothing."""
    command = [sys.executable, "-m", "headkv_local.doctor.child", *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"the library did not end within {_TIMEOUT_SECONDS} s; {_advice(build)}"
    stage = (done.stdout.splitlines() or ["start"])[-1]
    if done.returncode < 0:
        died = signal.Signals(-done.returncode).name
        return f"the library ended its process with {died} when it had to {stage}: {_advice(build)}"
    if done.returncode > 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return f"the library failed when it had to {stage}: {reason}"
    if stage != LAST_STAGE:
        return f"the library left its process without a word when it had to {stage}: {_advice(build)}"
    return ""


def _compared(model: Path, logits: Path, about: dict[str, Any], build: Build) -> Verdict:
    import numpy as np

    from .child import tokens
    from .reference import Reference

    reference = Reference(model)
    found = np.load(logits).astype(np.float64)
    wanted = reference.logits(tokens(found.shape[1])).astype(np.float64)
    nmse = float(((found - wanted) ** 2).sum() / (wanted**2).sum())
    weights = ", ".join(reference.weight_types)
    if not nmse <= NMSE_MAX:
        return Verdict(
            False,
            f"the library computes noise (NMSE {nmse:.2g} with weights of {weights}): {_advice(build)}",
            about,
        )
    return Verdict(
        True, f"decodes right: NMSE {nmse:.1e} against plain products, weights of {weights}", about
    )


def _advice(build: Build) -> str:
    """What the fault may come from, and the command that builds without it."""
    machine = f"CPU {cpu_name()}, built by {build.compiler}"
    flags, without = cpu_flags(), build.without.split()
    for name, flag in _SUSPECTS:
        if flag in flags and name not in without:
            command = f"make demo WITHOUT={' '.join([*without, name])!r}"
            return f"{machine}; {name.upper()} code is suspected, `{command}` builds without it"
    return f"{machine}; another compiler (CC=clang CXX=clang++ make demo) may help"
