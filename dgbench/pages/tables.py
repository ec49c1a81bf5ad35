"""Tables: what the runs of one task under one protocol say, as source x target matrices and one row per variant.

Everything here is a pure function of run records. Two tasks, protocols or metric versions never meet in one table, a
missing cell is blank, and so is every average over it.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from dgbench.errors import DataError, UsageError, require
from dgbench.files import make_folder, write_atomic

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

    from dgbench.protocol import Protocol
    from dgbench.running.records import RunRecord

TITLES = {"dice": "Dice", "asd": "ASD", "assd": "ASSD", "hd95": "HD95"}
MEANS = {
    "domains": "mean over cases, then structures, then targets (each domain equal), then sources",
    "cases": "mean over the cases of all targets pooled, then structures, then sources",
}


# --- numbers ---------------------------------------------------------------------------------------------------------


def all_cases(records: Iterable[RunRecord], protocol: Protocol) -> pd.DataFrame:
    """Every row of every run's cases.csv, with the columns variant, method, source and seed, in an order of its own.

    Raises `UsageError` or `DataError` unless the runs may stand in one table: one task, protocol and metrics version,
    the same structures and domains, the same cases of every domain, and no run and no case twice.
    """
    records = sorted(records, key=lambda r: (r.variant, r.source, r.seed))
    if not records:
        raise UsageError("no complete run to make a table of", "start some with `dgbench run`")

    def alike(what: str, values: Iterable[Any], error: type[UsageError | DataError], remedy: str) -> None:
        seen = {str(v): r for v, r in zip(values, records, strict=True)}
        if len(seen) > 1:
            (a, one), (b, other), *_ = sorted(seen.items())
            raise error(f"one table cannot mix {what} {a} ({one.path}) and {b} ({other.path})", remedy)

    apart, again = "make one table for each", "run the older ones again with --rerun all"
    alike("task", (r.task for r in records), UsageError, apart)
    alike("protocol", (r.protocol for r in records), UsageError, apart)
    if records[0].protocol != protocol.name:
        raise UsageError(f"these are runs of protocol {records[0].protocol}, not {protocol.name}", apart)
    alike("metrics version", (r.record["metrics_version"] for r in records), DataError, again)
    for key in ("structures", "domains", "unit"):
        alike(key, (r.record[key] for r in records), DataError, again)
    images: dict[str, tuple[str, RunRecord]] = {}
    for r in records:
        for domain, fingerprint in r.record.get("data", {}).items():
            known, first = images.setdefault(domain, (fingerprint, r))
            if known != fingerprint:
                raise DataError(f"{first.path} and {r.path} saw different images of domain '{domain}'", again)
    for one, other in itertools.pairwise(records):
        if (one.variant, one.source, one.seed) == (other.variant, other.source, other.seed):
            raise DataError(f"one run twice: {one.path} and {other.path}", "keep one of them")
    cases = pd.concat([r.cases for r in records], ignore_index=True)
    run = np.repeat(np.arange(len(records)), [len(r.cases) for r in records])
    for name in ("variant", "method", "source", "seed"):
        cases[name] = np.array([getattr(r, name) for r in records], dtype=int if name == "seed" else object)[run]
    cases["run"] = run
    cases["flag"] = cases["flag"].fillna("")
    cases = cases.sort_values(["run", "domain", "case", "structure"], ignore_index=True)
    record = records[0].record
    known = cases["domain"].isin(record["domains"]) & cases["structure"].isin(record["structures"])
    if not known.all():
        row = cases[~known].iloc[0]
        where = f"domain '{row['domain']}', structure '{row['structure']}'"
        raise DataError(f"{records[row['run']].path} was tested on what its task does not have: {where}", again)
    twice = cases[cases.duplicated(["run", "domain", "case", "structure"])]
    if len(twice):
        row = twice.iloc[0]
        raise DataError(f"{records[row['run']].path} has case {row['case']} of domain '{row['domain']}' twice", again)
    tested: dict[tuple, tuple[frozenset, int]] = {}
    for (role, domain, i), ids in cases.groupby(["role", "domain", "run"])["case"].agg(frozenset).items():
        theirs, other_run = tested.setdefault((role, domain), (ids, i))
        if theirs != ids:
            where = f"{records[other_run].path} and {records[i].path}"
            raise DataError(f"{where} were tested on different cases of domain '{domain}'", again)
    return cases


def scores(cases: pd.DataFrame, metric: str, protocol: Protocol) -> pd.Series:
    """What each case adds to a mean, by the protocol.

    "penalty": a missed or falsely found structure is as far away as the image's diagonal, and a case where both masks
    are empty is left out. "nan": all of these are NaN, and so is every mean over them.
    """
    values = cases[metric].astype(float)
    if protocol.missed == "penalty":
        return values.where(~np.isinf(values), cases["diagonal"])[cases["flag"] != "both_empty"]
    return values.where(~np.isinf(values))


def cells(records: Iterable[RunRecord], protocol: Protocol, cases: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per variant, source, target, structure, seed and metric: the tidy form of all tables.

    Columns: variant, method, source, target, role ("target", "validation" where the target is the source itself, "" for
    a domain that the task never tests this source on),
    structure, seed, metric, value (Dice in [0, 1], distances in the protocol's unit), found_value (mean over the cases
    where the structure was neither missed nor falsely found), n_cases, n_missed, n_both_empty, n_false_positive.
    source, target, structure and metric are categories in the task's order. A target without cases has value NaN.
    `cases`: `all_cases` of these records, where they are at hand.
    """
    records = sorted(records, key=lambda r: (r.variant, r.source, r.seed))
    cases = all_cases(records, protocol) if cases is None else cases.copy(deep=False)
    record, present = records[0].record, {r.source for r in records}
    domains, structures = list(record["domains"]), list(record["structures"])
    sources = [d for d in domains if d in present or d in record.get("sources", ())]
    cases["domain"], cases["structure"] = (
        pd.Categorical(cases["domain"], domains), pd.Categorical(cases["structure"], structures)
    )  # fmt: skip
    cell = (cases["run"] * len(domains) + cases["domain"].cat.codes) * len(structures) + cases["structure"].cat.codes
    n = len(records) * len(domains) * len(structures)

    def count(rows: pd.Index) -> np.ndarray:
        return np.bincount(cell[rows], minlength=n)

    def mean(values: pd.Series) -> np.ndarray:  # NaN among a cell's cases makes it NaN, and so does having none
        with np.errstate(invalid="ignore"):
            return np.bincount(cell[values.index], values, minlength=n) / count(values.index)

    flags = ("missed", "both_empty", "false_positive")
    counts = {"n_cases": count(cases.index)} | {f"n_{f}": count(cases.index[cases["flag"] == f]) for f in flags}
    keys = pd.MultiIndex.from_product([range(len(records)), domains, structures], names=["run", "target", "structure"])
    frames = []
    for metric in protocol.metrics:
        found = cases.loc[cases["flag"] == "", metric].astype(float)
        means = {"value": mean(scores(cases, metric, protocol)), "found_value": mean(found)}
        frames.append(keys.to_frame(index=False).assign(metric=metric, **means, **counts))
    table = pd.concat(frames, ignore_index=True).sort_values("run", kind="stable", ignore_index=True)
    for name in ("variant", "method", "source", "seed"):
        table[name] = [getattr(records[i], name) for i in table["run"]]
    tested = {(r.source, d) for r in records for d in r.record["targets"]}
    pairs = [*zip(table["source"], table["target"], strict=True)]
    table["role"] = ["validation" if s == t else "target" if (s, t) in tested else "" for s, t in pairs]
    order = {"source": sources, "target": domains, "structure": structures, "metric": protocol.metrics}
    for name, categories in order.items():
        table[name] = pd.Categorical(table[name], list(categories))
    names = "variant method source target role structure seed metric value found_value"
    return table[[*names.split(), *counts]]


