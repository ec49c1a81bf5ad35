"""What thousands of finished runs and hundreds of running ones cost a file system, the tables and whoever looks.

    python benchmarks/many_runs.py [RUNS] [--running 1000] [--calls] [--report]

One real run of the phantom is made and its folder copied under other variants, sources and seeds, with other scores;
other folders are left as runs leave them while they are made. Counted: files, bytes, seconds and memory of each command
in a process of its own, and with `--calls` its system calls that touch files (by `strace`). RUNS is 10,000 by default.
"""

import argparse
import csv
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dgbench.files import sha256

DGBENCH = [sys.executable, "-m", "dgbench"]
SEEDS = 10
TASK = "phantom"


def write_runs(results: Path, count: int) -> None:
    """Copies of a real run: RESULT.json fits the changed run.json and cases.csv, the other files are linked."""
    command = ["run", "--method", "constant", "--task", TASK, "--set", "image_size=32"]
    subprocess.run([*DGBENCH, *command, "--results", str(results / ".first")], check=True, stdout=subprocess.DEVNULL)
    first = sorted(path.parent for path in (results / ".first").glob("*/*/*/*/RESULT.json"))
    random.seed(0)
    for number in range(count):
        rest, seed = divmod(number, SEEDS)
        variant, place = divmod(rest, len(first))
        write_copy(results, first[place], f"constant[image_size={32 + variant}]", seed)
    shutil.rmtree(results / ".first")


def write_copy(results: Path, first: Path, variant: str, seed: int) -> None:
    """The run in `first` under another name, its Dice moved by chance."""
    record = json.loads((first / "run.json").read_text()) | {"variant": variant, "seed": seed}
    folder = results / TASK / "sdg" / variant / f"{record['source']}-seed{seed}"
    folder.mkdir(parents=True)
    rows = list(csv.DictReader(io.StringIO((first / "cases.csv").read_text())))
    for row in rows:
        row["dice"] = str(min(1.0, max(0.0, float(row["dice"] or 0) + random.gauss(0.3, 0.05))))
    with open(folder / "cases.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "run.json").write_text(json.dumps(record))
    result = json.loads((first / "RESULT.json").read_text())
    for name in result["files"]:
        if name not in ("cases.csv", "run.json"):
            shutil.copy(first / name, folder / name)
        result["files"][name] = sha256(folder / name)
    (folder / "RESULT.json").write_text(json.dumps(result))
    (folder / ".lock").touch()


def write_running(results: Path, count: int) -> None:
    """Folders of runs that are being made: nobody holds their locks, which costs the same to find out."""
    told = dict(phase="train", done=5, total=9, detail="loss 0.5", rate=1.0, left=4, host="n", job="")
    for number in range(count):
        folder = results / TASK / "sdg" / "erm" / f"A-seed{number}"
        folder.mkdir(parents=True)
        for name, content in (("run.json", "{}"), ("status.json", json.dumps(told)), (".lock", "")):
            (folder / name).write_text(content)


def measure(calls: bool, *arguments: str) -> None:
    """Run a command of dgbench; print its seconds, memory, and the system calls of a second run."""
    command = [*DGBENCH, *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    told = ""
    if calls:
        with tempfile.NamedTemporaryFile("r") as summary:
            strace = ["strace", "-f", "-c", "-e", "trace=%file,read,getdents64", "-o", summary.name]
            subprocess.run([*strace, *command], check=True, stdout=subprocess.DEVNULL)
            told = next(f"{row.split()[3]:>9} calls" for row in summary if row.endswith("total\n"))
    cpu = usage.ru_utime + usage.ru_stime
    memory = usage.ru_maxrss / 1024
    print(f"{arguments[0]:12}{seconds:8.1f} s{cpu:8.1f} s of CPU{memory:7.0f} MB{told}", status or "", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=int, nargs="?", default=10_000)
    parser.add_argument("--running", type=int, default=1_000)
    parser.add_argument("--calls", action="store_true", help="count system calls")
    parser.add_argument("--report", action="store_true", help="write the report, too")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        write_runs(results, asked.runs)
        write_running(results, asked.running)
        files = [path for path in results.rglob("*") if path.is_file()]
        print(f"{len(files)} files, {sum(path.stat().st_size for path in files) / 2**20:.0f} MB")
        where = ("--results", str(results))
        measure(asked.calls, "status", *where)
        measure(asked.calls, "list", "runs", *where)
        measure(asked.calls, "leaderboard", "--task", TASK, *where)
        if asked.report:
            measure(asked.calls, "report", "--task", TASK, *where)


if __name__ == "__main__":
    main()
