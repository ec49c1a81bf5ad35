"""Study: the runs of one table, and every number that tables, plots, reports and comparisons take from them.

Each number is derived once and kept. Two tasks, protocols or versions of the metrics never meet in one study, a missing
cell is blank, and so is every average over it. The order of the runs changes nothing.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dgbench.errors import DataError, UsageError, nearest, require
from dgbench.metrics import METRICS
from dgbench.networks.provenance import Seen, overlap
from dgbench.protocol import Protocol, get_protocol
from dgbench.registry import NEEDS, TASKS
from dgbench.running.records import RunRecord, find_runs, read_all_cases, read_runs
from dgbench.scores.archives import brought_of, folder_of, located
from dgbench.scores.boards import boards, every_board, published_runs, shown_protocol
from dgbench.scores.bounds import bounds, joined
from dgbench.scores.statistics import CaseScores

TOLD = (  # columns of the summary that a row has by the same name
    "missed", "false_positive", "both_empty", "tested", "missed_rate", "initialisation", "needs", "parameters",
    "trained", "train_seconds", "test_seconds", "train_flops", "train_step_flops", "predict_image_flops",
)  # fmt: skip
FLOPS = ("train_flops", "train_step_flops", "predict_image_flops")
APART, AGAIN = "make one table for each", "run the older ones again with --rerun all"


# --- what a case scores ----------------------------------------------------------------------------------------------


def there(cases: pd.DataFrame) -> pd.Series:
    """Which rows of `cases` are of a structure that the reference holds, whatever was predicted. bool."""
    return cases["flag"].isin(("", "missed"))


def scored(cases: pd.DataFrame, metric: str, protocol: Protocol) -> pd.Series:
    """What each row of `cases` (a case and structure, as in cases.csv) adds to a mean, by the protocol.

    "penalty": a row counts where the reference holds the structure, and one that was missed is as far away as the
    image's diagonal; a structure falsely found is in no mean, see `charged`. "nan": every row counts, and is NaN where
    one mask or both are empty (Dice: both), and so is every mean over it.
    """
    values = cases[metric].astype(float)
    if protocol.missed == "penalty":
        return values.where(~np.isinf(values), cases["diagonal"])[there(cases)]
    return values.where(~np.isinf(values))


def charged(cases: pd.DataFrame, metric: str, protocol: Protocol) -> pd.Series:
    """What each row of `cases` costs besides: a structure falsely found, what missing one does; all others, 0.

    1 by Dice, the image's diagonal by distances. Under "nan" nothing is charged: `scored` has such rows.
    """
    false = (cases["flag"] == "false_positive") & (protocol.missed == "penalty")
    loss = cases["diagonal"] if math.isinf(METRICS[metric].limits[1]) else 1.0
    return false * 0.0 if not false.any() else pd.Series(np.where(false, loss, 0.0), cases.index)


def case_means(cases: pd.DataFrame, metric: str, protocol: Protocol, by: Sequence[str]) -> pd.Series:
    """The mean of `scored` over the target rows that share the columns `by`; NaN where one of them is NaN.

    A case in which no row counts is not there.
    """
    targets = cases[cases["role"] == "target"]
    values = scored(targets, metric, protocol)
    found = targets.loc[values.index, list(by)].assign(value=values).groupby(list(by))["value"]
    return found.mean().where(found.count() == found.size())


def run_scores(run: RunRecord, metric: str = "dice") -> pd.Series:
    """What a run scores on each target case, indexed by (domain, case): the mean over structures, by its protocol."""
    return case_means(run.cases, metric, get_protocol(run.protocol), ("domain", "case"))


def run_costs(run: RunRecord, metric: str = "dice") -> pd.Series:
    """What structures falsely found cost a run on each target case, indexed by (domain, case): the mean over structures
    of `charged`; also where no reference holds any, so that `run_scores` has no such case."""
    targets = run.cases[run.cases["role"] == "target"]
    costs = charged(targets, metric, get_protocol(run.protocol))
    return costs.groupby([targets["domain"], targets["case"]]).mean()


# --- what a study gives ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Matrix:
    """Source x target averages of one variant, metric and structure (None: the mean of all).

    values, found, std: one row per source and a last row "mean", one column per domain and a last column "mean"; std is
    over seeds (divided by n - 1; NaN for one seed); found is the mean over found cases. A source's own column is NaN.
    validation: the source's held-out cases, one value per source and "mean"; it is in no other average.
    seeds, missed, tested, false, absent: per source, the number of seeds and, over seeds and targets, of structures:
    missed, all, falsely found, and in no reference; missed is NaN where nobody told it.
    """

    variant: str
    metric: str
    structure: str | None
    values: pd.DataFrame
    found: pd.DataFrame
    std: pd.DataFrame
    validation: pd.Series
    seeds: pd.Series
    missed: pd.Series
    tested: pd.Series
    false: pd.Series
    absent: pd.Series

    @property
    def mean(self) -> float:
        """The average over everything, by the protocol's rule."""
        return float(self.values.iloc[-1, -1])

    @property
    def seeds_text(self) -> str:
        """The number of seeds of each source: "3", or "1-3" where sources differ."""
        low, high = self.seeds.min(), self.seeds.max()
        return f"{low}" if low == high else f"{low}-{high}"


