"""Finished runs made of nothing but scores, for tests of tables and statistics."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from dgbench.running.records import RunRecord

DIAGONAL = 100.0
FOUND_NOTHING = {"missed": (0.0, math.inf), "false_positive": (0.0, math.inf), "both_empty": (math.nan, math.nan)}

COSTS = ("parameters", "trained", "train_seconds", "test_seconds", "peak_memory_mb")
Score = float | str  # a Dice, or the flag of a structure that was missed, falsely found, or in neither mask


def run(variant: str, source: str, scores: Mapping[str, Any], seed: int = 0, **record: Any) -> RunRecord:
    """A finished run from its Dice scores by domain (and structure), the source's own being validation cases.

    The distance of a found structure is 10 (1 - Dice): ASD 1 for Dice 0.9.
    """
    rows = []
    for domain, of_domain in scores.items():
        by_structure = of_domain if isinstance(of_domain, dict) else {"prostate": of_domain}
        for structure, values in by_structure.items():
            for i, value in enumerate(values):
                flag = value if isinstance(value, str) else ""
                dice, distance = FOUND_NOTHING[flag] if flag else (float(value), 10 * (1 - float(value)))
                rows.append(
                    {
                        "role": "validation" if domain == source else "target",
                        "domain": domain,
                        "case": f"{domain}-{i}",
                        "structure": structure,
                        "dice": dice,
                        "asd": distance,
                        "assd": distance,
                        "hd95": 3 * distance,
                        "flag": flag,
                        "n_reference": 0 if flag in ("false_positive", "both_empty") else 50,
                        "n_prediction": 0 if flag in ("missed", "both_empty") else 50,
                        "diagonal": DIAGONAL,
                    }
                )
    told = {
        "task": "toy",
        "protocol": "sdg",
        "method": variant.partition("[")[0],
        "variant": variant,
        "source": source,
        "seed": seed,
        "domains": ["A", "B", "C"],
        "structures": ["prostate"],
        "unit": "mm",
        "metrics_version": 1,
        "initialisation": "scratch",
        "needs": {"needs_batch": False, "uses_target_masks": False, "adapts_in_testing": False},
        "costs": dict(zip(COSTS, (2_000_000, 500_000, 60.0, 4.0, 800), strict=True)),
        **record,
    }
    told.setdefault("targets", [d for d in told["domains"] if d != source])
    path = Path("results", told["task"], told["protocol"], variant, f"{source}-seed{seed}")
    history = pd.DataFrame({"step": [10, 20, 30], "loss": [1.0, 0.5, 0.4], "seconds": [1.0, 2.0, 3.0]})
    record = RunRecord(path, told)
    vars(record).update(cases=pd.DataFrame(rows), history=history)
    return record


def changed(record: RunRecord, **values: Any) -> RunRecord:
    """The same run with another path, record, cases or history."""
    other = RunRecord(values.pop("path", record.path), values.pop("record", record.record))
    vars(other).update({"cases": record.cases, "history": record.history, **values})
    return other
