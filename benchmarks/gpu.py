"""What a GPU makes of it: a step, an image, memory, the engine's share, and runs an hour. Ratios are within one run.

    python benchmarks/gpu.py [--device cuda|cpu] [--small]

From a checkout, with dgbench's dependencies installed. No data and no weights are needed: images are drawn, weights are
random, which costs the same, and what SAM brings is frozen, as in training. "plain float32" is the authors' arithmetic:
every attention's matrix and bias are stored, windows padded before their projection. What is compared takes turns, and
each line gives medians. `--small` tries everything on images of 32 pixels, to see that it works.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor

from dgbench.images.find_task import get_task
from dgbench.images.preparation import prepare
from dgbench.method import Batch, Method, Precision, resolve_hparams
from dgbench.networks import sam
from dgbench.registry import get_method
from dgbench.running import train
from dgbench.running.device import make_deterministic
from dgbench.task import Case, Task, TaskInfo


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large everything is, and how often it is repeated."""

    sam: str = "vit_b"
    sam_side: int = 384
    side: int = 256
    width: int = 32  # of ERM's U-Net
    batch: int = 8
    repeats: int = 20
    steps: int = 100


SMALL = Sizes("vit_tiny", 32, 32, width=4, batch=2, repeats=1, steps=4)


class PlainBlock(sam.Block):
    """SAM's block as the segment-anything package computes it, and with it the authors' code."""

    def attend(self, x: Tensor) -> Tensor:
        size, window = x.shape[1:3], self.window_size
        x = self.norm1(x)
        if not window:
            return self.attn(x)
        x, padded = sam.package.window_partition(x, window)
        return sam.package.window_unpartition(self.attn(x), window, padded, size)


