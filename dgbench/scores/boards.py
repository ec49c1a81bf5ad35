"""Boards: runs of which somebody published the score of every case, read as runs; they were not made here.

A board is two files beside each other: NAME.csv.gz, `COLUMNS` and any of `OPTIONAL` and `records.GROUP`, a row for each
run, target case and structure; and NAME.json, written last: task, protocol, who says so, and the sha256 of the first.
Those that come with dgbench lie in results/published/, those of `dgbench import` in
RESULTS/<task>/<protocol>/published/.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dgbench import metrics
from dgbench.errors import DataError
from dgbench.files import gunzip, is_name, read_json, sha256
from dgbench.metrics import MEASURED
from dgbench.protocol import DEFAULT, PROTOCOLS, Protocol
from dgbench.registry import published_folder
from dgbench.running.records import GROUP, SCHEMA, UNKNOWN, RunRecord, find_runs, misfits

COLUMNS = ("method", "source", "seed", "target", "case", "structure", "dice")
OPTIONAL = (*(m for m in MEASURED if m != "dice"), "n_reference")
RUN = ["method", "source", "seed"]
OF_BOARD: dict[str, Any] = {
    **dict.fromkeys(("name", "task", "protocol", "citation", "unit", "file", "sha256"), str),
    **{name: [str] for name in ("notes", "domains", "sources", "structures", "metrics")},
    "schema": int,
    "training": dict,
}


@dataclass(frozen=True)
class ForeignProtocol(Protocol):
    """One that dgbench makes no runs by: it knows how means are taken, and what a board states of the rest in words."""

    @classmethod
    def of(cls, name: str) -> ForeignProtocol:
        """That of a name."""
        return cls(name, "all", "image", "physical", "penalty", "domains", MEASURED)

    def caption(self) -> str:
        """The protocol in one sentence, for the foot of a table."""
        return f"protocol {self.name}: that of those who published it; each target domain weighs the same"

    def rules(self) -> dict[str, str]:
        """What is known to be held fixed, by name, as text."""
        return {"name": self.name, "mean": self.mean}


@dataclass(frozen=True)
class Board:
    """A board as its .json file describes it. Its scores are read when they are asked for."""

    path: Path
    told: dict[str, Any]

    @property
    def name(self) -> str:
        """What tables call it where they show several boards."""
        return str(self.told["name"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those that it gives."""
        return tuple(self.told["metrics"])

    @property
    def protocol(self) -> Protocol:
        """One of ours by its name, or a foreign one."""
        return PROTOCOLS.get(self.told["protocol"]) or ForeignProtocol.of(self.told["protocol"])

    @property
    def words(self) -> str:
        """Who measured it, and what a reader must know of it, in sentences."""
        return " ".join([f"{self.told['citation'].rstrip('.')}.", *self.told["notes"]])

    def records(self, mark: str = "published") -> Iterator[RunRecord]:
        """The runs, each variant named as its method and the mark: `erm (published)`.

        Raises `DataError` when the file of the scores is not the one that was described.
        """
        file = self.path.parent / self.told["file"]
        if not is_name(self.told["file"]) or not file.is_file() or sha256(file) != self.told["sha256"]:
            raise DataError(f"{file} is missing or was changed since", "import it again")
        return self.runs(file.read_bytes(), mark)

    def runs(self, content: bytes, mark: str) -> Iterator[RunRecord]:
        """As `records`, of the content of the file."""
        for (method, source, seed), rows in _parsed(content).groupby(RUN, sort=False):
            record = self._record(str(method), f"{method} ({mark})", str(source), int(seed))
            run = RunRecord(self.path.parent / record["variant"] / f"{source}-seed{seed}", record)
            vars(run)["cases"] = _cases(rows)
            yield run

    def _record(self, method: str, variant: str, source: str, seed: int) -> dict[str, Any]:
        """What run.json says of a run made here, as far as it is known of this one."""
        shared = ("task", "protocol", "domains", "sources", "structures", "unit", "citation")
        return {
            **{name: self.told[name] for name in shared},
            "published": {"board": self.name, "words": self.words, "metrics": list(self.metrics)},
            **({"paired": True} if self.told.get("paired") else {}),
            "method": method,
            "variant": variant,
            "source": source,
            "seed": seed,
            "targets": [d for d in self.told["domains"] if d != source],
            "hparams": {name: self.told["training"].get(name, 0) for name in ("steps", "batch_size")},
            "initialisation": self.told["training"].get("initialisation", ""),
            "needs": {},
            "costs": UNKNOWN,
            "data": {},
            "metrics_version": metrics.VERSION,
            "fingerprint": self.told["sha256"],
            "started": "",
        }


