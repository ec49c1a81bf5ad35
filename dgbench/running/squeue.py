"""SLURM's queue as its own commands tell it, and which of its tasks makes which run: asked for, never guessed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dgbench.errors import UsageError
from dgbench.files import read_json

PLACE = ".slurm"  # in the folder of results: a folder for each array, with its tasks, what they print, and runs.json
PING = "is the cluster's controller up? `scontrol ping`"
HELP = "see `sinfo` and `sbatch --help` for what this cluster takes"
ENDED = ("CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY", "TIMEOUT")  # after NODE_FAIL: queued again


@dataclass(frozen=True)
class Queued:
    """A task in the queue. state: SLURM's word; node: "" before it runs; left: of its time; reason: of waiting."""

    job: str
    state: str
    node: str
    left: str
    reason: str

    @property
    def ended(self) -> bool:
        """Will it never be started again?"""
        return self.state in ENDED


@dataclass(frozen=True)
class Submission:
    """An array that was submitted: its folder in `PLACE`, and {job: the run's folder}."""

    folder: Path
    runs: dict[str, Path]


def ask(*command: str) -> str:
    """What a command of SLURM prints. Raises `UsageError` with its last words."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise UsageError(f"this host has no {command[0]}", "call it on a login node of a SLURM cluster") from None
    except subprocess.TimeoutExpired:
        raise UsageError(f"{command[0]} does not answer", PING) from None
    if done.returncode:
        asked = f" (asked: {' '.join(command[1:])})" if command[0] == "sbatch" else ""
        raise UsageError(f"{command[0]}: {last_words(done.stderr)}{asked}", HELP if asked else PING)
    return done.stdout


def last_words(text: str) -> str:
    """The last error that a command of SLURM tells, without the command's name."""
    told = re.findall(r"^s\w+: (?:error|fatal): (.+)$", text, re.MULTILINE)
    return (told or text.strip().splitlines() or ["no message"])[-1]


def queue() -> dict[str, Queued]:
    """The user's tasks by job (`7_0`, the first of array 7), those that ended a few minutes ago among them."""
    text = ask("squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T|%N|%L|%r")
    return {q.job: q for q in (Queued(*line.split("|", 4)) for line in text.splitlines())}


def submissions(results: Path) -> list[Submission]:
    """What was submitted by this user for a folder of results, and is not swept yet."""
    found = []
    for path in sorted(results.glob(f"{PLACE}/*/runs.json")):
        if path.stat().st_uid == os.getuid() and (runs := read_json(path)):
            of_job = {job: results / run for job, run in runs.items() if isinstance(run, str)}
            found.append(Submission(path.parent, of_job))
    return found


def living(results: Path) -> dict[Path, tuple[Submission, Queued]]:
    """Runs that a task in the queue makes, or will, by their folders; none where there is no SLURM."""
    submitted = [s for s in submissions(results) if s.runs]
    if not submitted or not shutil.which("squeue"):
        return {}
    known = queue()
    tasks = ((folder, s, known[job]) for s in submitted for job, folder in s.runs.items() if job in known)
    return {folder: (s, task) for folder, s, task in tasks if not task.ended}


def cancel(jobs: Iterable[str]) -> None:
    """Take tasks out of the queue; those that run write a checkpoint and stop."""
    ordered = list(jobs)
    for first in range(0, len(ordered), 500):  # a command line is bounded
        ask("scancel", *ordered[first : first + 500])


def sweep(results: Path) -> None:
    """Remove the folders of arrays whose runs are all done: what they printed is of no use any more."""
    for submission in submissions(results):
        if all((folder / "RESULT.json").is_file() for folder in submission.runs.values()):
            shutil.rmtree(submission.folder, ignore_errors=True)


def array_limit() -> int:
    """How many tasks an array may have on this cluster."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else 1000