@dataclass(frozen=True)
class VariantRow:
    """One variant by one metric: what it reaches, what that rests on, and what it costs.

    published: who published it, in words; "" of what was measured here. budget: what is stated of the training of a
    system outside dgbench, None of all others. Dice is in [0, 1], distances are in the study's
    unit; NaN is not known. false_cost: what structures falsely found cost (see `charged`), averaged as the mean is.
    net: the mean less that; variants are ranked by it. targets: mean over sources, by target domain; NaN where no
    reference holds any structure. worst: the target where it does worst, "" if one is not known. found: the mean
    without missed structures. gap: how much worse it does on the targets than on the source's validation cases. missed,
    false_positive, both_empty, tested: structures of target cases, over all runs. train_seconds, test_seconds: mean
    over runs; memory_mb: the most. train_flops, train_step_flops, predict_image_flops: of all steps, of one step, of
    one image; NaN where no run counted them. bound: as of `RunRecord`. machines: what `machine` says of the runs. seen:
    as from `provenance.overlap`. needed: names of `registry.NEEDS`. steps and batch_size: of the first run; 0 is not
    known.
    """

    variant: str
    method: str
    published: str
    budget: str | None
    mean: float
    false_cost: float
    net: float
    found: float
    targets: dict[str, float]
    worst: str
    seeds: tuple[int, ...]
    seeds_text: str
    seed_std: float
    validation: float
    gap: float
    missed: float
    false_positive: float
    both_empty: int
    tested: int
    parameters: float
    trained: float
    train_seconds: float
    test_seconds: float
    memory_mb: float
    train_flops: float
    train_step_flops: float
    predict_image_flops: float
    device: str
    machines: tuple[str, ...]
    steps: int
    batch_size: int
    initialisation: str
    bound: str
    seen: dict[tuple[str, str], Seen]
    needed: frozenset[str]

    @property
    def oracle(self) -> bool:
        """Does it see the targets' reference masks?"""
        return "uses_target_masks" in self.needed

    @property
    def knows_targets(self) -> bool:
        """Is it an oracle, or trained inside the targets? Then it is ranked in no table."""
        return self.oracle or bool(self.bound)

    @property
    def needs(self) -> str:
        """What it needs beyond one image and its mask, in words."""
        return ", ".join(words for name, words in NEEDS.items() if name in self.needed)

    @property
    def contaminated(self) -> str:
        """What it started from and which of the task's collections that has seen, known or likely; "" for none."""
        met = (f"{name} on {c} ({s.certainty})" for (name, c), s in self.seen.items() if s.certainty != "not known")
        return ", ".join(met)

    @property
    def present(self) -> float:
        """Structures that were there to be found."""
        return self.tested - self.absent

    @property
    def absent(self) -> float:
        """Structures that no reference held, so that they could only be falsely found."""
        return self.false_positive + self.both_empty

    @property
    def false_rate(self) -> float:
        """Share of the absent structures that were falsely found, in [0, 1]; NaN if there were none."""
        return self.false_positive / self.absent if self.absent else math.nan

    @property
    def missed_rate(self) -> float:
        """Share of the structures that were there, in [0, 1]; NaN if there were none."""
        return self.missed / self.present if self.present else math.nan

    @property
    def worst_value(self) -> float:
        """The mean on the worst target."""
        return self.targets.get(self.worst, math.nan)


class TargetCases(NamedTuple):
    """What each variant scores on each target case, by seed.

    cases: (domain, case). domain: (N,) from where cases are drawn together: those of a domain in which some structure
    counts, and those in which none does, whose weight is 0; a group of which some case counts, counts. group: (N,) of
    the group (patient, video) that each case belongs to, None where each is its own. costs: what structures falsely
    found cost of each case, all of them with a weight; nothing where no variant found one falsely.
    """

    scores: dict[str, CaseScores]
    cases: list[tuple[str, str]]
    domain: np.ndarray
    costs: dict[str, CaseScores]
    group: np.ndarray | None = None

    @property
    def counting(self) -> list[str]:
        """The domain of every case in which a structure counts."""
        weight = next(iter(self.scores.values())).weight if self.scores else np.ones(len(self.cases))
        return [domain for (domain, _), w in zip(self.cases, weight, strict=True) if w > 0]

    @property
    def counting_groups(self) -> list[str]:
        """The domain of every group of which a case counts; of a patient in several domains, each of them."""
        weight = next(iter(self.scores.values())).weight if self.scores else np.ones(len(self.cases))
        group = range(len(weight)) if self.group is None else self.group
        pairs = zip(self.cases, group, weight, strict=True)
        return [domain for domain, _ in dict.fromkeys((domain, g) for (domain, _), g, w in pairs if w > 0)]


