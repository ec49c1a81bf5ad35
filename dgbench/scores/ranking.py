"""Leaderboard: one row per method variant, each number with how sure it is; what cannot be ranked stands apart.

A pure function of run records: their order and the variants' names change nothing but the order of equal rows.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from dgbench.errors import require
from dgbench.files import read_json
from dgbench.pages import tables
from dgbench.pages.tables import Entry, Table, number, signed
from dgbench.running.records import RunRecord
from dgbench.scores import statistics
from dgbench.scores.statistics import CaseScores, Difference, Resampling, Verdict

if TYPE_CHECKING:
    from dgbench.protocol import Protocol


@dataclass(frozen=True)
class Row:
    """A variant on the board. Dice values are in [0, 1], distances in the protocol's unit; NaN is not known.

    rank: lowest and highest in 95 % of the bootstrap draws, None where it is not ranked; `why` then says the reasons.
    targets: mean over sources, by target domain. worst: the target where it does worst. gap: what is lost by leaving
    the source, validation minus targets (targets minus validation for distances). versus: against the reference of the
    board. missed: structures not found of those `present`. seconds: of training, mean over runs, on `device`.
    """

    variant: str
    method: str
    mean: float
    low: float
    high: float
    targets: dict[str, float]
    worst: str
    seeds: tuple[int, ...]
    seed_std: float
    validation: float
    gap: float
    missed: int
    present: int
    trained: int
    parameters: int
    seconds: float
    memory_mb: float
    device: str
    steps: int
    batch_size: int
    initialisation: str
    needs: str
    rank: tuple[int, int] | None = None
    versus: Difference | None = None
    why: str = ""

    @property
    def missed_rate(self) -> float:
        return self.missed / self.present if self.present else math.nan

    @property
    def rank_text(self) -> str:
        if self.rank is None:
            return ""
        low, high = self.rank
        return f"{low}" if low == high else f"{low}-{high}"


@dataclass(frozen=True)
class Leaderboard:
    """rows: ranked, best mean first; apart: not ranked, each with `why`. reference: what `versus` compares with.

    scores and draws: case scores and bootstrapped means of the ranked variants, for plots and tests of one's own.
    cases: (domain, case) of each column of the scores. cells: `tables.cells` of all rows.
    notes: how every number was computed, and what was left out.
    """

    task: str
    protocol: Protocol
    metric: str
    unit: str
    rows: tuple[Row, ...]
    apart: tuple[Row, ...]
    reference: str
    margin: float
    scores: dict[str, CaseScores]
    draws: dict[str, np.ndarray]
    cases: tuple[tuple[str, str], ...]
    cells: pd.DataFrame
    notes: tuple[str, ...]
    heading: str

    @property
    def lower_is_better(self) -> bool:
        return self.metric != "dice"

    def verdict(self, row: Row) -> str:
        return row.versus.verdict(self.margin) if row.versus else ""


def build(
    records: Iterable[RunRecord],
    protocol: Protocol,
    metric: str = "dice",
    reference: str | None = None,
    margin: float | None = None,
    draws: int = statistics.DRAWS,
    left_out: Sequence[str] = (),
) -> Leaderboard:
    """The leaderboard of some runs.

    reference: the variant that every other is tested against, by default the first of the ranking (chosen by the same
    data, so its lead is flattered). margin: differences inside it count as equivalent, in the metric's unit.
    Raises as `tables.all_cases`, and `UsageError` for an unknown metric or reference.
    """
    records = sorted(records, key=lambda r: (r.variant, r.source, r.seed))
    require(metric, list(protocol.metrics), f"metric of protocol {protocol.name}")
    usable, why = complete(records)
    rows_of_cases = tables.all_cases(usable, protocol)
    cells = tables.cells(usable, protocol, rows_of_cases)
    by_variant: dict[str, list[RunRecord]] = {}
    for record in usable:
        by_variant.setdefault(record.variant, []).append(record)
    scores, cases, domain = case_scores(usable, protocol, metric, rows_of_cases)
    shared = Resampling(domain, draws)
    lower = metric != "dice"
    margin = margin_of(metric, margin)

    rows: list[Row] = []
    drawn: dict[str, np.ndarray] = {}
    for variant, theirs in by_variant.items():
        row = _row(cells, theirs, protocol, metric)
        reasons = _reasons(row, theirs, why.get(variant, []))
        if variant in scores and not math.isnan(row.mean):
            estimate, drawn[variant] = statistics.estimate(scores[variant], resampling=shared)
            low, high = possible(estimate, metric)
            row = dataclasses.replace(row, low=low, high=high)
        rows.append(dataclasses.replace(row, why="; ".join(reasons)))
    ranked = [r for r in rows if not r.why]
    ranked.sort(key=lambda r: (r.mean if lower else -r.mean, r.variant))
    apart = sorted(
        (r for r in rows if r.why), key=lambda r: (math.isnan(r.mean), r.mean if lower else -r.mean, r.variant)
    )
    if ranked:
        ranks = statistics.rank_intervals(np.column_stack([drawn[r.variant] for r in ranked]), lower)
        ranked = [dataclasses.replace(r, rank=rank) for r, rank in zip(ranked, ranks, strict=True)]
    known = [v for v in scores if v in drawn]
    if reference is not None:
        require(reference, sorted(known), "variant to compare with")
    reference = reference or (ranked[0].variant if ranked else "")
    if reference:
        others = [r for r in ranked if r.variant != reference]
        found = [statistics.difference(scores[r.variant], scores[reference], lower, shared) for r in others]
        corrected = statistics.holm([d.p for d in found])
        versus = {r.variant: dataclasses.replace(d, p_holm=p) for r, d, p in zip(others, found, corrected, strict=True)}
        ranked = [dataclasses.replace(r, versus=versus.get(r.variant)) for r in ranked]
    board = Leaderboard(
        task=records[0].task,
        protocol=protocol,
        metric=metric,
        unit=tables.unit(records, protocol, metric),
        rows=tuple(ranked),
        apart=tuple(apart),
        reference=reference,
        margin=margin,
        scores={v: scores[v] for v in known},
        draws=drawn,
        cases=tuple(cases),
        cells=cells,
        notes=(),
        heading=tables.heading(cells, records, protocol, metric, None),
    )
    notes = [*_notes(board, tables.context(cells, usable, protocol)), stability(board), _mixed(by_variant), *left_out]
    return dataclasses.replace(board, notes=tuple(filter(None, notes)))


def margin_of(metric: str, margin: float | None = None) -> float:
    """Below it two results are equivalent: by default half a Dice point, 0.1 mm (px, voxels) for distances."""
    return margin if margin is not None else 0.005 if metric == "dice" else 0.1


def possible(estimate: statistics.Estimate, metric: str) -> tuple[float, float]:
    """The interval of a mean, as far as scores go: Dice from 0 to 1, distances from 0."""
    low, high = np.clip((estimate.low, estimate.high), 0, 1 if metric == "dice" else math.inf)
    return float(low), float(high)


def complete(records: Sequence[RunRecord]) -> tuple[list[RunRecord], dict[str, list[str]]]:
    """The runs of seeds that have all sources (all runs of a variant without any such seed), and what is missing."""
    present = {r.source for r in records}
    wanted = [d for d in records[0].record["domains"] if d in present or d in records[0].record.get("sources", ())]
    usable: list[RunRecord] = []
    why: dict[str, list[str]] = {}
    for variant in sorted({r.variant for r in records}):
        theirs = [r for r in records if r.variant == variant]
        by_seed: dict[int, list[str]] = {}
        for r in theirs:
            by_seed.setdefault(r.seed, []).append(r.source)
        whole = {seed for seed, sources in by_seed.items() if len(set(sources)) == len(wanted)}
        usable += [r for r in theirs if r.seed in whole or not whole]
        if not whole:
            lacking = sorted(set(wanted) - {r.source for r in theirs})
            why[variant] = [f"no run of source {', '.join(lacking)}" if lacking else "no seed has every source"]
            failed = [
                name
                for name in lacking
                for f in theirs[0].path.parent.glob(f"{name}-seed*/FAILED.json")
                if read_json(f)
            ]
            if failed:
                why[variant].append(f"failed: source {', '.join(sorted(set(failed)))}")
    return usable, why


def _reasons(row: Row, records: Sequence[RunRecord], missing: Sequence[str]) -> list[str]:
    needs = {n for r in records for n, needed in r.record["needs"].items() if needed}
    reasons = list(missing)
    if "uses_target_masks" in needs:
        reasons.append("an oracle: prompted from the targets' reference masks")
    if "uses_target_batch" in needs:
        reasons.append("adapts to the test images")
    if any(r.record.get("checkpoint") for r in records):
        reasons.append("given weights, not trained here")
    if len(row.seeds) == 1:
        reasons.append("one seed")
    if math.isnan(row.mean) and not reasons:
        reasons.append("a mean that is not defined: a missed structure is NaN under this protocol")
    return reasons


def _row(cells: pd.DataFrame, records: Sequence[RunRecord], protocol: Protocol, metric: str) -> Row:
    variant = records[0].variant
    m = tables.matrix(cells, protocol, variant, metric)
    tested = cells[(cells["variant"] == variant) & (cells["role"] == "target") & (cells["metric"] == metric)]
    missed = int(tested["n_missed"].sum())
    of_task = set(cells.loc[cells["role"] == "target", "target"])
    targets = {str(d): float(v) for d, v in m.values.iloc[-1, :-1].items() if d in of_task}
    known = not any(math.isnan(v) for v in targets.values())
    worst = (min if metric == "dice" else max)(targets, key=lambda d: targets[d]) if targets and known else ""
    validation, costs = float(m.validation.iloc[-1]), [r.record["costs"] for r in records]
    first = records[0].record
    hparams = first.get("hparams", {})
    return Row(
        variant=variant,
        method=records[0].method,
        mean=m.mean,
        low=math.nan,
        high=math.nan,
        targets=targets,
        worst=worst,
        seeds=tuple(sorted({r.seed for r in records})),
        seed_std=float(m.std.iloc[-1, -1]),
        validation=validation,
        gap=(validation - m.mean) * (1 if metric == "dice" else -1),
        missed=missed,
        present=int((tested["n_cases"] - tested["n_false_positive"] - tested["n_both_empty"]).sum()),
        trained=max(c["trained"] for c in costs),
        parameters=max(c["parameters"] for c in costs),
        seconds=float(np.mean([c["train_seconds"] for c in costs])),
        memory_mb=max(c["peak_memory_mb"] for c in costs),
        device=", ".join(
            sorted({str(r.record.get("environment", {}).get("device", "")).split(":")[0] for r in records})
        ),
        steps=hparams.get("steps") or first.get("steps", 0),
        batch_size=hparams.get("batch_size", 0),
        initialisation=tables.initialisation(records),
        needs=tables.needs(records),
    )


def case_scores(
    records: Iterable[RunRecord], protocol: Protocol, metric: str, frame: pd.DataFrame | None = None
) -> tuple[dict[str, CaseScores], list[tuple[str, str]], np.ndarray]:
    """What each variant scores on each target case, by seed; the cases as (domain, case), and their domains' numbers.

    Weights are those of the protocol's mean, so that the weighted mean is what `tables.matrix` gives. Only variants
    with the same sources for every seed are in it. `frame`: `tables.all_cases` of the records, where it is at hand.
    """
    records = sorted(records, key=lambda r: (r.variant, r.source, r.seed))
    frame = tables.all_cases(records, protocol) if frame is None else frame
    frame = frame[frame["role"] == "target"]
    identity = pd.MultiIndex.from_frame(frame[["domain", "case"]])
    column, cases = pd.factorize(identity, sort=True)
    values = tables.scores(frame, metric, protocol)
    frame = frame.assign(column=column).loc[values.index, ["run", "domain", "structure", "column"]]
    pooled = protocol.mean == "cases"
    group = ["run", "structure"] if pooled else ["run", "domain", "structure"]
    size = frame.groupby(group, observed=True)["column"].transform("size").to_numpy()
    targets = np.array([1 if pooled else len(r.record["targets"]) for r in records])
    sources = {v: len({r.source for r in records if r.variant == v}) for v in {r.variant for r in records}}
    run = frame["run"].to_numpy()
    over = size * targets[run] * np.array([sources[r.variant] for r in records])[run]
    weight = 1 / (over * len(records[0].record["structures"]))
    of_run = np.zeros((2, len(records), len(cases)))
    np.add.at(of_run, (0, run, frame["column"].to_numpy()), weight * values.to_numpy())
    np.add.at(of_run, (1, run, frame["column"].to_numpy()), weight)
    found = {}
    for variant in sources:
        seeds = sorted({r.seed for r in records if r.variant == variant})
        rows = [[i for i, r in enumerate(records) if r.variant == variant and r.seed == s] for s in seeds]
        if any(len(r) != sources[variant] for r in rows):
            continue
        scored, weights = (np.array([of_run[k][r].sum(axis=0) for r in rows]) for k in (0, 1))
        mean = weights.mean(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            of_case = np.where(mean > 0, scored / mean, 0.0)
        found[variant] = CaseScores(of_case, mean / mean.sum(), _numbers(cases))
    return found, [(str(d), str(c)) for d, c in cases], _numbers(cases)


def _numbers(cases: Any) -> np.ndarray:
    return pd.factorize(cases.get_level_values(0))[0].astype(np.int64)


# --- words -----------------------------------------------------------------------------------------------------------


def _notes(board: Leaderboard, context: str) -> list[str]:
    family = len(board.rows) - 1
    margin = f"{number(board.margin, board.metric)} {_points(board)}"
    notes = [
        context,
        f"Interval: 95 %, studentised bootstrap over seeds and, within each domain, {len(board.cases)} target cases. "
        "Rank: lowest and highest in 95 % of the draws.",
    ]
    if family > 0:
        notes.append(
            f"Differences are to {board.reference}, case by case. better, worse: the 95 % interval leaves out 0, and "
            f"Wilcoxon's signed-rank test over cases, Holm-corrected for {family} test{'s' if family > 1 else ''}, has "
            f"p < 0.05; equivalent: the interval lies within ± {margin}; else not resolved."
        )
    few = sorted({d for d, _ in board.cases if sum(e == d for e, _ in board.cases) < 20})
    if few:
        notes.append(f"Fewer than 20 cases in {', '.join(few)}: intervals are approximate.")
    if board.rows and min(len(r.seeds) for r in board.rows) < 3:
        notes.append("Some rows have two seeds: three are the least for a number that may be trusted.")
    if any(len(r.seeds) == 1 for r in board.apart):
        notes.append("An interval of one seed is over cases alone: it is too narrow.")
    if len({(r.steps, r.batch_size) for r in board.rows if r.trained}) > 1:
        notes.append("The rows had different budgets: see steps x batch.")
    return notes


def _mixed(runs: Mapping[str, Sequence[RunRecord]]) -> str:
    """Which rows average runs that were made by two versions of the method's code, if any."""
    names = [v for v, theirs in runs.items() if len({r.record.get("code", {}).get("method") for r in theirs}) > 1]
    remedy = "`dgbench run` makes the older ones again"
    return f"Runs by different versions of the code are averaged in {', '.join(names)}: {remedy}." if names else ""


