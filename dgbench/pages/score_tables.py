"""Tables of the numbers of a study: source x target, variant x source, one row per variant, cases, intensities."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dgbench.files import make_folder, write_atomic
from dgbench.metrics import FURTHER, METRICS, Metric
from dgbench.pages.captions import context, counted, false_counts, heading, measured
from dgbench.pages.table import Cell, OnTerminal, Table, as_text, csv_text, groups
from dgbench.scores import domain_shift
from dgbench.scores.domain_shift import Intensities
from dgbench.scores.study import Matrix, Study, VariantRow

if TYPE_CHECKING:
    from rich.console import Console

HARDEST, COLUMNS = 12, 8  # rows and variants of the table of hardest cases
COSTS = ("initialisation", "needs", "parameters", "trained", "train s", "test s", "peak MB")
FLOPS = {  # by the head of the column: what of a row, and the FLOPs of one unit
    "train TFLOP": ("train_flops", 1e12),
    "step GFLOP": ("train_step_flops", 1e9),
    "image GFLOP": ("predict_image_flops", 1e9),
}
FOOT_OF_FLOPS = (
    "train TFLOP, step GFLOP, image GFLOP: of all steps, of one, and of one predicted image, in matrix products, "
    "convolutions and attention."
)
NOTES = "[source]: its own validation cases, in no average; found: the mean without missed structures. "


# --- source x target -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """One scale of colour for all matrices of a metric: from `low` to `high`, as shown (Dice in percent)."""

    metric: Metric
    low: float
    high: float

    @classmethod
    def of(cls, matrices: Sequence[Matrix]) -> Scale:
        """From the numbers there are to the best that Dice can be; of a distance, from 0 to the largest."""
        metric = METRICS[matrices[0].metric]
        values = metric.scale * np.concatenate([m.values.to_numpy().ravel() for m in matrices])
        values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
        if metric.higher_is_better:
            return cls(metric, math.floor(values.min() / 10) * 10, metric.scale * metric.limits[1])
        return cls(metric, metric.scale * metric.limits[0], max(1, math.ceil(values.max())))

    def level(self, value: float) -> float | None:
        """Of a value in [0, 1]; None for NaN."""
        return None if math.isnan(value) else (value * self.metric.scale - self.low) / (self.high - self.low)


def places(m: Matrix) -> list[list[tuple[float, bool]]]:
    """Rows and columns of `m.values`: (a value in the metric's own unit or NaN, is it the source's own place?).

    A source's own place holds its validation cases, which are in no average.
    """
    rows = [[(float(value), False) for value in row] for row in m.values.to_numpy()]
    for i, source in enumerate(m.seeds.index):
        rows[i][m.values.columns.get_loc(source)] = float(m.validation[source]), True
    return rows


def matrix_table(m: Matrix, name: str = "", caption: str = "", scale: Scale | None = None) -> Table:
    """Source x target; the source's own validation cases in [brackets], and how many structures were missed.

    scale: of colour, for a page.
    """
    metric, rows = METRICS[m.metric], []
    apart = math.isinf(metric.limits[1])  # a missed structure has no distance: the mean without it stands beside
    missed = [_count(n) if of else "" for n, of in zip(m.missed, m.seeds, strict=True)]
    missed += [_count(m.missed.sum(skipna=False))]
    false = _of_absent([*m.false, m.false.sum()], [*m.absent, m.absent.sum()])
    heads = ["falsely found"] if any(false) else []
    for source, row, found, lost, wrong in zip(
        m.values.index, places(m), m.found.iloc[:, -1], missed, false, strict=True
    ):
        cells = [Cell(str(source))]
        for value, home in row:
            text = metric.number(value)
            level = scale.level(value) if scale and not home else None
            cells.append(Cell(f"[{text}]" if home and text else text, "home" if home else "", level))
        found_cell = [Cell(metric.number(found))] if apart else []
        rows.append([*cells, *found_cell, Cell(lost), *([Cell(wrong)] if heads else [])])
    header = ("source", *map(str, m.values.columns), *(["found"] if apart else []), "missed", *heads)
    return Table(name, caption, header, [("", rows)], total=True, hue="blue" if metric.higher_is_better else "orange")


def _count(n: float) -> str:
    """As text; "" for NaN, what nobody told."""
    return "" if math.isnan(n) else str(n)


def _of_absent(false: Iterable[float], absent: Iterable[float]) -> list[str]:
    """How many structures were falsely found, of how many that no reference holds; "" where every reference has all."""
    return [false_counts(n, of) if of else "" for n, of in zip(false, absent, strict=True)]


def matrix_caption(study: Study, m: Matrix) -> str:
    """All that a reader of one matrix must know."""
    note = f"{heading(study, m.metric, m.structure)}, {m.variant}, {counted(m.seeds_text, 'seed')}. "
    note += "Rows are sources, columns are targets; [the source's own validation cases] are in no average. "
    note += "found: the mean without missed structures. " if math.isinf(METRICS[m.metric].limits[1]) else ""
    return note + context(study, m.variant, m.structure)


def sources_table(study: Study, metric: str, structure: str | None = None, name: str = "") -> Table:
    """Variant x source: each number is the mean over the targets of that source."""
    matrices, rule = [study.matrix(v, metric, structure) for v in study.variants], METRICS[metric]
    apart = math.isinf(rule.limits[1])
    ranked = sum(not study.row(v).knows_targets for v in study.variants)  # these come first
    columns = [*study.sources, "mean"]
    winners = [rule.best([m.values.iloc[c, -1] for m in matrices[:ranked]]) for c in range(len(columns))]
    rows = []
    for i, m in enumerate(matrices):
        means = zip(m.values.iloc[:, -1], m.std.iloc[:, -1], winners, strict=True)
        row = [Cell(m.variant), *(Cell(rule.number(v, std), "best" if i in best else "") for v, std, best in means)]
        row += [Cell(rule.number(m.found.iloc[-1, -1]))] if apart else []
        false = [Cell(text) for text in _of_absent([m.false.sum()], [m.absent.sum()]) if text]
        rows.append([*row, Cell(_count(m.missed.sum(skipna=False))), *false, Cell(m.seeds_text)])
    heads = ["falsely found"] if any(m.absent.sum() for m in matrices) else []
    header = ("variant", *columns, *(["found"] if apart else []), "missed", *heads, "seeds")
    note = f"{heading(study, metric, structure)}. Columns are sources; a number is the mean over the targets of that "
    note += "source, ± the standard deviation over seeds. " if any(m.seeds.max() > 1 for m in matrices) else "source. "
    note += "found: the mean without missed structures. " if apart else ""
    return Table(name, note + context(study, structure=structure), header, groups(rows, ranked, _apart(study)))


def _apart(study: Study) -> str:
    """What heads the rows that know targets."""
    return "oracles and bounds, not ranked" if any(r.bound for r in study.records) else "oracles, not ranked"


# --- one row per variant ---------------------------------------------------------------------------------------------


def _known(value: float, form: str) -> str:
    """A number in a format; "" for NaN, what nobody told."""
    return "" if math.isnan(value) else format(value, form)


def facts(row: VariantRow, metric: Metric) -> dict[str, str]:
    """What a table may say of a variant's runs and their costs, by the head of the column."""
    return {
        "seeds": str(len(row.seeds)),
        "±": metric.number(row.seed_std),
        "validation": metric.number(row.validation),
        "gap": metric.number(row.gap),
        "missed": _known(row.missed_rate, ".1%") if row.missed else "0",
        "trained": _known(row.trained / 1e6, ".3f"),
        "parameters": _known(row.parameters / 1e6, ".3f"),
        "train s": _known(row.train_seconds, ".0f"),
        "test s": _known(row.test_seconds, ".1f"),
        "peak MB": _known(row.memory_mb, ".0f"),
        **{head: _digits(getattr(row, name) / unit) for head, (name, unit) in FLOPS.items()},
        "steps x batch": row.budget or ("" if row.published and not row.steps else f"{row.steps} x {row.batch_size}"),
        "initialisation": row.initialisation,
        "device": row.device,
        "made on": "; ".join(row.machines),
        "needs": row.needs,
    }


