"""Statistics: how sure a mean, a difference and a rank are. Pure functions of arrays; nothing here knows a run.

The unit is the target case. What a case scores is its mean over structures and sources, once for each seed, so that no
case counts twice. Two things are drawn at random: cases (within their domain; the domains are fixed) and seeds.

    mean   = sum_c w_c v_c       v_c = mean_r v_rc, of R seeds; w_c is the protocol's weight of a case, sum_c w_c = 1
    SE^2   = sum_d n_d / (n_d - 1) sum_(c in d) (w_c (v_c - v_d))^2  +  var_r(sum_c w_c v_rc) / R
    interval: studentised bootstrap: seeds and, within each domain, cases are drawn with replacement;
             t* = (mean* - mean) / SE*, and the interval is mean - SE quantiles(t*)

Cases of one group (a patient's two volumes, the frames of a video, a patient seen in several domains) are no
independent draws: each group is made one case first, see `Resampling.grouped`, and all of the above is of groups.

Percentiles of mean* alone are too narrow with few cases or seeds; benchmarks/coverage.py measures both. Between two
methods the cases are paired and the seeds are not: seed 1 of one has nothing in common with seed 1 of another.

Efron, Tibshirani. An Introduction to the Bootstrap. 1993, ch. 12. Owen. The pigeonhole bootstrap. AOAS 2007.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Verdict = Literal["better", "worse", "equivalent", "not resolved"]
DRAWS, LEVEL = 10_000, 0.95
EQUAL = 1e-9  # of the largest: weights that differ by less are equal
EXACT = 10  # decimals: the same masks under three seeds and under two have means that differ in the last bits
FARTHEST = 6.0  # standard errors: where nearly all cases are alike, draws without the odd one have next to no SE*


@dataclass(frozen=True, eq=False)
class CaseScores:
    """What a method scores on each target case.

    values: (R, N), a row per seed. weight: (N,), sums to 1. domain: (N,) the number of each case's domain. group: (N,)
    that of its group, which may have cases in several domains; None: each case is its own.
    """

    values: Array
    weight: Array
    domain: NDArray[np.int64]
    group: NDArray[np.int64] | None = None

    @cached_property
    def mean(self) -> float:
        return float(self.of_case @ self.weight)

    @cached_property
    def of_case(self) -> Array:
        """(N,), the mean over seeds."""
        return self.values.mean(axis=0)

    @cached_property
    def of_seed(self) -> Array:
        """(R,), the weighted mean over cases."""
        return self.values @ self.weight

    def part(self, cases: NDArray[np.int64] | NDArray[np.bool_]) -> CaseScores:
        """Of some of the cases, their weights summing to 1 again."""
        weight = self.weight[cases]
        group = None if self.group is None else self.group[cases]
        return CaseScores(self.values[:, cases], weight / weight.sum(), self.domain[cases], group)


class Estimate(NamedTuple):
    """A mean or a difference, its 95 % interval, and the variance that cases and that seeds bring to it.

    The interval is NaN where a domain has one case only: nothing can be said of its spread.
    """

    mean: float
    low: float
    high: float
    case_variance: float
    seed_variance: float

    @property
    def se(self) -> float:
        return math.sqrt(self.case_variance + self.seed_variance)


class Resampling:
    """Which cases are drawn, how often: the same for all methods, so that differences stay paired.

    Where cases have groups, these are what is drawn, and `cluster` says which one a case belongs to. Domains that share
    a group are drawn from together.
    """

    def __init__(
        self,
        domain: NDArray[np.int64],
        draws: int = DRAWS,
        seed: int = 0,
        group: NDArray[np.int64] | None = None,
    ):
        rng = np.random.default_rng(seed)
        self.cluster: NDArray[np.int64] | None = None
        if group is not None and len(np.unique(group)) < len(group):
            self.cluster, domain = _clusters(domain, group)
        self.domain, self.draws, self.seed = domain, draws, seed
        parts = [np.flatnonzero(domain == d) for d in np.unique(domain)]
        # Cases that lie together, as a rule, are looked at in place: a slice copies nothing.
        self.parts: list[slice | NDArray[np.int64]] = [
            slice(p[0], p[-1] + 1) if p[-1] - p[0] < len(p) else p for p in parts
        ]
        self.counts = np.empty((draws, len(domain)), order="F")  # how often each case is drawn; a case's are contiguous
        self._last: tuple[Array, Array] | None = None
        self._seeds: dict[tuple[int, int], Array] = {}
        for part in parts:
            self.counts[:, part] = rng.multinomial(len(part), np.full(len(part), 1 / len(part)), draws)

    def grouped(self, scores: CaseScores) -> CaseScores:
        """The scores with each group as one case: it weighs what its cases do, and scores their weighted mean.

        Of a group in several domains the mean is of deviations from the domains' means, so that having no case in an
        easy domain is no fault of a patient's. The mean of all stays what it is, and the variance that cases bring is
        the cluster-robust one: it sums what the cases of a group add together.
        """
        if self.cluster is None:
            return scores
        n, (_, domain) = len(self.domain), np.unique(scores.domain, return_inverse=True)
        stratum, values, weight = self.domain[self.cluster], scores.values, scores.weight

        def mean_of(part: NDArray[np.int64]) -> Array:  # (R, N): of all cases in the same part
            total = np.bincount(part, weight)
            sums = np.array([np.bincount(part, weight * row) for row in values])
            return np.asarray((sums / np.where(total > 0, total, 1))[:, part])

        level = mean_of(stratum) - mean_of(domain)
        of_group = np.bincount(self.cluster, weight, n)
        sums = np.array([np.bincount(self.cluster, weight * row, n) for row in values + level])
        return CaseScores(sums / np.where(of_group > 0, of_group, 1), np.asarray(of_group, float), self.domain)

    def weighted(self, weight: Array) -> Array:
        """(draws, N): the counts times the weights, which are the same for nearly all methods: the last is kept.

        Where the cases of a domain weigh differently, each draw of them is scaled to weigh what they do together.
        """
        if self._last is None or not np.array_equal(self._last[0], weight):
            drawn = self.counts * weight
            for part in self.parts:
                if np.ptp(weight[part]) > EQUAL * weight[part].max():
                    drawn[:, part] *= weight[part].sum() / np.maximum(drawn[:, part].sum(1, keepdims=True), 1e-300)
            self._last = (weight, drawn)
        return self._last[1]

    def seeds(self, values: Array) -> Array:
        """(draws, R): the share of each seed of a method in a draw.

        What is drawn hangs on the method's `values`, (R, N), alone: neither on its name nor on who was drawn before.
        """
        rounded = np.round(values, 9) + 0.0  # processors differ in the last bits, and there is a -0
        n, told = len(values), zlib.crc32(rounded.tobytes())
        if (n, told) not in self._seeds:
            rng = np.random.default_rng([self.seed, told])
            self._seeds[n, told] = rng.multinomial(n, np.full(n, 1 / n), self.draws) / n
        return self._seeds[n, told]

    def case_variance(self, values: Array, weight: Array, counts: Array | None = None) -> Array:
        """Variance of the weighted mean that cases bring, by domain: (N,) -> (), or (draws, N) -> (draws,)."""
        total = np.zeros(values.shape[:-1])
        for part in self.parts:
            w = weight[part]
            n = len(w)
            if not w.any():
                continue
            if n == 1:
                return np.full_like(total, np.nan)
            x = values[..., part]
            x = x - x.mean()  # squares of large numbers that differ little would lose the difference
            c = np.ones(n) if counts is None else counts[:, part]
            powers = np.column_stack([w, w**2])
            total_weight, squared_weight = (c @ powers).T
            cx = c * x
            first, second = (cx @ powers).T
            cx *= x
            centre = first / np.maximum(total_weight, 1e-300)
            spread = cx @ w**2 - 2 * centre * second + centre**2 * squared_weight
            total += n / (n - 1) * np.maximum(spread, 0)
        return total


def _clusters(domain: NDArray[np.int64], group: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(N,) the number of each case's group, in the order of their first cases; and of each group, its stratum: the
    smallest number of the domains that groups link with one another."""
    _, first, cluster = np.unique(group, return_index=True, return_inverse=True)
    cluster = np.argsort(np.argsort(first))[cluster]
    _, of_domain = np.unique(domain, return_inverse=True)
    stratum = domain.copy()
    while True:
        before = stratum
        for part in (cluster, of_domain):
            lowest = np.full(part.max() + 1, domain.max())
            np.minimum.at(lowest, part, stratum)
            stratum = lowest[part]
        if (stratum == before).all():
            return cluster, stratum[np.sort(first)]


