"""Compare: is one variant better than another, and what would it take to know? Also two folders of results."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dgbench.errors import DataError, UsageError, require
from dgbench.pages import tables
from dgbench.pages.tables import Entry, Table, number, signed
from dgbench.running.records import RunRecord
from dgbench.scores import ranking, statistics
from dgbench.scores.reproduce import differences
from dgbench.scores.statistics import CaseScores, Difference, Resampling

if TYPE_CHECKING:
    from dgbench.protocol import Protocol

OVERALL = "all targets"


@dataclass(frozen=True)
class Comparison:
    """`one` minus `other`, overall and by target domain; p-values are Holm-corrected over all of these.

    means: of both, by row. differences: "all targets" first, then one for each domain.
    """

    one: str
    other: str
    metric: str
    unit: str
    margin: float
    means: dict[str, tuple[float, float]]
    differences: dict[str, Difference]
    heading: str
    context: str

    def verdict(self, row: str = OVERALL) -> str:
        return self.differences[row].verdict(self.margin)


def compare(
    records: Iterable[RunRecord],
    protocol: Protocol,
    one: str,
    other: str,
    metric: str = "dice",
    margin: float | None = None,
) -> Comparison:
    """Compare two variants case by case, over the seeds for which each has all sources.

    Raises `UsageError` for an unknown variant or metric, and when the runs of one do not fill the matrix.
    """
    records = sorted(records, key=lambda r: (r.variant, r.source, r.seed))
    require(metric, list(protocol.metrics), f"metric of protocol {protocol.name}")
    for variant in (one, other):
        require(variant, sorted({r.variant for r in records}), "variant")
    usable, why = ranking.complete([r for r in records if r.variant in (one, other)])
    for variant in (one, other):
        if variant in why:
            cause = f"{variant} cannot be compared: {'; '.join(why[variant])}"
            raise UsageError(cause, "make the missing runs: `dgbench run` makes only those")
    scores, cases, domain = ranking.case_scores(usable, protocol, metric)
    cells = tables.cells(usable, protocol)
    return _compared(
        (one, scores[one]),
        (other, scores[other]),
        [d for d, _ in cases],
        domain,
        metric,
        ranking.margin_of(metric, margin),
        tables.unit(usable, protocol, metric),
        tables.heading(cells, usable, protocol, metric, None),
        tables.context(cells, usable, protocol),
    )


def _compared(
    one: tuple[str, CaseScores],
    other: tuple[str, CaseScores],
    names: list[str],
    domain: np.ndarray,
    metric: str,
    margin: float,
    unit: str,
    heading: str,
    context: str,
) -> Comparison:
    rows: dict[str, np.ndarray] = {OVERALL: np.arange(len(names))}
    rows |= {d: np.array([i for i, name in enumerate(names) if name == d]) for d in dict.fromkeys(names)}
    differences, means = {}, {}
    for name, part in rows.items():
        a, b = (_part(scores, part) for scores in (one[1], other[1]))
        differences[name] = statistics.difference(a, b, metric != "dice", Resampling(domain[part]))
        means[name] = (a.mean, b.mean)
    corrected = statistics.holm([d.p for d in differences.values()])
    differences = {
        name: dataclasses.replace(d, p_holm=p) for (name, d), p in zip(differences.items(), corrected, strict=True)
    }
    return Comparison(one[0], other[0], metric, unit, margin, means, differences, heading, context)


def _part(scores: CaseScores, part: np.ndarray) -> CaseScores:
    weight = scores.weight[part]
    return CaseScores(scores.values[:, part], weight / weight.sum(), scores.domain[part])


def folders(
    before: Iterable[RunRecord],
    after: Iterable[RunRecord],
    protocol: Protocol,
    metric: str = "dice",
    margin: float | None = None,
) -> tuple[list[Comparison], list[str]]:
    """After minus before, for every variant that both folders have; and in sentences what cannot be compared and what
    differs between the runs of one source and seed: environment, images, code, settings.
    """
    early, late = list(before), list(after)
    compared: list[Comparison] = []
    skipped: list[str] = []
    changed: Counter[str] = Counter()
    for variant in sorted({r.variant for r in (*early, *late)}):
        sides = [[r for r in records if r.variant == variant] for records in (early, late)]
        if not all(sides):
            skipped.append(f"{variant}: only {'after' if sides[1] else 'before'}")
            continue
        known = {(r.source, r.seed): r.record for r in sides[0]}
        for r in sides[1]:
            told = differences(known[r.source, r.seed], r.record) if (r.source, r.seed) in known else []
            changed.update(f"{what}: {then} -> {now}" for what, then, now in told)
        marked = [
            r.renamed(f"{variant} ({word})")
            for word, records in zip(("before", "after"), sides, strict=True)
            for r in records
        ]
        try:
            compared.append(compare(marked, protocol, f"{variant} (after)", f"{variant} (before)", metric, margin))
        except (UsageError, DataError) as error:
            skipped.append(f"{variant}: {error.cause}")
    return compared, [*skipped, *(f"{what} (in {n} run{'s' if n > 1 else ''})" for what, n in changed.items())]


# --- words -----------------------------------------------------------------------------------------------------------


def sentence(c: Comparison) -> str:
    """The verdict in words, with the numbers it rests on, and what would resolve it if it is not resolved."""
    d, verdict = c.differences[OVERALL], c.verdict()
    e = d.estimate
    interval = f"95 % interval {signed(e.low, c.metric)} to {signed(e.high, c.metric)}"
    size = f"{signed(e.mean, c.metric)} {_points(c)} ({interval})"
    relation = {"better": "is better than", "worse": "is worse than", "equivalent": "is equivalent to"}
    link = relation.get(verdict, "against")
    said = f"{c.one} {link} {c.other}" + (": not resolved. " if verdict == "not resolved" else ". ")
    said += f"Difference {size} on {d.cases} cases with {d.seeds[0]} and {d.seeds[1]} seeds; "
    said += f"{d.improved:.0%} of the cases are better; rank-biserial correlation {d.effect:+.2f}; "
    said += f"Wilcoxon p {_is(d.p_holm)} (Holm, {len(c.differences)} tests)."
    if verdict == "equivalent":
        said += f" The whole interval lies within ± {number(c.margin, c.metric)} {_points(c)}."
    if verdict == "not resolved":
        said += f" {_needed(c)}"
    elif verdict != "equivalent":
        said += f" Probability of a false claim, over cases: p {_is(d.false_claim)}."
    return said


def _needed(c: Comparison) -> str:
    d = c.differences[OVERALL]
    if min(d.seeds) < 2:
        return "With one seed nothing can be said about seeds: make at least three."
    cases, seeds = d.needed(c.margin)
    size = number(max(abs(d.estimate.mean), c.margin), c.metric)
    ways = [f"about {math.ceil(cases)} cases with these seeds"] if math.isfinite(cases) else []
    ways += (
        [f"about {math.ceil(seeds)} seeds with these cases"] if math.isfinite(seeds) and seeds > min(d.seeds) else []
    )
    if not ways:
        return f"Neither more cases nor more seeds alone would resolve a difference of {size} {_points(c)}."
    return f"A difference of {size} {_points(c)} would be resolved (power 80 %) by {', or by '.join(ways)}."


def table(c: Comparison) -> Table:
    """One row overall and one for each target domain."""
    rows = []
    for name, d in c.differences.items():
        e = d.estimate
        rows.append(
            (
                Entry(f"{name} ({d.cases} cases)"),
                *(Entry(number(v, c.metric)) for v in c.means[name]),
                Entry(f"{signed(e.mean, c.metric)} [{signed(e.low, c.metric)}, {signed(e.high, c.metric)}]"),
                Entry(_p(d.p_holm)),
                Entry(f"{d.improved:.0%}"),
                Entry(c.verdict(name)),
            )
        )
    header = ("target", c.one, c.other, "difference [95 %]", "p (Holm)", "improved", "verdict")
    foot = (
        "Interval: studentised bootstrap over seeds and, within each domain, cases. p: Wilcoxon's signed-rank test "
        f"over cases, Holm-corrected over the {len(rows)} rows. improved: share of the cases. verdict: equivalent "
        f"within ± {number(c.margin, c.metric)} {_points(c)}. {c.context}"
    )
    return Table(f"{c.one}-{c.other}", f"{c.heading}: {c.one} minus {c.other}", header, tuple(rows), foot=foot)


def _p(value: float) -> str:
    return "" if math.isnan(value) else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _is(p: float) -> str:
    return "unknown" if math.isnan(p) else _p(p) if p < 0.0001 else f"= {_p(p)}"


def _points(c: Comparison) -> str:
    return "points" if c.metric == "dice" else c.unit