class Study:
    """The runs of one table.

    records: sorted by variant, source, seed. left_out: a sentence on each run that may not stand in the table.
    again: runs of the same variants that others made; in no number, but they tell whether machines agree.
    domains, structures: in the task's order. sources: those that were trained on, or that the task has.
    """

    def __init__(
        self,
        records: Iterable[RunRecord],
        protocol: Protocol,
        left_out: Sequence[str] = (),
        again: Sequence[RunRecord] = (),
    ):
        """Raises `UsageError` or `DataError` unless the runs may stand in one table: one task, protocol, unit and
        metrics version, the same images, structures and domains, and no run twice."""
        if protocol.folds:
            records, lacking = joined(records, protocol)
            left_out = [*left_out, *lacking]
        self.records = tuple(sorted(records, key=lambda r: (r.variant, r.source, r.seed)))
        self.protocol, self.left_out, self.again = protocol, tuple(left_out), tuple(again)
        _check_alike(self.records, protocol)
        record = self.records[0].record
        self.task: str = record["task"]
        self.domains: list[str] = list(record["domains"])
        self.structures: list[str] = list(record["structures"])
        trained = {r.source for r in self.records}
        self.sources = [d for d in self.domains if d in trained or d in record.get("sources", ())]
        self.targets = [d for d in self.domains if any(d in r.record["targets"] for r in self.records)]
        self.metrics_version: int = record["metrics_version"]
        self.paired = any(r.record.get("paired") for r in self.records)
        self.runs: dict[str, tuple[RunRecord, ...]] = {
            variant: tuple(of) for variant, of in itertools.groupby(self.records, key=lambda r: r.variant)
        }
        self._matrices: dict[tuple[str, str, str | None], Matrix] = {}
        self._rows: dict[tuple[str, str], VariantRow] = {}
        self._target_cases: dict[str, TargetCases] = {}

    @classmethod
    def load(
        cls,
        results: Path,
        task: str,
        protocol: str | None = None,
        like: RunRecord | None = None,
        beside: Sequence[Path] = (),
    ) -> Study:
        """The finished runs of a task that may stand in one table with `like`, by default with the newest of the first
        folder, and those that were published under the same protocol. Without one, see `boards.shown_protocol`.

        Runs on other images, domains or structures, or by other metrics, are left out and named. beside: folders of
        results that others made, or archives of them; a variant is taken from the first that has it. Where there is
        none at all, the runs that come with dgbench are shown, and said to be so. Raises `UsageError` when none do.
        """
        protocol, why = (protocol, "") if protocol else shown_protocol(results, task)
        published = boards(results, task, protocol)
        rules = published[0].protocol if published else get_protocol(protocol)
        folders = [results, *(folder_of(located(place)) for place in beside)]
        found, twice, left_out = _gathered(folders, task, protocol)
        left_out = [why, *left_out] if why else left_out
        found += published_runs(published)
        where = f"no finished run of task {task} under protocol {protocol} in {results}"
        if not found and (folders := [folder_of(archive) for archive in brought_of(task)]):
            found, twice, problems = _gathered(folders, task, protocol)
            left_out = [*left_out, *problems, f"{where[0].upper()}{where[1:]}: these come with dgbench."]
        if not found:
            elsewhere = dict.fromkeys(f"--protocol {b.told['protocol']}" for b in every_board(results, task))
            told = f"; scores that others published: {', '.join(elsewhere)}" if elsewhere else ""
            guess = nearest(task, [*TASKS.names(), *{path.parents[2].name for path in find_runs(results)}])
            make = f"make some: dgbench run --task {task} --method ..., or give --results"
            raise UsageError(where, f"{guess}{make}{told}")
        ours = [r for r in found if r.path.is_relative_to(folders[0])]
        like = like or max(ours or found, key=lambda r: str(r.record["started"]))
        inside, lacking = bounds(folders, task, rules, found)
        found, left_out = [*found, *inside], [*left_out, *lacking]
        kept = [r for r in found if not _difference(like, r, found)]
        again = [r for r in twice if not _difference(like, r, found)]
        read_all_cases([*(r for r in kept if not r.published and not r.bound), *again])
        others: dict[str, list[RunRecord]] = {}
        for r in found:
            if what := _difference(like, r, found):
                others.setdefault(what, []).append(r)
        for what, runs in others.items():
            n, names = len(runs), ", ".join(sorted({r.variant for r in runs}))
            left_out.append(f"Left out: {n} run{'s' if n > 1 else ''} {what} than the newest run ({names}).")
        return cls(kept, rules, left_out, again)

    def among(self, records: Iterable[RunRecord]) -> Study:
        """A study of some of the runs."""
        return Study(records, self.protocol, self.left_out, self.again)

    def only(self, variants: Iterable[str]) -> Study:
        """A study of some of the variants."""
        kept = set(variants)
        return self.among(r for r in self.records if r.variant in kept)

    def named(self, variant: str) -> str:
        """The variant of that name; else the only one of the method of that name, whatever its settings and its maker.

        What was trained inside the targets answers to its own name alone. An unknown name is given back. Raises
        `UsageError` where the method has several variants, which it names.
        """
        made = [v for v, (first, *_) in self.runs.items() if first.method == variant and not first.bound]
        if variant in self.runs or not made:
            return variant
        if len(made) > 1:
            raise UsageError(f"'{variant}' is not among the variants of {variant}", f"name one: {', '.join(made)}")
        return made[0]

    @functools.cached_property
    def metrics(self) -> tuple[str, ...]:
        """Those of the protocol that one of the runs has, and those that the task asks for besides."""
        known = [r.published["metrics"] if r.published else self.protocol.metrics for r in self.records]
        of_task = {m for r in self.records for m in r.record.get("further_metrics", ())}
        of_protocol = tuple(m for m in self.protocol.metrics if any(m in of for of in known))
        return (*of_protocol, *(m for m in METRICS if m in of_task - set(of_protocol)))

    @functools.cached_property
    def variants(self) -> tuple[str, ...]:
        """Best `net` Dice first, without a mean last; after all others oracles and bounds, which know target masks."""
        rows = [self.row(v) for v in self.runs]
        rows.sort(key=lambda r: (r.knows_targets, METRICS["dice"].order(r.net), r.variant))
        return tuple(r.variant for r in rows)

    @functools.cached_property
    def cases(self) -> pd.DataFrame:
        """Every row of every run's cases.csv, with the columns variant, method, source, seed and run (its number).

        Column group: of the patient or video that a case belongs to, the case itself where nobody says so. Raises
        `DataError` when a run was tested on what the task does not have, on a case twice, or on other cases of a domain
        than another run; where domains show the same patients, than another run of the same source.
        """
        return _all_cases(self.records)

    @functools.cached_property
    def n_there(self) -> np.ndarray:
        """(structures, domains) int: in how many target cases the reference holds a structure; -1: none was tested."""
        return self._held("target")

    @functools.cached_property
    def n_there_in_validation(self) -> np.ndarray:
        """As `n_there`, of the validation cases."""
        return self._held("validation")

    def _held(self, role: str) -> np.ndarray:
        rows = self.cases[self.cases["role"] == role]
        one = rows.drop_duplicates(["domain", "case", "structure"])  # the references of all runs are the same
        held = one.assign(there=there(one)).groupby(["structure", "domain"])["there"].sum().unstack()
        return held.reindex(index=self.structures, columns=self.domains).fillna(-1).to_numpy(int)

    @functools.cached_property
    def any_absent(self) -> bool:
        """Is there a target case whose reference lacks a structure?"""
        return not there(self.cases[self.cases["role"] == "target"]).all()

    @functools.cached_property
    def absent(self) -> dict[str, list[str]]:
        """By target domain, the structures that none of its references holds; a domain that holds all is not there."""
        columns = zip(self.domains, self.n_there.T == 0, strict=True)
        return {d: [s for s, none in zip(self.structures, of, strict=True) if none] for d, of in columns if of.any()}

    @functools.cached_property
    def apart(self) -> np.ndarray:
        """(sources, domains) bool, in no average: a source's own cases, and a domain that it is never tested on."""
        tested = {(r.source, d) for r in self.records for d in r.record["targets"]}
        trained = {r.source for r in self.records}
        return np.array(
            [[s == d or (s in trained and (s, d) not in tested) for d in self.domains] for s in self.sources]
        )

    @functools.cached_property
    def cells_of(self) -> dict[str, pd.DataFrame]:
        """`cells` by variant."""
        return {str(variant): part for variant, part in self.cells.groupby("variant", sort=False)}

    @functools.cached_property
    def cells(self) -> pd.DataFrame:
        """One row per variant, source, target, structure, seed and metric: the tidy form of all tables.

        Columns: variant, method, source, target, role ("target", "validation" where the target is the source itself, ""
        for a domain that the task never tests this source on), structure, seed, metric, value (Dice in [0, 1],
        distances in the protocol's unit; the mean over the cases whose reference holds the structure), found_value
        (over those of them where it was found), n_cases, n_missed, n_both_empty, n_false_positive. source, target,
        structure and metric are categories in the task's order. A target without such cases has value NaN.
        """
        cases, records = self.cases, self.records
        shape = (len(records), len(self.domains), len(self.structures))
        number = {"domain": self.domains, "structure": self.structures}
        domain, structure = (pd.Categorical(cases[n], order).codes for n, order in number.items())
        cell = np.ravel_multi_index((cases["run"], domain, structure), shape)

        def count(rows: pd.Index) -> np.ndarray:
            return np.bincount(cell[rows], minlength=math.prod(shape))

        def mean(values: pd.Series) -> np.ndarray:  # NaN among a cell's cases makes it NaN, and so does having none
            with np.errstate(invalid="ignore"):
                return np.bincount(cell[values.index], values, minlength=math.prod(shape)) / count(values.index)

        flags = ("missed", "both_empty", "false_positive")
        counts = {"n_cases": count(cases.index)} | {f"n_{f}": count(cases.index[cases["flag"] == f]) for f in flags}
        keys = pd.MultiIndex.from_product(
            [range(shape[0]), self.domains, self.structures], names=["run", "target", "structure"]
        )
        frames = []
        for metric in self.metrics:
            found = cases.loc[cases["flag"] == "", metric].astype(float)
            means = {"value": mean(scored(cases, metric, self.protocol)), "found_value": mean(found)}
            frames.append(keys.to_frame(index=False).assign(metric=metric, **means, **counts))
        table = pd.concat(frames, ignore_index=True).sort_values("run", kind="stable", ignore_index=True)
        untold = np.array([r.published is not None for r in records])[table["run"]]
        if untold.any():  # nobody told which structures were missed
            table.loc[untold, "found_value"] = math.nan
            for name in ("n_missed", *([] if self.any_absent else ["n_false_positive"])):
                table[name] = table[name].astype("Int64").mask(untold)
        for name in ("variant", "method", "source", "seed"):
            table[name] = _of_run(records, name, table["run"].to_numpy())
        names = {"source": self.sources, "target": self.domains, "structure": self.structures}
        for name, order in (names | {"metric": list(self.metrics)}).items():
            table[name] = pd.Categorical(table[name], order)
        roles = {(r.source, d): "target" for r in records for d in r.record["targets"]}
        roles |= {(s, s): "validation" for s in self.sources}
        by_code = np.array([[roles.get((s, d), "") for d in self.domains] for s in self.sources], object)
        table["role"] = by_code[table["source"].cat.codes, table["target"].cat.codes]
        columns = "variant method source target role structure seed metric value found_value"
        return table[[*columns.split(), *counts]]

    def matrix(self, variant: str, metric: str = "dice", structure: str | None = None) -> Matrix:
        """Source x target: cells averaged over structures, seeds, targets by the protocol, and sources.

        Raises `UsageError` for an unknown variant, metric or structure.
        """
        key = (variant, metric, structure)
        if key not in self._matrices:
            require(variant, list(self.runs), "variant")
            require(metric, list(self.metrics), f"metric of protocol {self.protocol.name}")
            if structure is not None:
                require(structure, self.structures, "structure")
            self._matrices[key] = _Averaging(self, variant, metric, structure).matrix()
        return self._matrices[key]

    def target_cases(self, metric: str = "dice") -> TargetCases:
        """What each variant scores on each target case, by seed.

        Weights are those of the protocol's mean, so that the weighted mean is that of `matrix`. Only variants with the
        same sources for every seed are in it.
        """
        if metric not in self._target_cases:
            self._target_cases[metric] = _target_cases(self, metric)
        return self._target_cases[metric]

    def case_means(self, metric: str = "dice", structure: str | None = None) -> pd.Series:
        """What each target case scores, by domain, variant and case: the mean over structures, sources and seeds."""
        cases = self.cases if structure is None else self.cases[self.cases["structure"] == structure]
        return case_means(cases, metric, self.protocol, ("domain", "variant", "case"))

    def row(self, variant: str, metric: str = "dice") -> VariantRow:
        """All there is to say of a variant in one row."""
        key = (variant, metric)
        if key not in self._rows:
            self._rows[key] = _row(self, variant, metric)
        return self._rows[key]

    def summary(self) -> pd.DataFrame:
        """One row per variant, in their order: every metric with its spread over seeds, counts and costs."""
        rows = []
        for variant in self.variants:
            dice = self.row(variant)
            of_metric = {m: self.row(variant, m) for m in self.metrics}
            values = {m: {m: r.mean, f"{m}_std": r.seed_std, f"{m}_found": r.found} for m, r in of_metric.items()}
            rows.append(
                {"variant": variant, "method": dice.method, "oracle": dice.oracle}
                | functools.reduce(dict.__or__, values.values())
                | {
                    "worst_target": dice.worst,
                    "worst_dice": dice.worst_value,
                    "validation_dice": dice.validation,
                    "gap": dice.gap,
                    **{name: getattr(dice, name) for name in TOLD},
                    "peak_memory_mb": dice.memory_mb,
                    "seeds": dice.seeds_text,
                }
            )
        return pd.DataFrame(rows)

    @property
    def unit_of_distances(self) -> str:
        """The spacing's unit, or voxels of the network's grid."""
        return "voxels" if self.protocol.distances == "voxel" else str(self.records[0].record["unit"])

    def unit(self, metric: str) -> str:
        """What a metric is shown in: percent for Dice, else `unit_of_distances`."""
        return METRICS[metric].unit(self.unit_of_distances)


