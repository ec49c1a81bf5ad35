"""Bounds: runs that were trained inside the target domains, made into rows beside those that never saw these.

A method is trained inside each domain on all but one of its folds and tested on that fold, for every fold in turn, so
that every case is tested once. What a target's cases score is then what a method reaches that has seen the target: the
upper bound of most papers. For each source its targets get these scores, so that the row's mean weighs them as the
means of all other rows do. A domain of which a fold is missing is blank.

The bound from below is a row as all others, ranked with them: that of a method which looks at no image.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from dgbench.protocol import PROTOCOLS, Protocol
from dgbench.running.records import RunRecord, read_runs


def bounds(
    folders: Sequence[Path], task: str, protocol: Protocol, beside: Sequence[RunRecord]
) -> tuple[list[RunRecord], list[str]]:
    """Rows for a table of runs by `protocol`, and a sentence on each that lacks a fold, and on each run that is broken.

    folders: of results; a row is taken from the first that has it. beside: the runs of that table, which tell, where
    domains show the same patients, on which cases a source is tested.
    """
    found, told = list[RunRecord](), list[str]()
    for inside in (p for p in PROTOCOLS.values() if p.bounds(protocol)):
        for folder in folders:
            runs, left_out = read_runs(folder, task, inside.name)
            rows, lacking = joined(runs, protocol, beside)
            known = {r.variant for r in found}
            found += [r for r in rows if r.variant not in known]
            told += [*left_out, *lacking]
    return found, told


def joined(
    runs: Iterable[RunRecord], protocol: Protocol, beside: Sequence[RunRecord] = ()
) -> tuple[list[RunRecord], list[str]]:
    """Runs inside domains made into one for each variant, seed and source; others are given back as they are."""
    found, told = list[RunRecord](), list[str]()
    whole: dict[tuple[str, int], list[RunRecord]] = defaultdict(list)
    for run in runs:
        if "fold" in run.record:
            whole[run.variant, run.seed].append(run)
        else:
            found.append(run)
    for (variant, seed), of in sorted(whole.items(), key=lambda item: item[0]):
        folds = Counter(r.source for r in of)
        complete = [r for r in of if folds[r.source] == r.record["folds"]]
        targets = {d for of_source in of[0].record["targets_of"].values() for d in of_source}
        if lacking := sorted(targets - {r.source for r in complete}):
            told.append(f"Inside {', '.join(lacking)}: {variant}, seed {seed}, lacks runs of some folds, and is blank.")
        found += _rows(complete, protocol, beside) if complete else ()
    return found, told


def _rows(of: Sequence[RunRecord], protocol: Protocol, beside: Sequence[RunRecord]) -> Iterable[RunRecord]:
    """One run for each source of the task; of: the runs of one variant and seed, of domains with all their folds."""
    first = max(of, key=lambda r: str(r.record["started"]))
    cases = pd.concat([r.cases for r in of], ignore_index=True)
    cases = cases[cases["role"] == "target"]
    name = first.variant if protocol.folds else f"{first.variant} ({first.protocol})"
    costs = {k: float(np.mean([r.record["costs"].get(k, np.nan) for r in of])) for k in first.record["costs"]}
    dropped = ("fold", "folds", "trained_on", "targets_of", "excluded")
    for source, targets in first.record["targets_of"].items():
        tested = [r for r in beside if r.source == source and not r.published]
        own = next((r for r in of if r.source == source), first)
        record = {
            **{k: v for k, v in first.record.items() if k not in dropped},
            **{k: v for k, v in own.record.items() if k == "excluded"},
            "protocol": protocol.name,
            "variant": name,
            "source": source,
            "bound": first.protocol,
            "targets": targets,
            "data": {d: f for r in of for d, f in r.record["data"].items()},
            "costs": costs,
        }
        kept = cases[cases["domain"].isin(targets)]
        if record.get("paired") and tested:
            place = pd.MultiIndex.from_frame(kept[["domain", "case"]])
            kept = kept[place.isin(pd.MultiIndex.from_frame(tested[0].cases[["domain", "case"]]))]
        run = RunRecord(
            first.path.parent / f"{source}-seed{first.seed} of all folds", record
        )  # no folder: scores alone
        vars(run)["cases"] = kept.reset_index(drop=True)
        yield run
