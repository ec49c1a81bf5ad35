"""How a matrix of runs uses a machine: quiet, with busy neighbours, several runs at a time against one.

    python benchmarks/busy.py [demo | efficiency] [--steps 250] [--neighbours 2] [--dgbench "python -m dgbench"]

demo: the seconds of `dgbench run --method dapsam --task phantom` on the quiet machine, and beside neighbours that each
keep a core busy. efficiency: making 18 equal runs one at a time and two at a time; 1.0 is twice as fast. --dgbench: the
command of another checkout, to be measured in the same way. Everything is measured cold, in empty folders.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

DEMO = ["run", "--method", "dapsam", "--task", "phantom"]
EQUAL = ["run", "--method", "erm", "--task", "phantom", "--source", "A", "--seed", ",".join(map(str, range(18)))]


def seconds(command: Sequence[str], without_tables: bool = False) -> float:
    """Wall-clock time of a command in a folder of its own, with nothing in its cache.

    without_tables: less the time of a second call, which makes no run and draws the same tables.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "DGBENCH_CACHE": f"{folder}/cache"}
        times = [time.monotonic()]
        for _ in range(2 if without_tables else 1):
            whole = [*command, "--results", f"{folder}/results"]
            subprocess.run(whole, env=environment, check=True, capture_output=True)
            times.append(time.monotonic())
    first, *again = (end - start for start, end in itertools.pairwise(times))
    return first - sum(again)


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """As many other processes, each of which wants a whole core."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("demo", "efficiency"))
    parser.add_argument("--steps", default="250")
    parser.add_argument("--neighbours", type=int, default=2)
    parser.add_argument("--dgbench", default=f"{sys.executable} -m dgbench")
    given = parser.parse_args()
    dgbench, steps = shlex.split(given.dgbench), ["--set", f"steps={given.steps}"]
    if given.what == "demo":
        quiet = seconds([*dgbench, *DEMO, *steps])
        print(f"demo, quiet: {quiet:.0f} s", flush=True)
        with neighbours(given.neighbours):
            busy = seconds([*dgbench, *DEMO, *steps])
        print(f"demo beside {given.neighbours} busy processes: {busy:.0f} s, {busy / quiet:.2f} times as long")
    else:
        one, two = (seconds([*dgbench, *EQUAL, *steps, "--jobs", jobs], without_tables=True) for jobs in ("1", "2"))
        print(f"18 runs of erm: {one:.0f} s one at a time, {two:.0f} s two at a time; efficiency {one / two / 2:.2f}")


if __name__ == "__main__":
    main()