@dataclass(frozen=True, eq=False)
class Matrix:
    """Source x target averages of one variant, metric and structure (None: the mean of all).

    values, found, std: one row per source and a last row "mean", one column per domain and a last column "mean"; std is
    over seeds (divided by n - 1; NaN for one seed); found is the mean over found cases. A source's own column is NaN.
    validation: the source's held-out cases, one value per source and "mean"; it is in no other average.
    seeds, missed, tested: per source, the number of seeds and, over seeds and targets, of missed and of all structures.
    """

    variant: str
    metric: str
    structure: str | None
    values: pd.DataFrame
    found: pd.DataFrame
    std: pd.DataFrame
    validation: pd.Series
    seeds: pd.Series
    missed: pd.Series
    tested: pd.Series

    @property
    def mean(self) -> float:
        """The average over everything, by the protocol's rule."""
        return float(self.values.iloc[-1, -1])

    @property
    def seeds_text(self) -> str:
        """The number of seeds of each source: "3", or "1-3" where sources differ."""
        low, high = self.seeds.min(), self.seeds.max()
        return f"{low}" if low == high else f"{low}-{high}"


def matrix(cells: pd.DataFrame, protocol: Protocol, variant: str, metric: str, structure: str | None = None) -> Matrix:
    """Average the cells of one variant: over structures, over seeds, over targets by the protocol, over sources."""
    require(variant, sorted(cells["variant"].unique()), "variant")
    require(metric, list(protocol.metrics), f"metric of protocol {protocol.name}")
    sources, domains, structures = (list(cells[c].cat.categories) for c in ("source", "target", "structure"))
    if structure is not None:
        structures = [require(structure, structures, "structure")]
    part = cells[(cells["variant"] == variant) & (cells["metric"] == metric) & cells["structure"].isin(structures)]
    runs = sorted({(sources.index(s), seed) for s, seed in zip(part["source"], part["seed"], strict=True)})
    position = {run: i for i, run in enumerate(runs)}
    place = (
        [position[sources.index(s), seed] for s, seed in zip(part["source"], part["seed"], strict=True)],
        [structures.index(s) for s in part["structure"]],
        part["target"].cat.codes.to_numpy(),
    )

    def cube(column: pd.Series) -> np.ndarray:  # (runs, structures, domains)
        filled = np.full((len(runs), len(structures), len(domains)), np.nan)
        filled[place] = column
        return filled

    never = set(cells.loc[cells["role"] == "", ["source", "target"]].itertuples(index=False, name=None))
    itself = np.array([[s == d or (s, d) in never for d in domains] for s in sources])  # (sources, domains)
    of_source = np.array([s for s, _ in runs])
    seed_of = np.array([seed for _, seed in runs])
    excluded = part["n_both_empty"] if protocol.missed == "penalty" else 0
    n_found = part["n_cases"] - part["n_missed"] - part["n_both_empty"] - part["n_false_positive"]

    def over_targets(values: pd.Series, n: pd.Series) -> np.ndarray:  # (runs, domains and their mean)
        each, own = cube(values), itself[of_source][:, None, :]
        weight = cube(n) if protocol.mean == "cases" else np.ones_like(each)
        mean = _mean(each, weight, ~own, axis=2).mean(axis=1)
        return np.column_stack([np.where(own[:, 0], np.nan, each.mean(axis=1)), mean])

    def over_sources(rows: np.ndarray) -> np.ndarray:  # (sources, columns) -> one more row
        own = np.column_stack([itself[:, : rows.shape[1] - 1], np.zeros(len(sources), bool)])
        return np.vstack([rows, _mean(rows, np.ones_like(rows), ~own, axis=0)])

    def over_seeds(rows: np.ndarray) -> np.ndarray:  # (runs, columns) -> (sources, columns)
        each = [rows[of_source == s] for s in range(len(sources))]
        return np.array([r.mean(axis=0) if len(r) else np.full(rows.shape[1], np.nan) for r in each])

    def deviation(rows: np.ndarray) -> np.ndarray:  # (runs, columns) -> (sources and their mean, columns)
        each = [rows[of_source == s] for s in range(len(sources))]
        shared = sorted(set.intersection(*(set(seed_of[of_source == s]) for s in range(len(sources)))))
        each.append(np.array([over_sources(rows[seed_of == seed])[-1] for seed in shared]))
        return np.array([r.std(axis=0, ddof=1) if len(r) > 1 else np.full(rows.shape[1], np.nan) for r in each])

    values = over_targets(part["value"], part["n_cases"] - excluded)
    found = over_targets(part["found_value"], n_found)
    home = [domains.index(sources[s]) for s in of_source]
    validation = cube(part["value"])[range(len(runs)), :, home].mean(axis=1)
    counted = part[part["role"] == "target"].groupby("source", observed=False)[["n_missed", "n_cases"]].sum()
    frame = {"index": [*sources, "mean"], "columns": [*domains, "mean"]}
    return Matrix(
        variant,
        metric,
        structure,
        values=pd.DataFrame(over_sources(over_seeds(values)), **frame),
        found=pd.DataFrame(over_sources(over_seeds(found)), **frame),
        std=pd.DataFrame(deviation(values), **frame),
        validation=pd.Series(over_sources(over_seeds(validation[:, None]))[:, 0], [*sources, "mean"]),
        seeds=pd.Series([int((of_source == s).sum()) for s in range(len(sources))], sources),
        missed=pd.Series(counted["n_missed"].to_numpy(), sources),
        tested=pd.Series(counted["n_cases"].to_numpy(), sources),
    )


