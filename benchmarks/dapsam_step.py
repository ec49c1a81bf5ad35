"""DAPSAM with SAM's ViT-B at the paper's prostate size: seconds a training step and seconds an image.

Run: OMP_NUM_THREADS=2 python benchmarks/dapsam_step.py

The authors' code takes 4.0 s a step and 0.8 s an image on 2 CPU cores (tests/golden). The weights are random, which
costs the same as SAM's; what SAM brings is frozen, as in training. `the package's attention` is the same network with
segment-anything's attention, which the authors use, in the place of ours. Printed are the least and the median of
interleaved repeats, in seconds of the processor, all threads together: on a busy machine the least is the more faithful
one.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from dgbench.method import Batch, resolve_hparams
from dgbench.methods.dapsam import DAPSAM
from dgbench.networks import sam
from dgbench.task import TaskInfo

SIZE, SLICES, REPEATS = 384, 2, 5


class PlainBlock(sam.Block):
    """SAM's block as the package computes it: every bias of the attention is stored."""

    def attend(self, x: Tensor) -> Tensor:
        size, window = x.shape[1:3], self.window_size
        x = self.norm1(x)
        if not window:
            return self.attn(x)
        x, padded = sam.package.window_partition(x, window)
        return sam.package.window_unpartition(self.attn(x), window, padded, size)


def build() -> DAPSAM:
    torch.manual_seed(0)
    hparams = resolve_hparams(DAPSAM, "prostate", {"image_size": str(SIZE), "batch_size": str(SLICES)})
    method = DAPSAM(TaskInfo("prostate", ("prostate",), SIZE, steps=1), hparams)
    method.freeze()
    method.optimizers = (method.configure(),)
    return method


def seconds(act: Callable[[], object]) -> float:
    start = time.process_time()
    act()
    return time.process_time() - start


def main() -> None:
    image = torch.rand(SLICES, 1, SIZE, SIZE).expand(-1, 3, -1, -1)
    batch = Batch(image, (torch.rand(SLICES, 1, SIZE, SIZE) > 0.5).float())
    method = build()
    kinds = {"our attention": sam.Block, "the package's attention": PlainBlock}
    steps: dict[str, list[float]] = {kind: [] for kind in kinds}
    images: dict[str, list[float]] = {kind: [] for kind in kinds}
    predict = torch.inference_mode()(method.predict)
    for repeat in range(REPEATS + 1):  # the first warms up
        for kind, block_class in kinds.items():
            for block in method.image_encoder.blocks:
                block.__class__ = block_class
            step, one = seconds(lambda: method.update(batch)), seconds(lambda: predict(image[:1]))
            if repeat:
                steps[kind].append(step)
                images[kind].append(one)
    print(f"ViT-B, {SIZE} px, batch {SLICES}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for kind in kinds:
        least = f"{min(steps[kind]):.2f} s a step, {min(images[kind]):.2f} s an image"
        median = f"{statistics.median(steps[kind]):.2f} s, {statistics.median(images[kind]):.2f} s"
        print(f"{kind}: {least} (medians {median})")
    ours, package = (min(steps[kind]) for kind in kinds)
    print(f"a step is {package / ours:.2f}x faster than with the package's attention")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(f"peak memory {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
