"""Runs as tasks of SLURM job arrays, through submitit: one run a task, continued wherever SLURM starts it again."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock

from dgbench.errors import DgbenchError, StillQueued, UsageError
from dgbench.files import Taken, cache_folder, make_folder, read_json, write_json
from dgbench.images.preparation import prepare
from dgbench.running import squeue
from dgbench.running.device import all_devices
from dgbench.running.plan import Run
from dgbench.running.worker import News, Order, Outcome, attempt, start_over

# Options of sbatch that are not the user's, and how to get what they are wanted for.
OURS = {
    **dict.fromkeys(("nodes", "ntasks", "ntasks_per_node"), "a run is one process on one node"),
    **dict.fromkeys(("array", "wrap", "requeue", "no_requeue"), "each run is a task; --jobs says how many at once"),
    **dict.fromkeys(("output", "error", "open_mode", "chdir"), f"what runs print lies in the folder {squeue.PLACE}"),
}
PATIENCE = 300.0  # seconds; a file server keeps the lock of a host that died for as long as its lease
OWED = 15.0  # seconds that a shared file system may take to show what another host wrote


# --- on a node -------------------------------------------------------------------------------------------------------


@dataclass
class Errand:
    """One order as a task of submitit: called on a node, and again whenever SLURM has started it anew.

    Shortly before the time limit SLURM sends a signal: the run stops after its step and its checkpoint is written;
    submitit's own handler then has the task queued again, with what `checkpoint` gives it. SIGTERM, of `scancel` and of
    a pre-emption, writes the checkpoint as well, and leaves it to SLURM whether the task is queued again.
    """

    order: Order
    reached: str = ""  # the newest checkpoint when its time was up before

    def __call__(self) -> Outcome:
        """Make the run; returns how it ended, or not at all when the task was queued again."""
        time_is_up = signal.getsignal(_warning())
        received: list[int] = []
        for number in {signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, _warning()}:
            signal.signal(number, lambda number, _: received.append(number))
        try:
            order = _at_home(self.order)
        except DgbenchError as error:
            return Outcome(self.order.run, "failed", error.cause, error.remedy)
        restarted = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        outcome = attempt(order, lambda news: None, lambda: bool(received), PATIENCE if restarted else 0.0)
        if outcome.status != "interrupted" or set(received) == {signal.SIGTERM}:
            return outcome
        reached = max((path.name for path in Path(order.run.folder).glob("checkpoint-*.safetensors")), default="")
        if reached == self.reached:
            cause = f"its time limit ends before it gets any further ({outcome.message})"
            return Outcome(order.run, "failed", cause, "ask for more with --slurm time=HH:MM:SS")
        self.reached = reached
        assert callable(time_is_up)
        time_is_up(_warning(), None)
        return outcome

    def checkpoint(self) -> Any:
        """What submitit queues again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _warning() -> int:
    """The signal that submitit has SLURM send: SIGUSR2, or what $SUBMITIT_PREEMPT_SIGNAL names."""
    from submitit.slurm.slurm import SlurmJobEnvironment

    return int(getattr(signal, f"SIG{SlurmJobEnvironment.USR_SIG}"))


def _at_home(order: Order) -> Order:
    """The order as this node needs it: its own device, and domains prepared here if its cache is not shared.

    Raises `UsageError` when code, settings or images are not those that were submitted: a task may wait for days.
    """
    run = order.run
    _, hparams = run.load_method()
    task = run.load_task()
    root = make_folder(cache_folder() / "prepared")
    with filelock.FileLock(root / ".preparing"):  # several tasks may begin on a node at once
        now = run.planned_again(task)
    if now is None or now.fingerprint != run.fingerprint:
        raise UsageError("code or images changed after it was submitted", "the same command submits it as it is now")
    prepared = order.prepared
    if not all(place.is_dir() for place in prepared.values()):
        with filelock.FileLock(root / ".preparing"):
            size = hparams.image_size or task.image_size
            prepared = {domain: prepare(task, domain, size).folder for domain in prepared}
    return replace(order, device=all_devices(order.device)[0], prepared=prepared)


