"""Making runs: each in a process of its own, so that one that fails, hangs or is killed stops no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import torch

from dgbench.errors import DgbenchError, RunError
from dgbench.files import make_folder, read_json
from dgbench.images.preparation import prepare
from dgbench.plausibility import summary
from dgbench.running import slurm
from dgbench.running.compiled import check_compiler
from dgbench.running.device import all_devices, one_thread
from dgbench.running.machine import free_cores, free_memory_mb
from dgbench.running.plan import Rerun, Run
from dgbench.running.worker import News, Order, Outcome, kill_children, leave_failure, tidy, work
from dgbench.task import Task

Report = Callable[[News | Outcome | str], None]  # a text: what concerns no run alone


@dataclass(frozen=True)
class Options:
    """How runs are made: nothing here changes a result, beyond the rounding that hardware and thread count bring."""

    device: str = "auto"
    jobs: int | None = None  # None: as many as there are free cores, or places on GPUs, and as memory allows
    per_device: int = 1  # runs at the same time on one GPU
    save_every: float = 60.0
    compile: bool = False  # networks by torch's compiler
    threads: int = 1  # more than one make a run faster on an idle machine only, and far slower on a busy one
    time_limit: float | None = None  # seconds after which a run is stopped
    slurm: Mapping[str, str] | None = None  # what `slurm.parse` gives; None: processes on this host
    detach: bool = False


def due(run: Run, rerun: Rerun) -> bool:
    """Must this run be made? "missing": if it is not there or unfinished; "failed": also if it failed; or "all"."""
    kept = {"missing": ("done", "failed"), "failed": ("done",), "all": ()}[rerun]
    return run.status not in kept


def launch(
    task: Task,
    runs: Sequence[Run],
    rerun: Rerun = "missing",
    options: Options = Options(),
    report: Report = lambda news: None,
) -> list[Outcome]:
    """Prepare the data, then make all runs that are due, several at the same time. Returns one outcome for each.

    On KeyboardInterrupt the running ones write a checkpoint and stop before it is raised again.
    """
    devices = all_devices(options.device) if options.slurm is None else [options.device]  # a node has its own
    if options.compile and options.slurm is None:
        check_compiler(devices[0])
    outcomes: list[Outcome] = []
    waiting: list[Order] = []
    places: dict[tuple[str, int], Path] = {}  # where a domain lies prepared at a size: verified once, not for each run

    def tell(news: News | Outcome | str) -> None:
        if isinstance(news, Outcome):
            outcomes.append(news)
        report(news)

    lacking: dict[str, DgbenchError | None] = {}  # by variant: what keeps all of its runs from starting
    outdated: dict[str, None] = {}  # variants with runs that were recorded when the task named other collections
    for run in runs:
        if due(run, rerun):
            if run.variant not in lacking:
                lacking[run.variant] = _lacking(run, task)
            if error := lacking[run.variant]:
                outcomes.append(Outcome(run, "failed", error.cause, error.remedy))
                continue
            make_folder(Path(run.folder))
            _, hparams = run.load_method()
            size = hparams.image_size or task.image_size
            domains = (run.source, *run.targets(task))
            for domain in (d for d in domains if (d, size) not in places):
                with one_thread():
                    ready = prepare(task, domain, size)
                if domain not in {known for known, _ in places} and (text := summary(domain, ready.doubts)):
                    tell(text)
                places[domain, size] = ready.folder
            prepared = {d: places[d, size] for d in domains}
            how = options.threads, options.save_every, options.compile
            waiting.append(Order(run, prepared, rerun == "all", devices[0], *how))
        elif (failure := read_json(Path(run.folder) / "FAILED.json")) and run.status == "failed":
            tell(Outcome(run, "failed", f"failed before: {failure.get('cause')}", "--rerun failed tries again"))
        else:
            with suppress(OSError):  # results may lie where they can only be read
                tidy(Path(run.folder))
            if (read_json(Path(run.folder) / "run.json") or {}).get("collections", []) != list(task.collections):
                outdated[run.variant] = None
            tell(Outcome(run, "kept"))
    if outdated:
        report(
            f"finished runs of {', '.join(outdated)} were recorded when the task's `collections` were others; boards "
            "go by what they say, and --rerun all makes them anew"
        )
    for variant, error in lacking.items() if waiting else ():
        if error:
            report(f"{variant} cannot be run: {error.cause}")
    if waiting and options.slurm is not None:
        slurm.work_off(waiting, options.jobs, options.slurm, options.detach, tell)
    elif waiting:
        slots = _places(devices, options, len(waiting))
        if len(waiting) > 1:
            tell(f"{len(waiting)} runs to make, {len(slots)} at a time")
        _work_off(waiting, slots, _Memory(bounded=options.jobs is None), tell, options.time_limit)
    return outcomes


def _lacking(run: Run, task: Task) -> DgbenchError | None:
    """What a variant needs and is not there: weights, a package, a setting that fits; all that can be told beforehand.

    The method is built on the meta device, which takes no memory; what that device alone refuses is left to the run.
    """
    cls, hparams = run.load_method()

    def build() -> None:
        with torch.device("meta"):
            cls(task.info, hparams)

    for step in (build, *([] if run.checkpoint else [lambda: cls.find_pretrained(hparams)])):
        try:
            step()
        except DgbenchError as error:
            return error
        except ImportError as error:
            return RunError(
                f"{type(error).__name__}: {error}", "install it; `dgbench check` shows where it is imported"
            )
        except Exception:
            continue
    return None


def _places(devices: Sequence[str], options: Options, runs: int) -> list[str]:
    """A device for each run that is made at the same time: GPUs in turn, as full as may be, or the CPU's free cores."""
    if devices[0].startswith("cuda"):
        places = list(devices) * options.per_device
        return places[: options.jobs or len(places)]
    jobs = options.jobs or (free_cores() if runs > 1 else 1)
    return [devices[0]] * min(jobs, runs)


