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
    # version 1 of control groups
    quota, period = (_number(CGROUP / f"cpu/cpu.cfs_{name}_us", r"^(\d+)") for name in ("quota", "period"))
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
    groups.append((CGROUP / "memory/memory.limit_in_bytes", CGROUP / "memory/memory.stat", "total_"))  # version 1
    for limit_file, used_file, prefix in groups:
        limit = _number(limit_file, r"^(\d+)")
        names = ("rss", "shmem") if prefix else ("anon", "shmem")
        used = [_number(used_file, rf"^{prefix}{name} (\d+)") for name in names]
        if limit is not None and None not in used:
            free = min(free, max(limit - sum(used), 0))
    return free


def _control_groups() -> Iterator[Path]:
    """Returns the folders of this process's control group (version 2) and of its parents; the limit of each counts."""
    match = _find(PROC / "self/cgroup", r"^0::/(.*)$")
    folder = CGROUP / (match[1] if match else "")
    while folder.is_relative_to(CGROUP):
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
