"""What mixstyle, dsu and rsc do to features, each against the equations, hand-derived cases and its public code."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dgbench.errors import UsageError
from dgbench.method import Batch, Method
from dgbench.methods._batchnorm import untracked
from dgbench.methods._style import style
from dgbench.methods.dsu import DSU, DSUHparams, UncertainStyle, shifted
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.methods.mixstyle import MixStyle, MixStyleHparams, StyleMix, mixed
from dgbench.methods.rsc import RSC, RSCHparams, keep
from dgbench.running import train
from dgbench.task import TaskInfo

INFO = TaskInfo("drawn", ("disc",), 32, steps=10)


def feature() -> Tensor:
    """(3, 4, 5, 6) by a formula; three images whose styles differ."""
    i = torch.arange(360, dtype=torch.float64).view(3, 4, 5, 6)
    x = torch.sin(0.37 * i) + 0.1 * torch.cos(0.011 * i**1.5)
    channel, image = torch.arange(4).view(1, 4, 1, 1), torch.arange(3).view(3, 1, 1, 1)
    return (x * (1 + channel) + 0.5 * image).float()


def scalars(x: Tensor) -> list[float]:
    """Means of the images, deviations of channel 1, three values, the norm."""
    few = torch.stack([x[0, 0, 0, 0], x[1, 2, 3, 4], x[2, 3, 4, 5], x.norm()])
    return torch.cat([x.mean((1, 2, 3)), x.std((2, 3))[:, 1], few]).tolist()


def batch(n: int = 4) -> Batch:
    """Discs of different brightness on different ground."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    mask = torch.stack([((y - 12 - 2 * i).hypot(x - 16) < 8).float() for i in range(n)])[:, None]
    level = torch.linspace(0.1, 0.5, n).view(-1, 1, 1, 1)
    return Batch((level + 0.3 * mask + 0.02 * torch.sin(x * y)).expand(-1, 3, -1, -1), mask)


def start(cls: type[Method], hparams: ERMHparams) -> Method:
    method, _ = train.build(cls, INFO, hparams, seed=0)
    train.configure(method)
    return method.train()


def loss(cls: type[Method], hparams: ERMHparams, n: int = 4) -> float:
    method = start(cls, hparams)
    torch.manual_seed(1)
    return method.loss(batch(n)).item()


ERM_LOSS = ERMHparams(width=4)


# MixStyle


def test_mixstyle_at_a_full_share_of_its_own_style_changes_nothing():
    x = feature()
    torch.testing.assert_close(mixed(x, torch.ones(3, 1, 1, 1), torch.tensor([2, 0, 1])), x, atol=1e-5, rtol=0)


def test_mixstyle_at_no_share_of_its_own_has_the_partners_style_and_its_own_content():
    x, partner = feature(), torch.tensor([2, 0, 1])
    y = mixed(x, torch.zeros(3, 1, 1, 1), partner)
    for new, old in zip(style(y), style(x), strict=True):
        torch.testing.assert_close(new, old[partner], atol=1e-4, rtol=1e-4)
    centred = [(v - v.mean((2, 3), keepdim=True)).flatten() for v in (x[:, 0:1], y[:, 0:1])]
    assert torch.cosine_similarity(*(c.view(3, -1) for c in centred)).min() > 0.9999


def test_mixstyle_by_hand():
    """1 and 3 have mean 2 and deviation 2^0.5, 0 and 8 mean 4 and deviation 32^0.5; half of each is 3 and 2.5 2^0.5."""
    x = torch.tensor([[1.0, 3.0], [0.0, 8.0]]).view(2, 1, 1, 2)
    y = mixed(x, torch.full((2, 1, 1, 1), 0.5), torch.tensor([1, 0]))
    torch.testing.assert_close(y.flatten(), torch.tensor([0.5, 5.5, 0.5, 5.5]), atol=1e-4, rtol=0)


def test_mixstyle_equals_its_public_code():
    """KaiyangZhou/mixstyle-release, reid/models/mixstyle.py, on `feature()` with these shares and this permutation."""
    y = mixed(feature(), torch.tensor([0.25, 0.9, 0.5]).view(3, 1, 1, 1), torch.tensor([2, 0, 1]))
    public = [0.697219, 0.362722, 0.681985, 1.436303, 1.392922, 1.408873, 0.724106, -1.092553, 4.160083, 38.4696]
    assert scalars(y) == pytest.approx(public, abs=2e-5)


