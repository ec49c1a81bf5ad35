"""The life of a run's process: train on the source, test on every target, leave the folder."""

from __future__ import annotations

import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import psutil
import safetensors.torch
import torch

from dgbench.errors import DataError, DgbenchError, RunError, UsageError, of_system
from dgbench.files import Taken, cache_folder, lock, make_folder, read_json, sha256, write_atomic, write_json
from dgbench.images.preparation import PreparedDomain
from dgbench.method import Hparams, Method
from dgbench.networks.checkpoints import load_into, load_state
from dgbench.protocol import get_protocol
from dgbench.running import flops, guard, train, trained_before
from dgbench.running.compiled import compile_network
from dgbench.running.description import describe, environment, needs, now
from dgbench.running.device import make_deterministic, peak_memory_mb
from dgbench.running.notice import Notice
from dgbench.running.plan import Run, code_of
from dgbench.running.records import SCHEMA
from dgbench.running.selection import BestOnSource
from dgbench.running.test import Tested, cases_csv, mean_dice, measure_domain, write_predictions
from dgbench.task import Task


@dataclass(frozen=True)
class Outcome:
    """How a run ended. "kept": it was there already; "skipped": another process, "submitted": a cluster makes it."""

    run: Run
    status: Literal["done", "kept", "skipped", "failed", "interrupted", "submitted"]
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
class Order:
    """What a run's process is told: the run, where its domains lie prepared, whether to start over, how to work."""

    run: Run
    prepared: dict[str, Path]
    again: bool
    device: str
    threads: int
    save_every: float
    compile: bool = False


def work(connection: Connection, order: Order) -> None:
    """Make the run, and say how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides; a terminal's Ctrl-C reaches everybody
    stop: list[bool] = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))

    def tell(news: News | Outcome) -> None:
        try:
            connection.send(news)
        except (BrokenPipeError, OSError):
            stop.append(True)  # the parent is gone: stop at the next step

    me = os.getpid()
    outcome = attempt(order, tell, lambda: bool(stop))
    if os.getpid() != me:  # a copy that the method has made of this process, and not ended
        os._exit(1)
    kill_children(me)
    tell(outcome)
    connection.close()


def kill_children(pid: int) -> None:
    """Kill what a process has started: it would keep the run's folder locked, and go on for ever."""
    with suppress(psutil.Error):
        children = psutil.Process(pid).children(recursive=True)
        for child in children:
            with suppress(psutil.Error):
                child.kill()
        psutil.wait_procs(children, timeout=5)


def attempt(
    order: Order, tell: Callable[[News], None], should_stop: Callable[[], bool], patience: float = 0.0
) -> Outcome:
    """Make the run in this process; returns how it ended. patience: seconds to wait for another process that has it."""
    run, folder = order.run, Path(order.run.folder)
    notice = Notice(folder)

    def report(phase: str, done: int, total: int, detail: str) -> None:
        notice.write(phase, done, total, detail)
        tell(News(run, phase, done, total, detail))

    try:
        with lock(folder, patience):
            make_folder(folder)  # which changes it: until then NFS may hide what another host has just written there
            if not order.again and run.status == "done":  # by another process, since it was planned
                return Outcome(run, "kept")
            try:
                if code_of(run.load_method()[0]) != run.code:
                    cause = f"the code that makes {run.variant} was changed while the run waited"
                    raise UsageError(cause, "the same command makes it with the code as it is now")
                torch.set_num_threads(order.threads)
                if order.device.startswith("cuda"):
                    torch.cuda.set_device(order.device)
                if not order.again and _earlier(order) is None:
                    trained_before.borrow(run, environment(order.device) | {"compiled": order.compile})
                make(order, train.Watch(report, should_stop, order.save_every))
            finally:
                notice.remove()
            return Outcome(run, "done")
    except Taken as taken:
        return Outcome(run, "skipped", str(taken))
    except train.Interrupted as interrupted:
        remedy = "the same command without --rerun all continues it" if order.again else "the same command continues it"
        return Outcome(run, "interrupted", str(interrupted), remedy)
    except Exception as error:
        return _failed(run, error)


def _failed(run: Run, error: Exception) -> Outcome:
    folder = Path(run.folder)
    if not isinstance(error, DgbenchError):
        error = of_system(error, folder) or error
    cause, remedy = f"{type(error).__name__}: {error}", f"the traceback is in {folder / 'traceback.txt'}"
    if isinstance(error, DgbenchError):
        cause, remedy = error.cause, error.remedy
    if isinstance(error, RunError) or not isinstance(error, DgbenchError):  # a missing file is tried again
        with suppress(OSError):
            write_atomic(folder / "traceback.txt", traceback.format_exc())
            leave_failure(run, cause, remedy)
    return Outcome(run, "failed", cause, remedy)