def _mean(values: np.ndarray, weight: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray:
    """Weighted mean of the values that count; NaN when one of them is NaN, whatever its weight, or when none counts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.where(counts, weight, 0).sum(axis=axis)
        return np.where(counts, values * weight, 0).sum(axis=axis) / total


def summary(cells: pd.DataFrame, records: Iterable[RunRecord], protocol: Protocol) -> pd.DataFrame:
    """One row per variant, best mean Dice first; oracles, which see target masks, come after all others.

    Columns: variant, method, oracle; for every metric its mean, <metric>_std over seeds and <metric>_found;
    worst_target and worst_dice; validation_dice and gap (validation minus targets: what is lost by leaving home);
    missed, false_positive, both_empty, tested (counts over all runs) and missed_rate (of the cases that have the
    structure); initialisation, needs, parameters, trained, train_seconds and test_seconds (mean over runs),
    peak_memory_mb (maximum), seeds.
    """
    runs: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda r: (r.variant, r.source, r.seed)):
        runs.setdefault(record.variant, []).append(record)
    rows = []
    for variant, theirs in runs.items():
        costs = [r.record["costs"] for r in theirs]
        row: dict[str, Any] = {
            "variant": variant,
            "method": theirs[0].method,
            "oracle": any(r.record["needs"]["uses_target_masks"] for r in theirs),
        }
        of_metric = {metric: matrix(cells, protocol, variant, metric) for metric in protocol.metrics}
        for metric, m in of_metric.items():
            row |= {metric: m.mean, f"{metric}_std": m.std.iloc[-1, -1], f"{metric}_found": m.found.iloc[-1, -1]}
        dice = of_metric["dice"]
        by_target = dice.values.iloc[-1, :-1]
        of_task = cells.loc[cells["role"] == "target", "target"].unique()
        targets = by_target[[d in of_task for d in by_target.index]]
        worst = "" if targets.empty or targets.isna().any() else targets.index[int(np.argmin(targets))]
        tested = cells[(cells["variant"] == variant) & (cells["role"] == "target") & (cells["metric"] == "dice")]
        counts = {c: int(tested[f"n_{c}"].sum()) for c in ("missed", "false_positive", "both_empty", "cases")}
        present = counts["cases"] - counts["false_positive"] - counts["both_empty"]
        row |= {
            "worst_target": worst,
            "worst_dice": targets.min() if worst else math.nan,
            "validation_dice": dice.validation.iloc[-1],
            "gap": dice.validation.iloc[-1] - dice.mean,
            "missed": counts["missed"],
            "false_positive": counts["false_positive"],
            "both_empty": counts["both_empty"],
            "tested": counts["cases"],
            "missed_rate": counts["missed"] / present if present else math.nan,
            "initialisation": initialisation(theirs),
            "needs": needs(theirs),
            "parameters": max(c["parameters"] for c in costs),
            "trained": max(c["trained"] for c in costs),
            "train_seconds": float(np.mean([c["train_seconds"] for c in costs])),
            "test_seconds": float(np.mean([c["test_seconds"] for c in costs])),
            "peak_memory_mb": max(c["peak_memory_mb"] for c in costs),
            "seeds": dice.seeds_text,
        }
        rows.append(row)
    order = {"by": ["oracle", "dice", "variant"], "ascending": [True, False, True]}
    return pd.DataFrame(rows).sort_values(**order, na_position="last", ignore_index=True)


def initialisation(records: Iterable[RunRecord]) -> str:
    """ "scratch", or the files that pretrained weights were read from (a record holds their sha256 with them)."""
    return ", ".join(sorted({name for r in records for name in _listed(r.record["initialisation"])}))


def _listed(names: str | dict[str, str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def needs(records: Iterable[RunRecord]) -> str:
    """What a method needs beyond one image and its mask, in words."""
    named = sorted({name for r in records for name, needed in r.record["needs"].items() if needed})
    return ", ".join(re.sub(r"^(uses|needs)_", "", n).replace("_", " ") for n in named)


# --- words -----------------------------------------------------------------------------------------------------------


def unit(records: Sequence[RunRecord], protocol: Protocol, metric: str) -> str:
    """What a metric is shown in: percent for Dice, else the spacing's unit or voxels of the network's grid."""
    if metric == "dice":
        return "%"
    return "voxels" if protocol.distances == "voxel" else str(records[0].record["unit"])


def number(value: float, metric: str, std: float = math.nan) -> str:
    """As tables show it: Dice in percent points, distances as they are, two decimals; "" for NaN."""
    if math.isnan(value):
        return ""
    scale = 100 if metric == "dice" else 1
    text = f"{round(value * scale, 2) + 0.0:.2f}"
    return text if math.isnan(std) else f"{text} ± {std * scale:.2f}"


def signed(value: float, metric: str) -> str:
    """A difference, with its sign."""
    text = number(value, metric)
    return text if not text or text.startswith("-") else f"+{text}"


def heading(
    cells: pd.DataFrame, records: Sequence[RunRecord], protocol: Protocol, metric: str, structure: str | None
) -> str:
    """What the numbers of a table are: "ASD (mm) of prostate"."""
    structures = list(cells["structure"].cat.categories)
    what = structure or (structures[0] if len(structures) == 1 else f"{' and '.join(structures)} averaged")
    return f"{TITLES.get(metric, metric)} ({unit(records, protocol, metric)}) of {what}"


def context(cells: pd.DataFrame, records: Sequence[RunRecord], protocol: Protocol, structure: str | None = None) -> str:
    """What a reader must know besides, to compare a number with another one."""
    targets = cells[(cells["role"] == "target") & (cells["metric"] == protocol.metrics[0])]
    cases = targets.groupby("target", observed=False)["n_cases"].max().fillna(0).astype(int)
    tested = targets if structure is None else targets[targets["structure"] == structure]
    n = tested[["n_cases", "n_missed", "n_false_positive", "n_both_empty"]].sum()
    return (
        f"Task {records[0].task}; {protocol.caption()}. Averages: {MEANS[protocol.mean]}. "
        f"Seeds: {', '.join(str(s) for s in sorted(cells['seed'].unique()))}. "
        f"Target cases: {', '.join(f'{d} {k}' for d, k in cases.items())}. "
        f"Of {n['n_cases']} tested structures: {n['n_missed']} missed, {n['n_false_positive']} falsely found, "
        f"{n['n_both_empty']} absent from both masks. Metrics version {records[0].record['metrics_version']}."
    )


class Entry(NamedTuple):
    """One entry of a table, and what it is: "", "best", "home" (the source's own cases), "block" (a line over rows)."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Table:
    """A table as text, before any format: `rows` of entries, the last one under a rule if `total`; `foot`: below it."""

    name: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    total: bool = False
    foot: str = ""


def matrix_table(m: Matrix, name: str = "", heading: str = "", context: str = "") -> Table:
    """Source x target; the source's own validation cases in [brackets], and how many structures were missed."""
    found = m.metric != "dice"
    rows = []
    for i, source in enumerate(m.values.index):
        last = i == len(m.seeds)
        row = [Entry(str(source)), *(Entry(number(v, m.metric)) for v in m.values.iloc[i])]
        if not last and (own := number(m.validation.iloc[i], m.metric)):
            row[1 + list(m.values.columns).index(source)] = Entry(f"[{own}]", "home")
        row += [Entry(number(m.found.iloc[i, -1], m.metric))] if found else []
        row += [Entry(str(m.missed.sum()) if last else str(m.missed.iloc[i]) if m.seeds.iloc[i] else "")]
        rows.append(tuple(row))
    header = ("source", *map(str, m.values.columns), *(["found"] if found else []), "missed")
    note = f"{heading}, {m.variant}, seeds: {m.seeds_text}. Rows are sources, columns are targets; "
    note += "[the source's own validation cases] are in no average. "
    note += "found: the mean without missed structures. " if found else ""
    return Table(name, note + context, header, tuple(rows), total=True)


def sources_table(matrices: Sequence[Matrix], oracles: set[str], name: str, heading: str, context: str) -> Table:
    """Variant x source: each number is the mean over the targets of that source."""
    metric, columns = matrices[0].metric, matrices[0].values.index
    found = metric != "dice"
    ranked = [m for m in matrices if m.variant not in oracles]
    winners = [best([m.values.iloc[c, -1] for m in ranked], metric) for c in range(len(columns))]
    rows = []
    for m in matrices:
        rank = ranked.index(m) if m in ranked else -1
        means = zip(m.values.iloc[:, -1], m.std.iloc[:, -1], winners, strict=True)
        row = [Entry(m.variant), *(Entry(number(v, metric, s), "best" if rank in b else "") for v, s, b in means)]
        row += [Entry(number(m.found.iloc[-1, -1], metric))] if found else []
        rows.append((*row, Entry(str(m.missed.sum())), Entry(m.seeds_text)))
    header = ("variant", *map(str, columns), *(["found"] if found else []), "missed", "seeds")
    note = f"{heading}. Columns are sources; a number is the mean over the targets of that source"
    seeds = any(m.seeds.max() > 1 for m in matrices)
    note += ", ± the standard deviation over seeds. " if seeds else ". "
    note += "found: the mean without missed structures. " if found else ""
    return Table(name, note + context, header, tuple(_blocks(rows, oracles)))


def summary_tables(summary: pd.DataFrame, units: dict[str, str], name: str, context: str) -> tuple[Table, Table]:
    """What each variant reaches, in the metrics of `units`, and what it costs."""
    oracles = set(summary.loc[summary["oracle"], "variant"])
    ranked = summary[~summary["oracle"]]
    metrics = list(units)
    top = {m: best(list(ranked[m]), m) for m in metrics} | {"worst": best(list(ranked["worst_dice"]), "dice")}
    results, costs = [], []
    for i, row in enumerate(summary.to_dict("records")):  # oracles come last, so `i` is the rank of all others
        style = {column: "best" if i in winners else "" for column, winners in top.items()}
        results.append(
            (
                Entry(row["variant"]),
                *(Entry(number(row[m], m, row[f"{m}_std"]), style[m]) for m in metrics),
                *(Entry(number(row["asd_found"], m)) for m in metrics if m == "asd"),
                Entry(f"{row['worst_target']} {number(row['worst_dice'], 'dice')}".strip(), style["worst"]),
                Entry(number(row["gap"], "dice")),
                Entry(f"{row['missed']} ({row['missed_rate']:.1%})" if row["missed"] else "0"),
                Entry(row["seeds"]),
            )
        )
        costs.append(
            (
                *(Entry(row[c]) for c in ("variant", "initialisation", "needs")),
                *(Entry(f"{row[c] / 1e6:.3f}") for c in ("parameters", "trained")),
                *(Entry(f"{row[c]:.1f}") for c in ("train_seconds", "test_seconds")),
                Entry(f"{row['peak_memory_mb']:.0f}"),
            )
        )
    heads = [f"{TITLES.get(m, m)} ({units[m]})" for m in metrics]
    found = [f"found ({units[m]})" for m in metrics if m == "asd"]
    return (
        Table(
            f"{name}-results",
            "Mean over all sources, ± the standard deviation over seeds where there are several. found: ASD without "
            "missed structures; worst target: by Dice (%); gap: Dice on the source's validation cases minus Dice on "
            f"the targets, in points; missed: structures, and their share of those that were there. {context}",
            ("variant", *heads, *found, "worst target", "gap", "missed", "seeds"),
            tuple(_blocks(results, oracles)),
        ),
        Table(
            f"{name}-costs",
            "Costs of a run: parameters in millions, mean seconds, highest peak memory.",
            ("variant", "initialisation", "needs", "parameters", "trained", "train s", "test s", "peak MB"),
            tuple(_blocks(costs, oracles)),
        ),
    )


def best(values: list[float], metric: str) -> set[int]:
    """Which values show the best number, ties among them; none when there is nothing to compare."""
    shown = {i: round(v * (100 if metric == "dice" else 1), 2) for i, v in enumerate(values) if not math.isnan(v)}
    if len(shown) < 2:
        return set()
    top = max(shown.values()) if metric == "dice" else min(shown.values())
    return {i for i, v in shown.items() if v == top}


def _blocks(rows: list[tuple[Entry, ...]], oracles: set[str]) -> Iterator[tuple[Entry, ...]]:
    yield from (r for r in rows if r[0].text not in oracles)
    if oracles:
        yield (Entry("oracles, not ranked", "block"),)
        yield from (r for r in rows if r[0].text in oracles)


# --- formats ---------------------------------------------------------------------------------------------------------


def markdown(tables: Iterable[Table]) -> str:
    """Pipe tables, each under its caption."""

    def escape(text: str) -> str:
        return re.sub(r"([\\|*`<>])|(?<!\w)_|_(?!\w)", r"\\\g<0>", " ".join(text.split()))

    def cell(entry: Entry) -> str:
        text = escape(entry.text)
        return {"best": f"**{text}**", "block": f"*{text}*"}.get(entry.style, text) if text else ""

    blocks = []
    for table in tables:
        width = len(table.header)
        lines = [escape(table.caption), ""]
        lines.append("| " + " | ".join(map(escape, table.header)) + " |")
        lines.append("|---" + "|---:" * (width - 1) + "|")
        lines += ["| " + " | ".join([*map(cell, row), *[""] * (width - len(row))]) + " |" for row in table.rows]
        lines += ["", escape(table.foot)] if table.foot else []
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


LATEX = {
    **{c: "\\" + c for c in "{}$&#%_"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # a line that starts with [ or * would be read as an argument of the \\ before it
    "*": "{*}",
    "]": "{]}",
    "±": r"$\pm$",
}


def latex(tables: Iterable[Table]) -> str:
    """Tables for a paper, by the booktabs package."""

    def escape(text: str) -> str:
        return "".join(LATEX.get(c, c) for c in " ".join(text.split()))

    def line(row: Sequence[Entry], width: int) -> str:
        if row[0].style == "block":
            return rf"\midrule \multicolumn{{{width}}}{{l}}{{\textit{{{escape(row[0].text)}}}}} \\"
        texts = (rf"\textbf{{{escape(e.text)}}}" if e.style == "best" else escape(e.text) for e in row)
        return " & ".join(texts) + r" \\"

    blocks = ["% needs \\usepackage{booktabs}\n"]
    for table in tables:
        width = len(table.header)
        rows = [line(row, width) for row in table.rows]
        if table.total:
            rows.insert(-1, r"\midrule")
        lines = [
            r"\begin{table}",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{escape(table.caption)}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9]+', '-', table.name).strip('-')}}}",
            rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
            r"\toprule",
            line([Entry(h) for h in table.header], width),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            *([rf"\par\smallskip\footnotesize {escape(table.foot)}"] if table.foot else []),
            r"\end{table}",
        ]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def html(tables: Iterable[Table], title: str) -> str:
    """A page of its own that opens offline; `dgbench report` makes the full one."""
    from html import escape

    blocks = []
    for table in tables:
        width = len(table.header)
        lines = []
        for row in table.rows:
            if row[0].style == "block":
                lines.append(f'<tr><th colspan="{width}" scope="rowgroup">{escape(row[0].text)}</th></tr>')
                continue
            first, *others = row
            entries = (f"<b>{escape(e.text)}</b>" if e.style == "best" else escape(e.text) for e in others)
            lines.append(
                f'<tr><th scope="row">{escape(first.text)}</th><td>' + "</td><td>".join(entries) + "</td></tr>"
            )
        head = "".join(f'<th scope="col">{escape(h)}</th>' for h in table.header)
        caption, foot, body = escape(table.caption), escape(table.foot), "\n".join(lines)
        blocks.append(
            f'<div role="region" tabindex="0" aria-label="{caption}"><table><caption>{caption}</caption>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n<p>{foot}</p>\n"
        )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>:root{color-scheme:light dark}'
        "body{font:15px/1.5 system-ui,sans-serif;margin:1rem}div{overflow-x:auto}"
        "caption{text-align:left;padding:.5rem 0}table{border-collapse:collapse}"
        "th,td{padding:.2rem .6rem;text-align:right;white-space:nowrap}th:first-child{text-align:left}"
        "tbody tr{border-top:1px solid #8886}p{max-width:80ch}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{''.join(blocks)}</body></html>\n"
    )


def csv_text(frame: pd.DataFrame) -> str:
    """Full precision, "" for NaN; a name that a spreadsheet would take for a formula is quoted with an apostrophe."""

    def plain(value: Any) -> Any:
        if isinstance(value, str):
            return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
        if isinstance(value, float):
            return "" if math.isnan(value) else repr(float(value))
        return "" if value is pd.NA else value

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(plain, frame.columns))
    writer.writerows([plain(v) for v in row] for row in frame.itertuples(index=False, name=None))
    return text.getvalue()


