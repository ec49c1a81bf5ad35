"""What finished runs left: reading their folders again, and which of them may stand in one table."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import glob
import io
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dgbench.errors import DataError
from dgbench.files import is_name, read_json, sha256
from dgbench.metrics import FURTHER, MEASURED, METRICS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SCHEMA = 1  # of run.json, cases.csv and RESULT.json
EXTERNAL = "external"  # origin, in run.json, of a run whose masks another system wrote, see `running.foreign`
TO_BE_RANKED = ("budget", "pretraining")  # what is `stated` in its run.json
NEEDED = ("run.json", "cases.csv")  # all that tables need, and all that need be passed on

# Costs of a run made elsewhere.
UNKNOWN = dict.fromkeys(("parameters", "trained", "train_seconds", "test_seconds", "peak_memory_mb"), math.nan)
NAMES = ("domains", "targets", "structures")  # of run.json: one at least of each
# What a table takes from run.json; boards are looked at in the same way.
OF_RECORD: dict[str, Any] = {
    **dict.fromkeys(("task", "protocol", "method", "variant", "source", "unit", "started"), str),
    **dict.fromkeys(("seed", "metrics_version"), int),
    **{name: [str] for name in NAMES},
    **dict.fromkeys(("data", "needs"), dict),
    "costs": dict.fromkeys(UNKNOWN, (int, float)),
    "initialisation": (str, dict, [str]),
}
MAYBE = {  # not in all of its versions, or only of some tasks
    **{"hparams": dict, "environment": dict, "sources": [str], "collections": [str]},
    **{"fold": int, "folds": int, "trained_on": [str], "targets_of": dict},
    **{"paired": bool, "excluded": dict, "layout": str, "further_metrics": [str], "scored_in": str},
}
TEXT = ("role", "domain", "case", "structure", "flag")  # columns of cases.csv
NUMBERS = {**dict.fromkeys((*MEASURED, "diagonal"), float), "n_reference": int, "n_prediction": int}
OF_CASES = {**dict.fromkeys(TEXT, str), **NUMBERS}
GROUP = "group"  # a column that only some have; without it each case is a group of its own
ROLES, FLAGS = ("validation", "target"), ("", "missed", "false_positive", "both_empty")


def misfits(told: Mapping[str, Any], kinds: Mapping[str, Any]) -> list[str]:
    """Keys that are missing, or whose values are of another kind: a type, several, a list of one, keys of their own."""
    found = []
    for key, kind in kinds.items():
        value = told.get(key)
        if isinstance(kind, list):
            fits = isinstance(value, list) and all(isinstance(v, kind[0]) for v in value)
        elif isinstance(kind, dict):
            fits = isinstance(value, dict) and not misfits(value, kind)
        elif isinstance(kind, tuple) and isinstance(kind[-1], list):
            fits = any(not misfits({key: value}, {key: one}) for one in kind)
        else:
            fits = isinstance(value, kind)
        found += [] if fits else [key]
    return found


def broken_files(folder: Path, result: dict[str, Any], looked_at: Sequence[str] | None = None) -> list[str]:
    """Names of a finished run's files that are missing, or changed since (of those `looked_at`: all by default).

    A name that leads out of the folder is one of them: it is not read.
    """
    files = result.get("files")
    if not isinstance(files, dict):
        return ["RESULT.json"]
    names = [n for n in files if looked_at is None or n in looked_at] + [n for n in NEEDED if n not in files]

    def is_whole(name: str) -> bool:
        return is_name(name) and os.path.isfile(path := f"{folder}/{name}") and sha256(path) == files.get(name)

    return [name for name in names if not is_whole(name)]


class Rows(NamedTuple):
    """A run's rows of a frame that holds those of several: cutting thousands of frames out takes long."""

    frame: pd.DataFrame
    first: int
    last: int


