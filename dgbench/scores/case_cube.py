"""Case cube: what the variants of a study score on every case, and their means under any choices at once.

The means that a `Study` keeps are those of its protocol. Here they are taken anew for each choice, over arrays of all
runs, so that dozens of choices take no longer than one table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from dgbench.metrics import METRICS
from dgbench.protocol import Protocol
from dgbench.scores.study import Study, charged, masked_mean, numbered, scored, there

Missed = Literal["penalty", "nan", "found", "absent"]
Mean = Literal["domains", "cases", "median", "worst", "ranks"]
MISSED: dict[Missed, str] = {
    "penalty": "cost the diagonal",
    "nan": "make the mean NaN",
    "found": "left out",
    "absent": "absent from both masks count as perfect",
}
MEAN: dict[Mean, str] = {
    "domains": "each target equal",
    "cases": "cases pooled",
    "median": "median case of each target",
    "worst": "the worst target",
    "ranks": "mean rank over cases",
}
THIRDS = ("smallest third", "middle third", "largest third")


@dataclass(frozen=True)
class Choices:
    """What a universe chooses. without: what is left out, as ("target", "A"), ("seed", 0) or ("cases", 2), a third."""

    metric: str
    missed: Missed
    mean: Mean
    without: tuple[str, Any] | None = None


class CaseCube:
    """What the runs of some variants score on each target case and structure, as arrays (runs, cases, structures).

    Cases are sorted by domain: `starts` says where each begins. held: (cases, structures) bool, does the reference hold
    the structure? parts: by what can be left out, its parts and their names.
    """

    def __init__(self, study: Study, variants: Sequence[str]):
        self.study, self.variants = study, list(variants)
        self.runs = [r for r in study.records if r.variant in self.variants]
        frame = study.cases
        self.frame = frame = frame[(frame["role"] == "target") & frame["variant"].isin(self.variants)]
        numbers = [i for i, r in enumerate(study.records) if r.variant in self.variants]
        columns, cases = numbered(frame)
        structure = pd.Categorical(frame["structure"], study.structures).codes
        self.place = (np.searchsorted(numbers, frame["run"]), columns, structure)
        self.shape = (len(self.runs), len(cases), len(study.structures))
        self.domain, names = pd.factorize(cases.get_level_values(0))
        self.domains = [str(name) for name in names]
        self.starts = np.searchsorted(self.domain, np.arange(len(names)))
        self.variant = np.array([self.variants.index(r.variant) for r in self.runs])
        self.tested = np.array([[d in r.record["targets"] for d in self.domains] for r in self.runs])
        self.third = self._thirds()
        self.parts = self._parts()
        self.held = self._placed(there(frame), False).any(axis=0)
        self.seen = self._placed(pd.Series(True, frame.index), False)
        self._values: dict[tuple[str, Missed], tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    def _parts(self) -> dict[str, dict[Any, str]]:
        sources = [s for s in self.study.sources if any(r.source == s for r in self.runs)]
        seeds = sorted({r.seed for r in self.runs})
        return {
            "structure": {s: s for s in self.study.structures},
            "target": {d: d for d in self.domains},
            "source": {s: s for s in sources},
            "seed": {s: f"seed {s}" for s in seeds},
            "cases": dict(enumerate(THIRDS)) if self.third is not None else {},
        }

    def _thirds(self) -> np.ndarray | None:
        """(cases,): by the size of its reference, the third of its domain that a case belongs to; None: not known."""
        size = np.zeros(self.shape[1])
        per_run = np.bincount(self.place[1], minlength=len(size))
        np.add.at(size, self.place[1], self.frame["n_reference"].to_numpy(float))
        size, third = size / per_run, np.zeros(len(size), int)
        for d in range(len(self.domains)):
            at = np.flatnonzero(self.domain == d)
            if len(at) < 3 or not np.ptp(size[at]) > 0:
                return None
            third[at[np.argsort(size[at], kind="stable")]] = np.arange(len(at)) * 3 // len(at)
        return third

    def _placed(self, rows: pd.Series, fill: Any) -> np.ndarray:
        """(runs, cases, structures): some rows of `frame`, and `fill` where there are none."""
        filled, at = np.full(self.shape, fill), self.frame.index.isin(rows.index)
        filled[tuple(of[at] for of in self.place)] = rows.to_numpy()
        return filled

    def values(self, metric: str, missed: Missed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(values, which of them count, what is charged besides), each (runs, cases, structures)."""
        if (metric, missed) not in self._values:
            self._values[metric, missed] = self._dense(metric, missed)
        return self._values[metric, missed]

    def _dense(self, metric: str, missed: Missed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        frame, best = self.frame, float(METRICS[metric].higher_is_better)
        rule: Literal["penalty", "nan"] = "nan" if missed == "nan" else "penalty"
        protocol: Protocol = dataclasses.replace(self.study.protocol, missed=rule)
        kept, costs = (of(frame, metric, protocol) for of in (scored, charged))
        if missed == "found":
            kept = kept[frame.loc[kept.index, "flag"] == ""]
        if missed == "absent":
            kept = kept.reindex(frame.index).where(there(frame), METRICS[metric].worse(best, costs))
        if missed != "penalty":
            costs = pd.Series(0.0, frame.index)
        return self._placed(kept, np.nan), self._placed(pd.Series(True, kept.index), False), self._placed(costs, 0.0)

    def means(self, choices: Choices) -> np.ndarray:
        """(V,) of the variants, less what structures falsely found cost; NaN where a part of a mean is not known."""
        if not self.variants:
            return np.zeros(0)
        runs, cases, structures, tested = self._kept(choices.without)
        values, counts, costs = (of[runs][:, :, structures] for of in self.values(choices.metric, choices.missed))
        counts, held = counts & cases[:, None], (self.held & cases[:, None])[:, structures]
        tested, variant, rule = tested[runs], self.variant[runs], METRICS[choices.metric]
        if choices.mean == "ranks":
            of_case = counts & tested[:, self.domain][:, :, None]
            return self._case_ranks(values, of_case, costs.mean(axis=2), variant, choices.metric)
        cell, n = self._cells(values, counts, choices.mean == "median")
        cost, n_cases = self._cells(costs, self.seen[runs][:, :, structures] & cases[:, None], False)
        # Of a domain in which no reference holds a structure, that one is in no mean; another rule may count it.
        some = np.logical_or.reduceat(held, self.starts, axis=0) | (choices.missed in ("nan", "absent"))
        there = tested[:, :, None] & some
        pooled = choices.mean == "cases"
        if choices.mean == "worst":
            net = rule.worse(masked_mean(cell, np.ones_like(cell), there, axis=2), cost.mean(axis=2))
            known = self._of_variants(variant, net, there.any(axis=2))[:, there.any(axis=(0, 2))]
            return (np.min if rule.higher_is_better else np.max)(known, axis=1)
        if pooled:
            of_structure = masked_mean(cell, n, there, axis=1)
            of_run = masked_mean(of_structure, np.ones_like(of_structure), there.any(axis=1), axis=1)
        else:
            of_target = masked_mean(cell, np.ones_like(cell), there, axis=2)
            of_run = masked_mean(of_target, np.ones_like(of_target), there.any(axis=2), axis=1)
        of_costs = masked_mean(cost.mean(axis=2), n_cases[:, :, 0] if pooled else np.ones(tested.shape), tested, axis=1)
        mean = self._of_variants(variant, of_run, there.any(axis=(1, 2)))
        return np.asarray(rule.worse(mean, self._of_variants(variant, of_costs, tested.any(axis=1))))

    def _of_variants(self, variant: np.ndarray, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """(runs, ...) -> (V, ...): the mean over the runs of each variant that count."""
        total, n = np.zeros((2, len(self.variants), *values.shape[1:]))
        np.add.at(total, variant, np.where(counts, values, 0.0))
        np.add.at(n, variant, counts * 1.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(total / n)

    def _kept(self, without: tuple[str, Any] | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Which runs, cases and structures count, bool, and which targets of each run, (runs, domains)."""
        what, part = without or ("", None)
        runs, cases = np.ones(self.shape[0], bool), np.ones(self.shape[1], bool)
        structures = np.array([not (what == "structure" and s == part) for s in self.study.structures])
        tested = self.tested
        if what == "target":
            tested = tested & np.array([d != part for d in self.domains])
            runs = tested.any(axis=1)
        elif what in ("source", "seed"):
            runs = np.array([getattr(r, what) != part for r in self.runs])
        elif what == "cases" and self.third is not None:
            cases = self.third != part
        return runs, cases, structures, tested

    def _cells(self, values: np.ndarray, counts: np.ndarray, median: bool) -> tuple[np.ndarray, np.ndarray]:
        """The mean (or median) of each run, domain and structure, NaN where a case that counts is; and of how many."""
        n = np.add.reduceat(counts * 1.0, self.starts, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.add.reduceat(np.where(counts, values, 0.0), self.starts, axis=1) / n
        if not median:
            return mean, n
        parts = np.split(np.ma.array(values, mask=~counts), self.starts[1:], axis=1)
        middle = np.stack([np.ma.median(part, axis=1).filled(np.nan) for part in parts], axis=1)
        return np.where(np.isnan(mean), np.nan, middle), n

    def _case_ranks(
        self, values: np.ndarray, counts: np.ndarray, costs: np.ndarray, variant: np.ndarray, metric: str
    ) -> np.ndarray:
        """(V,): the variants are ranked on every case by their mean over its structures, sources and seeds."""
        total = _by(variant, np.where(counts, values, 0.0).sum(axis=2), len(self.variants))
        n = _by(variant, counts.sum(axis=2), len(self.variants))
        there, tested = (n > 0).all(axis=0), _by(variant, counts.any(axis=2).astype(float), len(self.variants))
        of_false = _by(variant, np.where(counts.any(axis=2), costs, 0.0), len(self.variants))
        cost = METRICS[metric].cost(1.0) * total[:, there] / n[:, there] + of_false[:, there] / tested[:, there]
        known, domain = ~np.isnan(cost).any(axis=1), self.domain[there]
        weight = 1 / np.bincount(domain)[domain] if self.study.protocol.mean == "domains" else np.ones(len(domain))
        ranks = np.full(len(known), np.nan)
        ranks[known] = stats.rankdata(np.round(cost[known], 12), axis=0) @ (weight / weight.sum())
        return ranks


def _by(variant: np.ndarray, values: np.ndarray, n: int) -> np.ndarray:
    """(runs, ...) -> (n, ...): the sums over the runs of each variant."""
    total = np.zeros((n, *values.shape[1:]))
    np.add.at(total, variant, values)
    return total
