"""Counts of FLOPs are those that one derives by hand, whatever the way of counting, and leave a run alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.errors import UsageError
from dgbench.images.find_task import get_task
from dgbench.method import Batch, Hparams, Method
from dgbench.networks.embeddings import EmbeddingCache
from dgbench.protocol import PROTOCOLS, budgeted
from dgbench.registry import budget_method, get_method
from dgbench.running import flops
from dgbench.running.plan import Run, plan
from dgbench.task import TaskInfo
from tests.discs import write_discs

N, SIDE, INFO = 2, 8, TaskInfo("drawn", ("disc", "cup"), 8, 10)
PIXELS = N * SIDE * SIDE


@pytest.fixture(autouse=True)
def _nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path))


@pytest.fixture(params=["computed", "shapes"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Arithmetic, or shapes alone."""
    monkeypatch.setattr(flops, "QUICK", 2**30 if request.param == "computed" else 0)
    return request.param


class Convolutions(Method):
    """3 -> 4 -> 2 channels, 3 x 3 pixels at a time."""

    hparams: Hparams

    def __init__(self, task: TaskInfo, hparams: Hparams):
        super().__init__(task, hparams)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

    def logits(self, image: Tensor) -> Tensor:
        return self.second(self.first(image).relu())


class Attention(Method):
    """Pixels attend to each other in two heads of four channels."""

    hparams: Hparams

    def __init__(self, task: TaskInfo, hparams: Hparams):
        super().__init__(task, hparams)
        self.qkv, self.out = nn.Linear(3, 24), nn.Linear(8, 2)

    def logits(self, image: Tensor) -> Tensor:
        n, _, h, w = image.shape
        q, k, v = self.qkv(image.flatten(2).mT).view(n, h * w, 3, 2, 4).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mT.view(n, 2, h, w)


def step(cls: type[Method], **settings: object) -> int:
    return flops.train_step(cls, INFO, Hparams(batch_size=N, **settings))  # type: ignore[arg-type]


def image(cls: type[Method]) -> int:
    return flops.predict_image(cls, INFO, Hparams(batch_size=N))


FIRST, SECOND = 2 * PIXELS * 4 * 3 * 9, 2 * PIXELS * 2 * 4 * 9  # a multiplication and an addition are two


def test_a_step_costs_three_forward_passes_but_for_the_images_own_gradient(way: str):
    """Forward, gradient of the weights, gradient of the input, which nobody asks for at the first layer."""
    assert step(Convolutions) == 2 * FIRST + 3 * SECOND
    assert image(Convolutions) == (FIRST + SECOND) // N


def test_attention_counts_as_its_two_products_whatever_kernel_computes_it(way: str):
    qkv, out = 2 * PIXELS * 3 * 24, 2 * PIXELS * 8 * 2
    products = 2 * (2 * N * 2 * (SIDE * SIDE) ** 2 * 4)  # two heads of four channels: q k, and what it weighs of v
    assert step(Attention) == 2 * qkv + 3 * (products + out)
    assert image(Attention) == (qkv + products + out) // N


class Sometimes(Convolutions):
    """Every second step, on average, has a second pass."""

    def loss(self, batch: Batch) -> Tensor:
        loss = super().loss(batch)
        return loss + super().loss(batch) if torch.rand(()) < 0.5 else loss


def test_where_a_step_draws_what_it_computes_the_mean_counts(way: str):
    once = 2 * FIRST + 3 * SECOND
    drawn = step(Sometimes) / once - 1
    assert 0 < drawn < 1 and drawn * flops.STEPS == pytest.approx(round(drawn * flops.STEPS), abs=1e-3)
    assert step(Sometimes) == step(Sometimes, learning_rate=0.5), "the same draws in every count"


class Frozen(Convolutions):
    """The first convolution is frozen, and what it gives for an image is kept on disk."""

    def load_pretrained(self) -> dict[str, str]:
        self.first.requires_grad_(False)
        self.kept = EmbeddingCache("test")
        return {}

    def logits(self, image: Tensor) -> Tensor:
        return self.second(self.kept(image, self.first))


def test_a_kept_embedding_costs_nothing_in_a_step_and_all_in_a_prediction(way: str, tmp_path: Path):
    assert step(Frozen) == 2 * SECOND
    assert image(Frozen) == (FIRST + SECOND) // N
    assert not (tmp_path / "embeddings").exists()


class Reading(Convolutions):
    """Looks at its logits before it goes on, which shapes alone cannot tell."""

    def logits(self, image: Tensor) -> Tensor:
        logits = super().logits(image)
        return logits if logits.isfinite().all() else logits * 0