def _digits(value: float) -> str:
    """Three of them at least, without an exponent; "-" for NaN."""
    if math.isnan(value) or not value:
        return "-" if value else "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def columns_of_flops(rows: Iterable[VariantRow]) -> list[str]:
    """The heads of `FLOPS`, unless no run counted any."""
    return [] if all(math.isnan(row.train_flops) and math.isnan(row.predict_image_flops) for row in rows) else [*FLOPS]


def summary_tables(study: Study, metrics: Sequence[str], name: str = "", caption: str = "") -> tuple[Table, Table]:
    """What each variant reaches in some metrics, and what it costs."""
    rows = {m: [study.row(v, m) for v in study.variants] for m in metrics}
    dice, main = METRICS["dice"], [study.row(v) for v in study.variants]
    ranked = sum(not row.knows_targets for row in main)  # these come first
    best = {m: METRICS[m].best([row.mean for row in of[:ranked]]) for m, of in rows.items()}
    best["worst"] = dice.best([row.worst_value for row in main[:ranked]])
    distance = next((m for m in metrics if math.isinf(METRICS[m].limits[1])), None)
    results, costs, spent = [], [], (*COSTS, *columns_of_flops(main))
    for i, row in enumerate(main):
        said = facts(row, dice) | {"train s": _known(row.train_seconds, ".1f")}
        numbers = {m: METRICS[m].number(of[i].mean, of[i].seed_std) for m, of in rows.items()}
        numbers |= {"found": METRICS[distance].number(rows[distance][i].found)} if distance else {}
        numbers["worst"] = f"{row.worst} {dice.number(row.worst_value)}".strip()
        missed = "" if math.isnan(row.missed) else f"{row.missed} ({row.missed_rate:.1%})" if row.missed else "0"
        cells = [Cell(text, "best" if i in best.get(column, ()) else "") for column, text in numbers.items()]
        false = [Cell(false_counts(row.false_positive, row.absent))] if study.any_absent else []
        results.append([Cell(row.variant), *cells, Cell(said["gap"]), Cell(missed), *false, Cell(row.seeds_text)])
        costs.append([Cell(row.variant), *(Cell(said[column]) for column in spent)])
    found, heads = [f"found ({study.unit(distance)})"] if distance else [], ["falsely found"] * study.any_absent
    named = [measured(study, m) for m in metrics]
    header = ("variant", *named, *found, "worst target", "gap", "missed", *heads, "seeds")
    note = "Costs of a run: parameters in millions, mean seconds, highest peak memory."
    note += f" {FOOT_OF_FLOPS}" if len(spent) > len(COSTS) else ""
    return (
        Table(f"{name}-results", caption, header, groups(results, ranked, _apart(study))),
        Table(f"{name}-costs", note, ("variant", *spent), groups(costs, ranked, _apart(study))),
    )


