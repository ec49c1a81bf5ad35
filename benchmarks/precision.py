"""How much faster a whole training step is in bfloat16 than in float32, on this processor or GPU.

    OMP_NUM_THREADS=1 python benchmarks/precision.py [--device cuda|cpu] [--repeats N]

Steps of both precisions take turns; on a CPU it is the process's own time that counts, which neighbours disturb least.
LiteMedSAM is measured if its weights are there, see `dgbench weights list`.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from dgbench.errors import DgbenchError
from dgbench.method import Batch, Method, resolve_hparams
from dgbench.registry import get_method
from dgbench.running import train
from dgbench.running.device import bfloat16_here
from dgbench.task import TaskInfo

CASES = {  # what is measured: method, side of the images, settings
    "ERM, 64 px, width 8, batch 8": ("erm", 64, {"width": "8"}),
    "tiny ViT (DAPSAM), 64 px, batch 8": ("dapsam", 64, {}),
    "LiteMedSAM, 128 px, batch 2": (
        "medsam", 128, {"backbone": "lite_medsam", "fine_tune": "true", "batch_size": "2", "augmentation": "none"},
    ),
    "ERM, 256 px, width 16, batch 8": ("erm", 256, {}),
}  # fmt: skip


def build(name: str, side: int, settings: dict[str, str], device: str) -> Method:
    """A method with its weights, before its first step."""
    cls = get_method(name)
    hparams = resolve_hparams(cls, "precision", {"image_size": str(side), **settings})
    method, _ = train.build(cls, TaskInfo("precision", ("disc",), side, 100), hparams, 0, device)
    train.configure(method)
    return method.train()


def seconds(method: Method, batch: Batch) -> float:
    """Of a step: the process's own on a CPU, else the clock's."""
    on_gpu = batch.image.device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.process_time
    start = clock()
    train.step(method, batch, seed=0, t=0)
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    print("; ".join(f"{where}: bfloat16 {how}" for where, how in bfloat16_here().items()))
    for title, (name, side, settings) in CASES.items():
        try:
            methods = {p: build(name, side, settings | {"precision": p}, given.device) for p in ("float32", "bfloat16")}
        except DgbenchError as error:
            print(f"{title}: left out, {error.cause}")
            continue
        count = methods["float32"].hparams.batch_size
        image, mask = (torch.rand(count, 1, side, side, device=given.device) for _ in range(2))
        batch, times = Batch(image.expand(-1, 3, -1, -1), (mask > 0.5).float()), {p: [] for p in methods}
        for turn in range(given.repeats + 1):  # the first warms up
            for precision, method in methods.items():
                took = seconds(method, batch)
                times[precision] += [took] if turn else []
        single, half = (statistics.median(times[p]) for p in methods)
        print(
            f"{title}: {single:.3f} s in float32, {half:.3f} s in bfloat16, {single / half:.2f} x as fast", flush=True
        )


if __name__ == "__main__":
    main()