# --- which runs, which cases -----------------------------------------------------------------------------------------


def _gathered(folders: Sequence[Path], task: str, protocol: str) -> tuple[list[RunRecord], list[RunRecord], list[str]]:
    """The runs of some folders, each variant from the first that has it, what others have of it again, and problems."""
    found, again, problems = list[RunRecord](), list[RunRecord](), list[str]()
    for folder in folders:
        runs, left_out = read_runs(folder, task, protocol)
        known = {r.variant for r in found}
        found += [r for r in runs if r.variant not in known]
        again += [r for r in runs if r.variant in known]
        problems += left_out
    return found, again, problems


def _difference(like: RunRecord, run: RunRecord, everyone: Sequence[RunRecord]) -> str:
    """What keeps a run from standing in one table with `like`, as "on other images", or ""."""
    if run.record["metrics_version"] != like.record["metrics_version"]:
        return "on other images or by other metrics"
    for key in ("domains", "structures", "unit"):
        if run.record[key] != like.record[key]:
            return f"with other {key}" if key != "unit" else "with another unit"
    known = dict(like.record["data"])
    for other in everyone:
        if known.keys() >= set(like.record["domains"]):  # as a rule at once: of thousands no other is asked
            break
        for domain, fingerprint in other.record["data"].items():
            known.setdefault(domain, fingerprint)
    same = all(known.get(d, f) == f for d, f in run.record["data"].items())
    return "" if same else "on other images or by other metrics"