# --- cases and intensities -------------------------------------------------------------------------------------------


def quartiles(study: Study, metric: str, links: Mapping[str, str]) -> Table:
    """Of the cases of every target; variants in the order of `links`."""
    means, number = study.case_means(metric), METRICS[metric].number
    targets = list(dict.fromkeys(means.index.get_level_values("domain")))
    shares = [0.5, 0.25, 0.75]
    known = means.dropna().groupby(["variant", "domain"]).quantile(shares).unstack().reindex(columns=shares)
    rows = []
    for variant, href in links.items():
        pairs = [known.loc[variant, t] if (variant, t) in known.index else None for t in targets]
        texts = ["" if q is None else "{} ({} to {})".format(*(number(float(v)) for v in q)) for q in pairs]
        rows.append([Cell(variant, href=href), *map(Cell, texts)])
    caption = f"{heading(study, metric)}: median over cases (first to third quartile)"
    return Table("quartiles", caption, ("variant", *targets), [("", rows)])


def hardest(study: Study, variants: Sequence[str], metric: str = "dice") -> Table:
    """The target cases on which all variants do worst on average."""
    wide, rule = study.case_means(metric).unstack("variant"), METRICS[metric]
    number, average = rule.number, wide.mean(axis=1, skipna=False)
    overall = average.sort_values(kind="stable", ascending=rule.higher_is_better).head(HARDEST)
    largest = float(np.nanmax(wide.loc[overall.index], initial=0.0)) or 1.0
    most = rule.limits[1] if math.isfinite(rule.limits[1]) else largest
    rows = []
    for (domain, case), mean in overall.items():
        values = [float(v) for v in (mean, *wide.loc[(domain, case), list(variants[:COLUMNS])])]
        levels = [None if math.isnan(v) else v / most for v in values]
        rows.append([Cell(f"{domain}, {case}"), *(Cell(number(v), "", w) for v, w in zip(values, levels, strict=True))])
    caption = f"{measured(study, metric)} of the {len(rows)} target cases that are hardest on average over all variants"
    caption += f"; the first {COLUMNS} variants are shown" if len(variants) > COLUMNS else ""
    return Table("hardest", caption, ("case", "mean of all", *variants[:COLUMNS]), [("", rows)])


