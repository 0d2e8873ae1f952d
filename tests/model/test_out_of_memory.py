"""Memory that lacks at any moment of a prompt: a sentence, and a Llama that goes on as if nothing was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_WITH_SO_MUCH_MORE = """
import resource, sys
from itertools import islice
from headkv_local import HeadKVError, Llama, OutOfMemoryError, Retention

model, archive = sys.argv[1], sys.argv[2]
kept = Retention(budget=40, archive=archive if archive == "memory" else None)
given = {"n_ctx": 4096, "n_batch": 512, "n_threads": 1, "n_threads_batch": 1, "retention": kept}
prompt, other = ([i * by % 250 for i in range(n)] for by, n in ((7, 2000), (5, 30)))

def answer(llm, tokens):
    return list(islice(llm.generate(tokens, temp=0.0), 5))

with Llama(model, **given) as llm:
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    limit = int(status["VmSize"].split()[0]) * 1024 + int(sys.argv[3]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        found = answer(llm, prompt)
    except HeadKVError as error:
        assert isinstance(error, (OutOfMemoryError, MemoryError)), repr(error)
        found = str(error)
        assert "make n_ctx smaller" in found and not found.startswith(":"), found
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    after = [answer(llm, tokens) for tokens in (other, prompt, other)]
with Llama(model, **given) as fresh:
    wanted = [answer(fresh, tokens) for tokens in (other, prompt, other)]
assert after == wanted, (after, wanted)
assert isinstance(found, str) or found == wanted[1], found
print("refused" if isinstance(found, str) else "answered")
"""


def run(program: str, *arguments: str) -> str:
    """What it prints. Memory that it has freed goes back to the system, and counts no more."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072", "GGML_NO_BACKTRACE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("archive", ["none", "memory"])
@pytest.mark.parametrize("kib", [2300, 6000, 12000, 25000, 200_000])
def test_so_much_more_memory_than_before_the_prompt(tiny_path: Path, archive: str, kib: int) -> None:
    """What llama.cpp makes of a context of its own accord takes 22 MiB at once."""
    said = run(_WITH_SO_MUCH_MORE, str(tiny_path), archive, str(kib))
    if kib == 200_000:
        assert said == "answered\n"
    elif archive == "memory":
        assert said == "refused\n"


_FOR_ANOTHER = """
import resource, sys
from headkv_local import HeadKVError, Llama, OutOfMemoryError, Retention, memory_estimate

model = sys.argv[1]
with Llama(model, n_ctx=1024, n_threads=1) as llm:
    for make in (
        lambda: memory_estimate(model, n_ctx=1024, budget=64),
        lambda: Llama(model, n_ctx=1024, n_threads=1, retention=Retention(budget=64)).close(),
    ):
        for mib in (8, 14, 20, 200):
            status = dict(line.split(":", 1) for line in open("/proc/self/status"))
            limit = (int(status["VmSize"].split()[0]) << 10) + (mib << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            try:
                make()
                print("made", mib)
            except HeadKVError as error:
                no_mapping = "Cannot allocate memory" in str(error)
                assert isinstance(error, OutOfMemoryError) or no_mapping, repr(error)
                print("refused")
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    llm("Hello.", max_tokens=1)
"""


def test_so_much_more_memory_than_another_context_takes(tiny_path: Path) -> None:
    """Of a process that goes on with the one that it has."""
    said = run(_FOR_ANOTHER, str(tiny_path)).splitlines()
    assert said == [*["refused"] * 3, "made 200"] * 2