class Drawn(Task):
    """Four domains as large as those of a small ultrasound study: 24 images each, of one structure."""

    name = "drawn"
    domains = ("A", "B", "C", "D")
    structures = ("lesion",)

    def __init__(self, side: int, steps: int):
        super().__init__()
        self.image_size, self.steps = side, steps

    def case_ids(self, domain: str) -> list[str]:
        return [f"case{i:02}" for i in range(24)]

    def load(self, domain: str, case_id: str) -> Case:
        rng, side = np.random.default_rng(int(case_id[4:])), self.image_size
        mask = np.zeros((1, 1, side, side), bool)
        mask[..., side // 4 : side // 2, side // 3 : side // 2] = True
        return Case(
            case_id, (0.5 * rng.random(mask.shape, np.float32) + 0.4 * mask).astype(np.float32), mask, (1, 1, 1)
        )


def build(name: str, side: int, batch: int, device: str, precision: Precision, **settings: str) -> Method:
    """A method before its first step."""
    cls = get_method(name)
    given = {"image_size": str(side), "batch_size": str(batch), "precision": precision, **settings}
    method, _ = train.build(cls, TaskInfo("drawn", ("lesion",), side, 100), resolve_hparams(cls, "drawn", given), 0)
    if settings.get("backbone") == "vit_b":
        method.freeze()  # type: ignore[operator]
    train.configure(method.to(device))
    return method.train()


def images(side: int, batch: int, device: str) -> Batch:
    image = torch.rand(batch, 1, side, side, device=device).expand(-1, 3, -1, -1)
    return Batch(image, (torch.rand(batch, 1, side, side, device=device) > 0.5).float())


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def medians(acts: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Seconds of each act, taking turns; the first turn of each warms up."""
    times: dict[str, list[float]] = {name: [] for name in acts}
    for turn in range(repeats + 1):
        for name, act in acts.items():
            wait(device)
            start = time.perf_counter()
            act()
            wait(device)
            times[name] += [time.perf_counter() - start] if turn else []
    return {name: statistics.median(found) for name, found in times.items()}


def step_of(method: Method, batch: Batch) -> Callable[[], object]:
    return lambda: train.step(method, batch, seed=0, t=0)


@torch.inference_mode()
def predict(method: Method, image: Tensor) -> Tensor:
    with train.autocast(method):
        return method.eval().predict(image)


def compare(title: str, methods: dict[str, Method], batch: Batch, repeats: int, device: str) -> None:
    """Print for each variant of a method its step, its images a second and its memory, the first being the measure."""
    steps = medians({k: step_of(m.train(), batch) for k, m in methods.items()}, repeats, device)
    peaks = {k: peak_mb(step_of(m.train(), batch), device) for k, m in methods.items()}
    seen = medians({k: lambda m=m: predict(m, batch.image) for k, m in methods.items()}, repeats, device)  # type: ignore[misc]
    first = next(iter(methods))
    for name in methods:
        of_step, of_images = steps[first] / steps[name], seen[first] / seen[name]
        rate, peak = len(batch.image) / seen[name], f", {peaks[name]:,.0f} MiB more at most" if peaks[name] else ""
        print(
            f"{title}, {name}: {1e3 * steps[name]:.1f} ms a step ({of_step:.2f} x as fast){peak}; "
            f"{rate:.1f} images/s predicted ({of_images:.2f} x as fast)"
        )


def peak_mb(act: Callable[[], object], device: str) -> float:
    """The most that a GPU holds for an act beyond what it holds before; 0 on a CPU."""
    if not device.startswith("cuda"):
        return 0.0
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    act()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def networks(sizes: Sizes, device: str) -> None:
    settings = {"backbone": sizes.sam}
    kinds: dict[str, Method] = {}
    for name, precision in (("plain float32", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")):
        kinds[name] = build("dapsam", sizes.sam_side, sizes.batch, device, precision, **settings)  # type: ignore[arg-type]
    for block in kinds["plain float32"].image_encoder.blocks:  # type: ignore[union-attr]
        block.__class__ = PlainBlock
    title = f"DAPSAM {sizes.sam}, {sizes.sam_side} px, batch {sizes.batch}"
    compare(title, kinds, images(sizes.sam_side, sizes.batch, device), sizes.repeats, device)
    del kinds
    both: Sequence[Precision] = ("float32", "bfloat16")
    kinds = {p: build("erm", sizes.side, sizes.batch, device, p, width=str(sizes.width)) for p in both}
    title = f"ERM, {sizes.side} px, batch {sizes.batch}"
    compare(title, kinds, images(sizes.side, sizes.batch, device), sizes.repeats, device)


def bare(method: Method, image: Tensor, mask: Tensor, steps: int, batch: int) -> None:
    """The loop that somebody would write by hand, all images at hand on the device: draw, augment, update."""
    rng = torch.Generator().manual_seed(0)
    for t in range(steps):
        for optimizer in method.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * method.schedule(t)
        rows = torch.randint(len(image), (batch,), generator=rng).to(image.device)
        shown = image.index_select(0, rows).expand(-1, 3, -1, -1)
        method.update(method.augment(Batch(shown, mask.index_select(0, rows)), rng))


def engine(sizes: Sizes, device: str, folder: Path) -> None:
    """The engine's training against the bare loop, and how much of the time a GPU computes."""
    task = Drawn(sizes.side, sizes.steps)
    domain = prepare(task, "A", sizes.side, folder)
    slices = train.TrainingSlices(domain, np.arange(len(domain.images)))
    image, mask = domain.batch(slice(None), device)
    hparams = resolve_hparams(get_method("erm"), "drawn", {"steps": str(sizes.steps), "width": str(sizes.width)})
    hparams = dataclasses.replace(hparams, batch_size=sizes.batch)
    ratios = []
    for turn in range(4):
        ours, other = (train.build(get_method("erm"), task.info, hparams, 0, device)[0].train() for _ in range(2))
        train.configure(other)
        kept = folder / f"turn{turn}"
        kept.mkdir()
        acts = {
            "bare": lambda m=other: bare(m, image[:, :1], mask, sizes.steps, sizes.batch),  # type: ignore[misc]
            "ours": lambda m=ours, k=kept: train.fit(m, slices, 0, k, train.Watch(save_every=1e9)),  # type: ignore[misc]
        }
        seconds = {}
        for name in sorted(acts, reverse=bool(turn % 2)):
            wait(device)
            start = time.perf_counter()
            acts[name]()
            wait(device)
            seconds[name] = time.perf_counter() - start
        ratios += [seconds["ours"] / seconds["bare"]] if turn else []
    print(f"training by the engine: {statistics.median(ratios):.3f} of a bare loop's time (ERM, {sizes.side} px)")
    if device.startswith("cuda"):
        print(f"the GPU computes {busy(slices, task, hparams, device, folder):.0%} of a training's time")


def busy(slices: train.TrainingSlices, task: Task, hparams: train.Hparams, device: str, folder: Path) -> float:
    """Part of the time in which some kernel of the training runs."""
    method = train.build(get_method("erm"), task.info, hparams, 0, device)[0]
    kept = folder / "busy"
    kept.mkdir()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        start = time.perf_counter()
        train.fit(method, slices, 0, kept, train.Watch(save_every=1e9))
        wait(device)
        took = time.perf_counter() - start
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 / took


def runs_an_hour(title: str, task: Task, steps: int, cases: int, device: str, sizes: Sizes) -> None:
    """From a step and an image with the task's own settings; without starting, preparing data and measuring masks."""
    cls = get_method("erm")
    hparams = resolve_hparams(cls, task.name, {"image_size": str(task.image_size)})
    method, _ = train.build(cls, task.info, hparams, 0, device)
    train.configure(method)
    batch = images(task.image_size, hparams.batch_size, device)
    timed = medians({"step": step_of(method.train(), batch)}, sizes.repeats, device)
    timed |= medians({"images": lambda: predict(method, batch.image)}, sizes.repeats, device)
    seconds = steps * timed["step"] + cases / len(batch.image) * timed["images"]
    print(f"{title}: {3600 / seconds:,.0f} runs of ERM an hour, one at a time, {steps} steps and {cases} images each")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="tiny, to see that it works")
    given = parser.parse_args()
    sizes, device = SMALL if given.small else Sizes(), given.device
    make_deterministic(device)
    torch.manual_seed(0)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"{torch.get_num_threads()} threads"
    print(f"{device} ({name}), torch {torch.__version__}")
    networks(sizes, device)
    with tempfile.TemporaryDirectory() as folder:
        engine(sizes, device, Path(folder))
    phantom = get_task("phantom")
    cases = sum(len(phantom.case_ids(d)) for d in phantom.domains[1:])
    runs_an_hour("phantom", phantom, phantom.steps, cases, device, sizes)
    study = Drawn(sizes.side, phantom.steps)
    runs_an_hour("a study of four times 24 images", study, study.steps, 78, device, sizes)


if __name__ == "__main__":
    main()
