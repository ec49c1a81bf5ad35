import os
import subprocess
import sys

import pytest

from dgbench.running import machine

COUNT = "from dgbench.running import machine as m; print(m.allowed_cores(), m.free_cores())"


def counted(*, cores: set[int] | None = None) -> list[int]:
    """What a process of its own counts: [allowed, free] cores."""
    own = (lambda: os.sched_setaffinity(0, cores)) if cores else None
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, preexec_fn=own)
    return [int(n) for n in done.stdout.split()]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the affinity of a process can be set on Linux only")
def test_a_process_that_is_bound_to_one_core_has_one():
    assert counted(cores={min(os.sched_getaffinity(0))}) == [1, 1]


def test_a_machine_whose_cores_are_all_busy_still_gives_one():
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        assert counted()[1] == 1
    finally:
        for process in spinning:
            process.kill()
            process.wait()


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Files as the kernel shows them; each test writes its own."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_affinity", lambda: list(range(64)))
    (tmp_path / "proc/self").mkdir(parents=True)

    def write(files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_a_container_s_quota_counts_wherever_above_the_process_it_is_set(groups):
    groups({"proc/self/cgroup": "0::/pod/box\n"})
    groups({"cgroup/pod/cpu.max": "350000 100000\n", "cgroup/pod/box/cpu.max": "max 100000\n"})
    assert machine.allowed_cores() == 4  # three and a half, rounded to the even number


def test_the_first_version_of_control_groups_has_a_tree_for_each_resource(groups):
    groups({"proc/self/cgroup": "7:cpu,cpuacct:/box\n4:memory:/box\n"})
    groups({"cgroup/cpu/box/cpu.cfs_quota_us": "200000\n", "cgroup/cpu/box/cpu.cfs_period_us": "100000\n"})
    groups({"cgroup/cpu/cpu.cfs_quota_us": "-1\n", "cgroup/cpu/cpu.cfs_period_us": "100000\n"})
    assert machine.allowed_cores() == 2


def test_free_memory_is_what_the_group_may_still_take_and_file_cache_is_given_up(groups):
    groups({"proc/self/cgroup": "0::/box\n", "cgroup/box/memory.max": str(96 * 2**20)})
    groups({"cgroup/box/memory.current": str(64 * 2**20), "cgroup/box/memory.stat": f"inactive_file {16 * 2**20}\n"})
    assert machine.free_memory_mb() == 48


def test_without_control_groups_all_cores_of_the_affinity_may_be_used(groups):
    assert machine.allowed_cores() == 64
