"""UniverSeg's network is the public code's; what it is shown comes from the source, and nothing of it is trained."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.errors import DataError
from dgbench.method import Batch, resolve_hparams
from dgbench.methods import universeg
from dgbench.methods._universeg import Cross, UniverSegNet
from dgbench.methods.universeg import UniverSeg, stretched
from dgbench.networks import weights
from dgbench.running import train
from dgbench.task import TaskInfo

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "universeg.npz")
SIDE = 48


def value(key: str, shape: list[int]) -> Tensor:
    inputs = np.prod(shape[1:]) if len(shape) > 1 else 16
    drawn = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    return torch.from_numpy(drawn / inputs**0.5).float()


def network() -> UniverSegNet:
    net = UniverSegNet((4, 6, 8))
    net.load_state_dict({k: value(k, list(v.shape)) for k, v in net.state_dict().items()})
    return net


def given() -> tuple[Tensor, Tensor]:
    """The golden target (2, 1, 16, 24) and support (2, 5, 2, 16, 24)."""
    rng = np.random.default_rng(2026)
    target, images = (torch.from_numpy(rng.random(shape)).float() for shape in ((2, 1, 16, 24), (2, 5, 1, 16, 24)))
    return target, torch.cat((images, torch.from_numpy(rng.random((2, 5, 1, 16, 24)) > 0.5).float()), 2)


def build(structures: int = 1, **settings: str) -> UniverSeg:
    values = {"width": "4", "side": "32", "support": "3", "batch_size": "4", **settings}
    hparams = resolve_hparams(UniverSeg, "drawn", values)
    info = TaskInfo("drawn", ("disc", "cup")[:structures], SIDE, steps=20)
    method, _ = train.build(UniverSeg, info, hparams, seed=0)
    train.configure(method)
    assert isinstance(method, UniverSeg)
    return method.train()


def batch(n: int = 4, structures: int = 1, seed: int = 0) -> Batch:
    """Brighter discs of different sizes; the second structure is in the first image only."""
    rows = torch.arange(SIDE) - SIDE / 2
    near = (rows[:, None].square() + rows.square()).sqrt()
    disc = torch.stack([(near < radius).float() for radius in torch.linspace(8, 20, n)])
    mask = torch.stack((disc, torch.zeros_like(disc)), 1)
    mask[0, 1] = disc[0]
    noise = torch.rand(n, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    image = 0.2 + 0.5 * disc[:, None] + 0.1 * noise
    return Batch(image.expand(-1, 3, -1, -1), mask[:, :structures])


# --- the network ------------------------------------------------------------------------------------------------------


def test_it_computes_what_the_public_code_computes_gradients_included():
    net = network()
    logits = net(*given())
    torch.testing.assert_close(logits, torch.from_numpy(GOLDEN["logits"]), atol=1e-5, rtol=1e-5)
    (logits * torch.from_numpy(np.random.default_rng(7).standard_normal(logits.shape)).float()).mean().backward()
    norms = {n: 0.0 if p.grad is None else p.grad.norm().item() for n, p in net.named_parameters()}
    expected = zip(GOLDEN["grad_names"].tolist(), GOLDEN["grad_norms"].tolist(), strict=True)
    assert norms == {n: pytest.approx(norm, rel=1e-3, abs=1e-8) for n, norm in expected}


def test_its_parameters_have_the_names_and_shapes_of_the_release():
    shapes = {n: json.loads(s) for n, s in zip(GOLDEN["release_names"].tolist(), GOLDEN["release_shapes"], strict=True)}
    state = UniverSegNet().state_dict()
    assert {n: list(v.shape) for n, v in state.items()} == shapes
    assert sum(v.numel() for v in state.values()) == 1_182_785


def test_a_crossed_convolution_by_hand():
    """Kernels that are 1 in the middle: z_s = 2 target + 3 image_s + 5 mask_s + 1."""
    cross = Cross(1, 2, 1)
    with torch.no_grad():
        cross.cross_conv.weight.zero_()[0, :, 1, 1] = torch.tensor([2.0, 3.0, 5.0])
        cross.cross_conv.bias.fill_(1)
    target = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    support = torch.tensor([[[[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]], [[[0.0, 0.0], [0.0, 1.0]]] * 2]])
    expected = [[[3.0, 4.0], [6.0, 1.0]], [[3.0, 1.0], [1.0, 9.0]]]
    assert cross(target, support)[0, :, 0].tolist() == expected


def test_the_order_of_the_support_does_not_matter_and_its_masks_do():
    net, (target, support) = network().eval(), given()
    with torch.no_grad():
        logits = net(target, support)
        torch.testing.assert_close(net(target, support[:, [3, 1, 4, 0, 2]]), logits, atol=1e-5, rtol=1e-5)
        inverted = torch.stack((support[:, :, 0], 1 - support[:, :, 1]), 2)
        assert not torch.allclose(net(target, inverted), logits, atol=1e-2)


def test_a_support_that_repeats_one_slice_is_that_slice():
    net, (target, support) = network().eval(), given()
    with torch.no_grad():
        one = net(target, support[:, :1])
        torch.testing.assert_close(net(target, support[:, :1].expand(-1, 4, -1, -1, -1)), one, atol=1e-5, rtol=1e-5)


# --- what it is shown -------------------------------------------------------------------------------------------------


def test_an_image_is_stretched_by_its_own_least_and_largest_value():
    image = torch.tensor([[[[2.0, 4.0], [3.0, 6.0]]], [[[7.0, 7.0], [7.0, 7.0]]]])
    assert stretched(image).tolist() == [[[[0.0, 0.5], [0.25, 1.0]]], [[[0.0, 0.0], [0.0, 0.0]]]]


def test_the_support_is_the_first_slices_that_show_the_structure_none_twice():
    method, drawn = build(structures=2), batch(structures=2)
    method.gather(Batch(drawn.image[2:3], drawn.mask[2:3]))
    method.gather(Batch(drawn.image[2:], drawn.mask[2:]))
    method.gather(drawn)
    assert method.gathered.tolist() == [3, 1]
    small = method.small(drawn.image)[:, 0]
    assert torch.equal(method.images[0], small[[2, 3, 0]]) and torch.equal(method.images[1, 0], small[0])
    assert torch.equal(method.masks[0], method.small_mask(drawn.mask)[[2, 3, 0], 0] > 0)
    method.gather(batch(structures=2, seed=1))
    assert method.gathered.tolist() == [3, 2], "there is no more room for the first structure"


def test_the_prediction_is_the_networks_answer_to_the_gathered_slices():
    method, drawn = build(), batch()
    method.eval()
    with torch.no_grad():
        assert method.predict(drawn.image).abs().max() == 0, "nothing was shown yet"
        method.gather(drawn)
        support = torch.stack((method.small(drawn.image)[:3, 0], method.small_mask(drawn.mask)[:3, 0]), 1)
        logits = method.net(method.small(drawn.image), support.expand(4, -1, -1, -1, -1))
        expected = F.interpolate(logits.sigmoid(), (SIDE, SIDE), mode="bilinear")
        torch.testing.assert_close(method.predict(drawn.image), expected, atol=1e-5, rtol=0)


def test_several_supports_give_the_mean_of_their_probabilities():
    method, drawn = build(support="2", supports="2"), batch()
    method.eval()
    method.gather(drawn)
    single = []
    for part in ([0, 1], [2, 3]):
        one = build(support="2")
        one.net.load_state_dict(method.net.state_dict())
        one.gather(Batch(drawn.image[part], drawn.mask[part]))
        single.append(one.eval().predict(drawn.image))
    torch.testing.assert_close(method.predict(drawn.image), (single[0] + single[1]) / 2)


def test_from_scratch_it_learns_to_read_the_other_slices_of_a_batch():
    method, losses = build(augmentation="none", learning_rate="1e-2"), []
    for t in range(15):
        losses.append(float(train.step(method, batch(), seed=0, t=t)["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    alone = method.loss(Batch(*(x[:1] for x in batch())))
    assert torch.isfinite(alone), "one image is its own support"


def test_the_loss_asks_for_each_structure_of_an_image_by_the_other_images_alone():
    method, drawn = build(structures=2), batch(3, structures=2)
    images, masks = method.small(drawn.image), method.small_mask(drawn.mask)
    answers = []
    for k in range(2):
        pairs = torch.stack((images[:, 0], masks[:, k]), 1)
        others = (pairs[[j for j in range(3) if j != i]] for i in range(3))
        answers.append(torch.cat([method.net(images[i : i + 1], other[None]) for i, other in enumerate(others)]))
    torch.testing.assert_close(method.loss(drawn), method.criterion(torch.cat(answers, 1), masks))


def test_the_support_is_gathered_before_augmentation_and_training_sees_the_augmented(monkeypatch):
    method, drawn = build(), batch()
    mirrored = Batch(drawn.image.flip(3) ** 2, drawn.mask.flip(3))
    monkeypatch.setattr(universeg, "augment", lambda given, rng: mirrored if given is drawn else None)
    expected = method.loss(mirrored).item()
    assert method.update(drawn)["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(method.images[0], method.small(drawn.image)[:3, 0])


# --- its weights ------------------------------------------------------------------------------------------------------


@pytest.fixture
def released(tmp_path, monkeypatch) -> Path:
    """A file of exactly the release's names and shapes, drawn at random."""
    shapes = zip(GOLDEN["release_names"].tolist(), GOLDEN["release_shapes"], strict=True)
    state = {name: value(name, json.loads(shape)) for name, shape in shapes}
    monkeypatch.setenv("DGBENCH_WEIGHTS", str(tmp_path))
    torch.save(state, path := tmp_path / weights.WEIGHTS["universeg_v1"].file)
    return path


def test_the_released_weights_are_loaded_strictly_and_nothing_is_trained(released):
    method = build(initialisation="released", width="64", side="16")
    assert method.load_pretrained() == {released.name: weights.checksum(released)}
    assert not any(p.requires_grad for p in method.parameters()) and method.foreground_share == 1
    before = {n: p.clone() for n, p in method.net.state_dict().items()}
    shown = [float(train.step(method, batch(2, seed=t), seed=0, t=t)["loss"]) for t in range(3)]
    assert shown == pytest.approx([1 / 3, 0, 0], abs=1e-6), "what share of the support is missing"
    assert all(torch.equal(p, before[n]) for n, p in method.net.state_dict().items())
    with pytest.raises(DataError, match="of another shape"):
        build(initialisation="released")


def test_where_its_weights_are_missing_it_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("DGBENCH_WEIGHTS", str(tmp_path))
    with pytest.raises(DataError, match=r"universeg_v1_nf64_ss64_STA.pt are missing") as told:
        UniverSeg.find_pretrained(resolve_hparams(UniverSeg, "prostate"))
    assert "github.com/JJGO/UniverSeg/releases" in told.value.remedy
