"""Mean ranks: where methods stand over several tasks, as far as the same methods were ranked on each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from dgbench.scores.ranking import Ranking
from dgbench.scores.statistics import LEVEL
from dgbench.scores.study import VariantRow

LEAST_BOARDS, LEAST_METHODS = 2, 2
LEAST_TASKS = 5  # to say anything of tasks that are not among them


class MeanRank(NamedTuple):
    """Of a row: its mean rank over tasks, from 1 (best), and the 95 % interval of that."""

    name: str
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class MeanRanks:
    """rows: best first, of those that every one of the boards ranks. tasks: of these boards.

    drawn: are tasks drawn as well, so that the intervals are of other tasks, too? p: of Friedman's test that no row is
    better than another one; NaN where it cannot be made, for fewer than `LEAST_TASKS` tasks or three rows.
    """

    boards: tuple[str, ...]
    tasks: tuple[str, ...]
    rows: tuple[MeanRank, ...]
    p: float

    @property
    def drawn(self) -> bool:
        """Do the intervals say something of tasks that are not among these?"""
        return len(self.tasks) >= LEAST_TASKS

    def frame(self) -> pd.DataFrame:
        """One row for each: variant, mean_rank, low, high, tasks, of (how many were ranked)."""
        told = pd.DataFrame(self.rows, columns=["variant", "mean_rank", "low", "high"])
        return told.assign(tasks=len(self.tasks), of=len(self.rows))


def row_name(row: VariantRow) -> str:
    """What a row is called beside the same of other boards: published ones without their mark."""
    return row.method if row.published else row.variant


def mean_ranks(boards: Mapping[str, Ranking]) -> MeanRanks | None:
    """Mean ranks over boards of one protocol; None where no two of them rank the same two rows.

    Only rows that every board ranks can be compared, so boards are left out until boards x rows is the most that can be
    had by leaving out one after the other. On each board these rows are ranked anew, equal ones sharing the mean of
    their ranks (Demsar. Statistical comparisons of classifiers over multiple data sets. JMLR 2006); boards of one task
    count as one. Interval: the same in each bootstrap draw of seeds and cases, and, from `LEAST_TASKS` tasks on, of
    tasks.
    """
    # measured ones last, so that they stand where a board has both
    ranked = {name: sorted(b.ranked, key=lambda of: not of.row.published) for name, b in boards.items()}
    chosen, names = _block({name: {row_name(of.row): of.variant for of in these} for name, these in ranked.items()})
    if len(chosen) < LEAST_BOARDS or len(names) < LEAST_METHODS:
        return None
    of_task: dict[str, list[np.ndarray]] = {}
    drawn_of_task: dict[str, list[np.ndarray]] = {}
    for board, variants in chosen.items():
        ranking = boards[board]
        sign = -1 if ranking.metric.higher_is_better else 1
        nets = np.array([ranking.study.row(variants[n], ranking.metric.name).net for n in names])
        drawn = np.column_stack([ranking.draws[variants[n]] for n in names])
        of_task.setdefault(ranking.study.task, []).append(stats.rankdata(sign * np.round(nets, 12)))
        drawn_of_task.setdefault(ranking.study.task, []).append(stats.rankdata(sign * np.round(drawn, 12), axis=1))
    ranks = np.stack([np.mean(of, axis=0) for of in of_task.values()])  # (tasks, rows)
    draws = np.stack([np.mean(of, axis=0) for of in drawn_of_task.values()])  # (tasks, draws, rows)
    if len(ranks) >= LEAST_TASKS:
        n = draws.shape[1]
        which = np.random.default_rng(0).integers(len(ranks), size=(len(ranks), n))
        draws = draws[which, np.arange(n)]
    low, high = np.quantile(draws.mean(axis=0), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    rows = [MeanRank(*of) for of in zip(names, *(v.tolist() for v in (ranks.mean(axis=0), low, high)), strict=True)]
    tested = len(ranks) >= LEAST_TASKS and len(names) > 2
    p = float(stats.friedmanchisquare(*ranks.T).pvalue) if tested else float("nan")
    return MeanRanks(tuple(chosen), tuple(of_task), tuple(sorted(rows, key=lambda r: (r.mean, r.name))), p)


def _block(ranked: Mapping[str, dict[str, str]]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Boards, and the names that each of them has: boards are left out one by one, the largest block is taken."""

    def shared(boards: Mapping[str, dict[str, str]]) -> list[str]:
        return sorted(set.intersection(*map(set, boards.values()))) if boards else []

    def size(boards: Mapping[str, dict[str, str]]) -> int:
        names = len(shared(boards))
        return len(boards) * names if len(boards) >= LEAST_BOARDS and names >= LEAST_METHODS else 0

    best = left = dict(ranked)
    while len(left) > LEAST_BOARDS:
        without = ({k: v for k, v in left.items() if k != name} for name in left)
        left = max(without, key=lambda boards: (size(boards), len(shared(boards))))
        best = max(best, left, key=size)
    return best, shared(best)