def matrix_frame(matrices: Iterable[Matrix], unit: str) -> pd.DataFrame:
    """The matrices under each other: one row per variant, structure and source, and the row "mean"."""
    frames = []
    for m in matrices:
        left = pd.DataFrame({"variant": m.variant, "structure": m.structure or "mean", "source": m.values.index})
        right = pd.DataFrame(
            {
                "mean_std": m.std.iloc[:, -1].to_numpy(),
                "mean_found": m.found.iloc[:, -1].to_numpy(),
                "validation": m.validation.to_numpy(),
                "missed": [*m.missed, m.missed.sum()],
                "tested": [*m.tested, m.tested.sum()],
                "seeds": [*map(str, m.seeds), m.seeds_text],
                "unit": "fraction" if unit == "%" else unit,
            }
        )
        frames.append(pd.concat([left, m.values.reset_index(drop=True), right], axis=1))
    return pd.concat(frames, ignore_index=True)


def print_matrix(
    console: Console, records: Iterable[RunRecord], protocol: Protocol, metrics: Sequence[str] = ("dice", "asd")
) -> None:
    """Source x target tables of each variant on the terminal, then one row per variant when there are several."""
    from rich.text import Text  # a variant's name holds brackets, which rich would read as markup in a plain string

    records = list(records)
    every = cells(records, protocol)
    overview = summary(every, records, protocol)
    for variant in overview["variant"]:
        console.print(Text(f"\n{variant}", "bold"))
        for metric in metrics:
            m = matrix(every, protocol, variant, metric)
            console.print(Text(f"{heading(every, records, protocol, metric, None)}, seeds: {m.seeds_text}"))
            console.print(rich_table(matrix_table(m)))
    if len(overview) > 1:
        results, costs = summary_tables(overview, {m: unit(records, protocol, m) for m in metrics}, "", "")
        console.print(Text("\nall variants", "bold"))
        console.print(rich_table(results, padding=0, leave_out="found"))
        console.print(rich_table(costs, padding=0, leave_out="parameters"))
    notes = "[source]: its own validation cases, in no average; found: the mean without missed structures. "
    console.print(Text(notes + context(every, records, protocol), "dim"))


