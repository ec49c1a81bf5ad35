"""Dual-Norm trains two sets of batch norms, and each test image chooses one of them by itself."""

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dgbench.errors import UsageError
from dgbench.method import Batch
from dgbench.methods.dual_norm import DISSIMILAR, SIMILAR, DualNorm, DualNormalization, new_style
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import UNet
from dgbench.running import train
from dgbench.task import TaskInfo

STRAIGHT = torch.tensor([[[1.0, 1.0], [2.0, 2.0]]]) / 3  # inner points on the line from corner to corner


def start(**values) -> DualNormalization:
    info = TaskInfo("drawn", ("disc",), 32, steps=40)
    method, _ = train.build(DualNormalization, info, ERMHparams(**{"width": 4} | values), seed=0)
    train.configure(method)
    assert isinstance(method, DualNormalization)
    return method.train()


def batch(n: int = 8, seed: int = 0) -> Batch:
    """Bright discs on a dark, noisy ground with a black margin, gray as the engine gives it."""
    rng = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    centre = 12 + 8 * torch.rand(n, 2, 1, 1, generator=rng)
    mask = ((y - centre[:, 0]).hypot(x - centre[:, 1]) < 6).float()[:, None]
    image = 0.25 + 0.4 * mask + 0.05 * torch.rand(n, 1, 32, 32, generator=rng)
    image[..., :3] = 0
    return Batch(image.expand(-1, 3, -1, -1), mask)


def inverted(image: Tensor) -> Tensor:
    return new_style(image, STRAIGHT.expand(len(image), -1, -1), inverted=True)


def test_a_straight_curve_keeps_an_image_and_its_inverse_swaps_bright_and_dark_but_not_the_background():
    x = torch.tensor([0.1, 0.2, 0.4, 0.5]).view(1, 1, 2, 2)
    torch.testing.assert_close(new_style(x, STRAIGHT, inverted=False), x)
    torch.testing.assert_close(inverted(x).flatten(), torch.tensor([0.1, 0.4, 0.2, 0.1]))  # its range is 0.1 to 0.5


def test_a_curve_keeps_or_reverses_the_order_of_brightness_within_the_images_own_range():
    torch.manual_seed(0)
    x = torch.rand(4, 1, 8, 8).sort(-1).values * 0.3 + 0.1  # a dark image: rescaled, or its curve would be cut off
    for reverse in (False, True):
        y = new_style(x, torch.rand(4, 2, 2), reverse)
        seen = y.masked_fill(x == x.amin((1, 2, 3), keepdim=True), torch.nan)
        steps = seen.diff(dim=-1)
        assert not ((steps > 1e-6) if reverse else (steps < -1e-6)).any()
        assert y.amin() >= 0.1 - 1e-6 and y.amax() <= 0.4 + 1e-6


def test_the_inverse_equals_the_public_one():
    """zzzqzhou/Dual-Normalization, preprocess_func.py, norm and nonlinear_transformation, on the two images below; its
    control points lie on the corners, and its range is -1 to 1."""
    i = torch.arange(84, dtype=torch.float64)
    image = ((0.37 * i).sin() * 0.3 + 0.4).view(2, 1, 6, 7).float()
    y = new_style(image, torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]).expand(2, 2, 2), inverted=True)
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    y = (y - low) / (high - low) * 2 - 1
    public = [0.0009, -0.36212, -0.67601, -0.89828, -0.99885, -0.96411, -0.79876]
    assert y[0, 0, 0].tolist() == pytest.approx(public, abs=2e-5)
    public = [0.97451, 0.99922, 0.88897, 0.65869, 0.33954, -0.02528, -0.38639]
    assert y[1, 0, 3].tolist() == pytest.approx(public, abs=2e-5)


