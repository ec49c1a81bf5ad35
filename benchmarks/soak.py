"""Many small runs in one command: do the launcher's memory, open files, threads and children stay as they were?

    python benchmarks/soak.py [RUNS] [--jobs 1]

Runs of `constant` on the phantom at 32 px, as many seeds as it takes, made one after the other by one call of the
launcher, which is looked at whenever a run has ended. Printed: ten rows, and the slope of each column over the
second half, when all that is imported or remembered once is there. Ends in exit code 1 unless they are flat: less than
20 kB of memory for each run, and no open file, thread or child more. RUNS is 200 by default.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from dgbench.images.find_task import get_task
from dgbench.running.launchers import News, Options, Outcome, launch
from dgbench.running.plan import plan

COLUMNS = ("MB", "MB children", "open files", "threads", "children")
FLAT = (0.02, 0.02, 0.01, 0.01, 0.01)  # for each run
SOURCES = 4  # of the phantom: runs of a seed


def look() -> tuple[float, ...]:
    """`COLUMNS` of this process, now; its children are the server that runs are forked from and what that needs."""
    process = psutil.Process()
    children = process.children(recursive=True)
    memory, theirs = (sum(p.memory_info().rss for p in of) / 2**20 for of in ([process], children))
    return memory, theirs, process.num_fds(), process.num_threads(), len(children)


def soak(runs: int, jobs: int) -> np.ndarray:
    """What `look` found after each run, (runs, 5)."""
    found: list[tuple[float, ...]] = []
    began = time.monotonic()
    print(f"{'run':>5}{'seconds':>10}" + "".join(f"{name:>12}" for name in COLUMNS))

    def report(news: News | Outcome | str) -> None:
        if isinstance(news, Outcome):
            found.append(look())
            if len(found) % max(1, runs // 10) == 0:
                numbers = "".join(f"{number:12.1f}" for number in found[-1])
                print(f"{len(found):5}{time.monotonic() - began:10.1f}{numbers}", flush=True)

    task = get_task("phantom")
    with tempfile.TemporaryDirectory() as folder:
        settings = {"image_size": "32", "steps": "1"}
        planned = plan(task, ["constant"], seeds=range(runs // SOURCES), settings=settings, results=Path(folder))
        outcomes = launch(task, planned, options=Options(jobs=jobs), report=report)
    assert {outcome.status for outcome in outcomes} == {"done"}, outcomes
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=int, nargs="?", default=200)
    parser.add_argument("--jobs", type=int, default=1)
    asked = parser.parse_args()
    table = soak(max(asked.runs, 2 * SOURCES), asked.jobs)
    half = table[len(table) // 2 :]
    slopes = np.polyfit(np.arange(len(half)), half, 1)[0]
    print(f"{'each run':>15}" + "".join(f"{slope:+12.3f}" for slope in slopes))
    rising = [name for name, slope, most in zip(COLUMNS, slopes, FLAT, strict=True) if slope > most]
    print(f"not flat: {', '.join(rising)}" if rising else "flat")
    sys.exit(bool(rising))


if __name__ == "__main__":
    main()