def test_no_gradient_reaches_the_styles_of_mixstyle_but_those_of_dsu_are_trained_through():
    x = feature().requires_grad_()
    share, partner = torch.zeros(3, 1, 1, 1), torch.tensor([2, 0, 1])
    (g,) = torch.autograd.grad(mixed(x, share, partner)[0].sum(), x)
    assert not g[2].any()  # whose style image 0 took
    (g,) = torch.autograd.grad(shifted(x, torch.ones(2, 3, 4, 1, 1))[0].sum(), x)
    assert g[2].any()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_mixed_styles_lie_between_the_two(seed, n):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 4, 4, generator=rng) * torch.rand(n, 2, 1, 1, generator=rng).exp()
    partner = torch.randperm(n, generator=rng)
    y = mixed(x, torch.rand(n, 1, 1, 1, generator=rng), partner)
    for new, own in zip(style(y), style(x), strict=True):
        assert (new >= torch.minimum(own, own[partner]) - 1e-4).all()
        assert (new <= torch.maximum(own, own[partner]) + 1e-4).all()


# DSU


def test_dsu_without_noise_changes_nothing():
    torch.testing.assert_close(shifted(feature(), torch.zeros(2, 3, 4, 1, 1)), feature(), atol=1e-5, rtol=0)


def test_dsu_by_hand():
    """Means 2 and 4 deviate by 2^0.5 over the batch, deviations 2^0.5 and 32^0.5 by 3: one of each is added."""
    x = torch.tensor([[1.0, 3.0], [0.0, 8.0]]).view(2, 1, 1, 2)
    mean, deviation = style(shifted(x, torch.ones(2, 2, 1, 1, 1)))
    torch.testing.assert_close(mean.flatten(), torch.tensor([2 + 2**0.5, 4 + 2**0.5]), atol=1e-4, rtol=0)
    torch.testing.assert_close(deviation.flatten(), torch.tensor([2**0.5 + 3, 32**0.5 + 3]), atol=1e-4, rtol=0)


def test_dsu_equals_its_public_code():
    """lixiaotong97/DSU, dsu.py, DistributionUncertainty on `feature()`, the cosine for its two draws of noise."""
    noise = torch.cos(torch.arange(24.0) * 0.7).view(2, 3, 4, 1, 1)
    public = [0.123262, 0.115206, 1.316517, 1.419797, 1.412556, 1.41358, 0.517608, -1.362961, 4.480513, 39.79615]
    assert scalars(shifted(feature(), noise)) == pytest.approx(public, abs=2e-5)


# Both as layers


@pytest.mark.parametrize("layer", [StyleMix(1.0, 0.1), UncertainStyle(1.0, 1.0)])
def test_a_single_image_or_a_single_pixel_has_no_style_to_compare(layer):
    for x in (feature()[:1], feature()[:, :, :1, :1]):
        assert layer(x) is x
    torch.manual_seed(0)
    assert not torch.equal(layer(feature()), feature())