@dataclass
class _Memory:
    """What runs need, as seen while they were made: another one starts when as much is free.

    The need of a variant is the most that any run of it has had so far; before one has taken its first step, it is
    that of the hungriest variant seen.
    """

    bounded: bool  # False: the user has said how many
    seen: dict[str, float] = field(default_factory=dict)  # {variant: MiB}

    def look(self, run: Run, pid: int) -> float:
        """MiB that the run's process has now; remembered if it is the most of its variant so far."""
        try:
            now = psutil.Process(pid).memory_info().rss / 2**20
        except psutil.Error:  # it has just ended
            return 0.0
        self.seen[run.variant] = max(now, self.seen.get(run.variant, 0.0))
        return now

    def allows(self, run: Run, working: Sequence[tuple[Run, Any]]) -> bool:
        """May this run start beside those that are made?"""
        if not self.bounded or not working:
            return True
        if any(other.variant not in self.seen for other, _ in working):
            return False  # wait until it is known what that one needs
        need = self.seen.get(run.variant) or max(self.seen.values())
        growth = sum(max(0.0, self.seen[r.variant] - self.look(r, process.pid)) for r, process in working)
        return free_memory_mb() > 1.1 * need + growth


def _work_off(
    waiting: list[Order], places: list[str], memory: _Memory, tell: Report, limit: float | None = None
) -> None:
    """A process for each order, one for each place at a time; what they say goes to `tell`, their outcomes last."""
    context = _context()
    working: dict[Connection, tuple[Run, Any]] = {}
    taken: dict[Connection, str] = {}
    began: dict[Connection, float] = {}
    try:
        while waiting or working:
            while waiting and places and memory.allows(waiting[0].run, list(working.values())):
                order = replace(waiting.pop(0), device=places.pop(0))
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=work, args=(theirs, order), daemon=True)
                with _main_hidden():
                    process.start()
                theirs.close()
                working[ours], taken[ours], began[ours] = (order.run, process), order.device, time.monotonic()
            wait(list(working), 1.0)  # no longer: what a method has started may outlive it, and keep the line open
            for connection, (run, process) in list(working.items()):
                late = limit is not None and time.monotonic() - began[connection] > limit
                news = _stopped(run, process, limit) if late else _heard(connection, run, process)
                if news is None:
                    continue
                memory.look(run, process.pid)
                if isinstance(news, Outcome):
                    process.join()
                    connection.close()
                    del working[connection]
                    places.append(taken.pop(connection))
                tell(news)
    finally:
        for _, process in working.values():
            process.terminate()
        for _, process in working.values():
            process.join(timeout=30)
            _kill(process)


def _heard(connection: Connection, run: Run, process: Any) -> News | Outcome | None:
    """What the run's process says next, or how it died; None while it is silent."""
    alive = process.is_alive()  # asked first: what a dead one has said is all there
    with suppress(EOFError):
        if connection.poll():
            return connection.recv()
        if alive:
            return None
    process.join()
    return Outcome(run, "failed", _death(process.exitcode), "see its folder; run again to continue")


def _stopped(run: Run, process: Any, limit: float | None) -> Outcome:
    """End a run that takes too long; its last checkpoint stays. One that has just ended is done."""
    _kill(process)
    if run.status == "done":
        return Outcome(run, "done")
    cause = f"stopped after its time limit of {limit:g} s"
    remedy = "--rerun failed continues it from its last checkpoint; give it more by --time-limit, or look why it hangs"
    with suppress(OSError):
        leave_failure(run, cause, remedy)
    return Outcome(run, "failed", cause, remedy)


def _kill(process: Any) -> None:
    """End a process that may be deaf, and what it has started."""
    kill_children(process.pid)
    process.kill()
    process.join()


LONGEST_FOLDER = 75  # bytes of the folder for temporary files: the server's socket in it has a path of at most 107


def _context() -> Any:
    """Processes forked from a server that has imported torch once: quick to start, nothing shared between runs.

    torch imports its compiler with the first optimizer, which takes as long as all the rest: the server does that too.
    Where there can be no server, each process imports for itself.
    """
    methods = multiprocessing.get_all_start_methods()
    if "forkserver" not in methods or len(os.fsencode(tempfile.gettempdir())) > LONGEST_FOLDER:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dgbench.running.worker", "torch._inductor"])
    return context


@contextmanager
def _main_hidden() -> Iterator[None]:
    """A new process imports the program it comes from once more; ours need nothing of it, and it costs.

    A notebook's is all of IPython, a script without `if __name__ == "__main__"` would start its runs again, and a
    program read from standard input cannot be found.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _death(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"the process was killed by {name}" + (" (often: out of memory)" if name == "SIGKILL" else "")
    return f"the process ended with exit code {code} and left no message"
