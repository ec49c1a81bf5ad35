"""Multiverse: would the order of the variants be another one under other defensible choices that need no training?

A universe is a set of choices: the metric, what a missed structure counts, how means are taken, what is left out. The
first universe is the leaderboard itself; every other departs from it in one choice, or in several of those that are
named. What is ranked on the leaderboard is ranked again in each, by the same rule. Universes share nearly all of their
data: how many agree says how much hangs on a choice, and nothing of chance.

Steegen et al. Increasing transparency through a multiverse analysis. Perspectives on Psychological Science 2016.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from dgbench.metrics import METRICS, Metric
from dgbench.protocol import Protocol
from dgbench.scores import statistics
from dgbench.scores.ranking import Ranking, complete
from dgbench.scores.study import Study, scored

Missed = Literal["penalty", "nan", "found", "absent"]
Mean = Literal["domains", "cases", "median", "worst", "ranks"]
MISSES, BOARD, SEVERAL, ELSEWHERE = "missed structures", "leaderboard", "several at once", "runs of another protocol"
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
NO_THIRDS = "the sizes of the references are not known, or a target has fewer than three cases"
KINDS = (  # of choices, in the order in which they are shown
    BOARD, "metric", MISSES, "mean", "slices", "resolution", "distances", ELSEWHERE, "structure left out",
    "target left out", "source left out", "seed left out", "cases left out", SEVERAL,
)  # fmt: skip
Part = tuple[str, str]  # a kind of choice, and what is chosen


@dataclass(frozen=True)
class Choices:
    """What a universe chooses. without: what is left out, as ("target", "A"), ("seed", 0) or ("cases", 2), a third."""

    metric: str
    missed: Missed
    mean: Mean
    without: tuple[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Universe:
    """parts: what is chosen otherwise than on the leaderboard, as ("metric", "ASD"); nothing: the leaderboard itself.

    means: (V,) of the variants in the leaderboard's order, as fractions or in the unit of distances (mean ranks, where
    cases are ranked); NaN where there is none. ranks: (V,) float, 1 the best, equal ones share it; NaN where not
    ranked. same: other universes with the same means, which are all this one.
    """

    parts: tuple[Part, ...]
    metric: str
    means: np.ndarray
    ranks: np.ndarray
    same: tuple[Universe, ...] = ()

    @property
    def kind(self) -> str:
        """Of choice: "metric", or "several at once"."""
        return BOARD if not self.parts else SEVERAL if len(self.parts) > 1 else self.parts[0][0]

    @property
    def name(self) -> str:
        """What is chosen: "ASD", or "ASD, missed structures left out"."""
        told = [name if kind != MISSES or len(self.parts) == 1 else f"{kind} {name}" for kind, name in self.parts]
        return ", ".join(told) or BOARD


@dataclass(frozen=True)
class Pair:
    """Two variants, `one` before `other` on the leaderboard or level with it.

    kept, known: universes, the leaderboard among them, with the same order, and where both are ranked. share: of
    universes with the same order inside each kind of choice, averaged over the kinds; NaN without any. changed: by
    kind, the names of universes with another order; of several choices at once only those of which no part does it.
    """

    one: str
    other: str
    kept: int
    known: int
    share: float
    changed: dict[str, tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Multiverse:
    """universes: that of the leaderboard first. missing: what could not be looked at, and why."""

    board: Ranking
    universes: tuple[Universe, ...]
    missing: dict[str, str]

    @property
    def variants(self) -> list[str]:
        """In the leaderboard's order."""
        return [of.variant for of in self.board.ranked]

    @functools.cached_property
    def ranks(self) -> np.ndarray:
        """(universes, variants), NaN where not ranked."""
        return np.array([u.ranks for u in self.universes])

    @property
    def kinds(self) -> dict[str, list[int]]:
        """The numbers of the universes of each kind of choice, that of the leaderboard left out."""
        found: dict[str, list[int]] = {}
        for i, universe in enumerate(self.universes[1:], start=1):
            found.setdefault(universe.kind, []).append(i)
        return found

    def share(self, holds: np.ndarray, known: np.ndarray) -> float:
        """Of the known universes where something holds, inside each kind, averaged over kinds. (universes,) bool."""
        shares = [holds[of][known[of]].mean() for of in self.kinds.values() if known[of].any()]
        return float(np.mean(shares)) if shares else math.nan

    @functools.cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """Every two variants."""
        return tuple(self._pair(i, j) for i, j in itertools.combinations(range(len(self.variants)), 2))

    def _pair(self, i: int, j: int) -> Pair:
        order = np.sign(self.ranks[:, j] - self.ranks[:, i])
        known, kept = ~np.isnan(order), order == order[0]
        others = [u for u, lost in zip(self.universes, known & ~kept, strict=True) if lost]
        causes = [set(same.parts) for u in others for same in (u, *u.same)]
        changed: dict[str, tuple[str, ...]] = {}
        for u in others:
            if not any(cause < set(u.parts) for cause in causes):
                changed[u.kind] = (*changed.get(u.kind, ()), u.name)
        share = self.share(kept, known)
        return Pair(self.variants[i], self.variants[j], int(kept.sum()), int(known.sum()), share, changed)

    def frame(self) -> pd.DataFrame:
        """One row per universe and variant: kind, universe, same_as, metric, variant, mean, rank (none: not ranked)."""
        rows = [
            (u.kind, u.name, "; ".join(same.name for same in u.same), u.metric, variant, mean, rank)
            for u in self.universes
            for variant, mean, rank in zip(self.variants, u.means, u.ranks, strict=True)
        ]
        columns = ["kind", "universe", "same_as", "metric", "variant", "mean", "rank"]
        return pd.DataFrame(rows, columns=columns).astype({"rank": "Int64"})


