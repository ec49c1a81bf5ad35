"""Importing: a table of scores that others measured, checked as a whole, becomes a board (see `boards`)."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dgbench.errors import CONTROLS, DataError, DgbenchError, UsageError
from dgbench.files import gunzip, make_folder, write_atomic, write_json
from dgbench.metrics import METRICS
from dgbench.protocol import PROTOCOLS
from dgbench.running.records import GROUP, SCHEMA
from dgbench.scores.boards import COLUMNS, OPTIONAL, RUN, Board
from dgbench.scores.study import Study
from dgbench.task import Task

SHOWN = 3  # lines or names of one kind of problem that are told
KEY = [*RUN, "target", "case", "structure"]
SEE = "the columns are described in docs/published-scores.md"


def read_table(path: Path) -> pd.DataFrame:
    """All cells as text; the index is the number of the line. Raises `UsageError` for a file that is no such table."""
    try:
        content = path.read_bytes()
        text = io.StringIO((gunzip(content) if path.suffix == ".gz" else content).decode("utf-8-sig"))
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # of cells that would be lost
            frame = pd.read_csv(text, dtype=str, keep_default_na=False, index_col=False, skip_blank_lines=False)
    except pd.errors.ParserWarning:
        raise UsageError(f"{path} has more cells in some lines than columns in its first one", SEE) from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(f"{path} cannot be read: {getattr(error, 'strerror', '') or error}", SEE) from None
    frame = frame.fillna("").apply(lambda column: column.str.strip())
    frame.index += 2
    return frame[(frame != "").any(axis=1)]


def problems(frame: pd.DataFrame, task: Task) -> list[str]:
    """All that is wrong with a table, as from `read_table`, a sentence each."""
    needed = [c for c in COLUMNS if c != "structure" or len(task.structures) > 1]
    found = [f"no column {c}" for c in needed if c not in frame]
    known = (*COLUMNS, GROUP, *OPTIONAL)
    found += [f"column '{c}' is none of {', '.join(known)}" for c in frame.columns if c not in known]
    if found or frame.empty:
        return found or ["it holds no row"]
    frame = _with_structure(frame, task)
    return [*_cells(frame), *_names(frame, task), *_runs(frame, task.paired)]


def _with_structure(frame: pd.DataFrame, task: Task) -> pd.DataFrame:
    return frame if "structure" in frame else frame.assign(structure=task.structures[0])


def _cells(frame: pd.DataFrame) -> Iterator[str]:
    """Cells that are blank, no number, out of range, or not of their kind."""
    for column in (c for c in (*KEY, GROUP) if c in frame and (frame[c] == "").any()):
        yield f"{column} is blank in {_lines(frame[frame[column] == ''])}"
    for column in (c for c in (*KEY, GROUP) if c in frame):
        if (strange := frame[column].str.contains(CONTROLS)).any():
            yield f"{column} holds a line break or another control character in {_lines(frame[strange], column)}"
    if (bad := ~frame["seed"].str.fullmatch(r"0|-?[1-9]\d{0,8}|")).any():
        yield f"seed is no whole number in {_lines(frame[bad], 'seed')}"
    for column in (c for c in (*METRICS, "n_reference") if c in frame):
        given = frame[frame[column] != ""]
        numbers = pd.to_numeric(given[column], errors="coerce")
        if numbers.isna().any():
            blank = ": leave it blank where a structure is in neither mask" if column in METRICS else ""
            yield f"{column} is no number in {_lines(given[numbers.isna()], column)}{blank}"
        low, high = METRICS[column].limits if column in METRICS else (0, float("inf"))
        outside = given[(numbers < low) | (numbers > high)]
        if column == "dice" and (numbers > 1).mean() > 0.5:
            yield f"dice is given in percent (up to {numbers.max():g}): divide it by 100"
        elif len(outside):
            yield f"{column} is outside [{low:g}, {high:g}] in {_lines(outside, column)}"
    if "n_reference" in frame:
        there = pd.to_numeric(frame["n_reference"], errors="coerce") > 0
        if (lost := there & (frame["dice"] == "")).any():
            yield f"dice is blank though the reference is not in {_lines(frame[lost])}: a case that failed scores 0"


def _names(frame: pd.DataFrame, task: Task) -> Iterator[str]:
    """Names that the task does not have; of cases, where their list is at hand."""
    known = {"source": task.source_domains, "target": task.domains, "structure": task.structures}
    for column, names in known.items():
        for name in sorted(set(frame[column]) - {*names, ""}):
            yield f"{column} '{name}' is none of task {task.name}: {', '.join(names)}"
    own = frame[(frame["source"] == frame["target"]) & (frame["source"] != "")]
    if len(own):
        yield f"the source itself is the target in {_lines(own)}: its own cases are in no average"
    for domain, rows in frame[frame["target"].isin(task.domains)].groupby("target"):
        try:
            ids = task.case_ids(str(domain))
        except DgbenchError:  # its list comes with the images
            continue
        if unknown := sorted(set(rows["case"]) - {*ids, ""}):
            yield f"task {task.name} has no {_named(unknown)} in domain {domain}"


def _runs(frame: pd.DataFrame, paired: bool) -> Iterator[str]:
    """Rows that stand there twice, and cases that one run has and another lacks."""
    if (twice := frame[frame.duplicated(KEY)]).size:
        yield f"the same run, case and structure again in {_lines(twice)}"
    blank = frame["dice"] == ""
    if "n_reference" in frame:
        blank |= pd.to_numeric(frame["n_reference"], errors="coerce") == 0
    absent = blank.groupby([frame[c] for c in ("target", "case", "structure") if c in frame]).transform("any")
    if (bad := absent & (pd.to_numeric(frame["dice"], errors="coerce") > 0)).any():
        yield f"dice is above 0 in {_lines(frame[bad], 'dice')}, and elsewhere the reference of that structure is empty"
    # Where domains show the same patients, what is tested hangs on who was trained on.
    alike = frame["source"] if paired else pd.Series("", frame.index)
    every = {s: _pairs(of) for s, of in frame.groupby(alike)}
    lacking = []
    for (method, source, seed), rows in frame.groupby(RUN, sort=False):
        given, pairs = _pairs(rows), every[source if paired else ""]
        for target in sorted(set(pairs) - {source}):
            if missing := sorted({case for case, _ in pairs[target] - given.get(target, set())}):
                lacking.append(f"{method} from {source} with seed {seed} lacks {_named(missing)} of target {target}")
    more = [f"and {len(lacking) - SHOWN} more runs and targets lack cases"] if len(lacking) > SHOWN else []
    yield from [*lacking[:SHOWN], *more]


def _pairs(rows: pd.DataFrame) -> dict[str, set[tuple[str, str]]]:
    """By target, the cases and structures."""
    return {str(t): set(zip(of["case"], of["structure"], strict=True)) for t, of in rows.groupby("target")}


def _lines(rows: pd.DataFrame, column: str = "") -> str:
    """ "lines 2 ('x'), 5 ('y') and 3 more"."""
    shown = [f"{n} ('{rows.at[n, column]}')" if column else str(n) for n in rows.index[:SHOWN]]
    return f"line{'s' if len(rows) > 1 else ''} {', '.join(shown)}" + _more(len(rows))


def _named(names: Sequence[str]) -> str:
    return f"case{'s' if len(names) > 1 else ''} {', '.join(names[:SHOWN])}" + _more(len(names))


def _more(n: int) -> str:
    return f" and {n - SHOWN} more" if n > SHOWN else ""


def check_protocol(name: str) -> None:
    """Raises `UsageError` for a name that no folder can have, or of a protocol whose rows are all measured here."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise UsageError(f"'{name}' cannot name a protocol", "use letters, digits, '.', '-' and '_'")
    if name in PROTOCOLS and not PROTOCOLS[name].beside:
        raise UsageError(
            f"all rows of protocol {name} are measured by dgbench", "give published scores a protocol of their own"
        )


