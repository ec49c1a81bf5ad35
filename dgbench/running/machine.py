"""What this machine has left: cores and memory that nobody else uses, within the limits set for this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

PROC, CONTROL_GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
LOOK_SECONDS = 0.5  # how long the load is watched: long enough to average out what a core does in between


def free_cores() -> int:
    """How many cores this process may use and others leave idle just now; at least 1. Takes half a second.

    What it may use is bounded by its affinity (`taskset`, a batch system) and by the CPU quota of its control group (a
    container). A hyper-thread counts as a core.
    """
    loads = psutil.cpu_percent(interval=LOOK_SECONDS, percpu=True)
    mine = [loads[core] for core in _affinity() if core < len(loads)]
    idle = sum(100 - load for load in mine) / 100
    return max(1, round(min(idle, _quota())))


def allowed_cores() -> int:
    """How many cores this process may use, idle or not; at least 1."""
    return max(1, round(min(len(_affinity()), _quota())))


def free_memory_mb() -> float:
    """MiB that this process and its children may still take: of the machine's memory, and of its control group's."""
    free = float(psutil.virtual_memory().available)
    for group in _control_groups("memory"):
        with suppress(OSError, ValueError):  # "max": no limit here
            limit, used = _read(group, "memory.max", "limit"), _read(group, "memory.current", "usage")
            free = min(free, limit - used + _reclaimable(group))
    return free / 2**20


def _affinity() -> list[int]:
    """The numbers of the cores this process may run on; all of them where no system call tells."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _quota() -> float:
    """Cores' worth of time that the control groups of this process allow; infinite without a limit."""
    cores = float("inf")
    for group in _control_groups("cpu"):
        with suppress(OSError, ValueError):  # "max", or -1 in the first version of control groups: no limit
            if (group / "cpu.max").exists():
                quota, period = map(int, (group / "cpu.max").read_text().split())
            else:
                quota, period = (int((group / f"cpu.cfs_{what}_us").read_text()) for what in ("quota", "period"))
            cores = min(cores, quota / period) if quota > 0 else cores
    return cores


def _reclaimable(group: Path) -> int:
    """Bytes of file cache that count as used but are given up when memory is short."""
    lines = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return int(lines.get("inactive_file", lines.get("total_inactive_file", 0)))


def _read(group: Path, new: str, old: str) -> int:
    """A file of a control group, which the first version names otherwise. Raises `ValueError` for "max"."""
    path = group / new
    return int((path if path.exists() else group / f"memory.{old}_in_bytes").read_text())


def _control_groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control group for a controller and of those above it; none outside Linux."""
    with suppress(OSError):
        for line in (PROC / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            # The first version has a tree for each resource, the second one tree without a name.
            top = CONTROL_GROUPS / controllers.split(",")[0]
            inside = Path(path.lstrip("/"))
            for folder in (inside, *inside.parents):
                if (top / folder).is_dir() and ".." not in folder.parts:
                    yield top / folder