def estimate(
    one: CaseScores, other: CaseScores | None = None, resampling: Resampling | None = None
) -> tuple[Estimate, Array]:
    """The mean of `one`, or its difference to `other`, case by case; and (draws,) bootstrapped means.

    The draws are stretched about the mean to the standard deviation SE: with few cases or seeds, draws with
    replacement spread too little.
    """
    resampling = resampling or Resampling(one.domain, group=one.group)
    one, other = resampling.grouped(one), other and resampling.grouped(other)
    weight = one.weight if other is None else _shared_weight(one, other)
    terms = [(1.0, one)] if other is None else [(1.0, one), (-1.0, other)]
    of_case = np.sum([sign * term.of_case for sign, term in terms], axis=0)
    mean = float(of_case @ weight)
    of_cases = float(resampling.case_variance(of_case, weight))
    of_seeds = 0.0
    weighted = resampling.weighted(weight)
    drawn = np.zeros((resampling.draws, len(weight)))
    seeds_drawn = np.zeros(resampling.draws)
    for sign, term in terms:
        n = len(term.values)
        share = resampling.seeds(term.values)
        drawn += share @ (sign * term.values)
        if n > 1:
            of_seeds += float((term.values @ weight).var(ddof=1)) / n
            of_seed = weighted @ term.values.T  # (draws, R)
            of_seed -= np.einsum("br,br->b", share, of_seed)[:, None]
            seeds_drawn += np.einsum("br,br,br->b", share, of_seed, of_seed) / (n - 1)
    means = np.einsum("bn,bn->b", weighted, drawn)
    variance = resampling.case_variance(drawn, weight, resampling.counts) + seeds_drawn
    se = math.sqrt(of_cases + of_seeds)
    spread = means.std()
    stretched = mean + (means - mean) * (se / spread if spread > 0 and se > 0 else 1.0)
    least = 1e-12 * se**2
    if se == 0 or not (variance > least).any():  # nothing varies, or by rounding alone, or it is not known how much
        return Estimate(mean, mean - se, mean + se, of_cases, of_seeds), stretched
    # A draw of cases that are all alike has no SE* and lies as far as can be: it counts, or one side would be lost.
    t = (means - mean) / np.sqrt(np.maximum(variance, least))
    low, high = np.clip(np.quantile(t, [(1 + LEVEL) / 2, (1 - LEVEL) / 2]), -FARTHEST, FARTHEST)
    return Estimate(mean, mean - se * float(low), mean - se * float(high), of_cases, of_seeds), stretched


