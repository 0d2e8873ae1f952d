"""Memory and storage of a process that does nothing but read one prompt in one order."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from .contexts import Setup, n_ctx_for, open_headkv
from .device_memory import free_bytes
from .memory import in_new_process
from .rss import anonymous_bytes, peak_resident_bytes, resident_bytes, storage_bytes
from .text import text_tokens
from .watch import Watch

if TYPE_CHECKING:
    from .orders import Way


@dataclass(frozen=True)
class Memory:
    """Bytes. None on a system that does not tell, device_* without a GPU that holds the cache."""

    rss_before: int | None
    """With the model loaded and a context made."""
    rss_peak: int | None
    """The most until the prompt was compacted. Pages of a mapped file count while they are in memory."""
    anonymous_peak: int | None
    """The most that was not pages of files."""
    storage_read: int | None
    storage_written: int | None
    """While the prompt was read: pages of an archive in a file count as soon as they are to be written."""
    device_before: int | None
    """Free, once the context is made."""
    device_least: int | None


def measure(setup: Setup, n_prompt: int, budget: int | str, way: Way) -> Memory:
    """In this process."""
    with way.retention(budget) as retention, open_headkv(setup, n_ctx_for(n_prompt), retention) as llm:
        tokens = text_tokens(llm, n_prompt)
        devices = llm.cache_stats().devices
        before, stored = resident_bytes(), storage_bytes()
        with Watch(lambda: free_bytes(devices), min) as device, Watch(anonymous_bytes, max) as anonymous:
            device_before = device.value
            llm.prefill(tokens)
        stored = tuple(now - then for now, then in zip(storage_bytes(), stored, strict=True))
    return Memory(
        rss_before=before,
        rss_peak=peak_resident_bytes(),
        anonymous_peak=anonymous.value,
        storage_read=stored[0] if stored else None,
        storage_written=stored[1] if stored else None,
        device_before=device_before,
        device_least=device.value,
    )


def measure_apart(setup: Setup, n_prompt: int, budget: int | str, way: Way) -> Memory:
    """The same in a new process. Raises HeadKVError with what it said if it fails."""
    return Memory(**in_new_process(__name__, [asdict(setup), n_prompt, budget, way]))


def _main(order: str) -> None:
    from .orders import Way

    setup, n_prompt, budget, way = json.loads(order)
    print(json.dumps(asdict(measure(Setup(**setup), n_prompt, budget, Way(*way)))))


if __name__ == "__main__":
    _main(sys.argv[1])
