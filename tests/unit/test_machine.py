"""What control groups allow: version 1 and 2, groups above, containers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from headkv_local import machine
from headkv_local.machine import Limits

GIB = 2**30
V2 = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = (
    "31 23 0:27 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 23 0:28 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def computer(folder: Path, mounts: str, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/mountinfo": mounts, "proc/self/cgroup": groups, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="latin-1")  # names in these files are bytes of any kind
    return folder


def test_version_2_with_the_groups_above(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/a/memory.max": f"{3 * GIB}\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a/b/memory.max": f"{4 * GIB}\n",
        "sys/fs/cgroup/a/b/memory.high": f"{2 * GIB}\n",
    }
    mounts = "29 23 8:1 / /mnt/Bücher rw - ext4 /dev/sda1 rw\n" + V2.format(root="/")
    root = computer(tmp_path, mounts, "0::/a/b\n", files)
    assert machine.limits(root) == Limits(1.5, 2 * GIB)
    (root / "sys/fs/cgroup/a/b/memory.high").write_text("max\n")
    assert machine.limits(root) == Limits(1.5, 3 * GIB)


def test_version_1(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": f"{GIB}\n",
    }
    groups = "5:memory:/a\n4:cpu,cpuacct:/a\n1:name=systemd:/\n0::/\n"
    root = computer(tmp_path, V1.format(root="/"), groups, files)
    assert machine.limits(root) == Limits(0.5, GIB)


@pytest.mark.parametrize("seen_as", ["/docker/123", "/"])
def test_a_container_sees_its_group_as_the_root(tmp_path: Path, seen_as: str) -> None:
    """Its mount shows the group itself, which /proc names as it is called outside, or as "/"."""
    files = {"sys/fs/cgroup/cpu.max": "50000 100000\n", "sys/fs/cgroup/memory.max": f"{GIB}\n"}
    mounted = V2.format(root="/docker/123" if seen_as != "/" else "/")
    root = computer(tmp_path, mounted, f"0::{seen_as}\n", files)
    assert machine.limits(root) == Limits(0.5, GIB)


def test_no_limits_and_no_control_groups(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.max": "max\n"}
    root = computer(tmp_path / "none", V2.format(root="/"), "0::/\n", files)
    assert machine.limits(root) == Limits(None, None)
    assert machine.limits(tmp_path / "empty") == Limits(None, None)


@pytest.mark.parametrize(("quota", "threads"), [(None, 8), (0.5, 1), (1.0, 1), (1.5, 2), (3.0, 3), (64.0, 8)])
def test_threads_follow_the_quota(quota: float | None, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "physical_cores", lambda: 8)
    monkeypatch.setattr(machine, "limits", lambda: Limits(quota, None))
    assert machine.default_threads() == threads


def test_memory_is_the_smaller_of_machine_and_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "physical_memory", lambda: 16 * GIB)
    for limit, total in ((None, 16 * GIB), (GIB, GIB), (64 * GIB, 16 * GIB)):
        monkeypatch.setattr(machine, "limits", lambda limit=limit: Limits(None, limit))
        assert machine.memory_total() == total


@pytest.mark.parametrize("most", ["memory.max", "memory.high"])
@pytest.mark.parametrize(
    ("limit", "current", "free"),
    [(f"{6 * GIB}", f"{5 * GIB}", 3 * GIB), ("max", f"{5 * GIB}", 4 * GIB), (f"{GIB}", f"{4 * GIB}", 0)],
)
def test_memory_that_is_free(tmp_path: Path, most: str, limit: str, current: str, free: int) -> None:
    """Files that a group has in memory and does not use are no burden."""
    files = {
        "proc/meminfo": f"MemTotal: {9 * GIB // 1024} kB\nMemAvailable: {4 * GIB // 1024} kB\n",
        f"sys/fs/cgroup/{most}": limit + "\n",
        "sys/fs/cgroup/memory.current": current + "\n",
        "sys/fs/cgroup/memory.stat": f"anon 5\ninactive_file {2 * GIB}\n",
    }
    assert machine.memory_free(computer(tmp_path, V2.format(root="/"), "0::/\n", files)) == free
    assert machine.memory_free(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("version", "names"),
    [
        (1, ("total_inactive_file", "total_active_file", "total_mapped_file")),
        (2, ("inactive_file", "active_file", "file_mapped")),
    ],
)
@pytest.mark.parametrize(
    ("idle", "active", "mapped", "free"), [(1, 3, 0, 6), (1, 3, 2, 4), (1, 1, 3, 3), (0, 0, 0, 2)]
)
def test_a_file_that_was_read_twice_is_no_burden(
    tmp_path: Path, version: int, names: tuple[str, ...], idle: int, active: int, mapped: int, free: int
) -> None:
    """It is active then. What a process has mapped is in use."""
    stat = "".join(f"{name} {n * GIB}\n" for name, n in zip(names, (idle, active, mapped), strict=True))
    folder, most, used = (
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
        if version == 1
        else ("sys/fs/cgroup", "memory.max", "memory.current")
    )
    files = {
        "proc/meminfo": f"MemAvailable: {9 * GIB // 1024} kB\n",
        f"{folder}/{most}": f"{8 * GIB}\n",
        f"{folder}/{used}": f"{6 * GIB}\n",
        f"{folder}/memory.stat": f"cache 5\n{stat}",
    }
    mounts, groups = (V1, "5:memory:/\n") if version == 1 else (V2, "0::/\n")
    root = computer(tmp_path, mounts.format(root="/"), groups, files)
    assert machine.memory_free(root) == free * GIB


def test_cores_are_counted_once_per_pair_of_threads(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    for i, cpu in enumerate(cpus):
        topology = tmp_path / f"cpu{cpu}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{i // 2}\n")
    assert machine.physical_cores(tmp_path) == (len(cpus) + 1) // 2


def test_cores_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert machine.physical_cores(tmp_path) == len(os.sched_getaffinity(0))