def _shared_weight(one: CaseScores, other: CaseScores) -> Array:
    weight = (one.weight + other.weight) / 2
    return weight / weight.sum()


# --- ranks -----------------------------------------------------------------------------------------------------------


def ranks(means: Sequence[float] | Array, lower_is_better: bool = False, decimals: int = 12) -> NDArray[np.int64]:
    """Rank of each, 1 the best; equal ones share the better rank (1, 2, 2, 4). `means`: (..., M), ranked along M."""
    values = np.round(np.asarray(means, float), decimals)
    return stats.rankdata(values if lower_is_better else -values, method="min", axis=-1).astype(np.int64)


def rank_intervals(draws: Array, lower_is_better: bool = False) -> list[tuple[int, int]]:
    """(draws, M) bootstrapped means -> lowest and highest rank of each method in 95 % of the draws."""
    drawn = ranks(draws, lower_is_better)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0, method="inverted_cdf")
    return [(int(a), int(b)) for a, b in zip(low, high, strict=True)]


# --- two methods -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One method minus another on the same cases.

    estimate: of the difference. p: Wilcoxon's signed-rank test over the cases (two-sided; zeros are dropped), NaN with
    fewer than 6; p_holm: the same, corrected for the family it was tested in. effect: rank-biserial correlation in
    [-1, 1]. improved: probability that a case is better with the first one (ties count half). false_claim: probability
    that the first is not better at all although its mean is (Christodoulou et al., arXiv 2505.04720, on the paired
    differences). seeds: of both. cases: their number, or that of their groups; those without a weight are in no test.
    """

    estimate: Estimate
    p: float
    effect: float
    improved: float
    false_claim: float
    seeds: tuple[int, int]
    cases: int
    lower_is_better: bool
    p_holm: float = math.nan

    def verdict(self, margin: float, alpha: float = 0.05) -> Verdict:
        """In a word: "equivalent" when the whole interval lies within the margin; "better" or "worse" when the interval
        leaves out 0 and Holm's p is below alpha; else, and always with a single seed, "not resolved"."""
        e = self.estimate
        if min(self.seeds) < 2 or math.isnan(e.low):
            return "not resolved"
        if -margin < e.low and e.high < margin:
            return "equivalent"
        if e.low <= 0 <= e.high or not self.p_holm < alpha:
            return "not resolved"
        return "better" if (e.mean < 0) == self.lower_is_better else "worse"

    def needed(self, margin: float) -> tuple[float, float]:
        """About how many cases (with these seeds) or seeds (with these cases) would resolve a difference of this size
        with a power of 80 %: infinite where they alone never would."""
        e = self.estimate
        wanted = (max(abs(e.mean), margin) / (stats.norm.ppf(0.975) + stats.norm.ppf(0.8))) ** 2
        for_cases, for_seeds = wanted - e.seed_variance, wanted - e.case_variance
        return (
            self.cases * e.case_variance / for_cases if for_cases > 0 else math.inf,
            min(self.seeds) * e.seed_variance / for_seeds if for_seeds > 0 else math.inf,
        )