def rich_table(table: Table, padding: int = 1, leave_out: str = "") -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    shown = RichTable(box=box.SIMPLE_HEAD, padding=(0, padding, 0, 0), show_edge=False)
    kept = [i for i, name in enumerate(table.header) if not leave_out or name.partition(" ")[0] != leave_out]
    rows = [row for row in table.rows if len(row) > 1]
    for i in kept:
        widest = max(len(row[i].text) for row in rows)
        numeric = i > 0 and not any(re.search(r"[^\d.,± %()\[\]+-]", row[i].text) for row in rows)
        shown.add_column(
            Text(table.header[i]),
            justify="right" if numeric else "left",
            overflow="fold",
            min_width=widest if numeric else min(widest, 16 if i == 0 else 10),
        )
    for i, row in enumerate(table.rows):
        if row[0].style == "block" or (table.total and i == len(table.rows) - 1):
            shown.add_section()
        styles = {"best": "bold", "block": "italic", "home": "dim"}
        shown.add_row(*(Text(row[j].text, styles.get(row[j].style, "")) for j in kept if j < len(row)))
    return shown


def show(table: Table, console: Console) -> None:
    """A table on the terminal, its caption above and its foot below; where it is narrow, without column parameters."""
    from rich.text import Text

    console.print(Text(f"\n{table.caption}", "bold"))
    console.print(rich_table(table, padding=0, leave_out="parameters" if console.width < 100 else ""))
    console.print(Text(table.foot, "dim"))


