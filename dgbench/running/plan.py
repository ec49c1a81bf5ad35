"""What a run is: (task, protocol, method variant, source, seed), its plan and the folder it leaves."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dgbench import metrics, registry
from dgbench.errors import DataError, DgbenchError, UsageError, require
from dgbench.files import read_json, sha256
from dgbench.fingerprint import of_code
from dgbench.images.find_task import get_task
from dgbench.images.preparation import code_fingerprint, content_fingerprint
from dgbench.method import Hparams, Method, changed_hparams, resolve_hparams
from dgbench.names import check
from dgbench.networks import weights
from dgbench.protocol import get_protocol
from dgbench.running import flops
from dgbench.running.records import SCHEMA, broken_files
from dgbench.settings import fields, number, plain, spelled
from dgbench.task import Task

Status = Literal["missing", "stale", "failed", "interrupted", "done"]
Rerun = Literal["missing", "failed", "all"]


@dataclass(frozen=True)
class Run:
    """One run, as plain values that travel to another process. Paths are absolute."""

    task: str  # the task's name
    task_location: str  # what `get_task` finds it by: its name or its folder
    data: str | None
    protocol: str
    method: str
    settings: tuple[tuple[str, str], ...]
    variant: str
    source: str
    seed: int
    checkpoint: str | None
    plugins: tuple[str, ...]
    folder: str
    fingerprint: str  # of code and data: a finished run with another one is stale
    steps: int | None = None  # of a run whose protocol gives a budget of compute; None: those of the settings
    held_out: int = 0  # which fold of the source is tested, from 1; 0: none, the source's targets are
    code: str = ""  # what `code_of` gave when the run was planned

    def __str__(self) -> str:
        return f"{self.task}/{self.protocol}/{self.variant}/{run_place(self.source, self.seed, self.held_out)}"

    def targets(self, task: Task) -> tuple[str, ...]:
        """The domains that it is tested on."""
        return (self.source,) if self.held_out else task.targets(self.source)

    def split(self, task: Task) -> tuple[list[str], list[str]]:
        """Ids of the source's cases that it trains on, and of those that it validates on; there are none of a fold."""
        if not self.held_out:
            return task.split(self.source)
        folds = task.folds(self.source, get_protocol(self.protocol).folds)
        return sorted(i for n, part in enumerate(folds, 1) if n != self.held_out for i in part), []

    def tested(self, task: Task, target: str) -> list[str]:
        """Ids of a target's cases that it is tested on."""
        if not self.held_out:
            return task.tested(self.source, target)
        return task.folds(self.source, get_protocol(self.protocol).folds)[self.held_out - 1]

    def load_task(self) -> Task:
        """The task, found again by its location, or in a plug-in by its name."""
        self._add_plugins()
        return get_task(self.task_location, Path(self.data) if self.data else None, planned=True)

    def load_method(self) -> tuple[type[Method], Hparams]:
        """The method's class and the settings of this run."""
        self._add_plugins()
        cls = registry.get_method(self.method)
        hparams = resolve_hparams(cls, self.task, dict(self.settings), get_protocol(self.protocol).training)
        return cls, replace(hparams, steps=self.steps or hparams.steps)

    def _add_plugins(self) -> None:
        for plugin in self.plugins:
            registry.add_plugin(Path(plugin))

    def planned_again(self, task: Task) -> Run | None:
        """The same run planned now: its fingerprint is that of today's code and images. None: its fold is no more."""
        again = plan(
            task,
            [self.method],
            sources=[self.source],
            seeds=[self.seed],
            protocol=self.protocol,
            settings=dict(self.settings),
            checkpoint=None if self.checkpoint is None else Path(self.checkpoint),
            results=Path(self.folder).parents[3],
        )
        return next((run for run in again if run.held_out == self.held_out), None)

    @property
    def status(self) -> Status:
        """What the folder holds. A run is done if and only if RESULT.json verifies and code and data are the same."""
        folder = Path(self.folder)
        result = read_json(folder / "RESULT.json")
        if result is not None and not broken_files(folder, result):
            return "done" if result.get("fingerprint") == self.fingerprint else "stale"
        failure = read_json(folder / "FAILED.json")
        if failure is not None and failure.get("fingerprint") == self.fingerprint:  # else it may be mended by now
            return "failed"
        return "interrupted" if (folder / "run.json").is_file() else "missing"


