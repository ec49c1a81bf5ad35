"""Where runs stand, whoever makes them: read from their folders, their locks and the cluster's queue."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dgbench.errors import UsageError
from dgbench.files import is_locked, read_json
from dgbench.running import squeue

CHECKPOINT = re.compile(r"checkpoint-(\d+)\.safetensors", re.ASCII)
STATES = ("running", "waiting", "failed", "interrupted", "not begun", "done")


@dataclass(frozen=True)
class Standing:
    """Where a run stands. run: its name. state: one of `STATES`; "not begun": planned once, and by nobody now.

    where: the host that makes it, or made it, and the cluster's job. done of total: steps or cases of its phase; rate:
    of them a second; left: seconds to the end of the phase. detail: its loss, what it waits for, or why it failed.
    """

    run: str
    state: str
    where: str = ""
    phase: str = ""
    done: int = 0
    total: int = 0
    rate: float | None = None
    left: float | None = None
    detail: str = ""


def look(results: Path, task: str | None = None) -> list[Standing]:
    """All runs in a folder of results, or of a task in it, those that are being made first.

    A finished run costs one listing of its folder: it is not read. Whether one is being made is told by its lock, on
    this host or another, and by SLURM's queue, no clock being asked. Where the queue does not answer, a run that was
    submitted and is not being made says so in its detail.
    """
    queued: dict[Path, tuple[squeue.Submission, squeue.Queued]] = {}
    unknown: dict[Path, str] = {}
    try:
        queued = squeue.living(results)
    except UsageError as error:
        of_job = ((job, folder) for s in squeue.submissions(results) for job, folder in s.runs.items())
        unknown = {folder: f"may wait as job {job}: {error.cause}" for job, folder in of_job}
    standings = []
    for folder in _folders(results, task):
        standing = _looked_at(results, folder, queued.get(folder))
        if folder in unknown and standing.state in ("interrupted", "not begun"):
            standing = replace(standing, detail="; ".join(filter(None, (standing.detail, unknown[folder]))))
        standings.append(standing)
    return sorted(standings, key=lambda s: (STATES.index(s.state), s.run))


def _folders(results: Path, task: str | None) -> Iterator[Path]:
    """Of runs, whatever state they are in: results/task/protocol/variant/source-seedN."""
    level = [results / task] if task else _inside(results)
    for _ in range(2):
        level = [below for folder in level for below in _inside(folder)]
    for variant in level:
        yield from (folder for folder in _inside(variant) if "-seed" in folder.name)


def _inside(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [folder / e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
    except OSError:
        return []


def _looked_at(results: Path, folder: Path, queued: tuple[squeue.Submission, squeue.Queued] | None) -> Standing:
    try:
        return _standing(results, folder, queued)
    except Exception as error:  # whatever lies there: the other runs stand where they stand
        why = f"its folder cannot be read: {type(error).__name__}: {error}"
        return Standing(str(folder.relative_to(results)), "failed", detail=why)


def _standing(results: Path, folder: Path, queued: tuple[squeue.Submission, squeue.Queued] | None) -> Standing:
    name = str(folder.relative_to(results))
    held = set(os.listdir(folder))
    if "RESULT.json" in held:
        return Standing(name, "done")
    task = None if queued is None else queued[1]
    if task is not None and task.state not in ("RUNNING", "COMPLETING"):
        return Standing(name, "waiting", f"job {task.job}", detail=task.reason)
    told = read_json(folder / "status.json") if "status.json" in held else {}
    job = task.job if task else (told or {}).get("job", "")
    host = task.node if task else (told or {}).get("host", "")
    where = ", ".join(filter(None, (host, f"job {job}" if job else "")))
    if task is not None or (".lock" in held and is_locked(folder)):
        if not told:
            return Standing(name, "running", where, detail="begins")
        numbers: dict[str, Any] = {key: told.get(key) for key in ("phase", "done", "total", "rate", "left", "detail")}
        return Standing(name, "running", where, **numbers)
    if failure := read_json(folder / "FAILED.json") if "FAILED.json" in held else None:
        return Standing(name, "failed", where, detail=str(failure.get("cause", "")))
    if "run.json" not in held:
        return Standing(name, "not begun")
    step = max((int(n[1]) for n in map(CHECKPOINT.fullmatch, held) if n), default=0)
    return Standing(name, "interrupted", where, detail=f"checkpoint at step {step}" if step else "no checkpoint")
