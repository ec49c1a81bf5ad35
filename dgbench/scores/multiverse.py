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
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from dgbench.errors import UsageError
from dgbench.metrics import METRICS, Metric
from dgbench.protocol import PROTOCOLS
from dgbench.scores import statistics
from dgbench.scores.case_cube import MEAN, MISSED, CaseCube, Choices
from dgbench.scores.ranking import Ranking, rank
from dgbench.scores.remeasure import remeasured
from dgbench.scores.study import Study
from dgbench.task import Task

MISSES, BOARD, SEVERAL, ELSEWHERE = "missed structures", "leaderboard", "several at once", "runs of another protocol"
NO_THIRDS = "the sizes of the references are not known, or a target has fewer than three cases"
KINDS = (  # of choices, in the order in which they are shown
    BOARD, "metric", MISSES, "mean", "slices", "resolution", "distances", ELSEWHERE, "structure left out",
    "target left out", "source left out", "seed left out", "cases left out", SEVERAL,
)  # fmt: skip
Part = tuple[str, str]  # a kind of choice, and what is chosen


@dataclass(frozen=True, eq=False)
class Universe:
    """parts: what is chosen otherwise than on the leaderboard, as ("metric", "ASD"); nothing: the leaderboard itself.

    means: (V,) of the variants in the leaderboard's order, less what structures falsely found cost, as fractions or in
    the unit of distances (mean ranks, where cases are ranked); NaN where there is none. ranks: (V,) float, 1 the best,
    equal ones share it; NaN where not ranked. same: other universes with the same means, which are all this one.
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
        """What is chosen, under its kind: "ASD", "left out", or "ASD, missed structures left out"."""
        return self.parts[0][1] if len(self.parts) == 1 else self.label

    @property
    def label(self) -> str:
        """What is chosen, to be understood alone: "ASD, missed structures left out"."""
        told = [f"{kind} {name}" if kind == MISSES or "left out" in kind else name for kind, name in self.parts]
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
    def shifts(self) -> np.ndarray:
        """(universes, variants): places gained against the leaderboard's order of those that are ranked there."""
        before = np.where(np.isnan(self.ranks), np.nan, self.ranks[0])
        return np.asarray(stats.rankdata(before, method="min", axis=1, nan_policy="omit") - self.ranks)

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
            (u.kind, u.name, "; ".join(same.label for same in u.same), u.metric, variant, mean, rank)
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

    remeasured: the board's runs with their masks compared in another way, as from `remeasure.remeasured`. others: by
    the name of another protocol, the task's runs under it. missing: what could not be had of both, and why.
    """
    variants = [of.variant for of in board.ranked]
    cube, why = CaseCube(board.study, variants), dict(missing or {})
    default = Choices(board.metric.name, board.study.protocol.missed, board.study.protocol.mean)
    found = [_universe(cube, parts, choices) for parts, choices in _choices(cube, default, why)]
    found += [_universe(CaseCube(study, variants), (part,), default) for part, study in (remeasured or {}).items()]
    for name, study in (others or {}).items():
        means = {of.variant: of.row.net for of in rank(study, board.metric.name).ranked}
        parts = ((ELSEWHERE, name),)
        found.append(_ranked(parts, board.metric, np.array([means.get(v, math.nan) for v in variants])))
    found.sort(key=lambda u: KINDS.index(u.kind))
    universes = _merged(found)
    ranked = tuple(u for u in universes if not u.parts or (~np.isnan(u.ranks)).sum() > 1)
    why |= {u.label: "fewer than two of the means are known" for u in universes if u not in ranked}
    return Multiverse(board, ranked, why)


def of_folder(board: Ranking, task: Task | None, results: Path) -> Multiverse:
    """`multiverse`, with all that the runs' stored masks, the task's images and runs of other protocols allow.

    task: None where its images are not at hand. results: where runs of other protocols may lie.
    """
    ranked = [of.variant for of in board.ranked]
    again, not_again = remeasured(board.study.only(ranked), board.metric, task) if ranked else ({}, {})
    others, not_others = other_protocols(board.study, board.metric.name, results)
    return multiverse(board, again, others, not_again | not_others)


def other_protocols(study: Study, metric: str, results: Path) -> tuple[dict[str, Study], dict[str, str]]:
    """The task's runs under every other protocol, by its name; and what could not be had, and why."""
    found: dict[str, Study] = {}
    missing: dict[str, str] = {}
    images = {domain: seen for r in study.records for domain, seen in r.record.get("data", {}).items()}
    for name in (n for n in PROTOCOLS if n != study.protocol.name):
        try:
            other = Study.load(results, study.task, name)
        except UsageError:
            continue
        seen = {domain: of for r in other.records for domain, of in r.record.get("data", {}).items()}
        if metric not in other.protocol.metrics:
            missing[f"protocol {name}"] = f"it has no {METRICS[metric].title}"
        elif any(images.get(domain, of) != of for domain, of in seen.items()):
            missing[f"protocol {name}"] = "its runs saw other images"
        else:
            found[name] = other
    if not found and not missing:
        missing[ELSEWHERE] = "there is none; to choose the weights by another rule needs such runs"
    return found, missing


def _universe(cube: CaseCube, parts: tuple[Part, ...], choices: Choices) -> Universe:
    rule = METRICS[choices.metric]
    if choices.mean == "ranks":
        rule = dataclasses.replace(rule, higher_is_better=False)
    return _ranked(parts, rule, cube.means(choices))


def _ranked(parts: tuple[Part, ...], rule: Metric, means: np.ndarray) -> Universe:
    ranks, known = np.full(len(means), np.nan), ~np.isnan(means)
    ranks[known] = statistics.ranks(means[known], not rule.higher_is_better)
    return Universe(parts, rule.name, means, ranks)


def _merged(universes: Sequence[Universe]) -> list[Universe]:
    """Each once: one whose means are those of another with fewer choices, as its last choice changes none, is that."""
    kept: list[Universe] = []
    for u in universes:
        for i, other in enumerate(kept):
            if set(other.parts) < set(u.parts) and other.metric == u.metric and _alike(other.means, u.means):
                kept[i] = dataclasses.replace(other, same=(*other.same, u))
                break
        else:
            kept.append(u)
    return kept


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    return np.allclose(one, other, rtol=1e-12, atol=1e-12, equal_nan=True)


# --- which choices there are -----------------------------------------------------------------------------------------


def _choices(cube: CaseCube, default: Choices, missing: dict[str, str]) -> Iterator[tuple[tuple[Part, ...], Choices]]:
    """What each universe chooses, the leaderboard's first; what cannot be chosen goes to `missing`."""
    metrics = tuple(dict.fromkeys((default.metric, *cube.study.protocol.metrics)))
    if len(metrics) == 1:
        missing["metric"] = f"these runs have {METRICS[metrics[0]].title} alone"
    flags = set(cube.frame["flag"])
    absent = flags & {"both_empty", "false_positive"}
    rules = [rule for rule in MISSED if rule != "absent" or absent] if flags - {""} else [default.missed]
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
