"""Ranking: the variants of a study in order, each number with how sure it is; what cannot be ranked stands apart.

The variants' names change nothing but the order of equal rows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from dgbench.errors import require
from dgbench.files import read_json
from dgbench.metrics import METRICS, Metric, get_metric
from dgbench.running.records import RunRecord, lacking
from dgbench.scores import agreement, statistics
from dgbench.scores.agreement import Machines
from dgbench.scores.case_cube import CaseCube, Choices
from dgbench.scores.statistics import CaseScores, Difference, Resampling
from dgbench.scores.study import FLOPS, Study, TargetCases, VariantRow

TRAINED_INSIDE = "trained inside the target"
LEAST = 3  # seeds of a row that was not trained here


@dataclass(frozen=True)
class Ranked:
    """A variant on the board.

    low, high: the 95 % interval of its mean; NaN where it is not known. rank: lowest and highest in 95 % of the
    bootstrap draws, None where it is not ranked; `why` then says the reasons. versus: against the baseline.
    versus_false: the same of what structures falsely found cost; None where no variant found one falsely.
    """

    row: VariantRow
    low: float = math.nan
    high: float = math.nan
    rank: tuple[int, int] | None = None
    versus: Difference | None = None
    versus_false: Difference | None = None
    why: str = ""

    @property
    def variant(self) -> str:
        """Its name."""
        return self.row.variant

    @property
    def rank_text(self) -> str:
        """ "2", or "1-3" where the draws do not agree."""
        if self.rank is None:
            return ""
        low, high = self.rank
        return f"{low}" if low == high else f"{low}-{high}"


class Stability(NamedTuple):
    """How far a ranking hangs on a choice.

    tau: Kendall's, of this order with that of the case ranks averaged. firsts: {target left out: who is first then},
    where it is another one.
    """

    tau: float
    firsts: dict[str, str]


@dataclass(frozen=True, eq=False)
class Ranking:
    """ranked: best first, by the mean less what structures falsely found cost; apart: not ranked, each with `why`.

    baseline: the variant that `versus` compares with.

    study: the runs that count, of seeds that have every source. target_cases and draws: what the variants score on each
    target case, and their bootstrapped means. margin: differences inside it count as equivalent, in the metric's unit.
    machines: where the rows were made, and whether these agree.
    """

    study: Study
    metric: Metric
    ranked: tuple[Ranked, ...]
    apart: tuple[Ranked, ...]
    baseline: str
    margin: float
    target_cases: TargetCases
    draws: dict[str, np.ndarray]
    machines: Machines

    @property
    def every(self) -> tuple[Ranked, ...]:
        """The ranked ones, then those apart."""
        return (*self.ranked, *self.apart)

    @property
    def unit(self) -> str:
        """Of shown values."""
        return self.study.unit(self.metric.name)

    @property
    def scores(self) -> dict[str, CaseScores]:
        """Of the variants whose mean is known."""
        return {v: s for v, s in self.target_cases.scores.items() if v in self.draws}

    def verdict(self, of: Ranked) -> str:
        """Against the baseline, in a word; "" where there is nothing to compare."""
        if of.versus is None:
            return ""
        mean = of.versus.verdict(self.margin)
        return mean if of.versus_false is None else statistics.joint(mean, of.versus_false.verdict(self.margin))

    @functools.cached_property
    def mixed_code(self) -> list[str]:
        """Variants that average runs made by two versions of the code."""
        versions = {v: {r.record.get("code", {}).get("method") for r in of} for v, of in self.study.runs.items()}
        return [v for v, of in versions.items() if len(of) > 1]

    @functools.cached_property
    def stability(self) -> Stability | None:
        """None with fewer than three ranked variants.

        Maier-Hein et al. Why rankings of biomedical image analysis competitions should be interpreted with care. Nature
        Communications 2018. Wiesenfarth et al. Scientific Reports 2021 (challengeR).
        """
        if len(self.ranked) < 3:
            return None
        scores, costs = ([of[r.variant] for r in self.ranked if of] for of in (self.scores, self.target_cases.costs))
        of_case, weight = np.column_stack([s.of_case for s in scores]), scores[0].weight
        of_case = self.metric.cost(1.0) * of_case
        cost, weight_of_cost = np.zeros_like(of_case), np.zeros_like(weight)
        if costs:
            cost, weight_of_cost = np.column_stack([c.of_case for c in costs]), costs[0].weight
        case_ranks = stats.rankdata(of_case + cost, axis=1)
        tau = stats.kendalltau(weight @ case_ranks, weight @ of_case + weight_of_cost @ cost).statistic
        return Stability(float(tau), self._firsts())

    def _firsts(self) -> dict[str, str]:
        protocol, names = self.study.protocol, [r.variant for r in self.ranked]
        cube, firsts = CaseCube(self.study, names), {}
        targets = list(dict.fromkeys(map(str, self.target_cases.counting)))
        for left_out in targets if len(targets) > 1 else ():
            choices = Choices(self.metric.name, protocol.missed, protocol.mean, ("target", left_out))
            means = self.metric.cost(1.0) * cube.means(choices)
            if not np.isnan(means).all() and (winner := names[int(np.nanargmin(means))]) != names[0]:
                firsts[left_out] = winner
        return firsts

    def frame(self) -> pd.DataFrame:
        """One row per variant with full precision: Dice in [0, 1], distances in `unit`; apart rows have no rank."""
        rows = [_flat(self, of) for of in self.every]
        return pd.DataFrame(rows).astype({"rank_low": "Int64", "rank_high": "Int64"})


def rank(
    study: Study,
    metric: str = "dice",
    baseline: str | None = None,
    margin: float | None = None,
    draws: int = statistics.DRAWS,
    without_contaminated: bool = False,
) -> Ranking:
    """The variants of a study in order.

    baseline: the variant that every other is tested against, by default the first of the ranking (chosen by the same
    data, so its lead is flattered). margin: by default the metric's. without_contaminated: rows whose weights are known
    or likely to have been trained on the task's collections stand apart. Raises `UsageError` for an unknown metric or
    baseline, and as a study does.
    """
    rule = get_metric(metric, study.metrics)
    study, why = complete(study)
    target_cases, machines = study.target_cases(metric), agreement.machines(study, metric)
    shared = Resampling(target_cases.domain, draws, group=target_cases.group)
    rows: list[Ranked] = []
    drawn: dict[str, np.ndarray] = {}
    for variant, runs in study.runs.items():
        row = study.row(variant, metric)
        reasons = _reasons(study, row, runs, metric, [*why.get(variant, []), *machines.why_apart(runs)])
        if without_contaminated and row.contaminated:
            reasons.append(f"contaminated: {row.contaminated}")
        low = high = math.nan
        if variant in target_cases.scores and not math.isnan(row.mean):
            estimate, drawn[variant] = statistics.estimate(target_cases.scores[variant], resampling=shared)
            if variant in target_cases.costs:
                costs = statistics.estimate(target_cases.costs[variant], resampling=shared)[1]
                drawn[variant] = rule.worse(drawn[variant], costs)
            low, high = rule.possible(estimate.low, estimate.high)
        rows.append(Ranked(row, low, high, why="; ".join(reasons)))
    rows.sort(key=lambda r: (rule.order(r.row.net), r.variant))
    ranked, apart = [r for r in rows if not r.why], [r for r in rows if r.why]
    if ranked:
        means = np.column_stack([drawn[r.variant] for r in ranked])
        ranks = statistics.rank_intervals(means, not rule.higher_is_better)
        ranked = [dataclasses.replace(r, rank=its) for r, its in zip(ranked, ranks, strict=True)]
    if baseline is not None:
        baseline = study.named(baseline)
        require(baseline, sorted(drawn), "variant to compare with")
    baseline = baseline or (ranked[0].variant if ranked else "")
    ranked = _against(ranked, baseline, target_cases, rule, shared)
    margin = rule.margin if margin is None else margin
    return Ranking(study, rule, tuple(ranked), tuple(apart), baseline, margin, target_cases, drawn, machines)


def _against(
    ranked: Sequence[Ranked], baseline: str, target_cases: TargetCases, rule: Metric, shared: Resampling
) -> list[Ranked]:
    """The ranked variants with their differences to the baseline, a family of tests."""
    scores, lower = target_cases.scores, not rule.higher_is_better
    others = [r.variant for r in ranked if r.variant != baseline]
    costs, known = target_cases.costs, others if baseline else []
    found = statistics.corrected({v: statistics.difference(scores[v], scores[baseline], lower, shared) for v in known})
    false = statistics.corrected(
        {v: statistics.difference(costs[v], costs[baseline], True, shared) for v in known if costs}
    )
    return [dataclasses.replace(r, versus=found.get(r.variant), versus_false=false.get(r.variant)) for r in ranked]


def complete(study: Study) -> tuple[Study, dict[str, list[str]]]:
    """The runs of seeds that have all sources (all runs of a variant without any such seed), and what is missing."""
    usable: list[RunRecord] = []
    why: dict[str, list[str]] = {}
    told: list[str] = []
    for variant, runs in study.runs.items():
        by_seed: dict[int, set[str]] = {}
        for r in runs:
            by_seed.setdefault(r.seed, set()).add(r.source)
        whole = {seed for seed, sources in by_seed.items() if len(sources) == len(study.sources)}
        usable += [r for r in runs if r.seed in whole or not whole]
        failed = failed_runs(runs[0])
        for seed in sorted(by_seed.keys() - whole) if whole else ():
            lacking = sorted(set(study.sources) - by_seed[seed])
            state = [f"{s} (failed)" if (s, seed) in failed else s for s in lacking]
            told.append(f"Seed {seed} of {variant} is left out: it has no run of source {', '.join(state)}.")
        if not whole:
            lacking = sorted(set(study.sources) - {r.source for r in runs})
            why[variant] = [f"no run of source {', '.join(lacking)}" if lacking else "no seed has every source"]
            if sources := sorted({source for source, _ in failed} & set(lacking)):
                why[variant].append(f"failed: source {', '.join(sources)}")
    counting = study.among(usable)
    counting.left_out = (*counting.left_out, *told)
    return counting, why


def failed_runs(run: RunRecord) -> set[tuple[str, int]]:
    """(source, seed) of the same variant's runs that failed, by what they say of themselves: a folder's name may
    differ."""
    reports = {path: read_json(path) for path in run.path.parent.glob("*-seed*/FAILED.json")}
    names = [str(told.get("run", path.parent.name)) for path, told in reports.items() if isinstance(told, dict)]
    found = (re.fullmatch(r"(.*)-seed(-?\d+)", name.rpartition("/")[2]) for name in names)
    return {(match[1], int(match[2])) for match in found if match}


def _reasons(
    study: Study, row: VariantRow, runs: Sequence[RunRecord], metric: str, missing: Sequence[str]
) -> list[str]:
    """Why a variant is not ranked."""
    reasons = list(missing)
    if row.bound:
        reasons.append(TRAINED_INSIDE)
    if row.oracle:
        reasons.append("an oracle: prompted from the targets' reference masks")
    if "adapts_in_testing" in row.needed:
        reasons.append("adapts to the test images")
    if any(r.record.get("checkpoint") for r in runs):
        reasons.append("given weights, not trained here")
    if any(r.external for r in runs):
        reasons += dict.fromkeys(why for r in runs for why in lacking(r.record))
    if any(_looked(r.record.get("submission")) for r in runs):
        reasons.append("its makers looked at the targets")
    if len(row.seeds) == 1:
        reasons.append("one seed")
    elif len(row.seeds) < LEAST and any(r.external for r in runs):
        reasons.append(f"fewer than {LEAST} seeds of a system outside dgbench")
    if study.protocol.distances == "voxel" and METRICS[metric].unit("mm") == "mm":
        usual = study.records[0].record.get("image_size")
        sizes = {r.record.get("hparams", {}).get("image_size") or usual for r in runs}
        reasons += [f"in voxels of a grid of {size} pixels, not {usual}" for size in sizes if size != usual]
    if math.isnan(row.net) and not reasons:
        reasons.append(f"a mean that is not defined: {undefined(study, row, metric)}")
    return reasons


def _looked(submission: Any) -> bool:
    """Does a submission disclose that targets were looked at before all was fixed?"""
    answer = submission.get("targets", "") if isinstance(submission, dict) else ""
    return str(answer).strip().casefold().startswith("yes")


def undefined(study: Study, row: VariantRow, metric: str) -> str:
    """Which structures of which targets leave a mean without a value, and why."""
    cells = study.cells
    of = cells[(cells["variant"] == row.variant) & (cells["metric"] == metric) & (cells["role"] == "target")]
    if not study.n_there.max() > 0:
        return "no reference of any target holds a structure"
    if study.protocol.missed == "penalty":
        of = of[study.n_there[of["structure"].cat.codes, of["target"].cat.codes] != 0]
    words = {"n_missed": "missed", "n_false_positive": "falsely found", "n_both_empty": "in neither mask"}
    told = []
    for (domain, structure), part in of[of["value"].isna()].groupby(["target", "structure"], observed=True):
        counts = {said: n for name, said in words.items() if (n := int(part[name].fillna(0).sum()))}
        listed = ", ".join(f"{said} in {n} of {part['n_cases'].sum()} cases" for said, n in counts.items())
        told.append(f"{structure} of {domain} is {listed or 'without a score'}")
    if not told:
        return "what a structure falsely found costs is not known"
    rule = {"nan": ", which is NaN under this protocol", "penalty": ", and what that costs is not known"}
    return "; ".join(told) + rule[study.protocol.missed]


def _of_false(row: VariantRow) -> dict[str, float]:
    """What a row of `Ranking.frame` says where a structure may be falsely found."""
    found = {"absent": row.absent, "falsely_found": row.false_positive, "cost_of_false": row.false_cost}
    return {**found, "mean_less_cost": row.net}


def _flat(ranking: Ranking, of: Ranked) -> dict[str, Any]:
    """A row of `Ranking.frame`."""
    row, d = of.row, of.versus
    same = ("seed_std", "validation", "gap", "missed", "missed_rate")
    told = ("steps", "batch_size", "initialisation", "needs")
    return {
        "variant": row.variant,
        "method": row.method,
        "rank_low": of.rank[0] if of.rank else None,
        "rank_high": of.rank[1] if of.rank else None,
        "metric": ranking.metric.name,
        "unit": "fraction" if ranking.unit == "%" else ranking.unit,
        "mean": row.mean,
        "low": of.low,
        "high": of.high,
        **(_of_false(row) if ranking.study.any_absent else {}),
        **{f"target {name}": value for name, value in row.targets.items()},
        "worst_target": row.worst,
        "worst": row.worst_value,
        "seeds": len(row.seeds),
        **{name: getattr(row, name) for name in same},
        "baseline": ranking.baseline,
        "difference": d.estimate.mean if d else math.nan,
        "difference_low": d.estimate.low if d else math.nan,
        "difference_high": d.estimate.high if d else math.nan,
        "p_wilcoxon": d.p if d else math.nan,
        "p_holm": d.p_holm if d else math.nan,
        "effect": d.effect if d else math.nan,
        "verdict": ranking.verdict(of),
        "trained": row.trained,
        "parameters": row.parameters,
        "train_seconds": row.train_seconds,
        **{name: value for name in FLOPS if not math.isnan(value := getattr(row, name))},
        "device": row.device,
        "machine": "; ".join(row.machines),
        "contaminated": row.contaminated,
        "peak_memory_mb": row.memory_mb,
        **{name: getattr(row, name) for name in told},
        "not_ranked": of.why,
    }
