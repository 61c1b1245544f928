"""Cores and memory are those that the process may use, not those that the machine has."""

import os

import pytest

from utils.data import machine


@pytest.fixture
def limits(tmp_path, monkeypatch):
    """`limits({file: text})`: a machine of 64 cores and 64 GiB whose system files are these."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)

    def write(files):
        files = {"proc/meminfo": f"MemTotal: {2**26} kB\nMemAvailable:   {2**26} kB\n", **files}
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)

    return write


INSIDE = {"proc/self/cgroup": "0::/a/b\n"}
OLD = {
    "proc/self/cgroup": "12:memory:/job/b\n11:cpuset:/x\n4:cpu,cpuacct:/job/a\n1:name=systemd:/y\n0::/z\n"
}  # version 1


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"cgroup/cpu.max": "max 100000\n"}, 64),
        ({"cgroup/cpu.max": "350000 100000\n"}, 3),
        ({"cgroup/cpu.max": "50000 100000\n"}, 1),  # half a core is one
        ({**INSIDE, "cgroup/a/b/cpu.max": "max 100000\n", "cgroup/a/cpu.max": "800000 100000\n"}, 8),  # of a parent
        ({**INSIDE, "cgroup/a/b/cpu.max": "200000 100000\n", "cgroup/a/cpu.max": "800000 100000\n"}, 2),
        ({"cgroup/cpu/cpu.cfs_quota_us": "400000\n", "cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 4),  # version 1
        ({**OLD, "cgroup/cpu/job/a/cpu.cfs_quota_us": "250000\n", "cgroup/cpu/job/a/cpu.cfs_period_us": "100000\n"}, 2),
        ({**OLD, "cgroup/cpu/job/cpu.cfs_quota_us": "500000\n", "cgroup/cpu/job/cpu.cfs_period_us": "100000\n"}, 5),
        ({"cgroup/cpu/cpu.cfs_quota_us": "-1\n", "cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 64),
    ],
)
def test_cores_of_a_control_group(limits, files, cores):
    limits(files)
    assert machine.usable_cores() == cores


def test_cores_of_the_affinity(limits, monkeypatch):
    limits({})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 7})
    assert machine.usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert machine.usable_cores() == 10
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.usable_cores() == 1


GIB = 2**30


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, 64 * GIB),
        ({"cgroup/memory.max": "max\n", "cgroup/memory.stat": "anon 5\nshmem 7\n"}, 64 * GIB),
        ({"cgroup/memory.max": f"{8 * GIB}\n", "cgroup/memory.stat": f"anon {GIB}\nfile 9\nshmem {GIB}\n"}, 6 * GIB),
        ({"cgroup/memory.max": f"{GIB}\n", "cgroup/memory.stat": f"anon {GIB}\nshmem {GIB}\n"}, 0),
        ({**INSIDE, "cgroup/a/memory.max": f"{4 * GIB}\n", "cgroup/a/memory.stat": "anon 0\nshmem 0\n"}, 4 * GIB),
        (
            {
                "cgroup/memory/memory.limit_in_bytes": f"{6 * GIB}\n",
                "cgroup/memory/memory.stat": f"rss 1\ntotal_rss {GIB}\ntotal_shmem 0\n",
            },
            5 * GIB,
        ),
        (
            {
                **OLD,
                "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "cgroup/memory/memory.stat": "total_rss 0\ntotal_shmem 0\n",
                "cgroup/memory/job/b/memory.limit_in_bytes": f"{3 * GIB}\n",
                "cgroup/memory/job/b/memory.stat": f"total_rss {GIB}\ntotal_shmem 0\n",
            },
            2 * GIB,
        ),
    ],
)  # fmt: skip
def test_free_memory_of_a_control_group(limits, files, free):
    limits(files)
    assert machine.free_memory() == free


def test_free_memory_where_the_system_does_not_say(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PROC", tmp_path)
    assert machine.free_memory() is None


def test_this_machine_is_plausible():
    free = machine.free_memory()
    assert free is None or 2**20 < free < 2**50
    assert 1 <= machine.usable_cores() <= os.cpu_count()