def intensities(domains: Mapping[str, Intensities]) -> Table:
    """Mean, spread and percentiles of every domain."""
    rows = []
    for of in domains.values():
        row = [of.domain, str(of.cases), str(of.slices)]
        for found in (domain_shift.statistics(of.outside), domain_shift.statistics(of.inside)):
            known = not math.isnan(found["mean"])
            row += [f"{found[n]:.3f}" if known else "" for n in ("mean", "std")]
            row += [" / ".join(f"{found[p]:.2f}" for p in ("p5", "p50", "p95")) if known else ""]
        rows.append([*map(Cell, row)])
    words = ("mean", "std", "5 / 50 / 95 %")
    header = ("domain", "cases", "slices", *(f"{where}: {w}" for where in ("outside", "inside") for w in words))
    caption = "Intensities outside and inside the structures: mean, spread, percentiles"
    return Table("intensities", caption, header, [("", rows)])


def distances(domains: Mapping[str, Intensities]) -> Table:
    """Intensity distance of every two domains."""
    values = np.array([[domain_shift.distance(a, b) for b in domains.values()] for a in domains.values()])
    most = np.nanmax(values, initial=1e-9)
    rows = [
        [Cell(name), *(Cell("" if math.isnan(v) else f"{v:.3f}", "", None if math.isnan(v) else v / most) for v in row)]
        for name, row in zip(domains, values, strict=True)
    ]
    return Table("distances", "Intensity distance between domains", ("domain", *domains), [("", rows)], hue="orange")


