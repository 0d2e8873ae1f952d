"""Memory of a process that does nothing but read one prompt and compact it.

In a process of its own, because the other contexts of a bench would be counted in.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any

from headkv_local import HeadKVError, Retention
from headkv_local.settings import DEFAULT_OBSERVE

from .contexts import Setup, n_ctx_for, open_headkv
from .device_memory import free_bytes
from .rss import resident_bytes
from .text import text_tokens
from .watch import Watch


@dataclass(frozen=True)
class Memory:
    """Bytes. rss_*: None on a system that does not tell."""

    full_bytes: int
    resident_bytes: int
    peak_bytes: int
    pool_bytes: int
    tail_bytes: int
    kept_bytes: int
    row_bytes: int
    rss_before: int | None
    """With all of the prompt but the observed tokens in the full cache."""
    rss_after: int | None
    """After compaction."""
    device_before: int | None = None
    """Free on the GPUs that hold the cache, once the context is made; device_*: None without a GPU."""
    device_full: int | None = None
    """With all of the prompt but the observed tokens in the full cache, and with the backend's own memory."""
    device_least: int | None = None
    """The least that was free while the prompt was read and compacted."""
    device_after: int | None = None

    @property
    def freed_bytes(self) -> int:
        """What the cache's own figures say was freed."""
        return self.full_bytes - self.resident_bytes

    @property
    def freed_share(self) -> float | None:
        """Share of it that the process's resident memory and the GPUs that hold the cache gave back."""
        if self.rss_before is None or self.rss_after is None or self.freed_bytes <= 0:
            return None
        returned = self.rss_before - self.rss_after
        if self.device_full is not None and self.device_after is not None:
            returned += self.device_after - self.device_full
        return returned / self.freed_bytes

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "freed_bytes": self.freed_bytes, "freed_share": self.freed_share}


def measure(setup: Setup, n_prompt: int, budget: int | str, n_tail: int) -> Memory:
    """Read and compact a prompt in this process."""
    retention = Retention(budget=budget, scores="uniform")
    with open_headkv(setup, n_ctx_for(n_prompt + n_tail)) as llm:
        tokens = text_tokens(llm, n_prompt)
        devices = llm.cache_stats().devices
        with Watch(lambda: free_bytes(devices), min) as watch:
            device_before = watch.value
            llm.eval(tokens[:-DEFAULT_OBSERVE] or tokens[:1])
            before = resident_bytes()
            device_full = free_bytes(devices)
            llm.retention = retention
            llm.prefill(tokens)
            after = resident_bytes()
        stats = llm.cache_stats()
        device_after = free_bytes(stats.devices)
    return Memory(
        full_bytes=stats.full_bytes,
        resident_bytes=stats.resident_bytes,
        peak_bytes=stats.peak_bytes,
        pool_bytes=stats.pool_bytes,
        tail_bytes=stats.tail_bytes,
        kept_bytes=stats.kept_bytes,
        row_bytes=stats.row_bytes,
        rss_before=before,
        rss_after=after,
        device_before=device_before,
        device_full=device_full,
        device_least=watch.value,
        device_after=device_after,
    )


def measure_apart(setup: Setup, n_prompt: int, budget: int | str, n_tail: int) -> Memory:
    """The same in a new process. Raises HeadKVError with what it said if it fails."""
    return Memory(**in_new_process(__name__, [asdict(setup), n_prompt, budget, n_tail]))


def in_new_process(module: str, order: list[Any]) -> Any:
    """What the module writes as JSON when it runs with the order. HeadKVError if it fails."""
    child = subprocess.run(
        [sys.executable, "-m", module, json.dumps(order)], capture_output=True, text=True, check=False
    )
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        last = re.sub(r"^headkv_local\.errors\.\w+: ", "", last)
        raise HeadKVError(f"the memory of a process of its own could not be measured: {last}")
    return json.loads(child.stdout)


def _main(order: str) -> None:
    setup, n_prompt, budget, n_tail = json.loads(order)
    print(json.dumps(asdict(measure(Setup(**setup), n_prompt, budget, n_tail))))


if __name__ == "__main__":
    _main(sys.argv[1])
