"""What the engine costs: reading a batch, the loop around a step, and starting the command line.

    python benchmarks/engine.py

Prints medians; every ratio is of two things measured in one run, one after the other, so that a busy machine spoils
both alike.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dgbench.images.find_task import get_task
from dgbench.images.preparation import prepare
from dgbench.method import Batch, Method, resolve_hparams
from dgbench.registry import get_method
from dgbench.running import train
from dgbench.seeding import batch_indices
from dgbench.task import Case, Task


class Volumes(Task):
    """Ten volumes of 24 slices of 384 x 384: the size of a prostate domain."""

    name = "volumes"
    domains = ("A",)
    structures = ("prostate",)
    image_size = 384

    def case_ids(self, domain: str) -> list[str]:
        return [f"case{i}" for i in range(10)]

    def load(self, domain: str, case_id: str) -> Case:
        rng = np.random.default_rng(int(case_id[4:]))
        mask = np.zeros((24, 1, 384, 384), bool)
        mask[4:20, 0, 150:250, 140:240] = True
        return Case(case_id, rng.random((24, 1, 384, 384), np.float32), mask, (3.0, 0.5, 0.5))


def median_ms(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def reading(folder: Path) -> None:
    domain = prepare(Volumes(), "A", 384, folder)
    step = iter(range(10**9))
    ms = median_ms(lambda: domain.batch(batch_indices(0, next(step), 8, 240)), 200)
    print(f"batch of 8 slices of 384 x 384 from the prepared cache: {ms:.1f} ms")


def bare(method: Method, image: torch.Tensor, mask: torch.Tensor) -> None:
    """The loop somebody would write by hand, all images in memory: draw, augment, update, and keep the loss."""
    rng, losses = torch.Generator().manual_seed(0), []
    for t in range(method.steps):
        for group in method.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * method.schedule(t)
        rows = torch.randint(len(image), (method.hparams.batch_size,), generator=rng)
        batch = Batch(image[rows].expand(-1, 3, -1, -1), mask[rows])
        losses.append(method.update(method.augment(batch, rng))["loss"])


def overhead(folder: Path, rounds: int = 8, steps: int = 40) -> None:
    """A training loop written by hand against the engine's: one method, as large batches, alternating rounds.

    What counts is the process's own time, which a busy machine disturbs least. Augmentation is off: the two loops draw
    otherwise, and what they draw costs more or less.
    """
    task = get_task("phantom")
    domain = prepare(task, task.domains[0], task.image_size, folder)
    cls = get_method("erm")
    hparams = resolve_hparams(cls, task.name, {"steps": str(steps), "augmentation": "none"})
    slices = train.TrainingSlices(domain, np.arange(len(domain.images)))
    image, mask = domain.batch(slice(None))
    ratios = []
    for turn in range(rounds):
        plain, ours = (train.build(cls, task.info, hparams, 0)[0].train() for _ in range(2))
        train.configure(plain)
        kept = folder / f"round{turn}"
        kept.mkdir()
        start = time.process_time()
        bare(plain, image[:, :1], mask)
        middle = time.process_time()
        train.fit(ours, slices, 0, kept, train.Watch(save_every=1e9))
        ratios.append((time.process_time() - middle) / (middle - start))
    print(
        f"engine against a bare loop (erm, phantom, {steps} steps a round): {statistics.median(ratios):.3f} of its time"
    )


def starting() -> None:
    for arguments in (["--help"], ["list", "methods"]):
        command = [sys.executable, "-m", "dgbench", *arguments]
        ms = median_ms(lambda c=command: subprocess.run(c, check=True, capture_output=True), 9)  # type: ignore[misc]
        print(f"dgbench {' '.join(arguments)}: {ms:.0f} ms")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        starting()
        reading(Path(name))
        overhead(Path(name))
