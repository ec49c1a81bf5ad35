"""Making runs: each in a process of its own, so that one that fails, hangs or is killed stops no other."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import safetensors.torch
import torch

import dgbench
from dgbench import metrics
from dgbench.errors import DataError, DgbenchError, RunError, UsageError
from dgbench.files import Taken, lease, make_folder, read_json, sha256, write_atomic, write_json
from dgbench.images import preparation
from dgbench.method import Method
from dgbench.protocol import get_protocol
from dgbench.registry import code_hash
from dgbench.running import train
from dgbench.running.plan import Rerun, Run
from dgbench.running.records import SCHEMA
from dgbench.running.test import Tested, cases_csv, measure_domain, write_predictions
from dgbench.task import Task


@dataclass(frozen=True)
class Outcome:
    """How a run ended: "kept" means that it was there already, "skipped" that another process is making it."""

    run: Run
    status: Literal["done", "kept", "skipped", "failed", "interrupted"]
    message: str = ""
    remedy: str = ""


@dataclass(frozen=True)
class News:
    """What a run tells while it is made. phase: "train" or "test"; done and total: steps, or cases."""

    run: Run
    phase: str
    done: int
    total: int
    detail: str = ""


@dataclass(frozen=True)
class Options:
    """How runs are made: nothing here changes a result, beyond the rounding that hardware and thread count bring."""

    device: str = "auto"
    jobs: int = 1
    save_every: float = 60.0
    threads: int | None = None


def due(run: Run, rerun: Rerun) -> bool:
    """Must this run be made? "missing": if it is not there or unfinished; "failed": also if it failed; or "all"."""
    kept = {"missing": ("done", "failed"), "failed": ("done",), "all": ()}[rerun]
    return run.status not in kept


def launch(
    task: Task,
    runs: Sequence[Run],
    rerun: Rerun = "missing",
    options: Options = Options(),
    report: Callable[[News | Outcome], None] = lambda news: None,
) -> list[Outcome]:
    """Prepare the data, then make all runs that are due, `options.jobs` at a time. Returns one outcome for each.

    On KeyboardInterrupt the running ones write a checkpoint and stop before it is raised again.
    """
    device = choose_device(options.device)
    outcomes: list[Outcome] = []

    def ended(outcome: Outcome) -> None:
        outcomes.append(outcome)
        report(outcome)

    waiting: list[tuple[Run, dict[str, str]]] = []
    for run in runs:
        if due(run, rerun):
            make_folder(Path(run.folder))
            _, hparams = run.load_method()
            size = hparams.image_size or task.image_size
            domains = (run.source, *task.targets(run.source))
            waiting.append((run, {d: str(preparation.prepare(task, d, size).folder) for d in domains}))
        elif failure := read_json(Path(run.folder) / "FAILED.json"):
            ended(Outcome(run, "failed", f"failed before: {failure['cause']}", "--rerun failed tries again"))
        else:
            ended(Outcome(run, "kept"))
    if not waiting:
        return outcomes
    threads = options.threads or max(1, torch.get_num_threads() // options.jobs)
    context = _context()
    working: dict[Connection, tuple[Run, Any]] = {}
    try:
        while waiting or working:
            while waiting and len(working) < options.jobs:
                run, prepared = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                arguments = (theirs, run, prepared, rerun == "all", device, threads, options.save_every)
                process = context.Process(target=_work, args=arguments, daemon=True)
                with _main_hidden():
                    process.start()
                theirs.close()
                working[ours] = (run, process)
            for connection in wait(list(working)):
                assert isinstance(connection, Connection)
                run, process = working[connection]
                try:
                    message = connection.recv()
                except EOFError:
                    process.join()
                    message = Outcome(run, "failed", _death(process.exitcode), "see its folder; run again to continue")
                if isinstance(message, Outcome):
                    process.join()
                    connection.close()
                    del working[connection]
                    ended(message)
                else:
                    report(message)
    finally:
        for _, process in working.values():
            process.terminate()
        for _, process in working.values():
            process.join(timeout=30)
    return outcomes


def _context() -> Any:
    """Processes forked from a server that has imported torch once: quick to start, nothing shared between runs.

    torch imports its compiler with the first optimizer, which takes as long as all the rest: the server does that too.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["dgbench.running.launchers", "torch._inductor"])
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