def stability(board: Leaderboard) -> str:
    """How far the ranking hangs on a choice: on averaging before or after ranking, and on any one target domain.

    Maier-Hein et al. Why rankings of biomedical image analysis competitions should be interpreted with care. Nature
    Communications 2018. Wiesenfarth et al. Scientific Reports 2021 (challengeR).
    """
    if len(board.rows) < 3:
        return ""
    scores = [board.scores[r.variant] for r in board.rows]
    of_case, weight = np.column_stack([s.of_case for s in scores]), scores[0].weight
    sign = 1 if board.lower_is_better else -1
    case_ranks = stats.rankdata(sign * of_case, axis=1)
    tau = stats.kendalltau(weight @ case_ranks, sign * (weight @ of_case)).statistic
    domains = np.array([d for d, _ in board.cases])
    firsts = {}
    for left_out in dict.fromkeys(domains):
        rest = np.where(domains == left_out, 0, weight)
        winner = board.rows[int(np.argmin(sign * (rest @ of_case)))].variant
        if winner != board.rows[0].variant:
            firsts[left_out] = winner
    said = f"Ranking every case and averaging the ranks gives Kendall's tau {tau:.2f} with this order."
    changed = ", ".join(f"{winner} without {domain}" for domain, winner in firsts.items())
    return (
        f"{said} Without any one of the targets the first place {f'changes: {changed}' if changed else 'is the same'}."
    )