def multiverse(
    board: Ranking,
    remeasured: Mapping[Part, Study] | None = None,
    others: Mapping[str, Study] | None = None,
    missing: Mapping[str, str] | None = None,
) -> Multiverse:
    """The ranked variants of a leaderboard, ranked again in every universe that can be reached from their scores.

    remeasured: the board's runs with their masks compared in another way, as from `remeasured.remeasured`. others: by
    the name of another protocol, the task's runs under it. missing: what could not be had of both, and why.
    """
    variants = [of.variant for of in board.ranked]
    cube, why = _Cube(board.study, variants), dict(missing or {})
    default = Choices(board.metric.name, board.study.protocol.missed, board.study.protocol.mean)
    found = [_universe(cube, parts, choices) for parts, choices in _choices(cube, default, why)]
    found += [_universe(_Cube(study, variants), (part,), default) for part, study in (remeasured or {}).items()]
    for name, study in (others or {}).items():
        known = complete(study)[0]
        means = [known.row(v, board.metric.name).mean if v in known.runs else math.nan for v in variants]
        found.append(_ranked(((ELSEWHERE, name),), board.metric, np.array(means)))
    found.sort(key=lambda u: KINDS.index(u.kind))
    universes = _merged(found)
    ranked = tuple(u for u in universes if not u.parts or (~np.isnan(u.ranks)).sum() > 1)
    why |= {u.name: "fewer than two of the means are known" for u in universes if u not in ranked}
    return Multiverse(board, ranked, why)


def _universe(cube: _Cube, parts: tuple[Part, ...], choices: Choices) -> Universe:
    rule = METRICS[choices.metric]
    if choices.mean == "ranks":
        rule = dataclasses.replace(rule, higher_is_better=False)
    return _ranked(parts, rule, cube.means(choices))


def _ranked(parts: tuple[Part, ...], rule: Metric, means: np.ndarray) -> Universe:
    ranks, known = np.full(len(means), np.nan), ~np.isnan(means)
    ranks[known] = statistics.ranks(means[known], not rule.higher_is_better)
    return Universe(parts, rule.name, means, ranks)


def _merged(universes: Sequence[Universe]) -> list[Universe]:
    """Each once: universes with the same means are kept in the first of them."""
    kept: dict[tuple, Universe] = {}
    for u in universes:
        key = (u.metric, *(None if math.isnan(m) else round(m, 12) for m in u.means))
        first = kept.get(key)
        kept[key] = dataclasses.replace(first, same=(*first.same, u)) if first else u
    return list(kept.values())


# --- which choices there are -----------------------------------------------------------------------------------------


def _choices(cube: _Cube, default: Choices, missing: dict[str, str]) -> Iterator[tuple[tuple[Part, ...], Choices]]:
    """What each universe chooses, the leaderboard's first; what cannot be chosen goes to `missing`."""
    metrics = cube.study.protocol.metrics
    if len(metrics) == 1:
        missing["metric"] = f"these runs have {METRICS[metrics[0]].title} alone"
    flags = set(cube.frame["flag"])
    rules = [rule for rule in MISSED if rule != "absent" or "both_empty" in flags] if flags - {""} else [default.missed]
    if not flags - {""}:
        missing[MISSES] = "every structure was there and found"
    for metric, missed, mean in itertools.product(metrics, rules, MEAN):
        parts = []
        if metric != default.metric:
            parts.append(("metric", METRICS[metric].title))
        if missed != default.missed:
            parts.append((MISSES, MISSED[missed]))
        if mean != default.mean:
            parts.append(("mean", MEAN[mean]))
        if len(parts) < 2 or mean in ("domains", "cases"):
            yield tuple(parts), Choices(metric, missed, mean)
    for what, names in cube.parts.items():
        kind = f"{what} left out"
        if len(names) < 2:
            missing[kind] = f"there is no second {what}" if names else NO_THIRDS
            continue
        for part, name in names.items():
            yield ((kind, name),), dataclasses.replace(default, without=(what, part))


