"""The benchmark of a GPU runs anywhere, at a small size: ready for the day one is at hand."""

import os
import re
import subprocess
import sys
from pathlib import Path

from dgbench.scores.archives import members_of
from tests.discs import DOMAINS, write_discs

ROOT = Path(__file__).resolve().parents[1]


def test_the_benchmark_of_a_gpu_measures_every_part_on_a_cpu_too(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--device", "cpu", "--small"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    told = [line.partition(": ")[0] for line in done.stdout.splitlines()[1:]]
    assert told[:3] == [f"DAPSAM vit_tiny, 32 px, batch 2, {k}" for k in ("plain float32", "float32", "bfloat16")]
    assert told[3:5] == [f"ERM, 32 px, batch 2, {k}" for k in ("float32", "bfloat16")]
    assert told[5] == "training by the engine" and len(told) == 8
    assert all(float(number) > 0 for number in re.findall(r"([\d.]+) ms a step", done.stdout))


def test_a_board_is_made_seed_after_seed_and_packed(tmp_path):
    discs = write_discs(tmp_path / "discs", cases=3, steps=2)
    command = [sys.executable, ROOT / "benchmarks" / "board.py", discs, "--results", tmp_path / "board"]
    command += ["--only", "dino,constant[steps=1;image_size=32]", "--seeds", "1,0", "--pack", "mine"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=offline, capture_output=True, text=True, check=True)
    assert "not run: dino: the published weights of 'vit_small_patch14_dinov2.lvd142m' cannot be fetched" in done.stdout
    ended = re.findall(r"done (\S+) (\w+)-seed(\d)", done.stdout)
    variant = "constant[image_size=32;steps=1]"
    assert sorted(ended[: len(ended) // 2]) == sorted((variant, domain, "1") for domain in DOMAINS)
    assert sorted(ended) == sorted((variant, domain, seed) for domain in DOMAINS for seed in "01")
    members = members_of(tmp_path / "board" / "scores-discs-mine.tar.xz")
    assert len(members) == 3 * len(ended) and f"discs/sdg/{variant}/dim-seed0/cases.csv" in members
