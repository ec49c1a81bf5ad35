"""What a run says of itself while it is made, in its folder: how far it is, how fast, and where."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dgbench.files import write_json

PAUSE = 5.0  # seconds between two notices of a run


class Notice:
    """status.json of a run that is being made, for whoever looks at its folder, from this host or another.

    phase, done, total, detail: as in `Watch.report`. rate: steps or cases a second since this process began the phase.
    left: seconds to the end of the phase at that rate. host, pid and job (of a cluster) say who makes it. It holds no
    time of day: whether its run is alive is told by the lock, never by a clock.
    """

    def __init__(self, folder: Path):
        self.path = folder / "status.json"
        self.phase, self.first, self.began, self.last = "", 0, 0.0, 0.0

    def write(self, phase: str, done: int, total: int, detail: str) -> None:
        """Leave it in the folder, unless the last one is younger than `PAUSE`."""
        now = time.monotonic()
        if phase == self.phase and now - self.last < PAUSE:
            return
        if phase != self.phase:
            self.phase, self.first, self.began = phase, done, now
        self.last = now
        content: dict[str, Any] = {"phase": phase, "done": done, "total": total, "detail": detail}
        if done > self.first:
            rate = (done - self.first) / (now - self.began)
            content |= {"rate": round(rate, 3), "left": round((total - done) / rate)}
        content |= {"host": platform.node(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID", "")}
        with suppress(OSError):  # it is for people only: a run does not fail for it
            write_json(self.path, content)

    def remove(self) -> None:
        """When the run has ended."""
        self.path.unlink(missing_ok=True)
