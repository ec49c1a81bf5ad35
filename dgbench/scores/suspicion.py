"""Suspicion: scores that contradict themselves or each other, so that no measurement can have given them.

What follows from the definitions in `metrics` is a problem; what is only unlikely is a doubt, for a person to judge.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from dgbench.metrics import MEASURED, METRICS
from dgbench.protocol import get_protocol
from dgbench.running.records import RunRecord

DISTANCES = tuple(name for name in MEASURED if METRICS[name].unit("mm") == "mm")
HIGH, FAR = 0.95, 0.1  # a Dice, and a share of the image's diagonal, that seldom go together


def impossible(run: RunRecord) -> Iterator[str]:
    """Problems of one run's scores, a sentence for each kind, with the first place and the number of all.

    What one row says of voxels, flags and the largest Dice that these allow is told by `scores.verify`.
    """
    found = run.cases[run.cases["flag"] == ""]
    voxels = found["n_reference"] + found["n_prediction"]
    shared, dice = found["dice"] * voxels / 2, found["dice"]
    distances = found[list(DISTANCES)]
    farthest = distances.max(axis=1)
    # Of n distances at most 5 % lie above their 95th percentile, none beyond the diagonal.
    most_of_mean = found["hd95"] + 0.06 * found["diagonal"]
    kinds = {
        "Dice is of no whole number of shared voxels": (shared - shared.round()).abs() > 1e-6 * voxels,
        "a distance is longer than the image's diagonal": farthest > found["diagonal"] * (1 + 1e-9),
        "Dice is 1, and yet the surfaces lie apart": (dice == 1) & (farthest > 0),
        "Dice is 1 of masks that differ in size": (dice == 1) & (found["n_reference"] != found["n_prediction"]),
        "Dice is 0, and yet the surfaces meet": (dice == 0) & (distances.min(axis=1) == 0),
        "ASSD is longer than its HD95 allows": found["assd"] > most_of_mean,
    }
    for why, bad in kinds.items():
        yield from _told(run, why, found[bad])


def unlikely(run: RunRecord) -> Iterator[str]:
    """Doubts about one run's scores."""
    found = run.cases[run.cases["flag"] == ""]
    odd = (found["dice"] > HIGH) & (found["asd"] > FAR * found["diagonal"])
    yield from _told(run, f"Dice is above {HIGH} and ASD above a tenth of the image's diagonal", found[odd])


def _told(run: RunRecord, why: str, rows: pd.DataFrame) -> Iterator[str]:
    for row in rows.head(1).itertuples():
        numbers = ", ".join(f"{m} {getattr(row, m):.6g}" for m in MEASURED)
        more = f", and {len(rows) - 1} more" if len(rows) > 1 else ""
        yield f"{_name(run)}: {why}: {row.domain}/{row.case} {row.structure} ({numbers}){more}"


def repeated(runs: Sequence[RunRecord]) -> tuple[list[str], list[str]]:
    """(problems, doubts): runs of other seeds, or of other variants, that have the same scores to the last digit.

    A method without anything to train is the same for every seed, and is passed over.
    """
    alike: defaultdict[tuple[str, ...], list[RunRecord]] = defaultdict(list)
    for run in (r for r in runs if r.record["costs"]["trained"] != 0):
        rows = run.cases[run.cases["role"] == "target"].sort_values(["domain", "case", "structure"])
        content = rows[["domain", "case", "structure", *MEASURED, "n_prediction"]].to_csv(index=False)
        alike[run.task, run.protocol, run.source, content].append(run)
    problems, doubts = list[str](), list[str]()
    for group in (g for g in alike.values() if len(g) > 1):
        same = {r.variant for r in group}
        names = ", ".join(map(_name, group))
        if len(same) < len(group):
            problems.append(f"the same scores to the last digit for several seeds: {names}")
        else:
            doubts.append(f"the same scores to the last digit under several names: {names}")
    return problems, doubts


def references(runs: Sequence[RunRecord]) -> list[str]:
    """Problems: runs on the same images that know another reference of a case, by its voxels or its image's size."""
    keys, told = ["domain", "case", "structure"], list[str]()
    for _, of in itertools.groupby(sorted(runs, key=_board), key=_board):
        group = list(of)
        first = pd.concat([r.cases[[*keys, "n_reference", "diagonal"]] for r in group]).drop_duplicates(keys)
        known = first.set_index(keys)
        for run in group:
            mine = run.cases.set_index(keys)
            theirs = known.loc[mine.index]
            bad = (mine["n_reference"] != theirs["n_reference"]) | ~np.isclose(mine["diagonal"], theirs["diagonal"])
            if bad.any():
                where = "/".join(map(str, mine.index[bad][0]))
                told.append(f"{_name(run)}: another reference mask than other runs of {where}")
    return told


def _board(run: RunRecord) -> tuple[str, str, str, str]:
    size = run.record["hparams"].get("image_size") if get_protocol(run.protocol).resolution == "network" else None
    return run.task, run.protocol, str(sorted(run.record["data"].items())), str(size)


def _name(run: RunRecord) -> str:
    return f"{run.variant}/{run.source}-seed{run.seed}"
