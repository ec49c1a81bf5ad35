"""MaxStyle rebuilds images in the hardest style that it finds, and trains on these as well."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from dgbench.method import Batch
from dgbench.methods._batchnorm import untracked
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.methods.maxstyle import Composition, ImageDecoder, MaxStyle, MaxStyleHparams
from dgbench.networks.unet import normalise
from dgbench.running import train
from dgbench.task import TaskInfo

INFO = TaskInfo("drawn", ("disc",), 32, steps=40)
UNSTYLED = [lambda x: x] * 3


def feature() -> Tensor:
    i = torch.arange(360, dtype=torch.float64).view(3, 4, 5, 6)
    x = torch.sin(0.37 * i) + 0.1 * torch.cos(0.011 * i**1.5)
    channel, image = torch.arange(4).view(1, 4, 1, 1), torch.arange(3).view(3, 1, 1, 1)
    return (x * (1 + channel) + 0.5 * image).float()


def scalars(x: Tensor) -> list[float]:
    """Means of the images, deviations of channel 1, three values, the norm."""
    few = torch.stack([x[0, 0, 0, 0], x[1, 2, 3, 4], x[2, 3, 4, 5], x.norm()])
    return torch.cat([x.mean((1, 2, 3)), x.std((2, 3))[:, 1], few]).tolist()


def layer(share: list[float], noise: Tensor | float) -> Composition:
    """Of `feature()`, with partners 2, 0, 1."""
    made = Composition(3, 4, 0.1, torch.device("cpu"))
    made.partner = torch.tensor([2, 0, 1])
    noises = torch.as_tensor(noise).expand(2, 3, 4, 1, 1)
    values = [torch.tensor(share).view(3, 1, 1, 1), noises[0], noises[1]]
    made.parameters = [v.clone().requires_grad_() for v in values]
    return made


def batch(n: int = 4, gray: bool = True) -> Batch:
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    mask = torch.stack([((y - 12 - 2 * i).hypot(x - 16) < 8).float() for i in range(n)])[:, None]
    level = torch.linspace(0.1, 0.5, n).view(-1, 1, 1, 1)
    image = (level + 0.3 * mask + 0.02 * torch.sin(x * y)).expand(-1, 3, -1, -1)
    return Batch(image if gray else image * torch.tensor([1.0, 0.8, 0.5]).view(3, 1, 1), mask)


def start(**values) -> MaxStyle:
    method, _ = train.build(MaxStyle, INFO, MaxStyleHparams(**{"width": 4} | values), seed=0)
    train.configure(method)
    assert isinstance(method, MaxStyle)
    return method.train()


def trained(steps: int = 15, **values) -> MaxStyle:
    method = start(**values)
    for t in range(steps):
        train.step(method, batch(), seed=0, t=t)
    return method


def searched(method: MaxStyle, shown: Batch, **values) -> tuple[Tensor, float]:
    """The rebuilt image with these settings, by a seed, and the segmentation loss on it."""
    clean = shown.image[:, :1] if shown.image.stride(1) == 0 else shown.image
    method.hparams = dataclasses.replace(method.hparams, **values)
    torch.manual_seed(1)
    with untracked(method):
        features = method.net.encode(normalise(shown.image, "zscore"))
        image = method.hardest(features, clean, shown)
        return image, method.criterion(method.logits(image.expand_as(shown.image)), shown.mask).item()


NOISE = torch.cos(torch.arange(24.0) * 0.7).view(2, 3, 4, 1, 1)


def test_the_own_style_without_noise_changes_nothing():
    torch.testing.assert_close(layer([0.0, 0.0, 0.0], 0.0)(feature()), feature(), atol=1e-5, rtol=0)


def test_a_composition_equals_its_public_code_before_and_after_five_steps_of_its_search():
    """cherise215/MaxStyle, src/advanced/maxstyle.py, on `feature()` with these shares, partners and noise; then five
    steps of Adam (0.1) up the mean square of tanh(output) minus the cosine."""
    composed = layer([0.3, 0.9, 0.02], NOISE)
    public = [0.430338, -0.317987, 1.305671, 1.413818, 1.470907, 1.412691, 0.767247, -1.843186, 4.469931, 40.154747]
    assert scalars(composed(feature())) == pytest.approx(public, abs=3e-5)
    target = torch.cos(0.11 * torch.arange(360.0)).view(3, 4, 5, 6)
    optimizer = torch.optim.Adam(composed.parameters, lr=0.1, maximize=True)
    losses = []
    for _ in range(5):
        losses.append((composed(feature()).tanh() - target).square().mean())
        for p, g in zip(composed.parameters, torch.autograd.grad(losses[-1], composed.parameters), strict=True):
            p.grad = g
        optimizer.step()
    assert [v.item() for v in losses] == pytest.approx([1.214124, 1.231518, 1.248857, 1.266511, 1.284317], abs=1e-5)
    public = [0.833237, -0.080058, 1.312712, 1.420339, 1.454979, 1.430214, 1.394627, -1.294375, 4.274291, 41.313438]
    assert scalars(composed(feature())) == pytest.approx(public, abs=3e-5)
    assert composed.parameters[0].flatten().tolist() == pytest.approx([0.801831, 0.398066, -0.27709], abs=1e-5)


def test_a_share_outside_of_its_range_counts_as_its_end():
    torch.testing.assert_close(layer([-3.0, 0.0, 2.0], 0.0)(feature()), layer([0.0, 0.0, 1.0], 0.0)(feature()))


def test_a_partner_order_that_pairs_every_image_with_itself_is_never_used():
    for seed in range(20):
        torch.manual_seed(seed)
        assert Composition(2, 4, 0.1, torch.device("cpu")).partner.tolist() == [1, 0]


def test_the_image_decoder_rebuilds_from_the_deepest_map_alone():
    torch.manual_seed(0)
    decoder = ImageDecoder((4, 8, 16))
    features = [torch.rand(2, c, s, s) for c, s in ((4, 16), (8, 8), (16, 4))]
    image = decoder.finish(decoder.begin(features), features, torch.zeros(2, 3, 31, 32), UNSTYLED)
    assert image.shape == (2, 3, 31, 32) and image.min() >= 0 and image.max() <= 1
    others = [torch.zeros_like(features[0]), torch.zeros_like(features[1]), features[2]]
    assert torch.equal(decoder.finish(decoder.begin(others), others, image, UNSTYLED), image)


def test_what_is_seen_is_segmented_and_rebuilt_as_the_clean_image():
    method, shown = start(norm="instance"), batch()
    clean = shown.image[:, :1]
    total, features = method.both(clean**2, clean, shown)
    rebuilt = method.image_decoder.finish(method.image_decoder.begin(features), features, clean, UNSTYLED)
    segmentation = method.criterion(method.logits((clean**2).expand_as(shown.image)), shown.mask)
    torch.testing.assert_close(total, segmentation + (rebuilt - clean).square().mean() / 2)


def test_the_loss_is_that_of_the_noisy_and_of_the_rebuilt_image():
    method, shown, seen, losses = start(noise=0.02), batch(), [], []
    both = method.both

    def noted(image: Tensor, clean: Tensor, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        loss, features = both(image, clean, batch)
        seen.append(image)
        losses.append(loss)
        return loss, features

    method.both = noted  # type: ignore[method-assign]
    torch.testing.assert_close(method.loss(shown), losses[0] + losses[1])
    assert (seen[0] - shown.image[:, :1]).std().item() == pytest.approx(0.02, rel=0.05)
    assert (seen[1].amin((1, 2, 3)) == 0).all() and (seen[1].amax((1, 2, 3)) == 1).all(), "rebuilt and stretched"


def test_training_teaches_the_decoder_to_rebuild():
    shown = batch()
    clean = shown.image[:, :1]
    far, near = ((searched(method, shown, p_layer=0.0)[0] - clean).square().mean() for method in (start(), trained(25)))
    assert near < 0.8 * far


def test_the_search_raises_the_loss():
    method = trained()
    losses = [searched(method, batch(), p_layer=1.0, style_steps=steps)[1] for steps in (0, 2, 5)]
    assert losses[0] < losses[1] < losses[2]


def test_the_search_moves_no_weight_no_statistic_and_leaves_no_gradient():
    method, shown = start(p_layer=1.0), batch()
    features = method.net.encode(normalise(shown.image, "zscore"))
    before = {n: t.clone() for n, t in method.state_dict().items()}
    with untracked(method):
        rebuilt = method.hardest(features, shown.image[:, :1], shown)
    assert not rebuilt.requires_grad
    assert all(torch.equal(t, before[n]) for n, t in method.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in method.parameters())


def test_only_the_pass_over_the_image_itself_moves_the_running_statistics_of_the_encoder():
    method, erm = start(noise=0.0), train.build(ERM, INFO, ERMHparams(width=4), seed=0)[0].train()
    torch.manual_seed(0)
    method.loss(batch())
    erm.loss(batch())
    for (name, a), b in zip(method.net.named_buffers(), erm.net.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_a_style_of_the_image_itself_is_undone_by_standardising_it():
    """So of the three layers, two change what the network sees."""
    method, x = start().eval(), batch().image[:, :1]
    restyled = 0.5 * x + 0.2
    with torch.no_grad():
        a, b = (method.logits(v.expand(-1, 3, -1, -1)) for v in (x, restyled))
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("gray", [True, False])
def test_a_gray_image_is_rebuilt_in_gray_and_a_colour_one_in_colour(gray):
    image, _ = searched(start(), batch(gray=gray), p_layer=1.0)
    assert image.shape == (4, 1 if gray else 3, 32, 32)
    assert math.isfinite(train.step(start(), batch(gray=gray), seed=0, t=0)["loss"])


def test_a_batch_of_one_keeps_its_style_and_trains():
    method = start(p_layer=1.0)
    styled, plain = (searched(method, batch(1), p_layer=p)[0] for p in (1.0, 0.0))
    assert torch.equal(styled, plain)
    assert math.isfinite(train.step(method, batch(1), seed=0, t=0)["loss"])


@pytest.mark.parametrize("encoder", ["unet", "resnet18"])
def test_a_prediction_is_that_of_erms_network(encoder):
    method = start(encoder=encoder).eval()
    erm = train.build(ERM, INFO, ERMHparams(encoder=encoder, width=4), seed=1)[0].eval()
    erm.net.load_state_dict(method.net.state_dict())
    assert torch.equal(method.predict(batch().image), erm.predict(batch().image))