def write(records: Iterable[RunRecord], protocol: Protocol, folder: Path) -> list[Path]:
    """Write all tables of some runs into a folder; returns the paths.

    cells.csv: every number with its counts; summary.{csv,md,tex}: one row per variant; <metric>.{csv,md,tex}: variant x
    source, then the source x target matrix of each variant, for all structures averaged and for each of them.
    """
    records = list(records)
    every = cells(records, protocol)
    overview = summary(every, records, protocol)
    oracles = set(overview.loc[overview["oracle"], "variant"])
    units = {m: unit(records, protocol, m) for m in protocol.metrics}
    label = f"{records[0].task}-{protocol.name}"
    tables = summary_tables(overview, units, label, context(every, records, protocol))
    files = {
        "cells.csv": csv_text(every),
        "summary.csv": csv_text(overview),
        "summary.md": markdown(tables),
        "summary.tex": latex(tables),
    }
    structures = list(every["structure"].cat.categories)
    for metric in protocol.metrics:
        shown: list[Table] = []
        matrices: list[Matrix] = []
        for structure in [None, *(structures if len(structures) > 1 else [])]:
            these = [matrix(every, protocol, v, metric, structure) for v in overview["variant"]]
            title = heading(every, records, protocol, metric, structure)
            words = {
                v: context(every[every["variant"] == v], records, protocol, structure) for v in overview["variant"]
            }
            name = "-".join(filter(None, (label, metric, structure)))
            if len(these) > 1:
                shown.append(sources_table(these, oracles, name, title, context(every, records, protocol, structure)))
            shown += [matrix_table(m, f"{name}-{m.variant}", title, words[m.variant]) for m in these]
            matrices += these
        files |= {
            f"{metric}.csv": csv_text(matrix_frame(matrices, units[metric])),
            f"{metric}.md": markdown(shown),
            f"{metric}.tex": latex(shown),
        }
    make_folder(folder)
    for name, text in files.items():
        write_atomic(folder / name, text)
    return [folder / name for name in files]