def import_board(path: Path, task: Task, told: dict[str, Any], results: Path) -> Path:
    """Check a table of scores and write it as a board; returns its .json. Nothing is written unless all is well.

    told: name, protocol, citation, and notes, sentences. Raises `UsageError` that names all problems.
    """
    check_protocol(told["protocol"])
    if not re.fullmatch(r"[\w.-]+", told["name"]):
        raise UsageError(f"'{told['name']}' cannot name a board", "use letters, digits, '.', '-' and '_', with --name")
    if not told["citation"].strip():
        raise UsageError("nobody is cited", "say with --citation who measured these scores, and where to look them up")
    frame = read_table(path)
    if found := problems(frame, task):
        raise UsageError("\n- ".join([f"{path} cannot be imported:", *found]), SEE)
    return write_board(frame, task, told, results)


def write_board(frame: pd.DataFrame, task: Task, told: dict[str, Any], results: Path) -> Path:
    """Write a table without problems as a board; returns its .json.

    told: name, protocol, citation, notes. Raises `UsageError` when a board of that name is there, or when its cases
    are not those of the runs that it would stand beside; nothing is written then.
    """
    frame = _with_structure(frame, task)
    given = [m for m in METRICS if m in frame]
    columns = [c for c in (*COLUMNS, GROUP, *OPTIONAL) if c in frame]
    content = gzip.compress(frame[columns].to_csv(index=False, lineterminator="\n").encode(), mtime=0)
    folder = Path(results) / task.name / told["protocol"] / "published"
    path = folder / f"{told['name']}.json"
    if path.exists():
        raise UsageError(f"a board is there already: {path}", "give another --name, or delete it first")
    of_task = {"domains": task.domains, "sources": task.source_domains, "structures": task.structures}
    whole = {
        "schema": SCHEMA, "task": task.name, **told,
        **{name: list(values) for name, values in of_task.items()}, "unit": task.unit, "metrics": given,
        **({"paired": True} if task.paired else {}),
        "training": {}, "file": f"{told['name']}.csv.gz", "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip
    _check_beside(Board(path, whole), content, Path(results))
    make_folder(folder)
    write_atomic(folder / whole["file"], content)
    write_json(path, whole)
    return path


def _check_beside(board: Board, content: bytes, results: Path) -> None:
    """Raises `UsageError` unless a board can be shown with what is there under its protocol."""
    try:
        there = Study.load(results, board.told["task"], board.told["protocol"]).records
    except UsageError:  # nothing is
        return
    try:
        _ = Study([*board.runs(content, board.name), *there], board.protocol).cases
    except DataError as error:
        raise UsageError(f"beside the others, {error.cause}", "give it a protocol of its own") from None
