"""Verify: all that is wrong in folders of runs at once; a broken folder is a sentence, never an exception."""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from dgbench.errors import UsageError
from dgbench.files import read_json
from dgbench.running import records
from dgbench.running.plan import run_place, safe
from dgbench.running.records import EXTERNAL, SCHEMA, broken_files
from dgbench.running.test import COLUMNS, GROUPED, Predictions

NEEDED = ("run.json", "cases.csv", "predictions.npz", "history.jsonl")
METRICS = ("dice", "asd", "assd", "hd95")
Record = dict[str, Any]  # of a JSON file
Rows = list[dict[str, str]]  # of cases.csv
SURELY_A_RUN = {"RESULT.json", "FAILED.json", "run.json"}


def verify(results: Path | str, scores_alone: bool = False) -> tuple[int, list[str]]:
    """(number of run folders, a sentence for each thing that is wrong with one or between several of them).

    results: a folder of results, or the folder of one task, protocol, variant or run in it. What was moved aside (a
    name that starts with a dot) is not looked at. scores_alone: only records and scores are there, as they are passed
    on, and no other file is missing. Raises `UsageError` when there is no such folder.
    """
    results = Path(results)
    if not results.is_dir():
        raise UsageError(f"no such folder: {results}", "give the folder that `dgbench run` wrote to")
    root, count = results.resolve(), 0
    problems: list[str] = []
    unreadable: list[OSError] = []
    finished: list[tuple[Path, Record]] = []
    for place, names, files in os.walk(root, onerror=unreadable.append):
        names[:] = sorted(n for n in names if not n.startswith("."))
        if not (SURELY_A_RUN & set(files) or re.search(r"-seed-?\d+$", Path(place).name)):
            continue
        folder, count = Path(place), count + 1
        names.clear()
        of_run = partial(_of_run, folder, root, scores_alone)
        problems += [f"{folder}: {problem}" for problem in _guarded("its folder", of_run)]
        record = read_json(folder / "run.json")
        if (folder / "RESULT.json").is_file() and isinstance(record, dict):
            finished.append((folder, record))
    problems += [f"{error.filename}: {error.strerror}" for error in unreadable]
    return count, problems + _between(finished)


def _of_run(folder: Path, root: Path, scores_alone: bool = False) -> Iterator[str]:
    """What is wrong with one run."""
    if not (folder / "RESULT.json").is_file():
        failed = read_json(folder / "FAILED.json")
        begun = (folder / "run.json").is_file()
        cause = failed.get("cause") if isinstance(failed, dict) else None
        unfinished = "unfinished: interrupted, or still being made" if begun else "holds no run: it never began"
        yield f"failed: {cause}" if cause else unfinished
        return
    result, record = read_json(folder / "RESULT.json"), read_json(folder / "run.json")
    if not isinstance(result, dict) or not isinstance(result.get("files"), dict):
        yield "RESULT.json is damaged"
        return
    if broken := broken_files(folder, result, records.NEEDED if scores_alone else None):
        yield f"{', '.join(broken)} missing or changed since the run ended"
    if not isinstance(record, dict):
        yield "run.json is missing or damaged"
        return
    for name, schema in (("RESULT.json", result.get("schema")), ("run.json", record.get("schema"))):
        if schema not in range(1, SCHEMA + 1):
            yield f"{name} has schema {schema}; this dgbench knows 1 to {SCHEMA}"
    no_weights = record.get("checkpoint") or record.get("origin") == EXTERNAL
    needed = records.NEEDED if scores_alone else (*NEEDED, *([] if no_weights else ["weights.safetensors"]))
    if unlisted := [n for n in needed if n not in result["files"]]:
        yield f"RESULT.json has no checksum of {', '.join(unlisted)}"
    rows: Rows = []
    checks = {
        "run.json": partial(_of_place, folder, root, record),
        "cases.csv": partial(_of_cases, folder, record, result, rows),
        "predictions.npz": partial(_of_predictions, folder, record, rows),
        "weights.safetensors": partial(_of_weights, folder),
    }
    for name, check in checks.items():
        if (folder / name).is_file():
            yield from _guarded(name, check)


def _guarded(name: str, problems: Callable[[], Iterator[str]]) -> list[str]:
    try:
        return list(problems())
    except Exception as error:  # whatever is in the file: it is broken, and the other folders are looked at
        return [f"{name} cannot be read: {type(error).__name__}: {error}"]


def _of_place(folder: Path, root: Path, record: Record) -> Iterator[str]:
    """A run lies where its record says, as far down from `root` as is known."""
    said = [record[n] for n in ("task", "protocol", "variant")] + [
        run_place(safe(record["source"]), record["seed"], record.get("fold", 0))
    ]
    lies = [*root.parts[-1:], *folder.relative_to(root).parts][-4:]
    if said[-len(lies) :] != lies:
        yield f"its record says {'/'.join(map(str, said))}"


