"""Leaderboard: what a ranking says, as tables, as notes on how each number was made, and as a conclusion in words."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Mapping, Sequence

import pandas as pd

from dgbench import registry
from dgbench.metrics import METRICS
from dgbench.networks.provenance import Certainty
from dgbench.pages.captions import context, counted, false_cost, false_counts, heading, measured
from dgbench.pages.score_tables import FOOT_OF_FLOPS, columns_of_flops, facts
from dgbench.pages.table import Cell, Table, as_text, csv_text, groups
from dgbench.scores import agreement
from dgbench.scores.published import ROWS_OF_MEANS
from dgbench.scores.ranking import Ranked, Ranking
from dgbench.scores.statistics import Verdict

FOOT_OF_COSTS = (
    "±: standard deviation of the mean between seeds. gap: from the source's validation cases to the targets. missed: "
    "structures that were there and not found, of all there were. trained, parameters: millions. train s: mean over "
    "runs."
)


def render(ranking: Ranking, kind: str, beside: pd.DataFrame | None = None) -> str:
    """The leaderboard as "md", "csv" (of which published numbers are no part), "tex" or "html"."""
    if kind == "csv":
        return csv_text(ranking.frame())
    title = f"{ranking.study.task}: leaderboard, {heading(ranking.study, ranking.metric.name)}"
    return as_text(board_tables(ranking, beside), kind, title)


def board_tables(
    ranking: Ranking, beside: pd.DataFrame | None = None, links: Mapping[str, str] | None = None
) -> list[Table]:
    """What the variants reach; what that rests on and costs; and what papers report.

    beside: as from `published.beside`; None or empty for no published numbers. links: where a variant's name leads.
    """
    tables = [_reached(ranking, links or {}), _costs(ranking, links or {})]
    published = None if beside is None else published_table(ranking, beside)
    return tables + ([published] if published else [])


def _reached(ranking: Ranking, links: Mapping[str, str]) -> Table:
    study, number = ranking.study, ranking.metric.number
    values = [{"mean": of.row.mean, **of.row.targets} for of in ranking.every]
    columns = ["mean", *dict.fromkeys(d for of in ranking.every for d in of.row.targets)]
    ranked = len(ranking.ranked)
    best = {c: ranking.metric.best([of.get(c, math.nan) for of in values[:ranked]]) for c in columns}
    rows = []
    for i, of in enumerate(ranking.every):
        mean, *targets = (Cell(number(values[i].get(c, math.nan)), "best" if i in best[c] else "") for c in columns)
        interval = "" if math.isnan(of.low) else f"{number(of.low)} to {number(of.high)}"
        name = Cell(of.variant + (" †" if of.row.contaminated else ""), href=links.get(of.variant, ""))
        against = Cell(of.why or _against(ranking, of))
        false = [Cell(_false(ranking, of))] if study.any_absent else []
        rows.append([name, Cell(of.rank_text), mean, Cell(interval), *false, *targets, Cell(of.row.worst), against])
    false_head = ["falsely found"] * study.any_absent
    last = f"against {ranking.baseline}" if ranking.baseline else "why"
    published = [of for of in ranking.every if of.row.published]
    which = "All" if len(published) == len(ranking.every) else "Rows marked as"
    return Table(
        _label(ranking),
        f"{heading(study, ranking.metric.name)}, task {study.task}, protocol {study.protocol.name}, by target (mean "
        f"over sources).{f' {which} published, not measured here.' if published else ''}",
        ("variant", "rank", "mean", "95 % interval", *false_head, *columns[1:], "worst", last),
        groups(rows, ranked, "not ranked"),
        foot=" ".join(notes(ranking)),
    )


def _false(ranking: Ranking, of: Ranked) -> str:
    """ "48 of 48, -16.67": of the structures that no reference holds those that were found, and what they cost."""
    cost = ranking.metric.signed(ranking.metric.worse(0.0, of.row.false_cost)) if of.row.false_cost else ""
    return ", ".join(filter(None, (false_counts(of.row.false_positive, of.row.absent), cost)))


def _against(ranking: Ranking, of: Ranked) -> str:
    if of.versus is None:
        return "baseline" if of.variant == ranking.baseline and len(ranking.ranked) > 1 else ""
    return f"{ranking.metric.signed(of.versus.estimate.mean)} {ranking.verdict(of)}"


def _costs(ranking: Ranking, links: Mapping[str, str]) -> Table:
    said = [facts(of.row, ranking.metric) for of in ranking.every]
    columns = ["seeds", "±", "validation", "gap", "missed", "trained", "parameters", "train s", "peak MB"]
    columns = [c for c in columns if any(row[c] for row in said)]  # of published runs, costs may not be known
    counted_flops = columns_of_flops(of.row for of in ranking.every)
    columns += counted_flops
    foot = f"{FOOT_OF_COSTS} {FOOT_OF_FLOPS}" if counted_flops else FOOT_OF_COSTS
    for name in ("steps x batch", "initialisation", "made on", "needs"):  # what all share stands in the foot
        if len({row[name] for row in said}) > 1:
            columns.append(name)
        elif said[0][name]:
            foot += f" {name}: {said[0][name]}."
    rows = [
        [Cell(of.variant, href=links.get(of.variant, "")), *(Cell(row[c]) for c in columns)]
        for of, row in zip(ranking.every, said, strict=True)
    ]
    name, blocks = f"{_label(ranking)}-costs", groups(rows, len(ranking.ranked), "not ranked")
    return Table(name, "What the rows rest on and cost.", ("variant", *columns), blocks, foot=foot)


def _label(ranking: Ranking) -> str:
    return f"{ranking.study.task}-{ranking.study.protocol.name}-{ranking.metric.name}"


# --- published numbers -----------------------------------------------------------------------------------------------


def published_table(ranking: Ranking, beside: pd.DataFrame) -> Table | None:
    """What papers report, from `published.beside`: one row per paper, method and structure, never ranked; None if none.

    Where a paper gives several sources, the row is their mean, of those that both give where it is compared; where it
    gives the mean of a method's targets, its single targets are left to the report.
    """
    rows, metric = [], ranking.metric
    whose, kept = ["paper", "method", "structure"], ["paper", "method", "structure", "target", "reasons"]
    these = beside[beside["metric"] == metric.name]
    is_mean = these["target"].isin(ROWS_OF_MEANS)
    these = these[is_mean | ~is_mean.groupby([these[c] for c in whose]).transform("any")]
    for (paper, method, structure, target, reasons), group in these.groupby(kept, sort=False):
        both = group.dropna(subset="measured")
        sources = list(group["source"])
        theirs = (both if len(both) else group)["published"].mean()
        texts = (
            f"{method} ({paper})",
            sources[0] if len(sources) == 1 else f"mean of {len(both) or len(sources)} sources",
            target,
            structure,
            metric.number(theirs),
            metric.number(both["measured"].mean()),
            metric.signed(both["difference"].mean()),
            reasons.partition(". ours:")[0].removeprefix("theirs: "),
        )
        rows.append([Cell(str(text)) for text in texts])
    if not rows:
        return None
    return Table(
        f"{ranking.study.task}-{metric.name}-published",
        f"{measured(ranking.study, metric.name)} as published: by other protocols, never ranked with ours.",
        ("method (paper)", "source", "target", "structure", "published", "measured", "difference", "their protocol"),
        [("", rows)],
        foot="measured: here, with default settings. `dgbench report` gives every cell and the known differences.",
    )


def every_published_number(beside: pd.DataFrame, citations: Sequence[str]) -> Table:
    """Every number of `published.beside`, under its paper and what is known to differ; citations: of each row."""
    found: dict[str, list[list[Cell]]] = {}
    for row, citation in zip(beside.to_dict("records"), citations, strict=True):
        link, metric = re.search(r"https://[^\s\"<>]+", citation), METRICS[row["metric"]]
        theirs, ours, difference = (metric.number(float(row[c])) for c in ("published", "measured", "difference"))
        where = (Cell(str(text)) for text in (row["source"], row["target"], row["structure"], metric.title))
        name = Cell(row["method"], href=link[0] if link else "")
        group = found.setdefault(f"{row['paper']}: {row['reasons']}", [])
        group.append([name, *where, Cell(theirs, "home"), Cell(ours), Cell(difference)])
    header = ("method", "source", "target", "structure", "metric", "published", "measured here", "difference")
    caption = "Published numbers, Dice in %, and the same average measured here with the method's default settings"
    return Table("published", caption, header, list(found.items()))


# --- words -----------------------------------------------------------------------------------------------------------


def notes(ranking: Ranking) -> list[str]:
    """How every number was computed, what to be careful with, and what was left out."""
    family = sum(of.versus is not None for of in ranking.every)
    domains, groups = ranking.target_cases.counting, ranking.target_cases.counting_groups
    drawn = f"{len(domains)} target cases"
    if len(groups) < len(domains):
        drawn = f"{len(groups)} groups (patients, pairs of eyes, videos) of {drawn}"
    elif ranking.target_cases.group is not None:
        drawn += ", those of a patient together"
    found = [
        context(ranking.study),
        *false_cost(ranking.study),
        f"Interval: 95 %, studentised bootstrap over seeds and, within each domain, {drawn}. "
        "Rank: lowest and highest in 95 % of the draws.",
    ]
    if family > 0:
        margin = f"{ranking.metric.number(ranking.margin)} {ranking.metric.points(ranking.study.unit_of_distances)}"
        found.append(
            f"Differences are to {ranking.baseline}, case by case. better, worse: the 95 % interval leaves out 0, and "
            f"Wilcoxon's signed-rank test over cases, Holm-corrected for {counted(family, 'test')}, has p < 0.05; "
            f"equivalent: the interval lies within ± {margin}; else not resolved."
        )
    if few := sorted(d for d in set(groups) if groups.count(d) < 20):
        found.append(f"Fewer than 20 cases in {', '.join(few)}: intervals are approximate.")
    if ranking.ranked and min(len(of.row.seeds) for of in ranking.ranked) < 3:
        found.append("Some rows have two seeds: three are the least for a number that may be trusted.")
    if any(len(of.row.seeds) == 1 for of in ranking.apart):
        found.append("An interval of one seed is over cases alone: it is too narrow.")
    if len({(of.row.steps, of.row.batch_size) for of in ranking.ranked if of.row.trained}) > 1:
        found.append("The rows had different budgets: see steps x batch.")
    if stability := ranking.stability:
        changed = ", ".join(f"{winner} without {domain}" for domain, winner in stability.firsts.items())
        found.append(
            f"Ranking every case and averaging the ranks gives Kendall's tau {stability.tau:.2f} with this order."
        )
        if len(set(groups)) > 1:
            state = f"changes: {changed}" if changed else "is the same"
            found.append(f"Without any one of the targets the first place {state}.")
    if made := [of for of in ranking.every if of.row.budget is not None]:
        which = "Every row was" if len(made) == len(ranking.every) else 'Rows marked "not trained here" were'
        found.append(
            f"{which} made by systems outside dgbench: their masks were measured here; budget and initialisation are "
            "as their makers state them."
        )
    found += [*_of_silence(ranking), *_of_machines(ranking), *_of_weights(ranking)]
    if names := ranking.mixed_code:
        remedy = "`dgbench run` makes the older ones again"
        found.append(f"Runs by different versions of the code are averaged in {', '.join(names)}: {remedy}.")
    return [*found, *ranking.study.left_out]


def _of_silence(ranking: Ranking) -> list[str]:
    """Which trainings came to nothing: they miss every structure of the source's own validation cases."""
    study = ranking.study
    own = study.cells[(study.cells["role"] == "validation") & (study.cells["metric"] == study.metrics[0])]
    counts = ["n_cases", "n_missed", "n_both_empty", "n_false_positive"]
    of = own.groupby(["variant", "source", "seed"], observed=True, sort=False)[counts].sum()
    there = of["n_cases"] - of["n_both_empty"] - of["n_false_positive"]
    silent = of.index[(there > 0) & (of["n_missed"] == there)].to_frame(index=False)
    told = [
        f"{variant} from {source} (seed {', '.join(map(str, seeds))})"
        for (variant, source), seeds in silent.groupby(["variant", "source"], observed=True, sort=False)["seed"]
    ]
    return [f"Trainings that miss all of the source's own validation cases, too: {_listed(told)}."] if told else []


