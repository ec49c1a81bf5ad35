"""nnU-Net's plans, network, loss and transforms are the public package's; a third of a batch shows a structure."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.images.folder_task import FolderTask
from dgbench.images.preparation import prepare
from dgbench.method import Batch
from dgbench.methods import _nnunet_augmentation as augmentation
from dgbench.methods._nnunet import Network, Plan, by_patches, places, plan, weights
from dgbench.methods.nnunet import NNUNet, NNUNetHparams
from dgbench.running import train
from dgbench.seeding import batch_indices
from dgbench.task import TaskInfo
from tests.discs import write_discs

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "nnunet.npz")
PLAN = Plan((32, 20), ((1, 1), (2, 2), (2, 2), (2, 1)), (4, 8, 16, 32))


def drawn(key: str, shape: list[int]) -> Tensor:
    values = 0.05 * np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    one_dimensional = len(shape) == 1 and key.endswith(".weight")
    return torch.from_numpy(4 * values if len(shape) == 4 else values + one_dimensional).float()


def network() -> Network:
    """With the weights of the golden file, which come in the same order."""
    net = Network(PLAN, 2)
    shapes = [json.loads(s) for s in GOLDEN["state_shapes"]]
    assert [list(p.shape) for p in net.parameters()] == shapes
    with torch.no_grad():
        for parameter, name, shape in zip(net.parameters(), GOLDEN["state_names"], shapes, strict=True):
            parameter.copy_(drawn(str(name), shape))
    return net


def start(size: int = 32, structures: int = 1, **values) -> NNUNet:
    info = TaskInfo("drawn", ("disc", "cup")[:structures], size, steps=10)
    method, _ = train.build(NNUNet, info, NNUNetHparams(**{"width": 4} | values), seed=0)
    train.configure(method)
    assert isinstance(method, NNUNet)
    return method.train()


def batch(n: int = 4, size: int = 32) -> Batch:
    rows = torch.arange(size) - size / 2
    near = (rows[:, None].square() + rows.square()).sqrt()
    mask = torch.stack([(near < radius).float() for radius in torch.linspace(4, 12, n)])[:, None]
    image = 0.2 + 0.5 * mask + 0.1 * torch.rand(mask.shape, generator=torch.Generator().manual_seed(0))
    return Batch(image.expand(-1, 3, -1, -1), mask)


@pytest.mark.parametrize("told", GOLDEN["plans"], ids=lambda t: str(json.loads(t)[:2]))
def test_patch_depth_widths_and_parameters_are_planned_as_by_the_package(told):
    size, classes, patch, strides, features, parameters = json.loads(told)
    planned = plan(tuple(size), classes)
    assert planned == (tuple(patch), tuple(map(tuple, strides)), tuple(features))
    with torch.device("meta"):
        assert sum(p.numel() for p in Network(planned, classes - 1).parameters()) == parameters


def test_network_loss_and_gradients_are_the_packages():
    net = network()
    x = torch.from_numpy(np.random.default_rng(2026).standard_normal((2, 3, 32, 20))).float()
    levels = net(x)
    for i, level in enumerate(levels):
        torch.testing.assert_close(level, torch.from_numpy(GOLDEN[f"logits{i}"]), rtol=1e-5, atol=1e-5)
    assert weights(3) == pytest.approx(GOLDEN["weights"][:2])
    y, x = np.mgrid[:32, :20]
    discs = np.stack([(y - 16) ** 2 + (x - 9) ** 2 < r for r in (70, 20)])
    mask = torch.from_numpy(discs).float().expand(2, -1, -1, -1)
    masks = [F.interpolate(mask, level.shape[2:], mode="nearest-exact") for level in levels]
    terms = zip(weights(3), levels, masks, strict=False)
    loss = sum(w * start().criterion(f, m) for w, f, m in terms)
    assert loss.item() == pytest.approx(GOLDEN["loss"] + 1, abs=1e-5)  # the package's Dice is a gain, -Dice
    loss.backward()
    norms = [0.0 if p.grad is None else p.grad.norm().item() for p in net.parameters()]
    assert norms == pytest.approx(GOLDEN["grad_norms"].tolist(), rel=1e-4, abs=1e-6)


def test_for_one_structure_the_binary_loss_is_the_softmax_with_a_background():
    logits = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    mask = batch(2, 8).mask
    p = logits.softmax(1)[:, 1:]
    dice = (2 * (p * mask).sum() + 1e-5) / (p.sum() + mask.sum() + 1e-5)
    expected = F.cross_entropy(logits, mask[:, 0].long()) + 1 - dice
    torch.testing.assert_close(start().criterion(logits[:, 1:] - logits[:, :1], mask), expected)


def test_the_coarsest_of_several_stages_counts_nothing_and_one_alone_counts_whole():
    assert weights(4) == pytest.approx([4 / 7, 2 / 7, 1 / 7]) and weights(1) == [1]


# --- transforms, on the draws of the golden file ---------------------------------------------------------------------

IMAGE = torch.from_numpy(np.random.default_rng(7).standard_normal((1, 24, 18))).float().cumsum(1) / 3
TRANSFORMS = {
    "contrast": lambda x: augmentation.contrast(x[0], 1.2),
    "gamma": lambda x: augmentation.gamma(x[0], 1.4),
    "gamma_inverted": lambda x: -augmentation.gamma(-x[0], 0.75),
    "blur": lambda x: augmentation.blur(x[0], (0.6, 0.95)),
    "blur_least": lambda x: augmentation.blur(x[0], (0.51, 0.75)),
    "low_resolution": lambda x: augmentation.coarse(x[0], 0.63),
    "turned": lambda x: augmentation.turned(x, (4, -1), (16, 20), math.degrees(0.5), 1.2)[0],
    "turned_far": lambda x: augmentation.turned(x, (4, -1), (16, 20), math.degrees(-2.5), 0.75)[0],
    "cut": lambda x: augmentation.window(x, (4, -1), (16, 20))[0],
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_each_transform_is_the_packages(name):
    torch.testing.assert_close(TRANSFORMS[name](IMAGE), torch.from_numpy(GOLDEN[name]), rtol=1e-5, atol=2e-5)


def test_turning_by_nothing_is_cutting_out():
    turned = augmentation.turned(IMAGE, (4, -1), (16, 20), 0.0, 1.0)
    torch.testing.assert_close(turned, augmentation.window(IMAGE, (4, -1), (16, 20)), atol=1e-5, rtol=0)


def test_transforms_are_drawn_as_often_as_in_the_package(monkeypatch):
    drawn = {"blur": 0.2 * 0.5, "contrast": 0.15, "coarse": 0.25 * 0.5, "gamma": 0.1 + 0.3}
    seen = dict.fromkeys(drawn, 0)

    def count(name):
        def unchanged(x, *_):
            seen[name] += 1
            return x

        monkeypatch.setattr(augmentation, name, unchanged)

    for name in drawn:
        count(name)
    torch.manual_seed(0)
    x = torch.ones(1, 4, 4)
    times = 3000
    values = torch.stack([augmentation.recoloured(x) for _ in range(times)])
    for name, p in drawn.items():
        assert seen[name] / times == pytest.approx(p, abs=4 * (p / times) ** 0.5), name
    noisy = values.flatten(1).std(1) > 0
    assert noisy.float().mean() == pytest.approx(0.1, abs=0.022)
    assert values.flatten(1).std(1).max() < 0.2, "the deviation is drawn below 0.1"
    scaled = values[~noisy].mean((1, 2, 3)) != 1
    assert scaled.float().mean() == pytest.approx(0.15, abs=0.026)


def test_the_batch_given_to_the_loss_is_not_written_to_and_unchanged_patches_are_the_image():
    given = batch()
    image, mask = augmentation.augmented(Batch(*(t.clone() for t in given)), (32, 32), forced=0, changed=False)
    assert torch.equal(image, given.image) and torch.equal(mask, given.mask)


def test_a_forced_patch_has_a_pixel_of_the_structure_in_its_middle_where_the_image_allows():
    mask = torch.zeros(2, 64, 64)
    mask[1, 50, 40] = 1
    assert augmentation.corner(mask, (32, 32), forced=True) == (50 - 16, 40 - 16)
    mask[1] = 0
    mask[1, 3, 40] = 1
    assert augmentation.corner(mask, (32, 32), forced=True) == (0, 40 - 16)
    corners = [augmentation.corner(torch.zeros(1, 64, 64), (32, 32), forced=True) for _ in range(50)]
    assert all(0 <= r <= 32 and 0 <= c <= 32 for r, c in corners) and len(set(corners)) > 40, "nothing to aim at"
    assert augmentation.corner(torch.zeros(1, 30, 31), (32, 32), forced=False) == (-1, 0), "a small image is centred"


def test_the_last_patches_of_a_batch_are_the_forced_ones():
    """Each image shows one pixel of the structure in its corner, which a quarter of it need not."""
    image, mask = torch.zeros(2, 1, 64, 64), torch.zeros(2, 1, 64, 64)
    mask[..., 60, 60] = 1
    torch.manual_seed(0)
    patches = [augmentation.augmented(Batch(image, mask), (32, 32), forced=1, changed=False) for _ in range(10)]
    first, last = torch.stack([p.mask.sum((1, 2, 3)) for p in patches]).T
    assert last.eq(1).all() and first.eq(0).any()


def test_a_mask_goes_where_its_image_goes(monkeypatch):
    monkeypatch.setattr(augmentation, "recoloured", lambda image: image)
    monkeypatch.setattr(augmentation, "chance", lambda p: bool(torch.rand(()) < 0.5))  # most are turned, too
    given = torch.zeros(8, 1, 32, 32)
    given[:, :, 3:12, 5:25] = 1
    torch.manual_seed(0)
    image, mask = augmentation.augmented(Batch(given, given), (32, 32), forced=0)
    assert torch.equal((image >= 0.5).float(), mask) and len({m.numpy().tobytes() for m in mask}) > 6


# --- the batch --------------------------------------------------------------------------------------------------------


def test_a_third_of_each_batch_is_drawn_among_slices_that_hold_a_structure(tmp_path):
    task = FolderTask(write_discs(tmp_path, steps=4))
    domain = prepare(task, "bright", task.image_size, tmp_path / "cache")
    for case in domain.cases.values():  # nothing is there after the fourth slice
        object.__setattr__(case, "foreground", tuple(i < 4 for i in case.slices))
    every = domain.slice_indices(list(domain.cases), foreground=False)
    plain, slices, drawn = train.TrainingSlices(domain, every), train.TrainingSlices(domain, every, 0.33), []
    for step in range(5):
        chosen = slices.positions(3, step, 8)
        assert np.array_equal(chosen[:5], batch_indices(3, step, 8, len(every))[:5])
        drawn += list(every[chosen[5:]])
        assert np.array_equal(chosen, train.TrainingSlices(domain, every, 0.33).positions(3, step, 8))
        assert np.array_equal(plain.positions(3, step, 8), batch_indices(3, step, 8, len(every)))
    assert sorted(drawn[:4]) == sorted(drawn[4:8]) == [0, 1, 2, 3], "shuffled passes of their own"
    none = train.TrainingSlices(domain, every[4:], 0.33)
    assert np.array_equal(none.positions(3, 0, 8), batch_indices(3, 0, 8, len(none.indices))), "there is none to draw"


def test_the_method_asks_for_the_share_that_is_set():
    assert NNUNet.foreground_share == 0 and start().foreground_share == 0.33
    assert start(foreground=0.5).foreground_share == 0.5


# --- training and predicting -----------------------------------------------------------------------------------------


def test_the_gradient_is_clipped_to_norm_12():
    method = start(weight_decay=0.0, momentum=0.0)
    method.criterion = lambda logits, mask: 1e6 * logits.square().mean()  # type: ignore[method-assign]
    before = nn.utils.parameters_to_vector(method.parameters()).clone()
    train.step(method, batch(), seed=0, t=0)
    moved = nn.utils.parameters_to_vector(method.parameters()) - before
    assert moved.norm().item() == pytest.approx(12 * 1e-2, rel=1e-3)


def test_two_steps_are_nesterovs_with_momentum_and_decay():
    method, rate = start(momentum=0.8, weight_decay=0.1), 1e-2
    head, velocity = method.net.heads[-1].weight, 0.0
    for _ in range(2):
        before = head.detach().clone()
        method.update(batch())
        g = head.grad + 0.1 * before
        velocity = 0.8 * velocity + g
        torch.testing.assert_close(head, before - rate * (g + 0.8 * velocity), atol=1e-7, rtol=1e-4)


def test_the_mean_of_mirrored_images_is_that_of_their_logits():
    """A network whose logits rise from the left to the right, whatever it sees: from both sides they are level."""
    method = start().eval()
    method.logits = lambda image: torch.arange(32.0).expand(len(image), 1, 32, 32)  # type: ignore[method-assign]
    torch.testing.assert_close(method.predict(batch().image), torch.full((4, 1, 32, 32), 15.5).sigmoid())


def test_a_mirrored_image_is_predicted_mirrored():
    method, image = start().eval(), batch().image
    with torch.no_grad():
        p, single = method.predict(image), start(mirrored_tests=False).eval().predict(image)
        for axes in ((-1,), (-2,), (-2, -1)):
            torch.testing.assert_close(method.predict(image.flip(axes)).flip(axes), p)
    assert not torch.allclose(single, p)


def test_places_of_patches_and_their_weight_are_the_packages():
    for told in GOLDEN["steps"]:
        image, patch, begin = json.loads(told)
        assert places(image, patch) == begin
    bell = torch.exp(-32 * ((torch.arange(16) - 8) / 16) ** 2)
    torch.testing.assert_close(bell[:, None] * bell, torch.from_numpy(GOLDEN["bell"]), atol=2e-3, rtol=0)


@pytest.mark.parametrize("size, patch", [((40, 33), (16, 16)), ((24, 30), (32, 32)), ((16, 16), (16, 16))])
def test_where_the_network_looks_at_single_pixels_patches_do_not_matter(size, patch):
    head = nn.Conv2d(3, 2, 1)
    image = torch.rand(2, 3, *size)
    torch.testing.assert_close(by_patches(lambda x: [head(x)], image, patch), head(image))  # type: ignore[arg-type]


def test_an_image_that_is_no_multiple_of_the_depth_trains_and_predicts():
    method = start(size=44)
    assert method.plan.patch == (48, 48)
    assert torch.isfinite(train.step(method, batch(2, 44), seed=0, t=0)["loss"])
    assert method.eval().predict(batch(2, 44).image).shape == (2, 1, 44, 44)


def test_each_part_of_the_recipe_can_be_left_out():
    losses = {}
    for name, values in {
        "whole": {},
        "plain": {"augmentation": "none", "foreground": 0.0},
        "no deep supervision": {"augmentation": "none", "foreground": 0.0, "deep_supervision": False},
        "erm's augmentation": {"augmentation": "base", "foreground": 0.0},
    }.items():
        losses[name] = float(train.step(start(**values), batch(), seed=0, t=0)["loss"])
    assert len(set(losses.values())) == 4
    method = start(augmentation="none", foreground=0.0, deep_supervision=False)
    expected = method.criterion(method.logits(batch().image), batch().mask)
    assert losses["no deep supervision"] == pytest.approx(expected.item(), abs=1e-6)