def plan(
    task: Task,
    methods: Sequence[str],
    *,
    sources: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    protocol: str = "sdg",
    settings: dict[str, str] | None = None,
    checkpoint: Path | None = None,
    results: Path = Path("results"),
    broken: dict[str, Exception] | None = None,
) -> list[Run]:
    """The runs of some methods on a task: every source (or those given) with every seed. Nothing is run.

    A method may be given with settings of its own, `dapsam[steps=500]`, which go before `settings`.

    Images that were not seen before are prepared, for it is their content that tells which runs are done. Raises
    `UsageError` for unknown names and `DataError` for data that are not there. broken: takes the methods that cannot be
    imported, or counted for want of their weights, with why, while the others are planned; None: that is raised too.
    """
    if not methods:
        raise UsageError("no method is named", "give one with --method; `dgbench list methods` shows all")
    fixed = get_protocol(protocol).training
    asked = set(settings or {}).union(*(read_variant(named)[1] for named in methods))
    if get_protocol(protocol).budget == "compute" and "steps" in asked:
        raise UsageError(
            f"protocol {protocol} gives a budget of compute, and the steps follow from it",
            "leave --set steps out, or choose a protocol of equal steps",
        )
    folds = get_protocol(protocol).folds
    trainable = _targets(task) if folds else task.source_domains
    _check_task(task, sources, trainable)
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise UsageError(f"no such checkpoint: {checkpoint}", "give the path of a .pth or .safetensors file")
    if checkpoint is not None and len(sources) != 1:
        raise UsageError("which domain were these weights trained on?", "name it with --source: it is not tested")
    if checkpoint is not None and folds:
        raise UsageError(
            f"protocol {protocol} trains on every fold but the tested one: given weights have seen them all",
            "leave --checkpoint out, or choose another protocol",
        )
    runs: dict[str, Run] = {}  # by folder: two spellings of a variant are one run
    images: dict[str, str] = {}  # {domain: fingerprint}: looked at once, for all runs
    for named in methods:
        name, own = read_variant(named)
        given = (settings or {}) | own
        try:
            cls = registry.get_method(name)
        except Exception as error:
            if broken is None or isinstance(error, UsageError):
                raise
            broken[name] = error
            continue
        hparams = resolve_hparams(cls, task.name, given, fixed)
        changed: dict[str, Any] = changed_hparams(cls, task.name, hparams, fixed)
        if checkpoint is not None:
            changed["checkpoint"] = sha256(Path(checkpoint))[:8]
        variant = variant_name(name, changed)
        steps = None
        if get_protocol(protocol).budget == "compute" and checkpoint is None:
            try:
                steps = affordable_steps(cls, task, hparams)
            except DataError as error:
                if broken is None:
                    raise
                broken[name] = error
                continue
            hparams = replace(hparams, steps=steps or hparams.steps)
        folder = Path(results).resolve() / task.name / protocol / variant
        code = code_of(cls)
        decisive = _decisive(cls, hparams, task, protocol, code)
        size = hparams.image_size or task.image_size
        for source in sources or trainable:
            planned = Run(
                task=task.name,
                task_location=task.location,
                data=str(task.data.resolve()) if task.data else None,
                protocol=protocol,
                method=name,
                settings=tuple(sorted(given.items())),
                variant=variant,
                source=source,
                seed=0,
                checkpoint=str(Path(checkpoint).resolve()) if checkpoint else None,
                plugins=tuple(str(p) for p in registry.METHODS.extra),
                folder="",
                fingerprint="",
                steps=steps,
                code=code,
            )
            for held_out in range(1, len(task.folds(source, folds)) + 1) if folds else (0,):
                first = replace(planned, held_out=held_out)
                first = replace(first, fingerprint=_fingerprint(decisive, task, first, images, size))
                for n in seeds:
                    into = str(folder / run_place(safe(source), n, held_out))
                    runs[into] = replace(first, seed=n, folder=into)
    return list(runs.values())