def _points(board: Leaderboard) -> str:
    return "points" if board.metric == "dice" else board.unit


def conclusion(board: Leaderboard) -> str:
    """What the statistics say of the ranking, in a few sentences."""
    if len(board.rows) < 2:
        return "Fewer than two variants can be ranked: nothing can be concluded."
    best = board.rows[0]
    mean, low, high = (number(v, board.metric) for v in (best.mean, best.low, best.high))
    groups = {v: [r.variant for r in board.rows if board.verdict(r) == v] for v in typing.get_args(Verdict)}
    words = "; ".join(f"{verdict}: {_listed(names)}" for verdict, names in groups.items() if names)
    return (
        f"{best.variant} has the best mean, {mean} {board.unit} (95 % interval {low} to {high}), rank "
        f"{best.rank_text} of {len(board.rows)}. Against {board.reference}: {words}."
    )


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def board_tables(board: Leaderboard) -> list[Table]:
    """What the variants reach, and what that rests on and costs."""
    metric, label = board.metric, f"{board.task}-{board.protocol.name}-{board.metric}"
    domains = list(dict.fromkeys(d for r in (*board.rows, *board.apart) for d in r.targets))
    columns = {d: [r.targets.get(d, math.nan) for r in board.rows] for d in domains}
    columns["mean"] = [r.mean for r in board.rows]
    best = {name: tables.best(values, metric) for name, values in columns.items()}
    conditions = {
        "steps x batch": [f"{r.steps} x {r.batch_size}" for r in (*board.rows, *board.apart)],
        "initialisation": [r.initialisation for r in (*board.rows, *board.apart)],
        "device": [r.device for r in (*board.rows, *board.apart)],
        "needs": [r.needs for r in (*board.rows, *board.apart)],
    }
    varying = {name: of_row for name, of_row in conditions.items() if len(set(of_row)) > 1}
    same = "".join(
        f" {name}: {of_row[0]}." for name, of_row in conditions.items() if len(set(of_row)) == 1 and of_row[0]
    )
    reached: list[tuple[Entry, ...]] = []
    costs: list[tuple[Entry, ...]] = []
    for i, row in enumerate((*board.rows, *board.apart)):
        if i == len(board.rows):
            reached.append((Entry("not ranked", "block"),))
            costs.append((Entry("not ranked", "block"),))
        values = {"mean": row.mean, **row.targets}
        shown = {name: Entry(number(v, metric), "best" if i in best[name] else "") for name, v in values.items()}
        interval = "" if math.isnan(row.low) else f"{number(row.low, metric)} to {number(row.high, metric)}"
        reached.append(
            (
                Entry(row.variant),
                Entry(row.rank_text),
                shown["mean"],
                Entry(interval),
                *(shown[d] for d in domains),
                Entry(row.worst),
                Entry(row.why or _against(board, row)),
            )
        )
        costs.append(
            (
                Entry(row.variant),
                Entry(str(len(row.seeds))),
                Entry(number(row.seed_std, metric)),
                Entry(number(row.validation, metric)),
                Entry(number(row.gap, metric)),
                Entry(f"{row.missed_rate:.1%}" if row.missed else "0"),
                Entry(f"{row.trained / 1e6:.3f}"),
                Entry(f"{row.parameters / 1e6:.3f}"),
                Entry(f"{row.seconds:.0f}"),
                Entry(f"{row.memory_mb:.0f}"),
                *(Entry(of_row[i]) for of_row in varying.values()),
            )
        )
    against = f"against {board.reference}" if board.reference else "why"
    heads = "seeds,±,validation,gap,missed,trained,parameters,train s,peak MB"
    return [
        Table(
            label,
            f"{board.heading}, task {board.task}, protocol {board.protocol.name}, by target (mean over sources).",
            ("variant", "rank", "mean", "95 % interval", *domains, "worst", against),
            tuple(reached),
            foot=" ".join(board.notes),
        ),
        Table(
            f"{label}-costs",
            "What the rows rest on and cost.",
            ("variant", *heads.split(","), *varying),
            tuple(costs),
            foot="±: standard deviation of the mean between seeds. gap: from the source's validation cases to the "
            "targets. missed: structures that were there and not found, of all there were. trained, parameters: "
            "millions. train s: mean over runs." + same,
        ),
    ]


