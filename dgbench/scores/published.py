"""Published: numbers quoted from papers, each with its source, beside measured ones and never ranked with them."""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dgbench.errors import DataError, UsageError
from dgbench.pages import tables
from dgbench.registry import published_files

if TYPE_CHECKING:
    from dgbench.protocol import Protocol
    from dgbench.running.records import RunRecord

KEY = ("task", "method", "source", "target", "structure", "metric")
COLUMNS = (*KEY, "value", "citation", "table_or_page", "protocol", "note")
MEANS = {"mean of sources": "mean", "mean of targets": "mean"}  # as a file says it, and as `tables.Matrix` does


def load(task: str, files: Iterable[Path] | None = None) -> pd.DataFrame:
    """All published numbers of a task, in the order of the files: `COLUMNS` as they are, value as float, and paper.

    paper: the name of the file. files: default those that come with dgbench, results/published/*.csv.
    Raises `DataError` that names the file and line of a number that is none, is out of range, or has no source.
    """
    rows = [row for path in (published_files() if files is None else files) for row in _rows(Path(path))]
    return pd.DataFrame([r for r in rows if r["task"] == task], columns=[*COLUMNS, "paper"]).astype({"value": float})


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
    if row["metric"] not in tables.TITLES:
        return f"metric '{row['metric']}' is none of {', '.join(tables.TITLES)}"
    try:
        value = float(row["value"])
    except ValueError:
        return f"'{row['value']}' is no number"
    if not (math.isfinite(value) and value >= 0):
        return f"{row['value']} is no score"
    if row["metric"] == "dice" and value > 1:
        return f"Dice {row['value']} is no fraction"
    return "" if "https://" in row["citation"] else "the citation has no link to look the number up"


def beside(
    published: pd.DataFrame, cells: pd.DataFrame, records: Iterable[RunRecord], protocol: Protocol
) -> pd.DataFrame:
    """One row for each published number, in their order, with what was measured here for the same cell.

    Columns: method, paper, source, target, structure, metric, published, measured, difference (measured minus
    published), reasons (their protocol and note; and ours, or why there is nothing to put beside it).
    measured: of the variant with the method's default settings, averaged as the protocol does; NaN where it was not
    run. Both are Dice in [0, 1], or distances in the unit of their own protocol.

    Parameters
    ----------
    published: as from `load`. cells: as from `tables.cells`, of the same records.

    Raises
    ------
    UsageError: the numbers and the runs are of two tasks.
    """
    runs: dict[str, list[RunRecord]] = {}
    for record in records:
        runs.setdefault(record.variant, []).append(record)
    for task in {r.task for of_variant in runs.values() for r in of_variant} ^ set(published["task"]):
        if len(published):
            raise UsageError(f"published numbers and runs are of two tasks, one of them {task}", "give those of one")

    @functools.cache
    def matrix(variant: str, metric: str, structure: str) -> pd.DataFrame:
        return tables.matrix(cells, protocol, variant, metric, structure).values

    def measured(row: Any) -> tuple[float, str]:
        """(value, ""), or (NaN, why there is none)."""
        if row.method not in runs:
            return math.nan, f"{row.method} was not run with its default settings"
        if row.metric not in protocol.metrics:
            return math.nan, f"{row.metric} is no metric of protocol {protocol.name}"
        if row.structure not in cells["structure"].cat.categories:
            return math.nan, f"structure '{row.structure}' is not in this task"
        values = matrix(row.method, row.metric, row.structure)
        source, target = MEANS.get(row.source, row.source), MEANS.get(row.target, row.target)
        if strange := [name for name in (source, target) if name not in values.columns]:
            return math.nan, f"'{strange[0]}' is no domain of this task"
        value = float(values.loc[source, target]) if source in values.index else math.nan
        return value, "" if not math.isnan(value) else "a run that it needs is not there, or its value is not defined"

    rows = []
    for row in published.itertuples(index=False):
        value, why = measured(row)
        theirs = "; ".join(filter(None, (row.protocol, row.note)))
        rows.append(
            {
                **{name: getattr(row, name) for name in ("method", "paper", "source", "target", "structure", "metric")},
                "published": row.value,
                "measured": value,
                "difference": value - row.value,
                "reasons": f"theirs: {theirs}. ours: {why or _ours(runs[row.method], protocol)}",
            }
        )
    names = "method paper source target structure metric published measured difference reasons"
    return pd.DataFrame(rows, columns=names.split())


def _ours(records: list[RunRecord], protocol: Protocol) -> str:
    """What a reader must know of our number to compare it."""
    first, hparams = records[0].record, records[0].record.get("hparams", {})
    seeds = len({r.seed for r in records})
    steps, size = hparams.get("steps") or first.get("steps", 0), hparams.get("batch_size", 0)
    budget = f"{steps} steps of batch {size}; {seeds} seed{'s' if seeds > 1 else ''}"
    return f"{protocol.caption()}; initialisation {tables.initialisation(records)}; {budget}"
