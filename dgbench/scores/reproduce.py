"""Reproduce: make a finished run again from its record, and say whether the numbers came out again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from dgbench import registry
from dgbench.errors import RunError, UsageError
from dgbench.files import read_json
from dgbench.images.find_task import get_task, is_named
from dgbench.running.records import RunRecord, find_runs, read_run
from dgbench.scores.study import run_costs, run_scores

if TYPE_CHECKING:
    import pandas as pd

    from dgbench.running.launchers import News, Outcome
    from dgbench.running.plan import Rerun, Run
    from dgbench.task import Task

MARGIN = 0.01  # of Dice
# What a record says besides: who the run is, what it took, what a reader looks up, and a hash over the other entries.
NOT_COMPARED = {"started", "costs", "fingerprint", "citation", "paper", "variant", "needs"}
NAMES = {"data": "images of domain", "packages": "package", "hparams": "setting", "settings": "--set"}


@dataclass(frozen=True)
class Reproduction:
    """A run (`then`) and its repetition (`now`), and what came of it.

    verdict: "identical": cases.csv and the weights are the same bytes. "within interval": they are not, but the 95 %
    t-interval of the mean difference in Dice between the same target cases (or groups of them) contains 0, and that
    mean is at most 1 Dice point (`MARGIN`) away from 0; the first alone would pass a large difference on few cases, the
    second alone a small one that goes the same way everywhere. "different": neither.
    difference, low, high: mean over target cases of Dice now minus then, each case as `study.run_scores` has it, in
    [-1, 1], with its interval; NaN when not the same cases have one, as where a structure that is not there was found
    in one of the two.
    changed: what `differences` says of the two records, (what, then, now).
    """

    then: RunRecord
    now: RunRecord
    verdict: Literal["identical", "within interval", "different"]
    difference: float
    low: float
    high: float
    cases: int
    changed: list[tuple[str, str, str]]

    def sentence(self) -> str:
        """The verdict and the numbers it rests on."""
        if self.verdict == "identical":
            return f"identical: the same bytes for {self.cases} target cases and for all weights"
        if math.isnan(self.difference):
            return "different: the two runs have scores of different cases"
        numbers = f"{100 * self.difference:+.3f} points (95 % interval {100 * self.low:+.3f} to {100 * self.high:+.3f})"
        return f"{self.verdict}: Dice changed by {numbers} over {self.cases} target cases"


def reproduce(
    folder: Path,
    out: Path | None = None,
    *,
    task: str | None = None,
    data: Path | None = None,
    checkpoint: Path | None = None,
    device: str | None = None,
    report: Callable[[News | Outcome | str], None] = lambda news: None,
) -> Reproduction:
    """Make the run in `folder` again, with its settings, seed and number of threads, and compare.

    out: folder of results for the repetition; default a hidden one beside `folder`, which no table reads. A repetition
    that was interrupted continues. A record holds no path, so what was not installed must be named again: task, the
    folder of images; data, where the task's files lie; checkpoint, the weights that were tested; and a method of
    one's own by `registry.add_plugin`. device: default the one of the record.

    Raises `UsageError` when the run, its method, its task or its checkpoint cannot be found or is another one,
    `DataError` for data that are not there, and `RunError` when the repetition fails.
    """
    from dgbench.running import launchers

    then = read_run(folder)
    if then.external:
        raise UsageError(f"{folder} was not trained here", "score the predictions again: `dgbench score`")
    given = _Given(out or _again(folder), task or then.task, data, checkpoint)
    loaded, run = _planned(folder, then, given)
    environment = then.record["environment"]
    options = launchers.Options(
        device=device or environment["device"],
        threads=environment["threads"],
        compile=environment.get("compiled", False),
    )
    rerun: Rerun = "all" if run.status == "done" else "failed"
    (outcome,) = launchers.launch(loaded, [run], rerun, options, report)
    if outcome.status != "done":
        raise RunError(f"the repetition {outcome.status}: {outcome.message}", outcome.remedy)
    return compare(then, read_run(Path(run.folder)))


def _again(folder: Path) -> Path:
    """Where a run is made again, as results of its own that no table reads."""
    return folder.resolve().parent / f".{folder.resolve().name}.again"


def repetition(run: RunRecord) -> Reproduction | None:
    """What came of making a run again, where that was done beside it and is finished; else None."""
    found = find_runs(_again(run.path))
    return compare(run, read_run(found[0])) if found else None


class _Given(NamedTuple):
    """What a record does not hold: where the repetition goes, and where its task, data and checkpoint are."""

    out: Path
    task: str
    data: Path | None
    checkpoint: Path | None


def _planned(folder: Path, then: RunRecord, given: _Given) -> tuple[Task, Run]:
    """The task and the plan of the repetition."""
    from dgbench.running import plan

    told = then.record
    if given.task == then.task and not is_named(then.task):
        raise UsageError(f"task '{then.task}' of {folder} is not known", "give its folder of images with --task PATH")
    if then.method.partition("+")[0] not in registry.METHODS.names():
        raise UsageError(f"method '{then.method}' of {folder} is not known", "give its file with --plugin")
    if told["checkpoint"] and given.checkpoint is None:
        raise UsageError(f"{folder} tested given weights, {told['checkpoint']}", "give them with --checkpoint FILE")
    loaded = get_task(given.task, given.data)
    runs = plan.plan(
        loaded,
        [then.method],
        sources=[then.source],
        seeds=[then.seed],
        protocol=then.protocol,
        settings=told["settings"],
        checkpoint=given.checkpoint,
        results=given.out,
    )
    run = next(r for r in runs if r.held_out in (0, told.get("fold")))
    if (run.task, run.variant) != (then.task, then.variant):
        was, would = f"{then.task}/{then.variant}", f"{run.task}/{run.variant}"
        raise UsageError(f"{folder} is {was}; with what is given it would be {would}", "give its own task and weights")
    if Path(run.folder).resolve() == folder.resolve():
        raise UsageError(f"the repetition would replace {folder}", "give another folder of results")
    return loaded, run


def compare(then: RunRecord, now: RunRecord) -> Reproduction:
    """Compare two runs of one (task, protocol, variant, source, seed); see `Reproduction` for the rule."""
    changed = differences(then.record, now.record)
    names = [set(r.cases[["domain", "case", "structure"]].itertuples(index=False, name=None)) for r in (then, now)]
    one, other = (_net_scores(r) for r in (then, now))
    checksums = [(read_json(r.path / "RESULT.json") or {})["files"] for r in (then, now)]
    if all(checksums[0].get(name) == checksums[1].get(name) for name in ("cases.csv", "weights.safetensors")):
        return Reproduction(then, now, "identical", 0.0, 0.0, 0.0, len(one), changed)
    if names[0] != names[1] or not one.index.equals(other.index):
        return Reproduction(then, now, "different", math.nan, math.nan, math.nan, len(one), changed)
    mean, low, high = interval(by_group(other - one, then).to_numpy())
    within = low <= 0 <= high and abs(mean) <= MARGIN
    return Reproduction(then, now, "within interval" if within else "different", mean, low, high, len(one), changed)


def _net_scores(run: RunRecord) -> pd.Series:
    """What a run scores on each target case, less what it falsely found there costs, as a table counts it."""
    costs = run_costs(run)
    return run_scores(run).dropna().sub(costs[costs > 0], fill_value=0.0)


def by_group(of_case: pd.Series, run: RunRecord) -> pd.Series:
    """The mean of the cases of each patient or video, where the run tells which these are: they are no two draws."""
    if "group" not in run.cases:
        return of_case
    group = run.cases.groupby(["domain", "case"])["group"].first().reindex(of_case.index)
    return of_case.groupby([of_case.index.get_level_values("domain"), group]).mean()


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high): Student's 95 % interval of a mean; of one case it is unknown, unless the case is the same."""
    from scipy.stats import t

    n, mean = len(differences), float(differences.mean())
    if not differences.any():
        return 0.0, 0.0, 0.0
    half = float(t.ppf(0.975, n - 1) * differences.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return mean, mean - half, mean + half


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What two records (run.json) do not agree on, as (what, then, now) in words; "none" for an entry that one lacks.

    Compared: identity, settings, code, images, environment, metrics. Not compared: dates, costs, and what follows from
    the others.
    """
    one, other = (dict(_entries(record)) for record in (then, now))
    words = [(key, one.get(key, "none"), other.get(key, "none")) for key in {**one, **other}]
    return [(_named(key), a, b) for key, a, b in words if a != b]


def _entries(record: dict[str, Any], above: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], str]]:
    for key, value in record.items():
        if not above and key in NOT_COMPARED:
            continue
        if isinstance(value, dict):
            yield from _entries(value, (*above, key))
        else:
            yield (*above, key), ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _named(key: tuple[str, ...]) -> str:
    """("environment", "packages", "torch") -> "package torch"."""
    *above, name = key
    if not above or above == ["environment"]:
        return name.replace("_", " ")
    return f"{NAMES.get(above[-1], above[-1])} {name}"