def _check_alike(records: Sequence[RunRecord], protocol: Protocol) -> None:
    if not records:
        raise UsageError("no complete run to make a table of", "start some with `dgbench run`")

    def alike(key: str, what: str, error: type[UsageError | DataError], remedy: str) -> None:
        seen = {str(r.record[key]): r for r in records}
        if len(seen) > 1:
            (a, one), (b, other), *_ = sorted(seen.items(), key=lambda item: item[0])
            raise error(f"one table cannot mix {what} {a} ({one.path}) and {b} ({other.path})", remedy)

    alike("task", "task", UsageError, APART)
    alike("protocol", "protocol", UsageError, APART)
    if records[0].protocol != protocol.name:
        raise UsageError(f"these are runs of protocol {records[0].protocol}, not {protocol.name}", APART)
    alike("metrics_version", "metrics version", DataError, AGAIN)
    for key in ("structures", "domains", "unit"):
        alike(key, key, DataError, AGAIN)
    images: dict[str, tuple[str, RunRecord]] = {}
    for r in records:
        for domain, fingerprint in r.record.get("data", {}).items():
            known, first = images.setdefault(domain, (fingerprint, r))
            if known != fingerprint:
                raise DataError(f"{first.path} and {r.path} saw different images of domain '{domain}'", AGAIN)
    for one, other in itertools.pairwise(records):
        if (one.variant, one.source, one.seed) == (other.variant, other.source, other.seed):
            raise DataError(f"one run twice: {one.path} and {other.path}", "keep one of them")