def _parsed(content: bytes) -> pd.DataFrame:
    """A row for each run, target case and structure; a case may be named "NA"."""
    texts = ("method", "source", "target", "case", "structure", GROUP)
    kinds: dict[str, Any] = dict.fromkeys(texts, str) | {"seed": int}
    numbers = {name: [""] for name in (*MEASURED, "n_reference")}
    text = io.StringIO(gunzip(content).decode())
    return pd.read_csv(text, dtype=kinds, keep_default_na=False, na_values=numbers)


def _cases(rows: pd.DataFrame) -> pd.DataFrame:
    """As cases.csv of a run made here; what nobody told is NaN, and a blank Dice means that both masks are empty.

    What another run left blank is falsely found here: `Study.cases` sees both.
    """
    made = rows.drop(columns=RUN).rename(columns={"target": "domain"})
    missing = [c for c in (*MEASURED, "n_reference", "n_prediction", "diagonal") if c not in made]
    made[missing] = math.nan
    flag = np.where(made["dice"].isna(), "both_empty", np.where(made["n_reference"] == 0, "false_positive", ""))
    return made.assign(role="target", flag=flag)


def boards(results: Path, task: str, protocol: str) -> list[Board]:
    """The boards of a task under a protocol: those that come with dgbench, then those that were imported."""
    return [b for b in every_board(results, task) if b.told["protocol"] == protocol]


def shown_protocol(results: Path, task: str) -> tuple[str, str]:
    """Which runs of a task to show who names no protocol: (its name, why it is not the default one, in a sentence).

    Where no run of the default protocol was made, those of the first board that was published.
    """
    published = every_board(results, task)
    if find_runs(results, task, DEFAULT) or not published:
        return DEFAULT, ""
    name = str(published[0].told["protocol"])
    why = f"No finished run of protocol {DEFAULT} is in {results}: this is what was published under protocol {name}."
    return name, why


def every_board(results: Path, task: str | None = None) -> list[Board]:
    """The boards of a task, by default of all, under any protocol. Raises `DataError` for one by a newer dgbench."""
    tasks = Path(results).glob("*") if task is None else [Path(results) / task]
    places = [*published_folder().glob("*.json"), *(p for t in tasks for p in t.glob("*/published/*.json"))]
    found = [Board(path, read_json(path) or {}) for path in sorted(places)]
    for board in found:
        if isinstance(schema := board.told.get("schema"), int) and schema > SCHEMA:
            raise DataError(f"{board.path} was written by a newer dgbench", "update dgbench")
        if wrong := misfits(board.told, OF_BOARD):
            lacks = f"it lacks {', '.join(wrong)}, or says what cannot be"
            raise DataError(f"{board.path} describes no board: {lacks}", "import the scores again, or delete it")
    return sorted((b for b in found if task in (None, b.told["task"])), key=lambda b: b.told["protocol"])


def published_runs(found: Sequence[Board]) -> list[RunRecord]:
    """The runs of some boards of one task and protocol; where there are several, a variant's name says whose it is."""
    marks = {b.path: "published" if len(found) == 1 else f"published, {b.name}" for b in found}
    return [run for board in found for run in board.records(marks[board.path])]