def _of_cases(folder: Path, record: Record, result: Record, rows: Rows) -> Iterator[str]:
    """Reads cases.csv into `rows`."""
    with (folder / "cases.csv").open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        further = tuple(record.get("further_metrics", ()))
        if tuple(reader.fieldnames or ()) not in ((*COLUMNS, *further), (*GROUPED, *further)):
            yield f"cases.csv has the columns {', '.join(reader.fieldnames or ())}"
            return
        rows += reader
    tested: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for r in rows:
        tested[r["role"], r["domain"], r["case"]][r["structure"]] += 1
    if len(tested) != result.get("cases"):
        yield f"cases.csv has {len(tested)} cases, RESULT.json says {result.get('cases')}"
    expected: Counter[str] = Counter(record["structures"])
    for key, of_case in tested.items():
        if of_case != expected:
            yield f"{'/'.join(key[1:])} has rows of {', '.join(of_case.elements())}, not one of each structure"
    found = {key[:2] for key in tested}
    own = set() if "fold" in record else {("validation", record["source"])}
    if record.get("origin") == EXTERNAL:  # of which validation cases may be missing
        own &= found
    roles = {*own, *(("target", d) for d in record["targets"])}
    yield from (f"no {role} case of domain '{domain}'" for role, domain in sorted(roles - found))
    yield from (f"{role} cases of domain '{domain}', which the run does not have" for role, domain in found - roles)
    for name in sorted({case for _, _, case in tested} & set(record.get("trained_on", ()))):
        yield f"case {name} was trained on and is tested"
    for row in rows:
        if problem := _of_row(row):
            yield f"{row['domain']}/{row['case']} {row['structure']}: {problem}"


def _of_row(row: dict[str, str]) -> str:
    """What contradicts itself in a row of cases.csv."""
    dice, *distances = (float(row[m]) if row[m] else math.nan for m in METRICS)
    voxels = int(row["n_reference"]), int(row["n_prediction"])
    flag = {(0, 0): "both_empty", (1, 0): "missed", (0, 1): "false_positive"}.get((voxels[0] > 0, voxels[1] > 0), "")
    shown = ", ".join(f"{m} {row[m] or 'blank'}" for m in METRICS)
    if row["flag"] != flag:
        return f"flag '{row['flag']}' with {voxels[0]} voxels in the reference and {voxels[1]} in the prediction"
    if flag == "both_empty":
        return "" if all(map(math.isnan, (dice, *distances))) else f"both masks are empty, yet {shown}"
    if flag:
        return "" if dice == 0 and all(d == math.inf for d in distances) else f"{flag}, yet {shown}"
    if not 0 <= dice <= 2 * min(voxels) / sum(voxels) + 1e-12:
        return f"dice {row['dice']} is not possible with {voxels[0]} and {voxels[1]} voxels"
    return "" if all(0 <= d < math.inf for d in distances) else f"distances must not be negative or infinite: {shown}"


def _of_predictions(folder: Path, record: Record, rows: Rows) -> Iterator[str]:
    """The masks hold as many voxels as cases.csv says."""
    counts = {
        (*key, s): int(n)
        for key, mask in Predictions(folder / "predictions.npz").items()
        for s, n in zip(record["structures"], np.count_nonzero(mask, axis=(0, 2, 3)), strict=True)
    }
    said = {(r["domain"], r["case"], r["structure"]): int(r["n_prediction"]) for r in rows}
    for key in sorted(counts.keys() ^ said.keys()):
        yield f"{'/'.join(key[:2])} {key[2]} is in {'predictions.npz' if key in counts else 'cases.csv'} alone"
    for key in sorted(k for k in counts.keys() & said.keys() if counts[k] != said[k]):
        yield f"{'/'.join(key[:2])} {key[2]}: {counts[key]} voxels in predictions.npz, {said[key]} in cases.csv"


def _of_weights(folder: Path) -> Iterator[str]:
    weights = safetensors.torch.load_file(folder / "weights.safetensors")
    bad = sorted(n for n, w in weights.items() if w.is_floating_point() and np.isnan(w.float().numpy()).any())
    if bad:
        yield f"weights.safetensors: NaN in {', '.join(bad[:3])}{f' and {len(bad) - 3} more' if bad[3:] else ''}"


def _between(finished: list[tuple[Path, Record]]) -> list[str]:
    """What may not differ between runs that stand in one table."""
    seen: dict[tuple[str, ...], dict[str, list[Path]]] = {}
    for folder, r in finished:
        task, protocol, data = str(r.get("task")), str(r.get("protocol")), r.get("data")
        about = {(f"{task}/{protocol}", "metrics version"): r.get("metrics_version")}
        about |= {(task, f"images of domain '{d}'"): f for d, f in data.items()} if isinstance(data, dict) else {}
        for key, value in about.items():
            seen.setdefault(key, {}).setdefault(json.dumps(value), []).append(folder)
    return [
        f"{where} mixes {what}: "
        + "; ".join(f"{v} in {len(f)} run{'s' if f[1:] else ''}, as {f[0]}" for v, f in sorted(values.items()))
        for (where, what), values in sorted(seen.items())
        if len(values) > 1
    ]
