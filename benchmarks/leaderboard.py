"""What a leaderboard of 30 variants x 6 sources x 5 seeds costs, in time and memory, statistics included.

    python benchmarks/leaderboard.py

The run folders are generated; reading, hashing, averaging, bootstrap and tests are what `dgbench leaderboard` does.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from dgbench.files import sha256
from dgbench.running.test import COLUMNS

SITES = {"RUNMC": 30, "BMC": 30, "I2CVB": 19, "UCL": 13, "BIDMC": 12, "HK": 12}
VARIANTS, SEEDS = 30, 5


def write_runs(results: Path) -> None:
    """Folders as `dgbench run` leaves them, but for the weights and the predictions."""
    rng = np.random.default_rng(0)
    hard = {(site, i): rng.normal(0, 0.08) for site, n in SITES.items() for i in range(n)}
    for v in range(VARIANTS):
        for source in SITES:
            for seed in range(SEEDS):
                folder = results / "prostate" / "sdg" / f"method{v:02}" / f"{source}-seed{seed}"
                folder.mkdir(parents=True)
                rows = []
                for (site, i), offset in hard.items():
                    if site == source and i >= 3:  # the source's validation cases are few
                        continue
                    dice = float(np.clip(0.7 + 0.004 * v + offset + rng.normal(0, 0.05), 0, 1))
                    role = "validation" if site == source else "target"
                    far = 20 * (1 - dice)
                    rows.append((role, site, f"Case{i:02}", "prostate", dice, far, far, 3 * far, "", 900, 900, 200.0))
                pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / "cases.csv", index=False)
                needs = dict.fromkeys(("needs_batch", "uses_target_masks", "adapts_in_testing"), False)
                costs = dict(parameters=9e7, trained=1e7, train_seconds=600, test_seconds=60, peak_memory_mb=9000)
                record = {
                    **{"task": "prostate", "protocol": "sdg", "method": f"method{v:02}", "variant": f"method{v:02}"},
                    **{"source": source, "seed": seed, "domains": list(SITES), "sources": list(SITES), "unit": "mm"},
                    **{"targets": [s for s in SITES if s != source], "structures": ["prostate"], "metrics_version": 1},
                    **{"hparams": {"steps": None, "batch_size": 8}, "steps": 2000, "started": "2026-01-01", "data": {}},
                    **{"initialisation": "scratch", "needs": needs, "costs": costs, "environment": {"device": "cuda"}},
                }
                (folder / "run.json").write_text(json.dumps(record))
                (folder / "history.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
                files = {n: sha256(folder / n) for n in ("run.json", "cases.csv", "history.jsonl")}
                (folder / "RESULT.json").write_text(json.dumps({"schema": 1, "files": files}))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        write_runs(results)
        command = [sys.executable, "-m", "dgbench", "leaderboard", "--task", "prostate", "--results", folder]
        started = time.perf_counter()
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(shown)
        print(f"{time.perf_counter() - started:.2f} s for {VARIANTS * len(SITES) * SEEDS} runs")
        print(f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MB at most")


if __name__ == "__main__":
    main()