def test_a_method_that_reads_values_is_counted_all_the_same(way: str):
    assert step(Reading) == step(Convolutions) and image(Reading) == image(Convolutions)


def test_counting_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    step(Sometimes)
    image(Sometimes)
    assert torch.equal(torch.get_rng_state(), before)


class Broken(Convolutions):
    def loss(self, batch: Batch) -> Tensor:
        raise ValueError("only real images will do")


def test_a_method_that_cannot_be_counted_has_no_count_and_given_weights_cost_no_training():
    assert flops.costs(Broken, INFO, Hparams(batch_size=N), steps=5) == {}
    one = FIRST // N + SECOND // N
    whole = {"train_step_flops": 2 * FIRST + 3 * SECOND, "predict_image_flops": one}
    whole["train_flops"] = 5 * whole["train_step_flops"]
    assert flops.costs(Convolutions, INFO, Hparams(batch_size=N), steps=5) == whole
    given = {"train_step_flops": 0, "train_flops": 0, "predict_image_flops": one}
    assert flops.costs(Convolutions, INFO, Hparams(batch_size=N), steps=0) == given


@dataclass(frozen=True)
class Wide(Hparams):
    width: int = 4


class Counted(Convolutions):
    hparams: Wide
    built = 0

    def __init__(self, task: TaskInfo, hparams: Wide):
        super().__init__(task, hparams)
        type(self).built += 1
        self.first, self.second = nn.Conv2d(3, hparams.width, 3), nn.Conv2d(hparams.width, 2, 3)

    def logits(self, image: Tensor) -> Tensor:
        return F.pad(super().logits(image), [2] * 4)


def test_a_count_is_kept_and_a_damaged_one_made_again(tmp_path: Path):
    first = [flops.train_step(Counted, INFO, Wide(width=w, batch_size=N)) for w in (4, 5, 4)]
    assert first[0] == first[2] and first[1] == first[0] * 5 // 4 and Counted.built == 2
    assert flops.train_step(Counted, INFO, Wide(batch_size=N, steps=3)) == first[0] and Counted.built == 2
    for path in (tmp_path / "flops").iterdir():
        path.write_text("{")
    assert flops.train_step(Counted, INFO, Wide(batch_size=N)) == first[0] and Counted.built == 3


class Inner(Convolutions):
    """Adds a gradient of the second convolution's output by its input, a leaf of the graph."""

    def logits(self, image: Tensor) -> Tensor:
        middle = self.first(image).detach().requires_grad_()
        return self.second(middle + torch.autograd.grad(self.second(middle).sum(), middle)[0])


def test_a_step_that_takes_a_gradient_of_a_leaf_is_counted():
    """Second convolution: forward, its input's gradient, forward again, and both gradients."""
    first, second = (2 * PIXELS * 9 * channels for channels in (3 * 4, 4 * 2))
    assert flops.train_step(Inner, INFO, Hparams(batch_size=N)) == first + 5 * second


def test_plain_training_sets_the_budget():
    assert budget_method() is get_method("erm")


# --- equal compute ---------------------------------------------------------------------------------------------------


def test_equal_compute_gives_as_many_steps_as_pay_for_what_plain_training_computes(tmp_path: Path):
    """Of discs it has 12 steps with 8 images each: as many as 24 with 4; of 104 images not one could be paid."""
    discs = get_task(str(write_discs(tmp_path / "discs")))

    def planned(method: str, protocol: str = "sdg-compute", **settings: str) -> Run:
        return plan(discs, [method], sources=["dim"], protocol=protocol, settings=settings, results=tmp_path)[0]

    assert [planned("erm", batch_size=n).steps for n in ("8", "4", "104")] == [12, 24, 1]
    half = planned("erm", batch_size="4")
    cls, hparams = half.load_method()
    assert cls(discs.info, hparams).steps == 24, "schedules end with the last step"
    assert str(half) == "discs/sdg-compute/erm[batch_size=4]/dim-seed0"
    assert planned("constant").steps is None, "nothing that is counted: the task's number of steps"
    usual = planned("erm", "sdg")
    assert usual.steps is None and usual.fingerprint != planned("erm").fingerprint
    with pytest.raises(UsageError, match="the steps follow from it"):
        planned("erm", steps="5")


def test_a_budget_of_compute_is_a_protocol_of_its_own():
    assert budgeted("dapsam", "equal-compute") == budgeted("dapsam-compute", None) == "dapsam-compute"
    assert budgeted("sdg", "equal-steps") == budgeted("sdg", None) == "sdg"
    assert "may compute what plain training does" in PROTOCOLS["sdg-compute"].caption()
    with pytest.raises(UsageError, match="one of equal compute"):
        budgeted("sdg-compute", "equal-steps")