def difference(
    one: CaseScores, other: CaseScores, lower_is_better: bool = False, resampling: Resampling | None = None
) -> Difference:
    """`one` minus `other`, over the same cases in the same order."""
    resampling = resampling or Resampling(one.domain, group=one.group)
    found, _ = estimate(one, other, resampling)
    one, other = resampling.grouped(one), resampling.grouped(other)
    counts = one.weight + other.weight > 0
    d = np.round(one.of_case - other.of_case, EXACT)[counts]
    gain = -d if lower_is_better else d
    n = len(d)
    ordered = stats.rankdata(np.abs(d[d != 0]))
    up, down = ordered[d[d != 0] > 0].sum(), ordered[d[d != 0] < 0].sum()
    spread = d.std(ddof=1) if n > 1 else math.nan
    t = gain.mean() * math.sqrt(n) / spread if spread > 0 else math.copysign(math.inf, gain.mean())
    return Difference(
        found,
        p=math.nan if n < 6 else float(stats.wilcoxon(d).pvalue) if len(ordered) else 1.0,
        effect=float((up - down) / (up + down)) if len(ordered) else 0.0,
        improved=float(((gain > 0) + 0.5 * (gain == 0)).mean()),
        false_claim=float(stats.t.cdf(-abs(t), n - 1)) if n > 1 and gain.any() else 0.5,
        seeds=(len(one.values), len(other.values)),
        cases=n,
        lower_is_better=lower_is_better,
    )


def joint(mean: Verdict, costs: Verdict) -> Verdict:
    """One word for two differences: of the mean, and of what structures falsely found cost.

    "better" or "worse" when one of the two is and the other is not the reverse; "equivalent" when both are; else, and
    where they contradict each other, "not resolved".
    """
    said = {mean, costs}
    if said >= {"better", "worse"}:
        return "not resolved"
    for word in ("better", "worse"):
        if word in said:
            return word
    return mean if mean == costs else "not resolved"


def corrected(family: dict[str, Difference]) -> dict[str, Difference]:
    """Differences that are tested together, their p-values Holm-corrected."""
    p_holm = holm([d.p for d in family.values()])
    return {name: dataclasses.replace(d, p_holm=p) for (name, d), p in zip(family.items(), p_holm, strict=True)}


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction: p-values of one family, each as if it were the only one. NaN stays NaN and does not count.

    Holm. A simple sequentially rejective multiple test procedure. Scand. J. Stat. 1979.
    """
    values = np.asarray(p, float)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected = np.full(len(values), np.nan)
    corrected[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return [float(v) for v in corrected]
