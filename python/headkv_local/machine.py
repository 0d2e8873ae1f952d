"""The CPUs and the memory that this process may use, and what NVIDIA's driver says. Loads no library.

They are the machine's, less what a container or an affinity mask holds back.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ._core import cuda_driver
from ._core.cuda_driver import Driver
from .settings import MAX_THREADS

_ROOT: Final = Path("/")
_UNLIMITED: Final = 1 << 60  # cgroup v1 writes a number near 2^63 where there is no limit
_MEMORY: Final = (
    ("", "memory.max", "memory.current"),
    ("", "memory.high", "memory.current"),  # above it a process is not ended, but crawls
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Of control groups: the controller, and the files of its limit and of what is taken."""


@dataclass(frozen=True)
class Limits:
    """What control groups allow, of both versions and of all groups above: None where they set no limit.

    cpus: CPUs' worth of time, 0.5 for half of one. memory: bytes.
    """

    cpus: float | None
    memory: int | None


def limits(root: Path = _ROOT) -> Limits:
    """root: where /proc and the mounted control groups are looked for."""
    cpus = [*_quotas_v2(root), *_quotas_v1(root)]
    memory = [n for controller, most, _ in _MEMORY for n in _numbers(root, controller, most)]
    return Limits(min(cpus, default=None), min((n for n in memory if n < _UNLIMITED), default=None))


def memory_total() -> int | None:
    """Bytes that this process could have at most; None where the system does not tell."""
    known = [n for n in (limits().memory, physical_memory()) if n is not None]
    return min(known, default=None)


def memory_free(root: Path = _ROOT) -> int | None:
    """Bytes that this process could still take, with what the system would give up for them; None where it
    does not tell."""
    lines = (line.split() for line in _read(root / "proc/meminfo").splitlines())
    known = [1024 * int(words[1]) for words in lines if words[:1] == ["MemAvailable:"]]
    for controller, most, taken in _MEMORY:
        for folder in _groups(root, controller):
            limit, used = _read(folder / most), _read(folder / taken)
            if limit.isdecimal() and used.isdecimal() and int(limit) < _UNLIMITED:
                known.append(max(0, int(limit) - int(used) + _cached_files(folder)))
    return min(known, default=None)


def default_threads() -> int:
    """Threads to compute with: one for each physical core that this process may use, and no more than its
    time allows. Half a CPU is one thread: two of them would wait for each other most of the time."""
    quota = limits().cpus
    cores = physical_cores()
    return max(1, min(cores, MAX_THREADS, cores if quota is None else math.ceil(quota)))


def physical_cores(cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """Physical cores that this process may use, all usable CPUs where the system does not tell.

    Two threads on one core share its vector units, which is what decoding waits for.
    """
    try:
        usable = os.sched_getaffinity(0)
    except AttributeError:  # not on every system
        return os.cpu_count() or 1
    try:
        return len({(cpus / f"cpu{cpu}/topology/thread_siblings_list").read_text() for cpu in usable})
    except OSError:
        return len(usable)


def cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Features as Linux lists them for x86, empty elsewhere."""
    return frozenset(_cpuinfo("flags").split())


def trim_heap() -> None:
    """Give the system the pages of the heap that hold nothing; by itself, glibc keeps most of them."""
    trim = None if sys.platform == "win32" else getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def physical_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def nvidia_driver() -> Driver:
    """The GPUs that NVIDIA's driver shows, or why it shows none. CUDA is not loaded; never raises."""
    return cuda_driver.ask()


def _quotas_v2(root: Path) -> Iterator[float]:
    for folder in _groups(root, ""):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            yield int(quota) / int(period)


def _quotas_v1(root: Path) -> Iterator[float]:
    for folder in _groups(root, "cpu"):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:  # -1: no limit
            yield int(quota) / int(period)


def _numbers(root: Path, controller: str, name: str) -> Iterator[int]:
    for folder in _groups(root, controller):
        text = _read(folder / name)
        if text.isdecimal():
            yield int(text)


def _cached_files(group: Path) -> int:
    """Bytes of files that the group has in memory and does not use.

    A model's file counts as active once it has been read twice, though no process has it mapped any more.
    """
    stat = dict(line.split() for line in _read(group / "memory.stat").splitlines())

    def number(*names: str) -> int:
        return int(next((stat[name] for name in names if name in stat), 0))

    idle = number("total_inactive_file", "inactive_file")  # of all groups below: version 1, then 2
    active = number("total_active_file", "active_file")
    mapped = number("total_mapped_file", "file_mapped")
    return max(idle, idle + active - mapped)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of this process's control groups, the innermost first. controller "": version 2."""
    for path in _paths(root, controller):
        for mounted_root, mount in _mounts(root, controller):
            # a container sees its own group as the root of the mount, under whatever name it has outside
            inner = path.removeprefix(mounted_root) if path.startswith(mounted_root) else ""
            folder = mount / inner.strip("/")
            while True:
                yield folder
                if folder == mount or mount not in folder.parents:
                    break
                folder = folder.parent


def _paths(root: Path, controller: str) -> Iterator[str]:
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if (controllers == "") if controller == "" else controller in controllers.split(","):
            yield path


def _mounts(root: Path, controller: str) -> Iterator[tuple[str, Path]]:
    """(the group that is mounted, where)."""
    for line in _read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        fits = kind == "cgroup2" if controller == "" else controller in options.split(",")
        if kind.startswith("cgroup") and fits:
            group, where = before.split(" ")[3:5]
            yield group.rstrip("/"), root / where.lstrip("/")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape").strip()  # names of mounts are bytes
    except OSError:
        return ""