def _all_cases(records: Sequence[RunRecord]) -> pd.DataFrame:
    rows = [r.rows for r in records]
    parts = []
    for _, of in itertools.groupby(rows, key=lambda r: id(r.frame)):  # as a rule all lie in one frame
        together = [*of]
        parts.append(together[0].frame.iloc[np.concatenate([np.arange(r.first, r.last) for r in together])])
    cases = pd.concat(parts, ignore_index=True)
    run = np.repeat(np.arange(len(records)), [r.last - r.first for r in rows])
    for name in ("variant", "method", "source", "seed"):
        cases[name] = _of_run(records, name, run)
    cases["run"] = run
    cases["flag"] = cases["flag"].fillna("")
    cases["group"] = _groups(cases)
    if (absent := ~there(cases)).any() and (untold := np.array([bool(r.published) for r in records])[run]).any():
        # Somebody left it empty, or knows the reference: who published a number there found it falsely.
        known = absent.groupby([cases[c] for c in ("domain", "case", "structure")]).transform("any")
        cases.loc[known & ~absent & untold, "flag"] = "false_positive"
    cases = cases.sort_values(["run", "domain", "case", "structure"], ignore_index=True)
    record = records[0].record
    strange = cases[~(cases["domain"].isin(record["domains"]) & cases["structure"].isin(record["structures"]))]
    for _, row in strange.head(1).iterrows():
        where = f"domain '{row['domain']}', structure '{row['structure']}'"
        raise DataError(f"{records[row['run']].path} was tested on what its task does not have: {where}", AGAIN)
    twice = cases[cases.duplicated(["run", "domain", "case", "structure"])]
    for _, row in twice.head(1).iterrows():
        raise DataError(f"{records[row['run']].path} has case {row['case']} of domain '{row['domain']}' twice", AGAIN)
    _check_same_cases(cases, records)
    return cases


def _of_run(records: Sequence[RunRecord], name: str, run: np.ndarray) -> np.ndarray:
    """What each row's run is called: `run` holds its number."""
    return np.array([getattr(r, name) for r in records], dtype=int if name == "seed" else object)[run]


def _check_same_cases(cases: pd.DataFrame, records: Sequence[RunRecord]) -> None:
    """Raises `DataError` for two runs that were tested, or validated, on different cases of a domain."""
    place = ["role", "domain"]
    once = cases.drop_duplicates([*place, "run", "case"])
    every = once.drop_duplicates([*place, "case"]).groupby(place).size()
    of_run = once.groupby([*place, "run"]).size()
    if (of_run.to_numpy() == every.loc[of_run.index.droplevel("run")].to_numpy()).all():
        return  # each has as many as all together
    tested: dict[tuple, tuple[frozenset, int]] = {}
    paired = any(r.record.get("paired") for r in records)
    for (role, domain, i), ids in cases.groupby([*place, "run"])["case"].agg(frozenset).items():
        theirs, other = tested.setdefault((role, domain, paired and records[i].source), (ids, i))
        if theirs != ids:
            where = f"{records[other].path} and {records[i].path}"
            raise DataError(f"{where} were tested on different cases of domain '{domain}'", AGAIN)


def _groups(cases: pd.DataFrame) -> pd.Series:
    """The group of each row's case: as some run tells, for scores that others published do not; else the case."""
    if "group" not in cases:
        return cases["case"]
    known = cases.groupby(["domain", "case"], sort=False)["group"].transform("first")
    return known.fillna(cases["case"])


# --- averages --------------------------------------------------------------------------------------------------------


