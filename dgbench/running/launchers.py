"""Making runs: each in a process of its own, so that one that fails, hangs or is killed stops no other."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dgbench.files import make_folder, read_json
from dgbench.images.preparation import prepare
from dgbench.running import slurm
from dgbench.running.device import choose_device
from dgbench.running.plan import Rerun, Run
from dgbench.running.worker import News, Order, Outcome, work
from dgbench.task import Task

Report = Callable[[News | Outcome | str], None]  # a text: what concerns no run alone


@dataclass(frozen=True)
class Options:
    """How runs are made: nothing here changes a result, beyond the rounding that hardware and thread count bring."""

    device: str = "auto"
    jobs: int | None = None
    save_every: float = 60.0
    threads: int | None = None
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
    """Prepare the data, then make all runs that are due, `options.jobs` at a time. Returns one outcome for each.

    On KeyboardInterrupt the running ones write a checkpoint and stop before it is raised again.
    """
    local = options.slurm is None
    device = choose_device(options.device) if local else options.device  # nodes may have others than this host
    threads = options.threads or (max(1, torch.get_num_threads() // (options.jobs or 1)) if local else 1)
    outcomes: list[Outcome] = []
    waiting: list[Order] = []

    def tell(news: News | Outcome | str) -> None:
        if isinstance(news, Outcome):
            outcomes.append(news)
        report(news)

    for run in runs:
        if due(run, rerun):
            make_folder(Path(run.folder))
            _, hparams = run.load_method()
            size = hparams.image_size or task.image_size
            domains = (run.source, *task.targets(run.source))
            prepared = {d: prepare(task, d, size).folder for d in domains}
            waiting.append(Order(run, prepared, rerun == "all", device, threads, options.save_every))
        elif failure := read_json(Path(run.folder) / "FAILED.json"):
            tell(Outcome(run, "failed", f"failed before: {failure['cause']}", "--rerun failed tries again"))
        else:
            tell(Outcome(run, "kept"))
    if waiting and options.slurm is not None:
        slurm.work_off(waiting, options.jobs, options.slurm, options.detach, tell)
    elif waiting:
        _work_off(waiting, options.jobs or 1, tell)
    return outcomes


def _work_off(waiting: list[Order], jobs: int, tell: Report) -> None:
    """A process for each order, `jobs` at a time; what they say goes to `tell`, their outcomes last."""
    context = _context()
    working: dict[Connection, tuple[Run, Any]] = {}
    try:
        while waiting or working:
            while waiting and len(working) < jobs:
                order = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=work, args=(theirs, order), daemon=True)
                with _main_hidden():
                    process.start()
                theirs.close()
                working[ours] = (order.run, process)
            for connection in wait(list(working)):
                assert isinstance(connection, Connection)
                run, process = working[connection]
                try:
                    news = connection.recv()
                except EOFError:
                    process.join()
                    news = Outcome(run, "failed", _death(process.exitcode), "see its folder; run again to continue")
                if isinstance(news, Outcome):
                    process.join()
                    connection.close()
                    del working[connection]
                tell(news)
    finally:
        for _, process in working.values():
            process.terminate()
        for _, process in working.values():
            process.join(timeout=30)


def _context() -> Any:
    """Processes forked from a server that has imported torch once: quick to start, nothing shared between runs.

    torch imports its compiler with the first optimizer, which takes as long as all the rest: the server does that too.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
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