def _of_machines(ranking: Ranking) -> list[str]:
    """Which machines' rows are ranked together, and the rule."""
    home, others = ranking.machines
    if not others:
        return []
    found = []
    for name, agreements in others.items():
        compared = "; ".join(
            f"{a.variant} {ranking.metric.signed(a.difference)} with {counted(a.seeds, 'seed')}, at most "
            f"{ranking.metric.number(a.limit)}"
            for a in agreements
        )
        verdict = "ranked" if agreements and all(a.holds for a in agreements) else "not ranked"
        why = compared or "nothing to compare"
        found.append(f"Rows made on {name} are {verdict} with those made on {home} ({why}).")
    return [
        *found,
        "Machines are compared by every variant that both made with the same seeds, two at least, and every source: "
        f"its two means must be equivalent within {agreement.LIMIT} standard deviations between seeds (t-test for "
        "equivalence, 5 %).",
    ]


def _of_weights(ranking: Ranking) -> list[str]:
    """Which weights were trained on the task's collections, or may have been, and who says so."""
    every = {k: s for of in ranking.every for k, s in of.row.seen.items()}
    told = {
        certainty: "; ".join(
            f"{name} on {c} ({s.source})" for (name, c), s in every.items() if s.certainty == certainty
        )
        for certainty in typing.get_args(Certainty)
    }
    found = [
        f"† started from weights {which} to have been trained on the task's images: {told[which]}."
        for which in ("known", "likely")
        if told[which]
    ]
    return found + (
        [f"Not known whether weights saw the task's images: {told['not known']}."] if told["not known"] else []
    )


