"""Verdict: what a comparison of two variants says, as a table and as a sentence with the numbers it rests on."""

from __future__ import annotations

import math

from dgbench.pages.captions import COST_OF_FALSE, context, heading
from dgbench.pages.table import Cell, Table
from dgbench.scores.comparison import FALSE, OVERALL, Comparison

RELATION = {"better": "is better than", "worse": "is worse than", "equivalent": "is equivalent to"}


def comparison_table(c: Comparison) -> Table:
    """One row overall and one for each target domain."""
    number, signed, rows, false = c.metric.number, c.metric.signed, [], FALSE in c.differences
    for name, d in c.differences.items():
        e = d.estimate
        texts = (
            f"{name} ({d.cases} {_cases(c)})",
            *(number(mean) for mean in c.means[name]),
            f"{signed(e.mean)} [{signed(e.low)}, {signed(e.high)}]",
            _p(d.p_holm),
            f"{d.improved:.0%}",
            c.verdict(name),
        )
        rows.append([Cell(text) for text in texts])
    header = ("target", c.one, c.other, "difference [95 %]", "p (Holm)", "improved", "verdict")
    foot = (
        (f"{FALSE}: {COST_OF_FALSE}; all targets is better or worse by both together. " if false else "")
        + "Interval: studentised bootstrap over seeds and, within each domain, cases. p: Wilcoxon's signed-rank test "
        f"over {_cases(c)}, Holm-corrected over the {len(rows)} rows. improved: share of the {_cases(c)}. "
        f"verdict: equivalent within ± {number(c.margin)} {_points(c)}. {context(c.study)}"
    )
    title = f"{heading(c.study, c.metric.name)}: {c.one} minus {c.other}"
    return Table(f"{c.one}-{c.other}", title, header, [("", rows)], foot=foot)


def sentence(c: Comparison) -> str:
    """The verdict in words, with the numbers it rests on, and what would resolve it if it is not resolved."""
    d, verdict, signed = c.differences[OVERALL], c.verdict(), c.metric.signed
    e = d.estimate
    said = f"{c.one} {RELATION.get(verdict, 'against')} {c.other}"
    said += ": not resolved. " if verdict == "not resolved" else ". "
    said += f"Difference {signed(e.mean)} {_points(c)} (95 % interval {signed(e.low)} to {signed(e.high)}) "
    said += f"on {d.cases} {_cases(c)} with {d.seeds[0]} and {d.seeds[1]} seeds; "
    said += f"{d.improved:.0%} of the {_cases(c)} are better; rank-biserial correlation {d.effect:+.2f}; "
    said += f"Wilcoxon p {_is(d.p_holm)} (Holm, {len(c.differences)} tests). "
    if FALSE in c.differences:
        theirs = " and ".join(c.metric.number(v) for v in c.means[FALSE])
        said += f"Structures falsely found cost them {theirs} {_points(c)}: {c.verdict(FALSE)}. "
    if verdict == "equivalent":
        return f"{said}The whole interval lies within ± {c.metric.number(c.margin)} {_points(c)}."
    if verdict == "not resolved" and d.verdict(c.margin) != verdict:
        return f"{said}By the mean alone: {d.verdict(c.margin)}."
    if verdict == "not resolved":
        return said + _needed(c)
    return f"{said}Probability of a false claim, over {_cases(c)}: p {_is(d.false_claim)}."


def _needed(c: Comparison) -> str:
    d = c.differences[OVERALL]
    if min(d.seeds) < 2:
        return "With one seed nothing can be said about seeds: make at least three."
    cases, seeds = d.needed(c.margin)
    size = f"a difference of {c.metric.number(max(abs(d.estimate.mean), c.margin))} {_points(c)}"
    ways = [f"about {math.ceil(cases)} {_cases(c)} with these seeds"] if d.cases < cases < math.inf else []
    if min(d.seeds) < seeds < math.inf:
        ways.append(f"about {math.ceil(seeds)} seeds with these cases")
    if not ways and (cases <= d.cases or seeds <= min(d.seeds)):
        return f"How far seeds differ is not known well enough by {min(d.seeds)} of them: make more."
    if not ways:
        return f"Neither more cases nor more seeds alone would resolve {size}."
    return f"A{size[1:]} would be resolved (power 80 %) by {', or by '.join(ways)}."


def _cases(c: Comparison) -> str:
    """What is counted and tested: patients, pairs of eyes or videos where the task says which cases are one's."""
    return "cases" if c.study.target_cases(c.metric.name).group is None else "groups of cases"


def _p(value: float) -> str:
    return "" if math.isnan(value) else "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _is(p: float) -> str:
    return "unknown" if math.isnan(p) else _p(p) if p < 0.0001 else f"= {_p(p)}"


def _points(c: Comparison) -> str:
    return c.metric.points(c.study.unit_of_distances)
