"""What the running process may use of its machine: memory and processor cores."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Returns the number of cores, 1 or more: those of the CPU affinity, at most the quota of the control groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _control_groups():
        if match := _find(folder / "cpu.max", r"^(\d+) (\d+)"):
            cores = min(cores, int(match[1]) // int(match[2]))
    for folder in _control_groups("cpu"):
        quota, period = (_number(folder / f"cpu.cfs_{name}_us", r"^(\d+)") for name in ("quota", "period"))
        if quota and period:
            cores = min(cores, quota // period)
    return max(cores, 1)


def free_memory() -> int | None:
    """Returns the bytes of memory that can still be taken, or None where the system does not say."""
    free = _number(PROC / "meminfo", r"MemAvailable:\s+(\d+)")
    if free is None:
        return None
    free *= 1024
    groups = [(folder / "memory.max", folder / "memory.stat", "") for folder in _control_groups()]
    groups += [
        (folder / "memory.limit_in_bytes", folder / "memory.stat", "total_") for folder in _control_groups("memory")
    ]
    for limit_file, used_file, prefix in groups:
        limit = _number(limit_file, r"^(\d+)")
        names = ("rss", "shmem") if prefix else ("anon", "shmem")
        used = [_number(used_file, rf"^{prefix}{name} (\d+)") for name in names]
        if limit is not None and None not in used:
            free = min(free, max(limit - sum(used), 0))
    return free


def _control_groups(controller: str = "") -> Iterator[Path]:
    """Returns the folders of this process's control group and of its parents; the limit of each counts.

    controller: cpu or memory, for the groups of version 1, which has a tree for each; by default those of version 2.
    """
    listed = rf"\d+:(?:[^:]*,)?{controller}(?:,[^:]*)?" if controller else "0:"
    match = _find(PROC / "self/cgroup", rf"^{listed}:/(.*)$")
    top = CGROUP / controller
    folder = top / (match[1] if match else "")
    while folder.is_relative_to(top):
        yield folder
        folder = folder.parent


def _number(file: Path, pattern: str) -> int | None:
    match = _find(file, pattern)
    return int(match[1]) if match else None


def _find(file: Path, pattern: str) -> re.Match | None:
    try:
        return re.search(pattern, file.read_text(), re.MULTILINE)
    except OSError:
        return None