# --- means under any choices -----------------------------------------------------------------------------------------


class _Cube:
    """What the runs of some variants score on each target case and structure, as arrays (runs, cases, structures).

    Cases are sorted by domain: `starts` says where each begins. parts: by what can be left out, its parts and their
    names.
    """

    def __init__(self, study: Study, variants: Sequence[str]):
        self.study, self.variants = study, list(variants)
        self.runs = [r for r in study.records if r.variant in self.variants]
        frame = study.cases
        self.frame = frame = frame[(frame["role"] == "target") & frame["variant"].isin(self.variants)]
        numbers = [i for i, r in enumerate(study.records) if r.variant in self.variants]
        columns, cases = pd.factorize(pd.MultiIndex.from_frame(frame[["domain", "case"]]), sort=True)
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
        size, third = size / np.maximum(per_run, 1), np.zeros(len(size), int)
        for d in range(len(self.domains)):
            at = np.flatnonzero(self.domain == d)
            if len(at) < 3 or not np.ptp(size[at]) > 0:
                return None
            third[at[np.argsort(size[at], kind="stable")]] = np.arange(len(at)) * 3 // len(at)
        return third

    def values(self, metric: str, missed: Missed) -> tuple[np.ndarray, np.ndarray]:
        """(values, which of them count), each (runs, cases, structures)."""
        frame, flag = self.frame, self.frame["flag"]
        if missed == "found":
            kept = frame.loc[flag == "", metric].astype(float)
        else:
            rule: Literal["penalty", "nan"] = "nan" if missed == "nan" else "penalty"
            protocol: Protocol = dataclasses.replace(self.study.protocol, missed=rule)
            kept = scored(frame, metric, protocol)
        if missed == "absent":
            kept = kept.reindex(frame.index).where(flag != "both_empty", float(METRICS[metric].higher_is_better))
        values, counts = np.full(self.shape, np.nan), np.zeros(self.shape, bool)
        there = frame.index.isin(kept.index)
        place = tuple(of[there] for of in self.place)
        values[place], counts[place] = kept.to_numpy(), True
        return values, counts

    def means(self, choices: Choices) -> np.ndarray:
        """(V,) of the variants, NaN where a part of a mean is not known."""
        if not self.variants:
            return np.zeros(0)
        values, counts = self.values(choices.metric, choices.missed)
        runs, cases, structures, tested = self._kept(choices.without)
        values, counts = values[runs][:, :, structures], counts[runs][:, :, structures] & cases[:, None]
        tested, variant = tested[runs], self.variant[runs]
        if choices.mean == "ranks":
            return self._case_ranks(values, counts & tested[:, self.domain][:, :, None], variant, choices.metric)
        cell, n = self._cells(values, counts, choices.mean == "median")
        if choices.mean == "worst":
            of_target = np.where(tested, cell.mean(axis=2), 0)
            by_target = _by(variant, of_target, len(self.variants)) / _by(variant, tested * 1.0, len(self.variants))
            known = by_target[:, tested.any(axis=0)]
            return (np.min if METRICS[choices.metric].higher_is_better else np.max)(known, axis=1)
        weight = np.where(tested[:, :, None], n if choices.mean == "cases" else 1.0, 0.0)
        part = np.where(tested[:, :, None], cell * weight, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            of_run = (part.sum(axis=1) / weight.sum(axis=1)).mean(axis=1)
            return _by(variant, of_run, len(self.variants)) / np.bincount(variant, minlength=len(self.variants))

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

    def _case_ranks(self, values: np.ndarray, counts: np.ndarray, variant: np.ndarray, metric: str) -> np.ndarray:
        """(V,): the variants are ranked on every case by their mean over its structures, sources and seeds."""
        total = _by(variant, np.where(counts, values, 0.0).sum(axis=2), len(self.variants))
        n = _by(variant, counts.sum(axis=2), len(self.variants))
        there = (n > 0).all(axis=0)
        cost = METRICS[metric].cost(1.0) * total[:, there] / n[:, there]
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