@pytest.mark.parametrize("layer", [StyleMix(1.0, 0.1), UncertainStyle(1.0, 1.0)])
def test_an_even_channel_stays_finite_and_so_does_its_gradient(layer):
    x = torch.ones(3, 2, 4, 4, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


@pytest.mark.parametrize("layer", [StyleMix(1.0, 0.1), UncertainStyle(1.0, 1.0)])
def test_nothing_is_restyled_in_a_prediction(layer):
    x = feature()
    layer.eval()
    assert layer(x) is x
    layer.train()


@pytest.mark.parametrize(
    ("cls", "never", "always"),
    [
        (MixStyle, MixStyleHparams(width=4, p_style=0), MixStyleHparams(width=4, p_style=1)),
        (DSU, DSUHparams(width=4, p_uncertain=0), DSUHparams(width=4, p_uncertain=1)),
        (RSC, RSCHparams(width=4, batch_share=0), RSCHparams(width=4)),
    ],
)
def test_without_its_idea_it_is_erm_and_for_a_batch_of_one_as_well(cls, never, always):
    assert loss(cls, never) == loss(ERM, ERM_LOSS)
    assert loss(cls, always) != pytest.approx(loss(ERM, ERM_LOSS), abs=1e-4)
    assert loss(cls, always, 1) == loss(ERM, ERM_LOSS, 1)


def test_both_have_a_layer_behind_the_stages_they_are_told():
    assert list(start(MixStyle, MixStyleHparams(width=4)).net.inserted) == ["1", "2", "3"]
    assert list(start(DSU, DSUHparams(width=4)).net.inserted) == ["0", "1", "2", "3", "4"]
    assert list(start(DSU, DSUHparams(width=4, stages=(2,))).net.inserted) == ["2"]
    assert list(start(DSU, DSUHparams(width=4, encoder="resnet18")).net.inserted) == ["0", "1", "2", "3", "4"]
    with pytest.raises(UsageError, match="no stage 9"):
        start(MixStyle, MixStyleHparams(stages=(1, 9)))


# RSC


def rsc_gradient() -> Tensor:
    x = feature().requires_grad_()
    weight = torch.cos(0.23 * torch.arange(8.0)).view(2, 4, 1, 1)
    truth = (torch.sin(torch.arange(180.0)).view(3, 2, 5, 6) > 0).float() * 2 - 1
    return torch.autograd.grad((nn.functional.conv2d(x.tanh(), weight) * truth).mean(), x)[0]


def test_rsc_mutes_what_its_public_counterpart_for_segmentation_mutes():
    """cherise215/MaxStyle, src/models/model_util.py, mask_latent_code_{channel,spatial}_wise with loss_type corr, on
    `feature()`, a decoder conv2d(tanh(z)) with the cosine as its weight, and the signs of a sine for a label."""
    channels = keep(rsc_gradient(), 1 / 3, spatial=False)
    assert channels.flatten().tolist() == [0, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1]
    drawn = """
        ##..####..####
        ..####..#####.
        .####.######..
        .###...#####.#
        ##..#..#####.#
        ##.#..###.#.##
        ##..##"""
    pixels = keep(rsc_gradient(), 1 / 3, spatial=True)
    assert ["#" if v else "." for v in pixels.flatten()] == list("".join(drawn.split()))


def test_rsc_mutes_that_share_and_the_largest_of_it():
    g = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    pixels, channels = keep(g, 0.25, spatial=True), keep(g, 0.5, spatial=False)
    assert pixels.shape == (2, 1, 4, 4) and (pixels == 0).sum((1, 2, 3)).tolist() == [4, 4]
    assert channels.shape == (2, 6, 1, 1) and (channels == 0).sum((1, 2, 3)).tolist() == [3, 3]
    score = g.mean(1, keepdim=True)
    for i in range(2):
        assert score[i][pixels[i] == 0].min() > score[i][pixels[i] == 1].max()
    assert keep(g, 0.0, True).all() and not keep(g, 1.0, True).any()


def test_rsc_challenges_some_of_the_batch_and_makes_its_step_harder():
    values = [loss(RSC, RSCHparams(width=4, batch_share=share)) for share in (0, 1 / 3, 1)]
    assert values[0] < values[1] <= values[2]


def test_rsc_looks_without_moving_the_running_statistics():
    erm, rsc = start(ERM, ERM_LOSS), start(RSC, RSCHparams(width=4, feature_share=0.0))
    for method in (erm, rsc):
        method.loss(batch()).backward()
    for (name, a), b in zip(erm.named_buffers(), rsc.buffers(), strict=True):
        assert torch.equal(a, b), name
    for (name, a), b in zip(erm.named_parameters(), rsc.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_untracked_batch_norm_normalises_by_the_batch_and_forgets_it():
    norm = nn.BatchNorm2d(4)
    x, before = feature() * 3 + 1, norm.running_mean.clone()
    with untracked(nn.Sequential(norm)):
        seen = norm(x)
    assert torch.equal(norm.running_mean, before) and norm.num_batches_tracked == 0
    torch.testing.assert_close(seen, norm(x))
    assert not torch.equal(norm.running_mean, before) and norm.num_batches_tracked == 1