def published_table(beside: pd.DataFrame, board: Leaderboard) -> Table | None:
    """What papers report, from `published.beside`: one row per paper, method and structure, never ranked; None if none.

    Where a paper gives several sources, the row is their mean, of those that both give where it is compared.
    """
    rows = []
    these = beside[beside["metric"] == board.metric]
    kept = ["paper", "method", "structure", "target", "reasons"]
    for (paper, method, structure, target, reasons), group in these.groupby(kept, sort=False):
        both = group.dropna(subset="measured")
        sources = list(group["source"])
        theirs = (both if len(both) else group)["published"].mean()
        rows.append(
            (
                Entry(f"{method} ({paper})"),
                Entry(sources[0] if len(sources) == 1 else f"mean of {len(both) or len(sources)} sources"),
                Entry(str(target)),
                Entry(str(structure)),
                Entry(number(theirs, board.metric)),
                Entry(number(both["measured"].mean(), board.metric) if len(both) else ""),
                Entry(signed(both["difference"].mean(), board.metric) if len(both) else ""),
                Entry(str(reasons).partition(". ours:")[0].removeprefix("theirs: ")),
            )
        )
    if not rows:
        return None
    return Table(
        f"{board.task}-{board.metric}-published",
        f"{tables.TITLES[board.metric]} ({board.unit}) as published: by other protocols, never ranked with ours.",
        ("method (paper)", "source", "target", "structure", "published", "measured", "difference", "their protocol"),
        tuple(rows),
        foot="measured: here, with default settings. `dgbench report` gives every cell and the known differences.",
    )