def machines(study: Study) -> Table:
    """Versions and machines, and how many of the runs had which."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for r in study.records:
        if r.published or r.external:
            continue
        code, told = r.record.get("code", {}), r.record.get("environment", {})
        commit = code.get("commit", "")[:12] + (" with changes" if code.get("dirty") else "")
        ours = {"dgbench": code.get("dgbench", ""), "commit": commit, "metrics version": study.metrics_version}
        for name, value in {**ours, **told, **told.get("packages", {})}.items():
            if value and name != "packages":
                counts[name][str(value)] += 1
    rows = [[Cell(name), Cell(v), Cell(str(n))] for name, of in counts.items() for v, n in sorted(of.items())]
    caption = "Versions and machines, and the number of runs made there"
    return Table("machines", caption, ("what", "value", "runs"), [("", rows)])


# --- all tables of a study -------------------------------------------------------------------------------------------


def print_study(console: Console, study: Study, metrics: Sequence[str] = ("dice", "asd")) -> None:
    """Source x target tables of each variant on the terminal, then one row per variant when there are several."""
    from rich.text import Text  # a variant's name holds brackets, which rich would read as markup in a plain string

    metrics = (*metrics, *(m for m in study.metrics if m in FURTHER))
    for variant in study.variants:
        console.print(Text(f"\n{variant}", "bold"))
        for metric in metrics:
            m = study.matrix(variant, metric)
            console.print(Text(f"{heading(study, metric)}, {counted(m.seeds_text, 'seed')}"))
            console.print(OnTerminal(matrix_table(m)))
    if len(study.variants) > 1:
        results, costs = summary_tables(study, metrics)
        console.print(Text("\nall variants", "bold"))
        console.print(OnTerminal(results, padding=0, leave_out="found"))
        console.print(OnTerminal(costs, padding=0, leave_out="parameters"))
    console.print(Text(NOTES + context(study), "dim"))


def matrix_frame(matrices: Iterable[Matrix], unit: str) -> pd.DataFrame:
    """The matrices under each other: one row per variant, structure and source, and the row "mean"."""
    frames = []
    for m in matrices:
        left = pd.DataFrame({"variant": m.variant, "structure": m.structure or "mean", "source": m.values.index})
        right = {
            "mean_std": m.std.iloc[:, -1].to_numpy(),
            "mean_found": m.found.iloc[:, -1].to_numpy(),
            "validation": m.validation.to_numpy(),
            "missed": [*m.missed, m.missed.sum(skipna=False)],
            "tested": [*m.tested, m.tested.sum()],
            "seeds": [*map(str, m.seeds), m.seeds_text],
            "unit": "fraction" if unit == "%" else unit,
        }
        frames.append(pd.concat([left, m.values.reset_index(drop=True), pd.DataFrame(right)], axis=1))
    return pd.concat(frames, ignore_index=True)


def write(study: Study, folder: Path) -> list[Path]:
    """Write all tables of a study into a folder; returns the paths.

    cells.csv: every number with its counts; summary.{csv,md,tex}: one row per variant; <metric>.{csv,md,tex}: variant x
    source, then the source x target matrix of each variant, for all structures averaged and for each of them.
    """
    metrics, label = study.metrics, f"{study.task}-{study.protocol.name}"
    caption = (
        "Mean over all sources, ± the standard deviation over seeds where there are several. found: ASD without missed "
        "structures; worst target: by Dice (%); gap: Dice on the source's validation cases minus Dice on the targets, "
        "in points; missed: structures, and their share of those that were there. "
    )
    overview = summary_tables(study, metrics, label, caption + context(study))
    files = {"cells.csv": csv_text(study.cells), "summary.csv": csv_text(study.summary())}
    files |= {f"summary.{kind}": as_text(overview, kind) for kind in ("md", "tex")}
    for metric in metrics:
        shown, matrices = list[Table](), list[Matrix]()
        for structure in [None, *(study.structures if len(study.structures) > 1 else [])]:
            name = "-".join(filter(None, (label, metric, structure)))
            these = [study.matrix(v, metric, structure) for v in study.variants]
            if len(these) > 1:
                shown.append(sources_table(study, metric, structure, name))
            shown += [matrix_table(m, f"{name}-{m.variant}", matrix_caption(study, m)) for m in these]
            matrices += these
        files[f"{metric}.csv"] = csv_text(matrix_frame(matrices, study.unit(metric)))
        files |= {f"{metric}.{kind}": as_text(shown, kind) for kind in ("md", "tex")}
    make_folder(folder)
    for file, text in files.items():
        write_atomic(folder / file, text)
    return [folder / file for file in files]