def choose_device(name: str) -> str:
    """The device to use: `auto` is CUDA where there is one, else the CPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}", "try --device cpu") from None
    return name


def _work(
    connection: Connection,
    run: Run,
    prepared: dict[str, str],
    again: bool,
    device: str,
    threads: int,
    save_every: float,
) -> None:
    """The life of a run's process: make the run, and say how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; a terminal's Ctrl-C reaches everybody
    stop: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))

    def tell(news: News | Outcome) -> None:
        try:
            connection.send(news)
        except (BrokenPipeError, OSError):
            stop.append(True)  # the parent is gone: stop at the next step

    folder = Path(run.folder)
    try:
        with lease(folder) as held:

            def report(phase: str, done: int, total: int, detail: str = "") -> None:
                with suppress(OSError):
                    os.utime(held)
                tell(News(run, phase, done, total, detail))

            torch.set_num_threads(threads)
            make(run, prepared, device, again, report, lambda: bool(stop), save_every)
            outcome = Outcome(run, "done")
    except Taken as taken:
        outcome = Outcome(run, "skipped", str(taken))
    except train.Interrupted as interrupted:
        outcome = Outcome(run, "interrupted", str(interrupted), "the same command continues it")
    except Exception as error:
        cause, remedy = (
            (error.cause, error.remedy)
            if isinstance(error, DgbenchError)
            else (f"{type(error).__name__}: {error}", f"the traceback is in {folder / 'traceback.txt'}")
        )
        with suppress(OSError):
            write_atomic(folder / "traceback.txt", traceback.format_exc())
            if isinstance(error, RunError) or not isinstance(error, DgbenchError):  # a missing file is tried again
                write_json(folder / "FAILED.json", {"run": str(run), "cause": cause, "remedy": remedy, "at": _now()})
        outcome = Outcome(run, "failed", cause, remedy)
    tell(outcome)
    connection.close()


def make(
    run: Run,
    prepared: dict[str, str],
    device: str,
    again: bool = False,
    report: Callable[[str, int, int, str], None] = lambda phase, done, total, detail: None,
    should_stop: Callable[[], bool] = lambda: False,
    save_every: float = 60.0,
) -> None:
    """Train on the source, test on the targets, write the run's folder. `prepared`: {domain: prepared folder}.

    A run that was interrupted continues from its newest whole checkpoint; what an earlier finished run left is moved
    aside, never overwritten.
    """
    folder, protocol, task = Path(run.folder), get_protocol(run.protocol), run.load_task()
    if again or (folder / "RESULT.json").exists() or _made_differently(folder, run):
        _move_aside(folder)
    for name in ("FAILED.json", "traceback.txt"):
        (folder / name).unlink(missing_ok=True)
    cls, hparams = run.load_method()
    _make_deterministic(device)
    if before := read_json(folder / "run.json"):  # rounding depends on the number of threads: continue with the same
        torch.set_num_threads(before["environment"]["threads"])
    record = describe(run, task, cls, dataclasses.asdict(hparams), device, prepared)
    write_json(folder / "run.json", record)
    method, files = _build(run, cls, task, hparams, device)
    record |= {"needs": needs(method), "steps": method.steps}
    source = preparation.PreparedDomain(Path(prepared[run.source]))
    training, validation = task.split(run.source)
    progress = train.Progress()
    if run.checkpoint is None:
        indices = source.slice_indices(training, protocol.slices == "foreground")
        if not len(indices):
            raise DataError(f"the training cases of source '{run.source}' hold no slice", "check the masks")
        hidden = [Path(p) for d, p in prepared.items() if d != run.source]
        hidden += [f for d in task.targets(run.source) for i in task.case_ids(d) for f in task.files(d, i)]
        with train.no_access(hidden):
            progress = train.fit(
                method,
                train.TrainingSlices(source, indices),
                run.seed,
                folder,
                lambda step, loss: report("train", step, method.steps, f"loss {loss:.4f}"),
                should_stop,
                save_every,
            )
    started = time.monotonic()
    tested = _test(run, method, task, source, validation, prepared, report, should_stop)
    record["initialisation"] = files or "scratch"
    record["costs"] = {
        "parameters": sum(p.numel() for p in method.parameters()),
        "trained": sum(p.numel() for p in method.parameters() if p.requires_grad) if run.checkpoint is None else 0,
        "train_seconds": round(progress.seconds, 2),
        "test_seconds": round(time.monotonic() - started, 2),
        "peak_memory_mb": round(_peak_memory_mb(device)),
    }
    _finish(run, folder, record, method, bool(files), tested)


def _build(run: Run, cls: type[Method], task: Task, hparams: Any, device: str) -> tuple[Method, dict[str, str]]:
    if run.checkpoint is None:
        return train.build(cls, task.info, hparams, run.seed, device)
    from dgbench.networks.checkpoints import load_into, load_state

    method, files = train.build(cls, task.info, hparams, run.seed, device, pretrained=False)
    path = Path(run.checkpoint)
    load_into(method, load_state(path), path)
    return method, files | {path.name: sha256(path)}