class _Averaging:
    """The averages of one variant by one metric: over structures, targets by the protocol, seeds, and sources."""

    def __init__(self, study: Study, variant: str, metric: str, structure: str | None):
        self.study, self.variant, self.metric, self.structure = study, variant, metric, structure
        self.structures = study.structures if structure is None else [structure]
        cells = study.cells_of[variant]
        wanted = cells["metric"] == metric
        self.part = part = cells[wanted if structure is None else wanted & (cells["structure"] == structure)]
        pairs = [*zip(part["source"].cat.codes.tolist(), part["seed"].tolist(), strict=True)]
        self.runs = sorted(set(pairs))
        position = {run: i for i, run in enumerate(self.runs)}
        self.wanted = [study.structures.index(s) for s in self.structures]
        structure_of = np.searchsorted(self.wanted, part["structure"].cat.codes)
        self.place = ([position[p] for p in pairs], structure_of, part["target"].cat.codes.to_numpy())
        self.apart = study.apart
        # In no average either: a structure that no reference of a domain holds. (structures, domains)
        self.n_there = study.n_there[self.wanted]
        self.none = (self.n_there == 0) & (study.protocol.missed == "penalty")
        self.source_of = np.array([s for s, _ in self.runs])
        self.seed_of = np.array([seed for _, seed in self.runs])

    def cube(self, column: pd.Series) -> np.ndarray:
        """(runs, structures, domains), NaN where there is no cell."""
        filled = np.full((len(self.runs), len(self.structures), len(self.study.domains)), np.nan)
        filled[self.place] = column
        return filled

    def over_targets(self, values: pd.Series, n: pd.Series) -> np.ndarray:
        """(runs, domains and their mean)."""
        each, own = self.cube(values), self.apart[self.source_of]
        counts = np.broadcast_to(~self.none, each.shape)
        of_domain = masked_mean(each, np.ones_like(each), counts, axis=1)
        if self.study.protocol.mean == "cases":
            counts = counts & ~own[:, None, :]
            pooled = masked_mean(each, self.cube(n), counts, axis=2)
            mean = masked_mean(pooled, np.ones_like(pooled), counts.any(axis=2), axis=1)
        else:
            mean = masked_mean(of_domain, np.ones_like(of_domain), ~own & ~self.none.all(axis=0), axis=1)
        return np.column_stack([np.where(own, np.nan, of_domain), mean])

    def over_sources(self, rows: np.ndarray) -> np.ndarray:
        """(sources, columns) -> one more row; a source is in no mean if no structure is in any of its targets."""
        nothing = (self.apart | self.none.all(axis=0)).all(axis=1)
        own = np.column_stack([self.apart[:, : rows.shape[1] - 1], nothing])
        return np.vstack([rows, masked_mean(rows, np.ones_like(rows), ~own, axis=0)])

    def by_source(self, rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], least: int) -> np.ndarray:
        """(runs, columns) -> (sources, columns): a statistic over the seeds of a source that has at least so many."""
        each = [rows[self.source_of == s] for s in range(len(self.study.sources))]
        return np.array([statistic(r) if len(r) >= least else np.full(rows.shape[1], np.nan) for r in each])

    def averaged(self, rows: np.ndarray) -> np.ndarray:
        """(runs, columns) -> (sources and their mean, columns)."""
        return self.over_sources(self.by_source(rows, lambda r: r.mean(axis=0), 1))

    def deviation(self, rows: np.ndarray) -> np.ndarray:
        """(runs, columns) -> (sources and their mean, columns); of the mean over the seeds that every source has."""
        each = self.by_source(rows, lambda r: r.std(axis=0, ddof=1), 2)
        seeds = [set(self.seed_of[self.source_of == s]) for s in range(len(self.study.sources))]
        shared = sorted(set.intersection(*seeds))
        of_mean = np.array([self.over_sources(rows[self.seed_of == seed])[-1] for seed in shared])
        last = of_mean.std(axis=0, ddof=1) if len(shared) > 1 else np.full(rows.shape[1], np.nan)
        return np.vstack([each, last])

    def matrix(self) -> Matrix:
        """All of it."""
        study, part = self.study, self.part
        structure, domain = self.place[1:]
        n_there = pd.Series(self.n_there[structure, domain], part.index)
        if study.paired:  # each source tests other cases of a domain
            n_there = part["n_cases"] - part["n_both_empty"] - part["n_false_positive"]
        n = part["n_cases"] if study.protocol.missed == "nan" else n_there
        values = self.over_targets(part["value"], n)
        n_found = part["n_cases"] - part["n_missed"] - part["n_both_empty"] - part["n_false_positive"]
        found = self.over_targets(part["found_value"], n_found)
        home = [study.domains.index(study.sources[s]) for s in self.source_of]
        at_home = self.cube(part["value"])[range(len(self.runs)), :, home]
        none = (study.n_there_in_validation[self.wanted][:, home].T == 0) & (study.protocol.missed == "penalty")
        validation = masked_mean(at_home, np.ones_like(at_home), ~none, axis=1)
        tested = (part["role"] == "target").to_numpy()
        of_source = part["source"].cat.codes.to_numpy()[tested]

        def counted(name: str) -> pd.Series:
            number = part[name].to_numpy(float, na_value=0)[tested]
            return pd.Series(np.bincount(of_source, number, len(study.sources)).astype(int), study.sources)

        told = not study.runs[self.variant][0].published
        rows, seeds = [*study.sources, "mean"], [int((self.source_of == s).sum()) for s in range(len(study.sources))]
        frame = functools.partial(pd.DataFrame, index=rows, columns=[*study.domains, "mean"])
        return Matrix(
            self.variant,
            self.metric,
            self.structure,
            values=frame(self.averaged(values)),
            found=frame(self.averaged(found)),
            std=frame(self.deviation(values)),
            validation=pd.Series(self.averaged(validation[:, None])[:, 0], rows),
            seeds=pd.Series(seeds, study.sources),
            missed=counted("n_missed") if told else pd.Series(math.nan, study.sources),
            tested=counted("n_cases"),
            false=counted("n_false_positive"),
            absent=counted("n_false_positive") + counted("n_both_empty"),
        )