def conclusion(ranking: Ranking) -> str:
    """What the statistics say of the ranking, in a few sentences."""
    if len(ranking.ranked) < 2:
        return "Fewer than two variants can be ranked: nothing can be concluded."
    best = ranking.ranked[0]
    mean, low, high = (ranking.metric.number(v) for v in (best.row.mean, best.low, best.high))
    by_verdict = {
        verdict: [of.variant for of in ranking.ranked if ranking.verdict(of) == verdict]
        for verdict in typing.get_args(Verdict)
    }
    words = "; ".join(f"{verdict}: {_listed(names)}" for verdict, names in by_verdict.items() if names)
    lead, false = "has the best mean,", ""
    if any(of.row.false_cost for of in ranking.ranked):
        lead = "is best by its mean less what structures falsely found cost: mean"
        false = f", falsely found {_false(ranking, best)}"
    return (
        f"{best.variant} {lead} {mean} {ranking.unit} (95 % interval {low} to {high}){false}, rank "
        f"{best.rank_text} of {len(ranking.ranked)}. Against {ranking.baseline}: {words}.{_below_the_floor(ranking)}"
    )


def _below_the_floor(ranking: Ranking) -> str:
    """Which means are below that of a method that does not look at the images, in a sentence."""
    order, floors = ranking.metric.order, registry.floors()
    floor = next((of.row for of in ranking.ranked if of.row.method in floors), None)
    below = [of.variant for of in ranking.ranked if floor and order(of.row.mean) > order(floor.mean)]
    return f" By the mean below {floor.variant}, which ignores the images: {_listed(below)}." if floor and below else ""


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
