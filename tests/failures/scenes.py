"""What happens in the children of these tests: each function runs in a process of its own and tells what it saw."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from dgbench import cli
from dgbench.files import read_json, sha256
from dgbench.images.preparation import prepare
from dgbench.running import launchers, worker
from dgbench.running.description import describe
from dgbench.running.plan import Run
from dgbench.running.worker import Order
from tests.failures.child import in_a_fork, keep_only_files, killed_at, make_read_only, small_disk

Told = tuple[str, str, str]  # status, message and remedy of an outcome


def launched(runs: Sequence[Run], **options: Any) -> list[Told]:
    """What the same command does: the outcomes of all runs."""
    how = launchers.Options("cpu", save_every=0.0, **options)
    return [(o.status, o.message, o.remedy) for o in launchers.launch(runs[0].load_task(), runs, options=how)]


def command(*arguments: object) -> tuple[int, str]:
    """(exit code, what it prints) of the command line in this process."""
    printed, code = io.StringIO(), 0
    sys.argv = ["dgbench", *map(str, arguments)]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    return code, printed.getvalue()


def content(folder: Path) -> dict[str, Any]:
    """What must not differ between two makings of one run, by file: all but times, memory and checksums of these."""
    held: dict[str, Any] = {p.name: sha256(p) for p in folder.iterdir() if p.name != ".lock"}
    record, result = read_json(folder / "run.json"), read_json(folder / "RESULT.json")
    if record:
        costs = {n: v for n, v in record.get("costs", {}).items() if not n.endswith(("seconds", "mb"))}
        held["run.json"] = record | {"costs": costs, "started": ""}
    if result:
        held["RESULT.json"] = result | {"ended": "", "files": sorted(result["files"])}
    if "history.jsonl" in held:
        lines = map(json.loads, (folder / "history.jsonl").read_text().splitlines())
        held["history.jsonl"] = [{n: v for n, v in line.items() if n != "seconds"} for line in lines]
    return held


def differing(folder: Path, whole: Path) -> list[str]:
    """Names of files that one of two runs lacks, or that differ."""
    here, there = content(folder), content(whole)
    return sorted(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))


def _warm(order: Order) -> None:
    """Have loaded what every copy of this process would load; no gradient is computed before it is copied."""
    cls, hparams = order.run.load_method()
    describe(order.run, order.run.load_task(), cls, hparams, "cpu", order.prepared)


def attempted(order: Order) -> Told:
    """The outcome of the run, made in this process."""
    outcome = worker.attempt(order, lambda news: None, lambda: False)
    return outcome.status, outcome.message, outcome.remedy


def make(order: Order) -> None:
    """The run, to its end."""
    assert (told := attempted(order))[0] == "done", told


def killed_in_a_run(order: Order, whole: Path, every: int) -> tuple[int, dict[int, object]]:
    """(number of writes, {n: what is wrong after a kill at the n-th and the same command again}).

    The run is made over a finished one, so that what is moved aside is at stake too.
    """
    _warm(order)
    folder = Path(order.run.folder)
    aside = folder.parent / f".{folder.name}.old1"

    def begin() -> None:
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(whole, folder)

    begin()
    total, code = in_a_fork(killed_at, 0, make, order)
    assert code == 0
    wrong: dict[int, object] = {}
    for n in range(1, total + 1, every):
        begin()
        killed = in_a_fork(killed_at, n, make, order)
        again = launched([order.run])
        problems = [*([] if killed == (None, -9) else [f"it was not killed: {killed}"])]
        problems += [str(told) for told in again if told[0] not in ("done", "kept")] + differing(folder, whole)
        if aside.exists() and any(aside.iterdir()):
            old = {p.name: sha256(p) for p in aside.iterdir()}
            problems += [f"{p.name} is lost" for p in whole.glob("[!.]*") if old.get(p.name) != sha256(p)]
        problems += [p.name for p in folder.parent.iterdir() if p not in (folder, aside)]
        if problems:
            wrong[n] = problems
    return total, wrong


def killed_in_preparation(order: Order, cache: Path, every: int) -> tuple[int, dict[int, object]]:
    """The same for the arrays of a domain."""
    task, whole = order.run.load_task(), order.prepared["dim"]
    cache.mkdir(parents=True)  # else the first one alone makes it, in further steps
    total, _ = in_a_fork(killed_at, 0, prepare, task, "dim", 48, cache / "0")
    known = ("checksums.json", "contents.json")  # what is remembered of files, and the half of it that a kill left
    wrong: dict[int, object] = {}
    for n in range(1, total + 1, every):
        killed = in_a_fork(killed_at, n, prepare, task, "dim", 48, cache / str(n))
        folder = prepare(task, "dim", 48, cache / str(n)).folder
        same = {p.name: sha256(p) for p in folder.iterdir()} == {p.name: sha256(p) for p in whole.iterdir()}
        others = (p for p in folder.parent.rglob("*") if folder not in (p, *p.parents) and p.is_file())
        left = [str(p) for p in others if p.stat().st_size and not p.name.lstrip(".").startswith(known)]
        if killed != (None, -9) or not same or left:
            wrong[n] = (killed, same, left)
    return total, wrong


# --- disks -----------------------------------------------------------------------------------------------------------


def full_disk(order: Order, whole: Path, rooms: Sequence[int]) -> list[dict[str, Any]]:
    """The run on a disk of 2 MB of which all but `room` kB are taken; and the same command once there is room again."""
    folder, results = Path(order.run.folder), Path(order.run.folder).parents[3]
    small_disk(results, "2m")
    seen = []
    for room in rooms:
        shutil.rmtree(folder.parents[2], ignore_errors=True)
        folder.mkdir(parents=True)
        ballast = results / "ballast"
        with contextlib.suppress(OSError):
            ballast.write_bytes(bytes(4 << 20))
        os.truncate(ballast, ballast.stat().st_size - (room << 10))
        (first,) = launched([order.run])
        checksums = list(folder.glob("checkpoint-*.sha256"))
        left = {
            "told": first,
            "files": sorted(p.name for p in folder.iterdir()),
            "checkpoints": [c.read_text() == sha256(c.with_suffix(".safetensors")) for c in checksums],
        }
        ballast.unlink()
        (second,) = launched([order.run])
        seen.append(left | {"again": second[0], "differs": differing(folder, whole)})
    return seen


def full_disk_of_tables(whole: Path, results: Path, arguments: Sequence[object]) -> tuple[int, str, list[str]]:
    """A finished run is there, and no room for its tables: (exit code, what is printed, files of the tables)."""
    small_disk(results, "2m")
    shutil.copytree(whole.parents[3], results, dirs_exist_ok=True)
    with contextlib.suppress(OSError):
        (results / "ballast").write_bytes(bytes(4 << 20))
    code, text = command(*arguments)
    return code, text, [p.name for p in results.rglob("tables/*")]


def full_cache(cache: Path, arguments: Sequence[object]) -> tuple[int, str, list[str]]:
    """No room for the prepared images: (exit code, what is printed, what lies in the cache)."""
    small_disk(cache, "64k")
    os.environ["DGBENCH_CACHE"] = str(cache)
    code, text = command(*arguments)
    return code, text, sorted(p.name for p in (cache / "prepared").iterdir())


def read_only(folder: Path, held: Path | None, *commands: Sequence[object]) -> list[tuple[int, str]]:
    """What commands end with where `folder`, with the content of `held`, can only be read."""
    small_disk(folder, "4m")
    if held:
        shutil.copytree(held, folder, dirs_exist_ok=True)
    make_read_only(folder)
    return [command(*arguments) for arguments in commands]


# --- methods that misbehave, machines that do ------------------------------------------------------------------------


def stopped_by_a_limit(runs: Sequence[Run], marker: Path) -> tuple[list[Told], list[str], list[Told]]:
    """The first run hangs from its second step on, when it leaves a marker; half an hour later is now.

    Returns the outcomes with a limit of 1000 s, the files of the first run, and its outcome with --rerun failed.
    """
    real = time.monotonic
    launchers.time = SimpleNamespace(monotonic=lambda: real() + 1800 * marker.exists())  # type: ignore[assignment]
    told = launched(runs, time_limit=1000.0)
    files = sorted(p.name for p in Path(runs[0].folder).iterdir())
    how = launchers.Options("cpu", save_every=0.0)
    again = launchers.launch(runs[0].load_task(), runs[:1], "failed", how)
    return told, files, [(o.status, o.message, o.remedy) for o in again]


def without_memory(runs: Sequence[Run], most: int) -> list[Told]:
    """Runs in processes that may have `most` bytes more of address space than this one has."""
    _bound(resource.RLIMIT_AS, psutil.Process().memory_info().vms + most)
    return launched(runs)


def without_processes(runs: Sequence[Run], most: int) -> list[Told]:
    """Runs of a user who may have `most` processes more; root is given another real user, and may not exceed it."""
    if os.getuid() == 0:
        os.setresuid(54321, 0, 0)
        keep_only_files()
    mine = sum(p.num_threads() for p in psutil.process_iter() if p.uids().real == os.getuid())
    _bound(resource.RLIMIT_NPROC, mine + most)
    return launched(runs, jobs=1)


def _bound(what: int, most: int) -> None:
    resource.setrlimit(what, (most, resource.getrlimit(what)[1]))


def with_a_wild_clock(order: Order, seconds: float) -> tuple[list[Told], list[Told], str]:
    """The run while each look at the clock is ten years off, to one side and the other, on a slow disk.

    Returns its outcome; that of the same command with all its files a year ahead; and what is said of its state.
    """
    steps, time_of_day, fsync = itertools.count(), time.time, os.fsync
    time.time = lambda: time_of_day() + (-1) ** next(steps) * 10 * 365 * 86400
    os.fsync = lambda descriptor: (time.sleep(seconds), fsync(descriptor))[1]
    told = launched([order.run])
    for path in Path(order.run.folder).iterdir():
        os.utime(path, (time_of_day() + 365 * 86400,) * 2)
    return told, launched([order.run]), order.run.status