def test_the_distance_equals_the_public_one():
    """zzzqzhou/Dual-Normalization, test_dn_unet.py, cal_distance, for two norms and the features below."""
    total = 0.0
    for k, channels in enumerate((3, 5)):
        norm = DualNorm(nn.BatchNorm2d(channels)).eval()
        norm.norms[0].running_mean.copy_(torch.arange(channels).cos())
        norm.norms[0].running_var.copy_(1 + 0.3 * torch.arange(channels))
        norm((0.37 * torch.arange(channels * 20.0)).sin().view(1, channels, 4, 5) * (k + 1) + k)
        total += norm.distance.item()
    assert total == pytest.approx(6.689836, abs=1e-4)


def test_each_path_moves_its_own_statistics_and_trains_its_own_gain():
    norm = DualNorm(nn.BatchNorm2d(2))
    norm.path = DISSIMILAR
    norm(torch.rand(2, 2, 3, 3)).square().sum().backward()
    similar, dissimilar = norm.norms
    assert torch.equal(similar.running_mean, torch.zeros(2)) and dissimilar.running_mean.all()
    assert similar.weight.grad is None and dissimilar.weight.grad is not None


def test_the_loss_is_the_mean_over_both_paths():
    method, shown = start(augmentation="none"), batch()
    torch.manual_seed(1)
    loss = method.loss(shown)
    torch.manual_seed(1)
    inner = torch.rand(2, 8, 2, 2)
    parts = []
    for path in (SIMILAR, DISSIMILAR):
        method.follow(path)
        image = new_style(shown.image, inner[path], path == DISSIMILAR)
        parts.append(method.criterion(method.logits(image), shown.mask))
    torch.testing.assert_close(loss, sum(parts) / 2)


def test_trained_it_sends_images_like_the_source_one_way_and_inverted_ones_the_other():
    method = start(augmentation="none")
    for t in range(40):
        train.step(method, batch(seed=t), seed=0, t=t)
    method.eval()
    with torch.no_grad():
        image = batch(seed=99).image
        _, near = method.both(image)
        _, far = method.both(inverted(image))
    assert (near[SIMILAR] < near[DISSIMILAR]).all()
    assert (far[SIMILAR] > far[DISSIMILAR]).all()


def test_an_image_chooses_by_itself_and_in_mixed_company():
    method = start()
    for t in range(4):
        train.step(method, batch(seed=t), seed=0, t=t)
    method.eval()
    with torch.no_grad():
        image = torch.cat([batch(2).image, inverted(batch(2).image)])
        together = method.predict(image)
        logits, distances = method.both(image)
        chosen = distances.argmin(0)
        for i in range(4):
            torch.testing.assert_close(together[i], logits[chosen[i], i].sigmoid())
            torch.testing.assert_close(method.predict(image[i : i + 1])[0], together[i], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["unet", "resnet18", "efficientnet_lite0"])
def test_all_of_a_networks_norms_are_doubled_and_nothing_else(encoder):
    method, erm = start(encoder=encoder), ERM(TaskInfo("drawn", ("disc",), 32, 1), ERMHparams(encoder=encoder, width=4))
    doubled = [m for m in method.modules() if isinstance(m, DualNorm)]
    norms = [m for m in erm.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(doubled) == len(norms)
    more = sum(p.numel() for p in method.parameters()) - sum(p.numel() for p in erm.parameters())
    assert more == sum(2 * m.num_features for m in norms)
    train.step(method, batch(2), seed=0, t=0)
    assert method.eval().predict(batch(1).image).isfinite().all()


def test_both_sets_start_from_loaded_weights(tmp_path):
    net = UNet(1, width=4)
    for i, norm in enumerate(m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.constant_(norm.weight, 1 + i)
    save_file(net.state_dict(), tmp_path / "given.safetensors")
    method, plain = start(initialisation=str(tmp_path / "given.safetensors")), net.state_dict()
    for name, value in method.net.state_dict().items():
        assert torch.equal(value, plain[name.replace("norms.0.", "").replace("norms.1.", "")]), name


def test_a_network_without_batch_norm_is_refused():
    with pytest.raises(UsageError, match="no batch norm"):
        start(norm="instance")
