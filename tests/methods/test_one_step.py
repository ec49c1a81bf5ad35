"""Every method is built and makes one step: what can be seen of all of them in seconds."""

import dataclasses
import math

import pytest
import torch

from dgbench.method import Batch, resolve_hparams
from dgbench.registry import METHODS, get_method
from dgbench.running import train
from dgbench.task import TaskInfo

SIDE, SLICES = 64, 2


def discs(neighbours: int) -> Batch:
    """Bright discs on dark ground, (2, 3 (2n + 1), 64, 64), and their masks."""
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    mask = torch.stack([((y - c) ** 2 + (x - c) ** 2 < 12**2)[None].float() for c in (24, 36)])
    noise = 0.05 * torch.rand(SLICES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    image = (0.3 + 0.4 * mask + noise).clamp(0, 1)
    return Batch(image.expand(-1, 3 * (2 * neighbours + 1), -1, -1), mask)


@pytest.mark.parametrize("name", METHODS.names())
def test_one_step_has_a_finite_loss_and_gives_probabilities(name: str):
    cls = get_method(name)
    hparams = dataclasses.replace(resolve_hparams(cls, "check"), batch_size=SLICES, steps=None)
    method, _ = train.build(cls, TaskInfo("check", ("disc",), SIDE, 20), hparams, seed=0)
    train.configure(method)
    batch = discs(method.neighbours)
    shown = train.step(method.train(), batch, seed=0, t=0)
    assert math.isfinite(shown["loss"])
    method.eval()
    with torch.no_grad():
        p = method.predict_prompted(*batch) if method.uses_target_masks else method.predict(batch.image)
    assert p.shape == batch.mask.shape
    assert p.min() >= 0 and p.max() <= 1


READ_BACK = {  # what needs a number from the device in the midst of a step, and so waits for it
    "cosam": "the largest region of a mask is found on the processor",
    "med_persam": "whether a batch holds a better reference decides what comes next",
    "nnunet": "where a patch lies hangs on where the structure does",
    "sam_auto": "only masks that are not empty are asked for",
    "sam_box": "only masks that are not empty are asked for",
    "sam_point": "only masks that are not empty are asked for",
    "efdmix": "torch draws from Beta on real devices only",
    "universeg": "only slices that are not gathered yet are kept",
    "mixstyle": "torch draws from Beta on real devices only",
    "maxstyle": "torch draws from Beta on real devices only",
}


@pytest.mark.parametrize("name", [n for n in METHODS.names() if n not in READ_BACK])
def test_a_step_reads_nothing_back_so_that_none_waits_for_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch):
    """On the meta device, which has shapes and no numbers, whatever reads one fails: `.item()`, `if`, `.cpu()`."""
    real = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": real("cpu"))  # there is none for meta
    cls = get_method(name)
    hparams = dataclasses.replace(resolve_hparams(cls, "check"), batch_size=SLICES, steps=None)
    method, _ = train.build(cls, TaskInfo("check", ("disc",), SIDE, 20), hparams, seed=0, device="meta")
    train.configure(method)
    image, mask = discs(method.neighbours)
    batch = Batch(image[:, :1].to("meta").expand_as(image), mask.to("meta"))
    shown = train.step(method.train(), batch, seed=0, t=0)
    assert shown["loss"].device.type == "meta"
