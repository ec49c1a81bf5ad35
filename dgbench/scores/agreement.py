"""Agreement: do two machines give the same numbers, as far as seeds tell? Then rows made on them are ranked together.

Processors and versions of torch round differently, and training carries that as far as another seed would. So a variant
that two machines made with the same seeds, all sources each, is compared by its mean. The question is not whether a
difference is significant, which few seeds never show, but whether a large one can be excluded: with n seeds, s the
standard deviation between seeds (pooled) and d the difference of the two means, they agree if

    |d| <= c s sqrt(2 / n),    c^2 the 5 % quantile of the noncentral F(1, 2n - 2) with noncentrality n/2 2.8^2,

the t-test for equivalence of Wellek (Testing Statistical Hypotheses of Equivalence and Noninferiority, 2nd ed. 2010,
6.1). 2.8 s is how far two seeds of one machine lie apart in 19 of 20 pairs (the repeatability limit of ISO 5725-6): of
machines that differ by so much 5 % pass. Of equal ones 60 % pass with two seeds, 82 % with three, 97 % with five. One
seed has no spread and tells nothing, and so does a variant that is the same for every seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from dgbench.metrics import METRICS
from dgbench.running.records import RunRecord
from dgbench.scores.study import Study, machine

LIMIT = 2.8  # standard deviations between seeds
LEVEL = 0.05


class Agreement(NamedTuple):
    """One variant on two machines.

    difference: the other's mean, less what structures falsely found cost, minus home's. limit: the largest that agrees.
    """

    variant: str
    seeds: int
    difference: float
    limit: float

    @property
    def holds(self) -> bool:
        """False also where a mean is not defined."""
        return abs(self.difference) <= self.limit


class Machines(NamedTuple):
    """home: where most variants of a board were made. others: {machine: what both made}, all that made a row of it."""

    home: str
    others: dict[str, tuple[Agreement, ...]]

    def why_apart(self, runs: Sequence[RunRecord]) -> list[str]:
        """Why a row of these runs cannot be ranked among those of home: all that both machines made must agree.

        What another system made is measured here, and measuring gives the same numbers everywhere.
        """
        reasons = []
        for name in sorted({machine(r.record) for r in runs if not r.external} & set(self.others)):
            agreements = self.others[name]
            broken = ", ".join(a.variant for a in agreements if not a.holds)
            if not agreements:
                reasons.append(f"made on {name}, where no other row was made again with the same seeds")
            elif broken:
                reasons.append(f"made on {name}, where {broken} comes out otherwise")
        return reasons


def machines(study: Study, metric: str) -> Machines:
    """The machines of a board, each compared with that of most variants by all that both made."""
    if study.protocol.folds:  # bounds, of which none is ranked
        return Machines("", {})
    made: dict[str, dict[str, dict[tuple[int, str], RunRecord]]] = {}
    for r in (r for r in (*study.records, *study.again) if not r.external):
        made.setdefault(machine(r.record), {}).setdefault(r.variant, {}).setdefault((r.seed, r.source), r)
    rows = [{machine(r.record) for r in runs if not r.external} for runs in study.runs.values()]
    home = max(sorted(made), key=lambda name: sum(name in of for of in rows), default="")
    others = {}
    for name in sorted(set().union(*rows) - {home}):
        both = sorted(set(made[name]) & set(made[home]))
        found = (_agreement(study, metric, made[home][variant], made[name][variant]) for variant in both)
        others[name] = tuple(a for a in found if a)
    return Machines(home, others)


def limit(seeds: int, std: float) -> float:
    """The largest difference of two means over so many seeds that agrees; 0 for one seed."""
    if seeds < 2:
        return 0.0
    critical = math.sqrt(stats.ncf.ppf(LEVEL, 1, 2 * seeds - 2, seeds / 2 * LIMIT**2))
    return critical * std * math.sqrt(2 / seeds)


def _agreement(
    study: Study, metric: str, home: Mapping[tuple[int, str], RunRecord], other: Mapping[tuple[int, str], RunRecord]
) -> Agreement | None:
    """Of the seeds that both have with every source; None where these say nothing."""
    every = set(study.sources)
    seeds = [
        seed
        for seed in sorted({s for s, _ in home} & {s for s, _ in other})
        if all(every <= {source for s, source in of if s == seed} for of in (home, other))
    ]
    if len(seeds) < 2:
        return None
    one, two = (_of_seed(study, metric, [r for (s, _), r in of.items() if s in seeds]) for of in (home, other))
    std = math.sqrt((one.var(ddof=1) + two.var(ddof=1)) / 2)
    variant = next(iter(home.values())).variant
    found = Agreement(variant, len(seeds), float(two.mean() - one.mean()), limit(len(seeds), std))
    return None if std == 0 else found


def _of_seed(study: Study, metric: str, runs: Sequence[RunRecord]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(seeds,): what variants are ranked by, the mean over everything less what structures falsely found cost."""
    found, variant = study.among(runs).target_cases(metric), runs[0].variant
    cost = found.costs[variant].of_seed if found.costs else 0.0
    return np.asarray(METRICS[metric].worse(found.scores[variant].of_seed, cost))