def masked_mean(values: np.ndarray, weight: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
    """Weighted mean of the values that count; NaN when one of them is NaN, whatever its weight, or when none counts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.where(counts, weight, 0).sum(axis=axis)
        return np.where(counts, values * weight, 0).sum(axis=axis) / total


def _row(study: Study, variant: str, metric: str) -> VariantRow:
    m, records, rule = study.matrix(variant, metric), study.runs[variant], METRICS[metric]
    cells = study.cells_of[variant]
    tested = cells[(cells["role"] == "target") & (cells["metric"] == metric)]
    targets = {str(d): float(v) for d, v in m.values.iloc[-1, :-1].items() if d in study.targets}
    held = {d for d in targets if len(study.absent.get(d, ())) < len(study.structures)}
    known = held and not any(math.isnan(targets[d]) for d in held)
    costs_of_false = study.target_cases(metric).costs
    false_cost = costs_of_false[variant].mean if variant in costs_of_false else 0.0
    validation, costs = float(m.validation.iloc[-1]), [r.record["costs"] for r in records]
    first: dict[str, Any] = records[0].record
    hparams = first.get("hparams", {})
    published = records[0].published
    devices = {str(r.record.get("environment", {}).get("device", "")).partition(":")[0] for r in records}
    return VariantRow(
        variant=variant,
        method=records[0].method,
        published=published["words"] if published else "",
        budget=str(first.get("stated", {}).get("budget", "")).strip() or "not stated" if records[0].external else None,
        mean=m.mean,
        false_cost=false_cost,
        net=rule.worse(m.mean, false_cost),
        found=float(m.found.iloc[-1, -1]),
        targets=targets,
        worst=max((d for d in targets if d in held), key=lambda d: rule.cost(targets[d])) if known else "",
        seeds=tuple(sorted({r.seed for r in records})),
        seeds_text=m.seeds_text,
        seed_std=float(m.std.iloc[-1, -1]),
        validation=validation,
        gap=rule.cost(m.mean) - rule.cost(validation),
        missed=math.nan if published else int(tested["n_missed"].sum()),
        false_positive=math.nan if published and not study.any_absent else int(tested["n_false_positive"].sum()),
        both_empty=int(tested["n_both_empty"].sum()),
        tested=int(tested["n_cases"].sum()),
        parameters=max(c["parameters"] for c in costs),
        trained=max(c["trained"] for c in costs),
        train_seconds=float(np.mean([c["train_seconds"] for c in costs])),
        test_seconds=float(np.mean([c["test_seconds"] for c in costs])),
        memory_mb=max(c["peak_memory_mb"] for c in costs),
        train_flops=_counted(costs, "train_flops"),
        train_step_flops=_counted(costs, "train_step_flops"),
        predict_image_flops=_counted(costs, "predict_image_flops"),
        device=", ".join(sorted(devices)),
        machines=tuple(sorted({machine(r.record) for r in records})),
        steps=hparams.get("steps") or first.get("steps", 0),
        batch_size=hparams.get("batch_size", 0),
        initialisation=initialisation(records),
        bound=records[0].bound,
        seen=overlap(r.record for r in records),
        needed=frozenset().union(*(r.needs for r in records)),
    )


def machine(record: Mapping[str, Any]) -> str:
    """What rounds a run's numbers: hardware, kind of device, version of torch; "" where a record says none of it."""
    told = record.get("environment", {})
    device, torch = str(told.get("device", "")).partition(":")[0], told.get("packages", {}).get("torch")
    return ", ".join(filter(None, (told.get("hardware"), device, torch and f"torch {torch}")))


def _counted(costs: Iterable[dict[str, Any]], name: str) -> float:
    """What the runs that counted it agree on; NaN where none did."""
    return max((float(c[name]) for c in costs if name in c), default=math.nan)


def initialisation(records: Iterable[RunRecord]) -> str:
    """ "scratch", or the files that pretrained weights were read from (a record holds their sha256 with them)."""
    started = [r.record["initialisation"] for r in records]
    return ", ".join(sorted({name for names in started for name in ([names] if isinstance(names, str) else names)}))


def numbered(rows: pd.DataFrame) -> tuple[np.ndarray, pd.MultiIndex]:
    """The number of each row's case; and the cases, (domain, case), sorted."""
    domain, domains = pd.factorize(rows["domain"], sort=True)
    case, cases = pd.factorize(rows["case"], sort=True)
    known, number = np.unique(domain * len(cases) + case, return_inverse=True)
    names = [domains[known // len(cases)], cases[known % len(cases)]] if len(known) else [[], []]
    return number, pd.MultiIndex.from_arrays(names, names=["domain", "case"])


def _target_cases(study: Study, metric: str) -> TargetCases:
    frame = study.cases[study.cases["role"] == "target"]
    column, cases = numbered(frame)
    frame = frame.assign(column=column)
    values, costs = (of(frame, metric, study.protocol) for of in (scored, charged))
    counts = np.bincount(frame.loc[values.index, "column"], minlength=len(cases)) > 0
    name, names = pd.factorize(cases.get_level_values(0))
    of_case = frame.drop_duplicates("column").sort_values("column")
    whose = ["group"] if study.paired else ["domain", "group"]
    number = np.asarray(pd.factorize(pd.MultiIndex.from_frame(of_case[whose]))[0])
    counts = (np.bincount(number, counts) > 0)[number]
    group = number.astype(np.int64) if len(set(number)) < len(number) else None
    domain = (name + len(names) * ~counts).astype(np.int64)

    def weighed(values: pd.Series) -> dict[str, CaseScores]:
        rows = frame.loc[values.index]
        structure = pd.Categorical(rows["structure"], study.structures).codes
        place = (rows["run"].to_numpy(), name[rows["column"]], structure, rows["column"].to_numpy())
        return _weighed(study, values.to_numpy(), place, domain, group)

    of_costs = weighed(costs) if (costs != 0).any() else {}  # one that is not known, NaN, is none of nothing
    return TargetCases(weighed(values), [(str(d), str(c)) for d, c in cases], domain, of_costs, group)


def _weighed(
    study: Study, values: np.ndarray, place: tuple[Any, ...], domain: np.ndarray, group: np.ndarray | None
) -> dict[str, CaseScores]:
    """Values by case, weighed so that their sum is the protocol's mean. place: run, domain, structure, case of each."""
    run, target, structure, case = place
    n = np.zeros((len(study.records), len(study.domains), len(study.structures)), int)
    np.add.at(n, (run, target, structure), 1)
    if study.protocol.mean == "cases":
        n, target = n.sum(axis=1, keepdims=True), np.zeros_like(target)
    structures, targets = (n > 0).sum(axis=2), n.any(axis=2).sum(axis=1)
    sources = {v: len({r.source for r in of}) for v, of in study.runs.items()}
    trained = [(r.variant, r.source) for r in study.records]
    counting = {pair for pair, any_target in zip(trained, targets > 0, strict=True) if any_target}
    of_variant = Counter(variant for variant, _ in counting)
    n_sources = np.array([of_variant[variant] for variant, _ in trained])
    weight = 1 / (n[run, target, structure] * targets[run] * n_sources[run] * structures[run, target])
    of_run = np.zeros((2, len(study.records), len(domain)))
    np.add.at(of_run, (0, run, case), weight * values)
    np.add.at(of_run, (1, run, case), weight)
    by_seed: dict[str, dict[int, list[int]]] = {variant: defaultdict(list) for variant in study.runs}
    for i, r in enumerate(study.records):
        by_seed[r.variant][r.seed].append(i)
    found = {}
    for variant, of_seed in by_seed.items():
        chosen = [of_seed[seed] for seed in sorted(of_seed)]
        if any(len(r) != sources[variant] for r in chosen):
            continue
        sums, weights = (np.array([of_run[k][r].sum(axis=0) for r in chosen]) for k in (0, 1))
        mean = weights.mean(axis=0)
        if not mean.any():
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            of_case = np.where(mean > 0, sums / mean, 0.0)
            found[variant] = CaseScores(of_case, mean / mean.sum(), domain, group)
    return found