def affordable_steps(cls: type[Method], task: Task, hparams: Hparams) -> int | None:
    """As many steps as compute what plain training does with its defaults on this task, at least one.

    None, the method's own number, where a step computes nothing that is counted. Raises `UsageError` for a method
    whose steps cannot be counted.
    """
    plain = registry.budget_method()
    theirs = resolve_hparams(plain, task.name)
    budget = (theirs.steps or task.steps) * flops.train_step(plain, task.info, theirs)
    try:
        step = flops.train_step(cls, task.info, hparams)
    except DgbenchError:
        raise
    except Exception as error:
        raise UsageError(
            f"the cost of a step of {cls.__name__} cannot be counted: {type(error).__name__}: {error}",
            "`dgbench check` may tell why; or choose a protocol of equal steps",
        ) from error
    return max(1, budget // step) if step else None


def _targets(task: Task) -> list[str]:
    """The domains that some source is tested on."""
    found = {d for source in task.source_domains for d in task.targets(source)}
    return [d for d in task.domains if d in found]


def _check_task(task: Task, sources: Sequence[str], trainable: Sequence[str]) -> None:
    for what in ("image_size", "steps"):
        number(f"{what} of task {task.name}", getattr(task, what), int, fields(Hparams)[what].range)
    check(task.domains, "domain", f"task {task.name}")
    check(task.structures, "structure", f"task {task.name}")
    for source in sources:
        known = "source" if source in task.domains else "domain"
        require(source, trainable, f"{known} of task {task.name}")
    if len(task.domains) < 2:
        raise DataError(
            f"task '{task.name}' has one domain only: {', '.join(task.domains) or 'none'}",
            "generalization is measured on other domains: add a second one",
        )


def code_of(cls: type[Method]) -> str:
    """A digest of what makes the runs of a method: its own code, and that of training and testing."""
    return of_code("dgbench.running.worker:make", cls)


def _decisive(cls: type[Method], hparams: Hparams, task: Task, protocol: str, code: str) -> list[Any]:
    """What decides a run's numbers besides the images: code, settings, and the files that these name.

    Of the task count its values, not its code: what code gives are images and lists of cases, and these count by
    themselves. Not counted: versions of packages, which are in the record, and whose rounding `scores.agreement`
    judges; published weights, which are known by their checksum in the code, or which the hub may replace.
    """
    order = [c.__name__ for c in cls.__mro__]  # a combination of two methods is no class in any file
    values = plain(hparams)
    texts = {name: value for name, value in values.items() if isinstance(value, str)}
    given = {name: weights.checksum(Path(text)) for name, text in texts.items() if Path(text).is_file()}
    settings = [values, given, task.image_size, task.steps, asdict(get_protocol(protocol))]
    settings += [list(task.further_metrics)] if task.further_metrics else []
    return [SCHEMA, metrics.VERSION, [code, code_fingerprint()], order, settings, list(task.structures), task.unit]


def _fingerprint(decisive: list[Any], task: Task, run: Run, images: dict[str, str], size: int) -> str:
    domains = (run.source, *(d for d in run.targets(task) if d != run.source))
    for domain in (d for d in domains if d not in images):
        images[domain] = content_fingerprint(task, domain, size)
    split: Any = None
    cases = {d: task.case_ids(d) for d in domains}
    groups: list[tuple[str, str, str]] = []
    with suppress(DataError):  # too few cases: the run will say so
        split = run.split(task)
        cases |= {d: run.tested(task, d) for d in run.targets(task)}
        groups = [(d, i, task.group(d, i)) for d in domains for i in cases[d]]
    of_domains: list[Any] = [(d, images[d], cases[d]) for d in domains]
    of_domains += [groups] if any(group != case_id for _, case_id, group in groups) else []  # intervals rest on them
    return hashlib.sha256(json.dumps([decisive, of_domains, split]).encode()).hexdigest()


def variant_name(method: str, changed: dict[str, Any]) -> str:
    """`dapsam[steps=500]`: the method and what differs from its defaults. Safe as a folder's name."""
    pairs = ";".join(f"{key}={safe(spelled(value))}" for key, value in sorted(changed.items()))
    name = f"{method}[{pairs}]" if pairs else method
    if len(name.encode()) > 150:  # file systems allow 255
        start = name.encode()[:130].decode(errors="ignore")
        name = f"{start}~{hashlib.sha256(name.encode()).hexdigest()[:8]}{']' if pairs else ''}"
    return name


def read_variant(name: str) -> tuple[str, dict[str, str]]:
    """The method and the settings of `dapsam[steps=500]`, by which a row makes its runs. Inverse of `variant_name`.

    Raises `UsageError` for what is no such name, and for one that a hash has shortened.
    """
    method, opened, inside = name.partition("[")
    if not opened:
        return name, {}
    if "~" in name:
        raise UsageError(f"'{name}' is shortened: its ~ stands for a hash", "give the settings in full, with --set")
    pairs = [pair.partition("=") for pair in inside.removesuffix("]").split(";")]
    if not inside.endswith("]") or not all(key and sign for key, sign, _ in pairs):
        raise UsageError(f"'{name}' is no method with settings", f"e.g. --method '{method}[steps=500;batch_size=4]'")
    settings = {key.strip(): value for key, _, value in pairs}
    if len(settings) < len(pairs):
        raise UsageError(f"'{name}' gives a setting twice", "give each once")
    return method, settings


def run_place(source: str, seed: int, held_out: int = 0) -> str:
    """`A-seed0`, or `A-fold1-seed0` of a run inside a domain: a run within its variant."""
    return f"{source}-fold{held_out}-seed{seed}" if held_out else f"{source}-seed{seed}"


def safe(text: str) -> str:
    """`text` as part of a folder's name; what had to be changed is told apart by a short hash."""
    clean = re.sub(r"[^\w.,+-]", "_", text)
    if clean != text or clean.startswith("."):
        return f"{clean.lstrip('.')}~{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return clean
