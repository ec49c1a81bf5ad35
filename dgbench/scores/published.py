"""Published: numbers quoted from papers, each with its source, beside measured ones and never ranked with them."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from dgbench.errors import DataError, UsageError
from dgbench.metrics import METRICS
from dgbench.registry import published_files
from dgbench.scores.study import Study

KEY = ("task", "method", "source", "target", "structure", "metric")
COLUMNS = (*KEY, "value", "citation", "table_or_page", "protocol", "note")
ROWS_OF_MEANS = {"mean of sources": "mean", "mean of targets": "mean"}  # as a file says it, and as `Matrix` does


def load(task: str, files: Iterable[Path] | None = None) -> pd.DataFrame:
    """All published numbers of a task, in the order of the files: `COLUMNS` as they are, value as float, and paper.

    paper: the name of the file. files: default those that come with dgbench, results/published/*.csv.
    Raises `DataError` that names the file and line of a number that is none, is out of range, or has no source.
    """
    rows = [row for path in (published_files() if files is None else files) for row in _rows(Path(path))]
    return pd.DataFrame([r for r in rows if r["task"] == task], columns=[*COLUMNS, "paper"]).astype({"value": float})


def of_method(method: str) -> pd.DataFrame:
    """What is published of a method's mean over targets, a row for each task, structure, paper and note.

    Columns: task, structure, paper, note, citation, sources (how many; 1 where a paper gives their mean) and dice.
    """
    every = _every()
    theirs = every[(every["method"] == method) & (every["metric"] == "dice") & every["target"].isin(ROWS_OF_MEANS)]
    by = ["task", "structure", "paper", "note", "citation"]
    groups = theirs.astype({"value": float}).groupby(by, sort=False)
    return groups.agg(sources=("source", "size"), dice=("value", "mean")).reset_index()


@functools.cache
def _every() -> pd.DataFrame:
    return pd.DataFrame([row for path in published_files() for row in _rows(path)], columns=[*COLUMNS, "paper"])


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    seen: dict[tuple[str, ...], int] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise DataError(f"{path}:1: the columns are {reader.fieldnames}", f"they must be {', '.join(COLUMNS)}")
        for row in reader:
            key = tuple(str(row[c]) for c in (*KEY, "note"))
            problem = _problem(row) or (f"the same number as in line {seen[key]}" if key in seen else "")
            if problem:
                raise DataError(f"{path}:{reader.line_num}: {problem}", "see results/published/README.md")
            seen[key] = reader.line_num
            rows.append(row | {"value": float(row["value"]), "paper": path.stem})
    return rows


def _problem(row: dict[str, Any]) -> str:
    """What is wrong with a line, "" if nothing is."""
    if None in row or None in row.values():
        return f"it has another number of columns than {len(COLUMNS)}"
    if empty := [c for c in (*KEY, "protocol") if not row[c].strip()]:
        return f"{', '.join(empty)} is empty"
    if row["metric"] not in METRICS:
        return f"metric '{row['metric']}' is none of {', '.join(METRICS)}"
    try:
        value = float(row["value"])
    except ValueError:
        return f"'{row['value']}' is no number"
    if not (math.isfinite(value) and value >= 0):
        return f"{row['value']} is no score"
    metric = METRICS[row["metric"]]
    if value > metric.limits[1]:
        return f"{metric.title} {row['value']} is no fraction"
    return "" if "https://" in row["citation"] else "the citation has no link to look the number up"


def beside(published: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Published numbers, each with the same average measured here by the variant with default settings.

    Columns: method, paper, source, target, structure, metric, published, measured, difference (measured minus
    published) and reasons: what is known to differ. Where nothing was measured both are NaN and reasons says why.
    published: as from `load`. Raises `UsageError` when the numbers and the runs are of two tasks.
    """
    for task in {study.task} ^ set(published["task"]):
        if len(published):
            raise UsageError(f"published numbers and runs are of two tasks, one of them {task}", "give those of one")
    rows = []
    for row in published.itertuples(index=False):
        value, why = _measured(row, study)
        theirs = "; ".join(filter(None, (row.protocol, row.note)))
        rows.append(
            {
                **{name: getattr(row, name) for name in ("method", "paper", "source", "target", "structure", "metric")},
                "published": row.value,
                "measured": value,
                "difference": value - row.value,
                "reasons": f"theirs: {theirs}. ours: {why or _ours(study, row.method)}",
            }
        )
    names = "method paper source target structure metric published measured difference reasons"
    return pd.DataFrame(rows, columns=names.split())


def _measured(row: Any, study: Study) -> tuple[float, str]:
    """(value, ""), or (NaN, why there is none)."""
    if row.method not in study.runs:
        return math.nan, f"{row.method} was not run with its default settings"
    if row.metric not in study.metrics:
        return math.nan, f"{row.metric} is no metric of protocol {study.protocol.name}"
    if row.structure not in study.structures:
        return math.nan, f"structure '{row.structure}' is not in this task"
    values = study.matrix(row.method, row.metric, row.structure).values
    source, target = (ROWS_OF_MEANS.get(name, name) for name in (row.source, row.target))
    if strange := [name for name in (source, target) if name not in values.columns]:
        return math.nan, f"'{strange[0]}' is no domain of this task"
    value = float(values.loc[source, target]) if source in values.index else math.nan
    return value, "" if not math.isnan(value) else "a run that it needs is not there, or its value is not defined"


def _ours(study: Study, variant: str) -> str:
    """What a reader must know of our number to compare it."""
    row = study.row(variant)
    seeds = len(row.seeds)
    budget = f"{row.steps} steps of batch {row.batch_size}; {seeds} seed{'s' if seeds > 1 else ''}"
    return f"{study.protocol.caption()}; initialisation {row.initialisation}; {budget}"