@dataclass(frozen=True)
class RunRecord:
    """A finished run, read from its folder; what it holds is read when it is asked for.

    record: run.json. task to seed: who the run is, as in the record.
    """

    path: Path
    record: dict[str, Any]

    task: str = dataclasses.field(init=False)
    protocol: str = dataclasses.field(init=False)
    method: str = dataclasses.field(init=False)
    variant: str = dataclasses.field(init=False)
    source: str = dataclasses.field(init=False)
    seed: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        for name in ("task", "protocol", "method", "variant", "source", "seed"):
            object.__setattr__(self, name, self.record[name])

    @property
    def needs(self) -> frozenset[str]:
        """Names of `registry.NEEDS`; records of earlier versions call one of them otherwise."""
        earlier = {"uses_target_batch": "adapts_in_testing"}
        return frozenset(earlier.get(name, name) for name, needed in self.record["needs"].items() if needed)

    @property
    def published(self) -> dict[str, Any] | None:
        """Of a run that was not made here: its board, who published it, in words, and which metrics; else None."""
        return self.record.get("published")

    @property
    def bound(self) -> str:
        """The protocol by which it was trained inside its targets, of all their folds together; "" of all others."""
        return str(self.record.get("bound", ""))

    @property
    def external(self) -> bool:
        """Were its masks made by another system, and only measured here?"""
        return self.record.get("origin") == EXTERNAL

    def renamed(self, variant: str) -> RunRecord:
        """The same run under another name, its images' fingerprints forgotten: two folders can then be compared."""
        other = dataclasses.replace(self, record={**self.record, "variant": variant, "data": {}})
        vars(other)["cases"] = self.cases
        return other

    @functools.cached_property
    def cases(self) -> pd.DataFrame:
        """cases.csv, a row for each case and structure: role ("validation" or "target"), domain, case, structure; group
        (the patient or video of the case) where a case is not a group of its own;
        dice in [0, 1]; asd, assd, hd95 in the unit of distances; flag ("" or why these are `inf`, or NaN);
        n_reference and n_prediction, voxels; diagonal of the image, in that unit.
        """
        rows = vars(self).get("_rows") or read_cases([self.path])[0]
        return rows.frame.iloc[rows.first : rows.last]

    @property
    def rows(self) -> Rows:
        """`cases`, as rows of the frame that they were read with."""
        known = vars(self).get("_rows") if "cases" not in vars(self) else None
        return known or Rows(self.cases, 0, len(self.cases))

    @functools.cached_property
    def history(self) -> pd.DataFrame:
        """history.jsonl, a row for every few steps: step (from 1), the mean since the last row of all that `update`
        gives, loss among it, and seconds so far. No row where only the scores of the run were passed on.
        """
        import pandas as pd

        path = self.path / "history.jsonl"
        return pd.read_json(path, lines=True) if path.is_file() else pd.DataFrame()

    @functools.cached_property
    def _predictions(self) -> Mapping[tuple[str, str], np.ndarray]:
        from dgbench.running.test import Predictions

        return Predictions(self.path / "predictions.npz")

    @property
    def has_predictions(self) -> bool:
        """False where only the scores of the run were passed on: it stands in tables, without pictures."""
        return "_predictions" in vars(self) or (self.path / "predictions.npz").is_file()

    def predictions(self, domain: str, case: str) -> np.ndarray:
        """The predicted mask of a case, bool (D, K, H, W), as the protocol saw it."""
        return self._predictions[domain, case]


def lacking(record: Mapping[str, Any]) -> Iterator[str]:
    """What keeps a row that was not trained here from being ranked, as the record of one of its runs says."""
    for what in TO_BE_RANKED:
        if not str(record.get("stated", {}).get(what, "")).strip():
            yield f"{what} not stated"


def read_run(folder: Path) -> RunRecord:
    """Read a finished run. Raises `DataError` when it is not finished, or its scores are missing or changed since.

    The weights may be large: that they are there and unchanged is checked by `dgbench verify` and before they are used.
    """
    result = read_json(folder / "RESULT.json")
    if result is None:
        raise DataError(f"{folder} holds no finished run", "finish it with `dgbench run`")
    if broken := broken_files(folder, result, NEEDED):
        raise DataError(f"{folder}: {', '.join(broken)} missing or changed since the run ended", "make the run again")
    if not isinstance(result.get("schema"), int):
        raise DataError(f"{folder}: RESULT.json has no schema", "make the run again")
    if result["schema"] > SCHEMA:
        raise DataError(f"{folder} was written by a newer dgbench (schema {result['schema']})", "update dgbench")
    record = read_json(folder / "run.json")
    if record is None:
        raise DataError(f"{folder}: run.json is damaged", "make the run again")
    if record.get("origin") == EXTERNAL:
        record.setdefault("costs", UNKNOWN)
    wrong = misfits(record, OF_RECORD | {key: kind for key, kind in MAYBE.items() if key in record})
    if wrong := wrong or [key for key in NAMES if not record[key]]:
        raise DataError(f"{folder}: run.json lacks {', '.join(wrong)}, or says what cannot be", "make the run again")
    if not all(map(is_name, (record["task"], record["protocol"], record["variant"]))):  # files are named by them
        raise DataError(f"{folder}: task, protocol or variant in its run.json cannot be a folder", "make the run again")
    return RunRecord(folder, record)


