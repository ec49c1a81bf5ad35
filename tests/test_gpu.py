"""On a GPU a method trains on the same batches as on a CPU, to nearly the same numbers. Skipped where there is none."""

import dataclasses

import pytest
import torch

from dgbench.method import Batch, resolve_hparams
from dgbench.registry import get_method
from dgbench.running import train
from dgbench.task import TaskInfo
from tests.methods.test_one_step import SIDE, SLICES, discs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def trained(name: str, device: str) -> tuple[list[float], torch.Tensor]:
    """(losses of two steps, probabilities on the CPU)."""
    cls = get_method(name)
    hparams = dataclasses.replace(resolve_hparams(cls, "check"), batch_size=SLICES, steps=None)
    method, _ = train.build(cls, TaskInfo("check", ("disc",), SIDE, 20), hparams, seed=0, device=device)
    train.configure(method)
    batch = Batch(*(part.to(device) for part in discs(method.neighbours)))
    losses = [float(train.step(method.train(), batch, seed=0, t=t)["loss"]) for t in range(2)]
    with torch.no_grad():
        return losses, method.eval().predict(batch.image).cpu()


@pytest.mark.parametrize("name", ["erm", "dapsam"])
def test_two_steps_on_a_gpu_are_those_on_a_cpu(name: str):
    (on_gpu, p), (on_cpu, q) = trained(name, "cuda"), trained(name, "cpu")
    assert on_gpu == pytest.approx(on_cpu, rel=0.02)
    assert (p - q).abs().mean() < 0.02
