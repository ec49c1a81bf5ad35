"""Comparison: is one variant better than another, overall and on each target? Also of two folders of results."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dgbench.errors import DataError, UsageError, require
from dgbench.metrics import Metric, get_metric
from dgbench.scores import statistics
from dgbench.scores.ranking import complete, undefined
from dgbench.scores.reproduce import differences
from dgbench.scores.statistics import Difference
from dgbench.scores.study import Study

OVERALL, FALSE = "all targets", "cost of falsely found"


@dataclass(frozen=True, eq=False)
class Comparison:
    """`one` minus `other`, overall and by target domain; p-values are Holm-corrected over all of these.

    means: of both, by row. differences: "all targets" first, then one for each domain that holds a structure, then, if
    one of the two found one falsely, what that costs. margin: differences inside it count as equivalent, in the
    metric's unit. study: the runs of both that count.
    """

    one: str
    other: str
    study: Study
    metric: Metric
    margin: float
    means: dict[str, tuple[float, float]]
    differences: dict[str, Difference]

    def verdict(self, row: str = OVERALL) -> str:
        """In a word, as `statistics.Difference.verdict`; overall, what was falsely found speaks with (`joint`)."""
        said = self.differences[row].verdict(self.margin)
        if row != OVERALL or FALSE not in self.differences:
            return said
        return statistics.joint(said, self.differences[FALSE].verdict(self.margin))

    def frame(self) -> pd.DataFrame:
        """One row overall and one for each target domain, with full precision."""
        rows = [
            {
                "target": name,
                self.one: self.means[name][0],
                self.other: self.means[name][1],
                "difference": d.estimate.mean,
                "low": d.estimate.low,
                "high": d.estimate.high,
                "p_holm": d.p_holm,
                "improved": d.improved,
                "cases": d.cases,
                "verdict": self.verdict(name),
            }
            for name, d in self.differences.items()
        ]
        return pd.DataFrame(rows)


def compare(study: Study, one: str, other: str, metric: str = "dice", margin: float | None = None) -> Comparison:
    """Compare two variants case by case, over the seeds for which each has all sources.

    one, other: see `Study.named`. margin: by default the metric's. Raises `UsageError` for an unknown variant or
    metric, and when the runs of one do not fill the matrix.
    """
    rule = get_metric(metric, study.metrics)
    one, other = study.named(one), study.named(other)
    for variant in (one, other):
        require(variant, list(study.runs), "variant")
    usable, why = complete(study.only((one, other)))
    for variant in (one, other):
        if variant in why:
            cause = f"{variant} cannot be compared: {'; '.join(why[variant])}"
            raise UsageError(cause, "make the missing runs: `dgbench run` makes only those")
    scores, cases, _, costs, _ = usable.target_cases(metric)
    if lost := [v for v in (one, other) if v not in scores]:
        cause = f"{' and '.join(lost)} cannot be compared: no reference of any target holds a structure"
        raise UsageError(cause, "look at what was falsely found: `dgbench leaderboard`")
    for variant in (one, other):
        if math.isnan((row := usable.row(variant, metric)).mean):
            cause = f"{variant} has no mean {rule.title}: {undefined(usable, row, metric)}"
            raise UsageError(cause, "choose another --metric, or a protocol under which what is missed costs something")
    names = np.array([d for d, _ in cases])
    counting = dict.fromkeys(usable.target_cases(metric).counting)
    parts = {OVERALL: np.arange(len(names))} | {str(d): np.flatnonzero(names == d) for d in counting}
    found, means = {}, {}
    for name, part in parts.items():
        a, b = (scores[v].part(part) for v in (one, other))
        found[name] = statistics.difference(a, b, not rule.higher_is_better)
        means[name] = (a.mean, b.mean)
    if costs:
        found[FALSE] = statistics.difference(costs[one], costs[other], True)
        means[FALSE] = (costs[one].mean, costs[other].mean)
    margin = rule.margin if margin is None else margin
    return Comparison(one, other, usable, rule, margin, means, statistics.corrected(found))


def folders(
    before: Study, after: Study, metric: str = "dice", margin: float | None = None
) -> tuple[list[Comparison], list[str]]:
    """After minus before, for every variant that both have; and in sentences what cannot be compared and what differs
    between the runs of one source and seed: environment, images, code, settings.
    """
    compared: list[Comparison] = []
    skipped: list[str] = []
    changed: Counter[str] = Counter()
    for variant in sorted(v for v, of in {**before.runs, **after.runs}.items() if not of[0].published):
        sides = {"before": before.runs.get(variant, ()), "after": after.runs.get(variant, ())}
        if not all(sides.values()):
            skipped.append(f"{variant}: only {next(word for word, runs in sides.items() if runs)}")
            continue
        known = {(r.source, r.seed): r.record for r in sides["before"]}
        for r in sides["after"]:
            told = differences(known[r.source, r.seed], r.record) if (r.source, r.seed) in known else []
            changed.update(f"{what}: {then} -> {now}" for what, then, now in told)
        marked = [r.renamed(f"{variant} ({word})") for word, runs in sides.items() for r in runs]
        try:
            both = before.among(marked)
            compared.append(compare(both, f"{variant} (after)", f"{variant} (before)", metric, margin))
        except (UsageError, DataError) as error:
            skipped.append(f"{variant}: {error.cause}")
    return compared, [*skipped, *(f"{what} (in {n} run{'s' if n > 1 else ''})" for what, n in changed.items())]
