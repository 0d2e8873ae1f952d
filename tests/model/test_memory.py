"""Memory: the stats are what ggml holds, the process shrinks by it, and without memory nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets RLIMIT_AS")

ROW = 2 * 128 * 2  # K and V of 128 values of 2 bytes
HEADS = 4 * 8

PREFILL = """
import json, sys
from helpers import random_tokens
from headkv_local import Llama, Retention

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmRSS"))

llm = Llama(sys.argv[1], n_ctx=4608, n_threads=1, n_threads_batch=1, retention=Retention(budget=128))
llm.retention = None
llm.prefill(random_tokens(4000))
before = resident()
llm.retention = Retention(budget=128)
llm.prefill(random_tokens(4000))
stats = llm.cache_stats()
numbers = {name: getattr(stats, name) for name in (
    "prompt_tokens", "full_bytes", "resident_bytes", "pool_bytes", "tail_bytes", "peak_bytes", "row_bytes")}
print(json.dumps(numbers | {"kept": int(stats.kept.sum()), "before": before, "after": resident()}))
"""

STARVED = """
import json, resource, sys
import numpy as np
from helpers import forced_logits, random_tokens
from headkv_local import Llama, OutOfMemoryError, Retention
from headkv_local._core.progress import Progress

def address_space():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

reach = Progress.reach
def starved(progress, done, total):
    reach(progress, done, total)
    if done == total:  # and compacted next
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + room, resource.RLIM_INFINITY))

tokens = random_tokens(3000)
# one thread: others would make stacks and heaps of their own
arguments = dict(n_ctx=4096, n_threads=1, n_threads_batch=1)
full = Llama(sys.argv[1], flash_attn=True, **arguments)
full.prefill(tokens)
wanted = forced_logits(full, tokens[:3])
full.close()

llm = Llama(sys.argv[1], retention=Retention(budget=2000, draft=0), **arguments)
failures = 0
for room in range(0, 200 << 20, 4 << 20):
    Progress.reach = starved
    try:
        llm.prefill(tokens)
        break
    except OutOfMemoryError as error:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        failures += 1
        assert "memory" in str(error), error
        stats = llm.cache_stats()
        assert not stats.compacted
        assert stats.prompt_tokens == llm.n_tokens == 3000
        if failures == 1:  # the full cache is still there, and can be gone on from
            assert np.allclose(forced_logits(llm, tokens[:3])[1:], wanted[1:], atol=0.05)
stats = llm.cache_stats()
print(json.dumps({"failures": failures, "compacted": stats.compacted, "kept": stats.kept.tolist()}))
"""


def run(code: str, path: Path) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def model(tiny: Any) -> Path:
    """Few and cheap layers, with the cache of a large model: 16 KiB per token."""
    path: Path = tiny(n_layer=4, n_head=8, n_head_kv=8, head_dim=128)
    return path


def test_a_prompt_of_4000_tokens_at_budget_128(model: Path) -> None:
    found = run(PREFILL, model)
    assert found["prompt_tokens"] == 4000
    assert found["row_bytes"] == ROW
    assert found["kept"] == 128 * HEADS
    assert found["full_bytes"] == 4608 * HEADS * ROW
    tail = found["tail_bytes"]
    assert tail % (HEADS * ROW) == 0  # whole cells
    assert tail <= 128 * HEADS * ROW
    assert found["resident_bytes"] <= 1.02 * (found["kept"] * ROW + tail)
    assert found["peak_bytes"] >= found["full_bytes"] + found["pool_bytes"]
    freed = found["full_bytes"] - found["resident_bytes"]
    assert found["before"] - found["after"] >= 0.9 * freed


def test_compaction_with_too_little_memory(model: Path) -> None:
    """More and more address space until it is enough: every failure leaves the full cache as it was.

    Without a draft: decoding it makes graphs, for which ggml wants a few bytes or ends the process."""
    found = run(STARVED, model)
    assert found["failures"] >= 3
    assert found["compacted"]
    assert found["kept"] == [[2000] * 8] * 4
