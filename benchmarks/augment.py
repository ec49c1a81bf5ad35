"""Time to augment a training batch: 8 gray slices of 384 x 384 with their masks, on 2 cores.

    python benchmarks/augment.py [--threads 2] [--device cpu]

Prints milliseconds per batch over many batches: waiting time, and processor time, which other work on the machine does
not change. With batchgenerators 0.25 importable (and scikit-image with it) the chain of DAPSAM's authors is timed too.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from dgbench.method import Batch
from dgbench.methods.dapsam import PROSTATE
from dgbench.networks.augmentation import BASE, Augmentation, augment


def report(name: str, step: Callable[[], Any], device: torch.device, batches: int) -> None:
    for _ in range(3):
        step()
    wall, cpu = np.zeros(batches), np.zeros(batches)
    for i in range(batches):
        start, used = time.perf_counter(), time.process_time()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        wall[i], cpu[i] = time.perf_counter() - start, time.process_time() - used
    columns = [1e3 * f for f in (wall.mean(), np.median(wall), np.percentile(wall, 95), wall.min(), cpu.mean())]
    print(f"{name:34}" + "".join(f"{c:12.1f}" for c in columns), flush=True)


def authors_chain(always: bool) -> Callable[[], Any]:
    """The authors' chain with their probabilities, or with every transform firing, on raw intensities."""
    from batchgenerators.transforms import color_transforms as color
    from batchgenerators.transforms import noise_transforms as noise
    from batchgenerators.transforms.resample_transforms import SimulateLowResolutionTransform
    from batchgenerators.transforms.spatial_transforms import MirrorTransform, SpatialTransform

    def p(usual: float) -> float:
        return 1.0 if always else usual

    turn, black = (-np.pi / 12, np.pi / 12), {"border_mode_data": "constant", "border_mode_seg": "constant"}
    likely = {"p_el_per_sample": p(0.2), "p_rot_per_sample": p(0.2), "p_scale_per_sample": p(0.2)}
    elastic = {"alpha": (0, 900), "sigma": (9, 13)}
    chain = [
        SpatialTransform((384, 384), 192, **elastic, angle_x=turn, scale=(0.85, 1.25), order_seg=1, **black, **likely),
        noise.GaussianNoiseTransform(p_per_sample=p(0.1)),
        noise.GaussianBlurTransform((0.5, 1), p_per_channel=p(0.5), p_per_sample=p(0.2)),
        color.BrightnessMultiplicativeTransform((0.75, 1.25), p_per_sample=p(0.15)),
        color.BrightnessTransform(0, 0.1, p_per_sample=p(0.15), p_per_channel=p(0.5)),
        color.ContrastAugmentationTransform(p_per_sample=p(0.15)),
        SimulateLowResolutionTransform((0.5, 1), True, p(0.5), None, 0, 3, p_per_sample=p(0.25)),
        color.GammaTransform((0.7, 1.5), per_channel=True, retain_stats=True, p_per_sample=p(0.15)),
        MirrorTransform((0, 1)),
    ]
    rng = np.random.default_rng(0)
    image = 1000 * rng.random((8, 1, 384, 384), np.float32)
    mask = np.float32(rng.random((8, 1, 384, 384)) > 0.5)

    def step() -> None:
        data = {"data": image.copy(), "seg": mask.copy()}
        for transform in chain:
            data = transform(**data)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device, rng = torch.device(given.device), torch.Generator().manual_seed(0)
    image, mask = torch.rand(2, 8, 1, 384, 384, generator=rng).to(device)
    batch = Batch(image.expand(-1, 3, -1, -1), (mask > 0.5).float())
    always: dict[str, Any] = {f.name: 1.0 for f in fields(Augmentation) if f.name.startswith("p_")}
    presets = {
        "BASE": BASE,
        "DAPSAM": PROSTATE,
        "everything fires": Augmentation(**always),
        "nothing": Augmentation(),
    }
    print(f"{given.threads} threads, {device}; ms per batch".ljust(34) + "".join(f"{c:>12}" for c in HEADER))
    for name, ranges in presets.items():
        report(name, lambda ranges=ranges: augment(batch, rng, ranges), device, given.batches)  # type: ignore[misc]
    if importlib.util.find_spec("batchgenerators"):
        for name, always_fires in (("authors' chain", False), ("authors' chain, everything fires", True)):
            report(name, authors_chain(always_fires), torch.device("cpu"), max(5, given.batches // 10))


HEADER = ("mean", "median", "p95", "fastest", "processor")

if __name__ == "__main__":
    main()