def read_all_cases(runs: Sequence[RunRecord]) -> None:
    """Read what each run's `cases` holds, all together. Raises `DataError` for one that cannot be what it measured."""
    for run, rows in zip(runs, read_cases([r.path for r in runs]), strict=True):
        vars(run)["_rows"] = rows


def read_cases(folders: Sequence[Path]) -> list[Rows]:
    """cases.csv of several runs, parsed as one text: much faster for hundreds of small files.

    Raises `DataError` for one that cannot be what a run measured.
    """
    if not folders:
        return []
    texts = [(folder / "cases.csv").read_bytes().decode(errors="replace") for folder in folders]
    heads, _, bodies = zip(*(text.partition("\n") for text in texts), strict=True)
    ends = list(itertools.accumulate(body.count("\n") for body in bodies))
    with contextlib.suppress(ValueError):
        frame = _parsed(heads[0] + "\n" + "".join(bodies))
        if len(set(heads)) == 1 and len(frame) == ends[-1]:
            return [Rows(frame, first, last) for first, last in itertools.pairwise([0, *ends])]
    found = []  # one by one: another column order, a line break in a case's name, or what is no number
    for folder, text in zip(folders, texts, strict=True):
        try:
            found.append(Rows(frame := _parsed(text), 0, len(frame)))
        except ValueError as error:
            raise DataError(f"{folder / 'cases.csv'}: {error}", "make the run again, or move its folder away") from None
    return found


def _parsed(text: str) -> pd.DataFrame:
    """Raises `ValueError` for what cannot be a table of cases."""
    import numpy as np
    import pandas as pd

    blank = {metric: [""] for metric in METRICS}  # not applicable; a case may be named "NA"
    kinds = OF_CASES | {GROUP: str} | dict.fromkeys(FURTHER, float)
    with np.errstate(invalid="ignore"):  # of a count that is infinite, which is an error below
        frame = pd.read_csv(io.StringIO(text), dtype=kinds, keep_default_na=False, na_values=blank, index_col=False)
    if missing := [name for name in OF_CASES if name not in frame]:
        raise ValueError(f"it has no column {', '.join(missing)}")
    for name, known in (("role", ROLES), ("flag", FLAGS)):
        if strange := sorted({*frame[name].unique()} - {*known}):
            raise ValueError(f"{name} '{strange[0]}' is none of {', '.join(known)}")
    for name, metric in METRICS.items():
        low, high = metric.limits
        if name in frame and ((frame[name] < low) | (frame[name] > high)).any():
            raise ValueError(f"{name} is outside [{low:g}, {high:g}]")
    return frame


def find_runs(results: Path, task: str = "*", protocol: str = "*") -> list[Path]:
    """Folders of finished runs, by default of all tasks, sorted; one that was moved aside lies in a hidden folder."""
    task, protocol = (name if name == "*" else glob.escape(name) for name in (task, protocol))
    folders = (p.parent for p in Path(results).glob(f"{task}/{protocol}/*/*/RESULT.json"))
    return sorted(f for f in folders if not f.name.startswith("."))


def read_runs(results: Path, task: str, protocol: str) -> tuple[list[RunRecord], list[str]]:
    """All finished runs of a task that can be read, and a sentence on each that cannot: a broken one stops no table,
    and neither does a copied folder. Two that differ are both given: which of them counts nobody can tell here.
    """
    records, left_out = [], []
    for folder in find_runs(results, task, protocol):
        try:
            records.append(read_run(folder))
        except DataError as error:
            left_out.append(f"Left out: {error.cause}.")
        except Exception as error:  # whatever lies there: the others make a table without it
            left_out.append(f"Left out: {folder} cannot be read: {type(error).__name__}: {error}.")
    known: dict[tuple[object, ...], RunRecord] = {}
    for run in sorted(records, key=lambda r: len(r.path.name)):  # the name of a copy has more to it
        who = (run.variant, run.source, run.seed, run.record.get("fold"))
        first = known.setdefault(who, run)
        if first is not run and _files(first) == _files(run):
            records.remove(run)
            left_out.append(f"Left out: {run.path}, a copy of {first.path}.")
    return records, left_out


def _files(run: RunRecord) -> dict[str, str]:
    """The checksums of what tables need, as they were when it ended."""
    files = (read_json(run.path / "RESULT.json") or {}).get("files", {})
    return {name: files.get(name) for name in NEEDED}
