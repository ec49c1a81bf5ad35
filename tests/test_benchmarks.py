"""The benchmark of a GPU runs anywhere, at a small size: ready for the day one is at hand."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_benchmark_of_a_gpu_measures_every_part_on_a_cpu_too(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--small"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    told = [line.partition(": ")[0] for line in done.stdout.splitlines()[1:]]
    assert told[:3] == [f"DAPSAM vit_tiny, 32 px, batch 2, {k}" for k in ("plain float32", "float32", "bfloat16")]
    assert told[3:5] == [f"ERM, 32 px, batch 2, {k}" for k in ("float32", "bfloat16")]
    assert told[5] == "training by the engine" and len(told) == 8
    assert all(float(number) > 0 for number in re.findall(r"([\d.]+) ms a step", done.stdout))