def _against(board: Leaderboard, row: Row) -> str:
    if row.versus is None:
        return "reference" if row.variant == board.reference and len(board.rows) > 1 else ""
    return f"{signed(row.versus.estimate.mean, board.metric)} {board.verdict(row)}"


def frame(board: Leaderboard) -> pd.DataFrame:
    """The board with full precision: Dice in [0, 1], distances in `unit`; apart rows have a reason and no rank."""
    rows: list[dict[str, Any]] = []
    for row in (*board.rows, *board.apart):
        d = row.versus
        rows.append(
            {
                "variant": row.variant,
                "method": row.method,
                "rank_low": row.rank[0] if row.rank else None,
                "rank_high": row.rank[1] if row.rank else None,
                "metric": board.metric,
                "unit": "fraction" if board.unit == "%" else board.unit,
                "mean": row.mean,
                "low": row.low,
                "high": row.high,
                **{f"target {name}": value for name, value in row.targets.items()},
                "worst_target": row.worst,
                "worst": row.targets.get(row.worst, math.nan),
                "seeds": len(row.seeds),
                "seed_std": row.seed_std,
                "validation": row.validation,
                "gap": row.gap,
                "missed": row.missed,
                "missed_rate": row.missed_rate,
                "reference": board.reference,
                "difference": d.estimate.mean if d else math.nan,
                "difference_low": d.estimate.low if d else math.nan,
                "difference_high": d.estimate.high if d else math.nan,
                "p_wilcoxon": d.p if d else math.nan,
                "p_holm": d.p_holm if d else math.nan,
                "effect": d.effect if d else math.nan,
                "verdict": board.verdict(row),
                "trained": row.trained,
                "parameters": row.parameters,
                "train_seconds": row.seconds,
                "device": row.device,
                "peak_memory_mb": row.memory_mb,
                "steps": row.steps,
                "batch_size": row.batch_size,
                "initialisation": row.initialisation,
                "needs": row.needs,
                "not_ranked": row.why,
            }
        )
    return pd.DataFrame(rows).astype({"rank_low": "Int64", "rank_high": "Int64"})


def render(board: Leaderboard, kind: str, published: Table | None = None) -> str:
    """The board as md, csv (of which published numbers are no part), tex or html."""
    if kind == "csv":
        return tables.csv_text(frame(board))
    made = [*board_tables(board), *([published] if published else [])]
    if kind == "html":
        return tables.html(made, f"{board.task}: leaderboard, {board.heading}")
    return {"md": tables.markdown, "tex": tables.latex}[kind](made)