# --- what is asked for -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class Needs:
    """What a task asks of SLURM: minutes until it is queued again, gigabytes of memory, cores."""

    minutes: int = 240
    gigabytes: int = 8
    cores: int = 1

    def options(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """Options of sbatch; those that the user gave come first."""
        own = {"time": self.minutes, "mem": f"{self.gigabytes}G", "cpus_per_task": self.cores}
        if asked.keys() & {"mem_per_cpu", "mem_per_gpu"}:
            del own["mem"]
        return {**own, "job_name": "dgbench", "requeue": True, **asked}


def parse(text: str) -> dict[str, str]:
    """`partition=gpu,time=04:00:00` as options of sbatch, by their long names; a part without = goes on with the value.

    Raises `UsageError` for what is no option and for those in `OURS`.
    """
    options: dict[str, str] = {}
    name = ""
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if equals and re.fullmatch(r"(--)?[a-z][a-z_-]*", key):
            name = key.removeprefix("--").replace("-", "_")
            options[name] = value
        elif name:
            options[name] += f",{part}"
        else:
            raise UsageError(f"--slurm {text}: '{part}' has no value", "e.g. --slurm partition=gpu,time=04:00:00")
    for name in options.keys() & OURS:
        raise UsageError(f"--slurm {name} is not to be chosen", OURS[name])
    return options


def needs(run: Run, cores: int) -> Needs:
    """From finished runs of the method on the task beside it: twice the longest time, 1.5 times the most memory.

    Runs of the same variant are believed first. Where there is none: four hours and 8 GB. Too little time costs
    nothing but a new start; and rounding (half hours, powers of two) lets many runs share an array.
    """
    folder = results_of(run) / run.task
    same = folder.glob(f"*/{_literal(run.variant)}/*/RESULT.json")
    default, others = (folder.glob(f"*/{run.method}{rest}/*/RESULT.json") for rest in ("", "[[]*"))
    for paths in (same, itertools.chain(default, others)):
        records = [r for path in itertools.islice(paths, 30) if (r := read_json(path.parent / "run.json"))]
        if records:
            seconds = max(r["costs"]["train_seconds"] + r["costs"]["test_seconds"] for r in records)
            on_cpu = [r["costs"]["peak_memory_mb"] for r in records if r["environment"]["device"] == "cpu"]
            gigabytes = 2 ** max(1, math.ceil(math.log2(1.5 * max(on_cpu) / 1024))) if on_cpu else Needs.gigabytes
            return Needs(30 * math.ceil((2 * seconds / 60 + 5) / 30), gigabytes, cores)
    return Needs(cores=cores)


def _literal(name: str) -> str:
    """A name as part of a glob pattern that finds nothing else."""
    return re.sub(r"([*?[])", r"[\1]", name)


def results_of(run: Run) -> Path:
    """The folder of results that a run's folder lies in."""
    return Path(run.folder).parents[3]


@dataclass(frozen=True)
class Array:
    """A job array before it is submitted. at_once: how many of its tasks may run at the same time.

    places: of its runs in the list. after: the place among the arrays of one that has to end first.
    """

    needs: Needs
    places: tuple[int, ...]
    at_once: int
    after: int | None


def arrays(asking: Sequence[Needs], jobs: int | None, limit: int) -> list[Array]:
    """Which runs go into which array: those with the same needs, at most `limit`, and no more than `jobs` at once.

    With fewer jobs than arrays, some begin when another one has ended.
    """
    by_needs: dict[Needs, list[int]] = defaultdict(list)
    for place, each in enumerate(asking):
        by_needs[each].append(place)
    cut = [(n, tuple(p[i : i + limit])) for n, p in sorted(by_needs.items()) for i in range(0, len(p), limit)]
    beside = min(jobs or len(cut), len(cut))
    made = []
    for i, (each, places) in enumerate(cut):
        share = len(places) if jobs is None else jobs // beside + (i % beside < jobs % beside)
        made.append(Array(each, places, min(share, len(places)), i - beside if i >= beside else None))
    return made


# --- on the login node -----------------------------------------------------------------------------------------------


def proposal(runs: Sequence[Run], jobs: int | None, asked: Mapping[str, str], cores: int = 1) -> list[str]:
    """What would be submitted for these runs, a sentence for each array. Raises `UsageError` if SLURM would refuse."""
    sentences = []
    for array in _arrays(runs, jobs, asked, cores):
        options = " ".join(_flags(array.needs.options(asked)))
        after = "" if array.after is None else f", after array {array.after + 1}"
        sentences.append(f"array of {len(array.places)} tasks, {array.at_once} at once{after}: sbatch {options}")
    return sentences


def _arrays(runs: Sequence[Run], jobs: int | None, asked: Mapping[str, str], cores: int) -> list[Array]:
    by_variant: dict[Path, Needs] = {}
    for run in runs:
        if (variant := Path(run.folder).parent) not in by_variant:
            by_variant[variant] = needs(run, cores)
    asking = [by_variant[Path(run.folder).parent] for run in runs]
    for options in {json.dumps(each.options(asked)): each.options(asked) for each in asking}.values():
        squeue.ask("sbatch", "--test-only", "--wrap=true", *_flags(options))  # its refusal repeats what was asked
    return arrays(asking, jobs, squeue.array_limit())


def _flags(options: Mapping[str, Any]) -> list[str]:
    names = {name: "--" + name.replace("_", "-") for name in options}
    return [names[name] if value is True else f"{names[name]}={value}" for name, value in options.items()]


def work_off(
    orders: Sequence[Order],
    jobs: int | None,
    asked: Mapping[str, str],
    detach: bool,
    tell: Callable[[News | Outcome | str], None],
) -> None:
    """Have SLURM make each order, `jobs` at a time; what they say goes to `tell`, their outcomes last.

    Orders that wait in the queue already, from a command before, are waited for and not submitted again. With `detach`
    each one's outcome is "submitted". Raises `UsageError` before anything is submitted where SLURM would refuse, and
    `StillQueued` on Ctrl-C: the tasks stay in the queue.
    """
    _require_submitit()
    results = results_of(orders[0].run)
    squeue.sweep(results)
    living = squeue.living(results)
    new = [order for order in orders if Path(order.run.folder) not in living]
    planned = _arrays([order.run for order in new], jobs, asked, new[0].threads) if new else []
    new = _make_room(new, tell)
    desk = _Desk(results, asked, tell, [(n, a, [new[i] for i in a.places]) for n, a in enumerate(planned)])
    for order in orders:
        if found := living.get(Path(order.run.folder)):
            desk.queued[found[1].job] = (found[0].folder, order.run)
    desk.hand_in()
    if detach:
        desk.leave()
        return
    try:
        desk.wait()
    except KeyboardInterrupt:
        raise StillQueued(list(desk.queued)) from None
    squeue.sweep(results)


def _require_submitit() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise UsageError("--launcher slurm needs submitit", "pip install 'dgbench[slurm]'") from None


def _make_room(orders: Sequence[Order], tell: Callable[[str], None]) -> list[Order]:
    """Move aside what is to be made again, once and here: a task that SLURM starts anew must find its checkpoint."""
    for order in orders:
        if order.again:
            try:
                start_over(Path(order.run.folder))
            except Taken as taken:  # its task finds the same, or the run done
                tell(f"{order.run} is not started over: {taken}")
    return [replace(order, again=False) for order in orders]


@dataclass
class _Desk:
    """Where orders are handed in, waited for, and given back as outcomes. queued: {job: (folder of its array, run)}."""

    results: Path
    asked: Mapping[str, str]
    tell: Callable[[News | Outcome | str], None]
    waiting: list[tuple[int, Array, list[Order]]]  # with the array's place among all
    queued: dict[str, tuple[Path, Run]] = field(default_factory=dict)
    numbers: dict[int, list[str]] = field(default_factory=dict)  # SLURM's, by the array's place
    missed: dict[str, float] = field(default_factory=dict)  # tasks that ended and left nothing; since when

    def hand_in(self) -> None:
        """Submit what waits, in smaller parts where the cluster's limits ask for it; what is too much waits on."""
        while self.waiting:
            place, array, orders = self.waiting[0]
            try:
                folder, jobs = self._submit(place, array, orders)
            except UsageError as error:
                if not re.search(r"limit|too many|queue full", error.cause, re.IGNORECASE):
                    raise
                if len(orders) > 1:
                    half = len(orders) // 2
                    self.waiting[:1] = [(place, array, orders[:half]), (place, array, orders[half:])]
                    continue
                if not self.queued:
                    raise
                return
            del self.waiting[0]
            self.queued.update(zip(jobs, ((folder, order.run) for order in orders), strict=True))
            number = jobs[0].partition("_")[0]
            self.numbers.setdefault(place, []).append(number)
            self.tell(f"submitted {len(jobs)} runs as job {number}, at most {array.at_once} at once")

    def _submit(self, place: int, array: Array, orders: Sequence[Order]) -> tuple[Path, list[str]]:
        import submitit
        from submitit.core.utils import FailedJobError

        options = array.needs.options(self.asked)
        first = [] if array.after is None else list(self.numbers[array.after])
        if array.at_once < len(array.places):  # its parts have to share what it may have at once
            first += self.numbers.get(place, [])
        if first:
            before = ":".join(("afterany", *first))
            options["dependency"] = ",".join(filter(None, (options.get("dependency"), before)))
        folder = make_folder(self.results / squeue.PLACE / uuid.uuid4().hex[:12])
        try:
            executor = submitit.SlurmExecutor(folder, max_num_timeout=10**9)
            executor.update_parameters(array_parallelism=array.at_once, additional_parameters=options)
            with redirect_stderr(io.StringIO()):  # the library repeats there what it raises
                jobs = [job.job_id for job in executor.submit_array([Errand(order) for order in orders])]
            made = zip(jobs, (str(Path(order.run.folder).relative_to(self.results)) for order in orders), strict=True)
            write_json(folder / "runs.json", dict(made))
        except FailedJobError as error:
            shutil.rmtree(folder)
            raise UsageError(f"sbatch: {squeue.last_words(str(error))}", squeue.HELP) from None
        return folder, jobs

    def leave(self) -> None:
        """Give back everything as submitted; what the cluster did not take has to be submitted later."""
        for job, (_, run) in self.queued.items():
            self.tell(Outcome(run, "submitted", f"job {job}"))
        for _, _, orders in self.waiting:
            for order in orders:
                cause = "the cluster takes no more tasks of yours at a time"
                self.tell(Outcome(order.run, "interrupted", cause, "the same command submits the rest later"))

    def wait(self) -> None:
        """Until every task has ended, looking at the queue after a tenth of the time waited: every 1 to 30 seconds."""
        began = time.monotonic()
        while self.queued or self.waiting:
            time.sleep(min(30.0, max(1.0, (time.monotonic() - began) / 10)))
            try:
                known = squeue.queue()
            except UsageError:  # a controller that is being restarted; tasks do without it
                continue
            for job, (folder, run) in list(self.queued.items()):
                task = known.get(job)
                if task is not None and not task.ended:
                    self._show(run, task)
                elif outcome := self._outcome(job, folder, run, "" if task is None else task.state):
                    del self.queued[job]
                    self.tell(outcome)
            self.hand_in()

    def _show(self, run: Run, task: squeue.Queued) -> None:
        notice = read_json(Path(run.folder) / "status.json") if task.state == "RUNNING" else None
        if notice:
            detail = f"{notice['detail']} on {task.node}"
            self.tell(News(run, notice["phase"], notice["done"], notice["total"], detail))

    def _outcome(self, job: str, folder: Path, run: Run, state: str) -> Outcome | None:
        """What the task returned; None while a slow file system may still owe it."""
        import submitit

        handle: submitit.SlurmJob[Outcome] = submitit.SlurmJob(folder, job)
        with suppress(OSError):  # a folder that is changed from here is read anew by NFS
            folder.chmod(folder.stat().st_mode)
        if handle.paths.result_pickle.exists():
            try:
                return handle.result()
            except submitit.core.utils.UncompletedJobError:
                cause = "its task ended in an error of its own"
                return Outcome(run, "failed", cause, f"see {handle.paths.stderr}; the same command tries again")
        if time.monotonic() - self.missed.setdefault(job, time.monotonic()) < OWED and state != "CANCELLED":
            return None
        if run.status == "done":
            return Outcome(run, "done")
        cause = f"SLURM ended its task: {state.lower().replace('_', ' ') or 'for a reason it has forgotten'}"
        return Outcome(run, "interrupted", cause, f"see {handle.paths.stderr}; the same command continues it")