def leave_failure(run: Run, cause: str, remedy: str) -> None:
    """Have the run count as failed: it is made again, from its last checkpoint, only where somebody asks for that."""
    failure = {"run": str(run), "fingerprint": run.fingerprint, "cause": cause, "remedy": remedy, "at": now()}
    write_json(Path(run.folder) / "FAILED.json", failure)


def make(order: Order, watch: train.Watch) -> None:
    """Train on the source, test on the targets, write the run's folder.

    A run that was interrupted continues from its newest whole checkpoint; what an earlier finished run left is moved
    aside, never overwritten.
    """
    run, folder, task = order.run, Path(order.run.folder), order.run.load_task()
    before = _earlier(order)
    warned = make_deterministic(order.device)
    compiling = order.compile
    if before:  # rounding depends on the number of threads, and on the compiler: continue with the same
        torch.set_num_threads(before["environment"]["threads"])
        compiling = before["environment"].get("compiled", False)
    hidden = _hidden(order, task)
    source = PreparedDomain(order.prepared[run.source])  # before its file is hidden where it holds what is tested
    with guard.no_access(hidden):
        cls, hparams = run.load_method()
        record = describe(run, task, cls, hparams, order.device, order.prepared)
        record["environment"]["compiled"] = compiling
        write_json(folder / "run.json", record)
        method, files = _build(run, cls, task, hparams, order.device)
        if compiling:
            record["environment"]["compiled"] = compile_network(method)
        record |= {"needs": needs(method), "steps": method.steps}
        progress = train.Progress()
        if run.checkpoint is None:
            progress = _train(order, method, task, source, watch)
    if chosen := progress.selected.step:
        record["selected"] = {"step": chosen, "validation_dice": progress.selected.dice}
    started = time.monotonic()
    targets = [PreparedDomain(order.prepared[d]) for d in run.targets(task)]
    with guard.no_access(hidden):
        tested = _test(order, method, task, [source, *targets], watch)
    record["environment"]["nondeterministic"] = sorted(warned)
    record["initialisation"] = files or "scratch"
    record["costs"] = {
        "parameters": sum(p.numel() for p in method.parameters()),
        "trained": sum(p.numel() for p in method.parameters() if p.requires_grad) if run.checkpoint is None else 0,
        "train_seconds": round(progress.seconds, 2),
        **({"validation_seconds": round(progress.selected.seconds, 2)} if chosen else {}),
        "test_seconds": round(time.monotonic() - started, 2),
        "peak_memory_mb": round(peak_memory_mb(order.device)),
        **flops.costs(cls, task.info, hparams, 0 if run.checkpoint else method.steps),
    }
    if run.checkpoint is None:
        state = train.learned_state(method, pretrained=bool(files))
        write_atomic(folder / "weights.safetensors", safetensors.torch.save(state))
    finish(run, record, tested)


def _earlier(order: Order) -> dict[str, Any] | None:
    """run.json of what is to be continued; None after everything else was moved aside."""
    folder = Path(order.run.folder)
    record = read_json(folder / "run.json")
    schemas = [(told or {}).get("schema", SCHEMA) for told in (record, read_json(folder / "RESULT.json"))]
    if max(schemas) > SCHEMA and not order.again:
        raise DataError(
            f"{folder} was written by a newer dgbench (schema {max(schemas)})",
            "update dgbench, or choose other --results",
        )
    differs = record is not None and record.get("fingerprint") != order.run.fingerprint
    if order.again or differs or (folder / "RESULT.json").exists():
        move_aside(folder)
        record = None
    for path in (folder / "FAILED.json", folder / "traceback.txt", *folder.glob(".*.tmp")):
        path.unlink(missing_ok=True)
    return record


def move_aside(folder: Path) -> None:
    """Keep what lies in a run's folder beside it, under a name that no table reads.

    The records go last: until then the next process sees that something is to be moved, and completes the folder that a
    killed one began.
    """
    content = [p for p in folder.iterdir() if p.name != ".lock"]
    if not content:
        return
    number = 1
    while any(((aside := folder.parent / f".{folder.name}.old{number}") / p.name).exists() for p in content):
        number += 1
    aside.mkdir(exist_ok=True)
    for path in sorted(content, key=lambda p: (p.name == "RESULT.json", p.name == "run.json")):
        shutil.move(path, aside / path.name)


