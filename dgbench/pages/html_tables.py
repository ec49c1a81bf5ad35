"""Sheets: tables as a page shows them, with what a plain table has no room for: colours, links, groups of rows."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from dgbench.pages import tables
from dgbench.pages.tables import Matrix, Table, number
from dgbench.scores import domain_shift
from dgbench.scores.domain_shift import Intensities

if TYPE_CHECKING:
    from dgbench.running.records import RunRecord

HARDEST, COLUMNS = 12, 8  # rows and variants of the table of hardest cases


class Cell(NamedTuple):
    """kind: as in `tables.Entry`. level: how strong its colour is, in [0, 1]. href: where it leads on the page."""

    text: str
    kind: str = ""
    level: float | None = None
    href: str = ""


@dataclass(frozen=True)
class Sheet:
    """The first column names the rows; they stand in groups, each under a title or "". total: the last row is one."""

    caption: str
    header: Sequence[str]
    groups: Sequence[tuple[str, Sequence[Sequence[Cell]]]]
    total: bool = False
    hue: str = "blue"
    foot: str = ""

    @property
    def numeric(self) -> list[bool]:
        """By column: does it hold numbers only?"""
        rows = [row for _, rows in self.groups for row in rows]
        words = re.compile(r"\b(?!(to|x)\b)[^\W\d]")
        return [c > 0 and not any(words.search(row[c].text) for row in rows) for c in range(len(self.header))]


def sheet(table: Table, links: Mapping[str, str], foot: str = "") -> Sheet:
    """A table of text; the row names that `links` holds lead somewhere. foot: what a reader must know besides."""
    groups: list[tuple[str, list[Sequence[Cell]]]] = [("", [])]
    for row in table.rows:
        if row[0].style == "block":
            groups.append((row[0].text, []))
        else:
            name = Cell(row[0].text, row[0].style, None, links.get(row[0].text, ""))
            groups[-1][1].append([name, *(Cell(e.text, e.style) for e in row[1:])])
    return Sheet(table.caption, table.header, [g for g in groups if g[1]], table.total, foot=foot)


def heat(m: Matrix, heading: str, of_all: Sequence[Matrix]) -> Sheet:
    """Source x target, coloured on one scale for all variants; a source's own validation cases in [brackets]."""
    values = np.concatenate([o.values.to_numpy().ravel() for o in of_all])
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
    low, high = (math.floor(values.min() * 10) / 10, 1.0) if m.metric == "dice" else (0.0, float(values.max()))
    plain, columns, rows = tables.matrix_table(m), len(m.values.columns), []
    for row, numbers in zip(plain.rows, m.values.to_numpy(), strict=True):
        levels = [(v - low) / ((high - low) or 1) if math.isfinite(v) else None for v in numbers]
        coloured = [Cell(e.text, e.style, level) for e, level in zip(row[1 : columns + 1], levels, strict=True)]
        rows.append([Cell(row[0].text), *coloured, *(Cell(e.text) for e in row[columns + 1 :])])
    return Sheet(heading, plain.header, [("", rows)], True, "blue" if m.metric == "dice" else "orange")


def quartiles(means: pd.Series, metric: str, heading: str, links: Mapping[str, str]) -> Sheet:
    """Of the cases of every target, as `plots.case_means` has them; variants in the order of `links`."""
    targets = list(dict.fromkeys(means.index.get_level_values("domain")))
    known = means.dropna().groupby(["variant", "domain"]).quantile([0.5, 0.25, 0.75]).unstack()[[0.5, 0.25, 0.75]]
    rows = []
    for variant, href in links.items():
        pairs = [known.loc[variant, t] if (variant, t) in known.index else None for t in targets]
        texts = ["" if q is None else "{} ({} to {})".format(*(number(float(v), metric) for v in q)) for q in pairs]
        rows.append([Cell(variant, "", None, href), *map(Cell, texts)])
    return Sheet(f"{heading}: median over cases (first to third quartile)", ("variant", *targets), [("", rows)])


def hardest(means: pd.Series, variants: Sequence[str]) -> Sheet:
    """The target cases with the lowest Dice on average over all variants, as `plots.case_means` has it."""
    wide = means.unstack("variant")
    overall = wide.mean(axis=1, skipna=False).sort_values(kind="stable").head(HARDEST)
    rows = []
    for (domain, case), mean in overall.items():
        values = [mean, *wide.loc[(domain, case), list(variants[:COLUMNS])]]
        cells = [Cell(number(float(v), "dice"), "", None if math.isnan(v) else float(v)) for v in values]
        rows.append([Cell(f"{domain}, {case}"), *cells])
    caption = f"Dice (%) of the {len(rows)} target cases that are hardest on average over all variants"
    caption += f"; the first {COLUMNS} variants are shown" if len(variants) > COLUMNS else ""
    return Sheet(caption, ("case", "mean of all", *variants[:COLUMNS]), [("", rows)])


def intensities(domains: Mapping[str, Intensities]) -> Sheet:
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
    return Sheet("Intensities outside and inside the structures: mean, spread, percentiles", header, [("", rows)])


def distances(domains: Mapping[str, Intensities]) -> Sheet:
    """Intensity distance of every two domains."""
    values = np.array([[domain_shift.distance(a, b) for b in domains.values()] for a in domains.values()])
    most = np.nanmax(values, initial=1e-9)
    rows = [
        [Cell(name), *(Cell("" if math.isnan(v) else f"{v:.3f}", "", None if math.isnan(v) else v / most) for v in row)]
        for name, row in zip(domains, values, strict=True)
    ]
    return Sheet("Intensity distance between domains", ("domain", *domains), [("", rows)], hue="orange")


def published(frame: pd.DataFrame, citations: Sequence[str]) -> Sheet:
    """Numbers quoted from papers beside ours, as `published.beside` has them; citations: of each row."""
    groups: dict[str, list[Sequence[Cell]]] = {}
    for row, citation in zip(frame.to_dict("records"), citations, strict=True):
        link = re.search(r"https://[^\s\"<>]+", citation)
        metric, what = row["metric"], tables.TITLES.get(row["metric"], row["metric"])
        both = [float(row[column]) for column in ("published", "measured", "difference")]
        groups.setdefault(f"{row['paper']}: {row['reasons']}", []).append(
            [
                Cell(row["method"], "", None, link[0] if link else ""),
                *(Cell(str(text)) for text in (row["source"], row["target"], row["structure"], what)),
                *(Cell(number(value, metric), kind) for value, kind in zip(both, ("home", "", ""), strict=True)),
            ]
        )
    header = ("method", "source", "target", "structure", "metric", "published", "measured here", "difference")
    caption = "Published numbers, Dice in %, and the same average measured here with the method's default settings"
    return Sheet(caption, header, list(groups.items()))


def environment(records: Sequence[RunRecord]) -> Sheet:
    """Versions and machines, and how many of the runs had which."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for r in records:
        code, told = r.record.get("code", {}), r.record.get("environment", {})
        commit = code.get("commit", "")[:12] + (" with changes" if code.get("dirty") else "")
        ours = {"dgbench": code.get("dgbench", ""), "commit": commit, "metrics version": r.record["metrics_version"]}
        for name, value in {**ours, **told, **told.get("packages", {})}.items():
            if value and name != "packages":
                counts[name][str(value)] += 1
    rows = [[Cell(name), Cell(v), Cell(str(n))] for name, of in counts.items() for v, n in sorted(of.items())]
    return Sheet("Versions and machines, and the number of runs made there", ("what", "value", "runs"), [("", rows)])