def _test(
    run: Run,
    method: Method,
    task: Task,
    source: preparation.PreparedDomain,
    validation: Sequence[str],
    prepared: dict[str, str],
    report: Callable[[str, int, int, str], None],
    should_stop: Callable[[], bool],
) -> list[Tested]:
    """The source's validation cases first, then every case of every target."""
    targets = [preparation.PreparedDomain(Path(prepared[d])) for d in task.targets(run.source)]
    work = [("validation", source, list(validation))] + [("target", t, list(t.cases)) for t in targets]
    total, tested = sum(len(ids) for _, _, ids in work), []
    for role, domain, ids in work:
        for case in measure_domain(method, domain, ids, role, task.structures, get_protocol(run.protocol), run.seed):
            tested.append(case)
            report("test", len(tested), total, domain.name)
            if should_stop():
                raise train.Interrupted("stopped while testing")
    return tested


def _finish(
    run: Run, folder: Path, record: dict[str, Any], method: Method, pretrained: bool, tested: Sequence[Tested]
) -> None:
    """Write what is left, and RESULT.json last: from then on the run is done."""
    if run.checkpoint is None:
        state = train.learned_state(method, pretrained)
        write_atomic(folder / "weights.safetensors", safetensors.torch.save(state))
    write_json(folder / "run.json", record)
    write_atomic(folder / "cases.csv", cases_csv(tested))
    write_predictions(tested, folder / "predictions.npz")
    history = folder / "history.jsonl"
    history.touch()
    names = ["run.json", "cases.csv", "predictions.npz", "history.jsonl"]
    names += ["weights.safetensors"] if run.checkpoint is None else []
    result = {
        "schema": SCHEMA,
        "run": str(run),
        "fingerprint": run.fingerprint,
        "ended": _now(),
        "cases": len(tested),
        "files": {n: sha256(folder / n) for n in names},
    }
    write_json(folder / "RESULT.json", result)
    for path in folder.glob("checkpoint-*"):
        path.unlink()


def needs(method: type[Method] | Method) -> dict[str, bool]:
    """What a method, or a variant of it that is built, needs to be compared fairly."""
    return {n: getattr(method, n) for n in ("needs_batch", "uses_target_masks", "uses_target_batch")}


def describe(
    run: Run, task: Task, cls: type[Method], hparams: dict[str, Any], device: str, prepared: dict[str, str]
) -> dict[str, Any]:
    """run.json: everything a reader needs to judge the run or to make it again."""
    return {
        "schema": SCHEMA,
        "task": run.task,
        "protocol": run.protocol,
        "method": run.method,
        "variant": run.variant,
        "source": run.source,
        "seed": run.seed,
        "hparams": hparams,
        "settings": dict(run.settings),
        "checkpoint": run.checkpoint and Path(run.checkpoint).name,
        "domains": list(task.domains),
        "sources": list(task.source_domains),
        "targets": list(task.targets(run.source)),
        "structures": list(task.structures),
        "image_size": task.image_size,
        "steps": task.steps,
        "unit": task.unit,
        "citation": task.citation,
        "paper": cls.paper,
        "needs": needs(cls),
        "fingerprint": run.fingerprint,
        "code": {"dgbench": dgbench.__version__, "method": code_hash(cls), **_git()},
        "data": {domain: Path(folder).name.rpartition("-")[2] for domain, folder in prepared.items()},
        "metrics_version": metrics.VERSION,
        "environment": _environment(device),
        "started": _now(),
    }


def _made_differently(folder: Path, run: Run) -> bool:
    record = read_json(folder / "run.json")
    return record is not None and record.get("fingerprint") != run.fingerprint


def _move_aside(folder: Path) -> None:
    """Keep what lies in a run's folder beside it, under a name that no table reads."""
    held = {"lease.json"}
    content = [p for p in folder.iterdir() if p.name not in held]
    if not content:
        return
    number = 1
    while (aside := folder.parent / f".{folder.name}.old{number}").exists():
        number += 1
    aside.mkdir()
    for path in content:
        shutil.move(path, aside / path.name)


def _make_deterministic(device: str) -> None:
    torch.use_deterministic_algorithms(True, warn_only=device != "cpu")
    # Or every new tensor is filled, in case someone reads it unwritten: nobody does, and it costs 7 to 9 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def _peak_memory_mb(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _environment(device: str) -> dict[str, Any]:
    packages = ("torch", "numpy", "scipy", "timm", "segment-anything", "nibabel", "pillow")
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "hardware": torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor(),
        "threads": torch.get_num_threads(),
        "packages": versions,
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git() -> dict[str, Any]:
    """Commit of the checkout dgbench runs from, and whether files differ from it; nothing for an installed package."""
    root = Path(dgbench.__file__).parent.parent
    if not (root / ".git").exists():
        return {}
    with suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", str(root)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10)
        state = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True, timeout=10)
        return {"commit": commit.stdout.strip(), "dirty": bool(state.stdout.strip())}
    return {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