def start_over(folder: Path) -> None:
    """Have the next process that makes the run begin anew; raises `Taken` when one is making it."""
    with lock(folder):
        move_aside(folder)


def _build(run: Run, cls: type[Method], task: Task, hparams: Hparams, device: str) -> tuple[Method, dict[str, str]]:
    """The method before its first step, or with given weights, and {file: sha256} of what it starts from."""
    method, files = train.build(cls, task.info, hparams, run.seed, device, pretrained=run.checkpoint is None)
    if run.checkpoint is not None:
        path = Path(run.checkpoint)
        load_into(method, load_state(path), path)
        files = {path.name: sha256(path)}
    return method, files


def _hidden(order: Order, task: Task) -> guard.Hidden:
    """The targets' files, all that lies prepared but the source, and what the other runs on the task learned.

    Of a run inside a domain: the files of the fold that it is tested on, and all that lies prepared.
    """
    run = order.run
    trained = {run.source: [i for part in run.split(task) for i in part] if run.held_out else task.case_ids(run.source)}
    tested = {d: run.tested(task, d) if run.held_out else task.case_ids(d) for d in run.targets(task)}
    ours, theirs = (
        {file for domain, ids in of.items() for case_id in ids for file in task.files(domain, case_id)}
        for of in (trained, tested)
    )
    own = [] if run.held_out else [order.prepared[run.source]]
    prepared = [place for place in order.prepared.values() if place not in own]
    allowed = [*own, Path(run.folder), *([Path(run.checkpoint)] if run.checkpoint else [])]
    return guard.Hidden(theirs - ours, [cache_folder() / "prepared", *prepared], Path(run.folder).parents[2], allowed)


def _train(order: Order, method: Method, task: Task, source: PreparedDomain, watch: train.Watch) -> train.Progress:
    run = order.run
    training, validation = run.split(task)
    protocol = get_protocol(run.protocol)
    indices = source.slice_indices(training, protocol.slices == "foreground")
    if not len(indices):
        raise DataError(f"the training cases of source '{run.source}' hold no slice", "check the masks")
    selection = None
    if protocol.selection == "best-on-source":
        selection = BestOnSource(protocol.every, lambda m: mean_dice(m, source, validation, protocol, run.seed))
    slices = train.TrainingSlices(source, indices, method.foreground_share)
    return train.fit(method, slices, run.seed, Path(run.folder), watch, selection)


def _test(
    order: Order, method: Method, task: Task, domains: Sequence[PreparedDomain], watch: train.Watch
) -> list[Tested]:
    """The source's validation cases first, then those of every target. domains: the source, then the targets."""
    run, (_, validation) = order.run, order.run.split(task)
    source, *targets = domains
    parts = [("validation", source, validation)]
    parts += [("target", t, run.tested(task, t.name)) for t in targets]
    total, tested = sum(len(ids) for _, _, ids in parts), []
    for role, domain, ids in parts:
        cases = {i: task.group(domain.name, i) for i in ids}
        protocol, further = get_protocol(run.protocol), task.further_metrics
        for case in measure_domain(method, domain, cases, role, protocol, run.seed, further):
            tested.append(case)
            watch.report("test", len(tested), total, domain.name)
            if watch.should_stop():
                raise train.Interrupted("stopped while testing")
    return tested


def finish(run: Run, record: dict[str, Any], tested: Sequence[Tested]) -> None:
    """Write what is left, and RESULT.json last: from then on the run is done. Weights, if any, lie there already."""
    folder = Path(run.folder)
    write_json(folder / "run.json", record)
    write_atomic(folder / "cases.csv", cases_csv(tested))
    write_predictions(tested, folder / "predictions.npz")
    (folder / "history.jsonl").touch()
    names = ["run.json", "cases.csv", "predictions.npz", "history.jsonl"]
    names += [n for n in ("weights.safetensors",) if (folder / n).exists()]
    result = {
        "schema": SCHEMA,
        "run": str(run),
        "fingerprint": run.fingerprint,
        "ended": now(),
        "cases": len(tested),
        "files": {n: sha256(folder / n) for n in names},
    }
    write_json(folder / "RESULT.json", result)
    tidy(folder)


def tidy(folder: Path) -> None:
    """Remove what only a run in the making needs; one that was killed just after its end has left it."""
    for path in (*folder.glob("checkpoint-*"), *folder.glob(".*.tmp"), folder / "status.json"):
        path.unlink(missing_ok=True)
