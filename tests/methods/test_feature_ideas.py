"""What mixstyle and its like, and rsc, do to features: equations, hand-derived cases, and public code."""

from collections.abc import Callable

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
from dgbench.methods.efdmix import DistributionMix, EFDMix, EFDMixHparams, matched
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.methods.mixstyle import MixStyle, MixStyleHparams, StyleMix, mixed
from dgbench.methods.padain import PAdaIN, PAdaINHparams, StyleSwap, swapped
from dgbench.methods.rsc import RSC, RSCHparams, keep
from dgbench.methods.trid import RandomStyle, TriD, TriDHparams, randomised
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


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_dsu_draws_noise_for_each_image_and_channel_in_deviations_over_the_batch(factor):
    x = feature().repeat(1, 100, 1, 1)
    torch.manual_seed(0)
    y = UncertainStyle(1.0, factor)(x)
    for new, old in zip(style(y), style(x), strict=True):
        noise = ((new - old) / (old.var(0, keepdim=True) + 1e-6).sqrt()).flatten(1)
        assert noise.std().item() == pytest.approx(factor, rel=0.1) and noise.unique().numel() > 1000
        assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.2, "each image has its own"


# TriD


def test_trid_gives_chosen_channels_exactly_the_drawn_style_and_leaves_the_others():
    x, rng = feature(), torch.Generator().manual_seed(0)
    chosen, drawn = torch.rand(3, 4, 1, 1, generator=rng) < 0.5, list(torch.rand(2, 3, 4, 1, 1, generator=rng))
    assert 0 < chosen.sum() < 12
    y = randomised(x, chosen, drawn)
    for new, old, u in zip(style(y), style(x), drawn, strict=True):
        torch.testing.assert_close(new, torch.where(chosen, u, old), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.where(chosen, x, y), x, atol=1e-5, rtol=0)


def test_trid_by_hand():
    """1 and 3 have mean 2 and deviation 2^0.5: with mean 0.5 and deviation 0.25 they are 0.5 -+ 0.25 / 2^0.5."""
    x = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    y = randomised(x, torch.ones(1, 1, 1, 1, dtype=torch.bool), [torch.tensor(0.5), torch.tensor(0.25)])
    assert y.flatten().tolist() == pytest.approx([0.5 - 0.25 / 2**0.5, 0.5 + 0.25 / 2**0.5], abs=1e-5)


@pytest.mark.parametrize("n", [1, 3])
def test_trid_draws_styles_for_each_image_and_channel_by_itself(n):
    layer = RandomStyle(1.0, 1.0)
    torch.manual_seed(0)
    mean, deviation = style(layer(feature()[:n].repeat(1, 100, 1, 1)))
    for drawn in (mean, deviation):  # 400 even draws for each image
        assert drawn.unique().numel() == n * 400 and drawn.min() > -1e-4 and drawn.max() < 1 + 1e-4
        assert drawn.mean().item() == pytest.approx(0.5, abs=0.06)
    together = torch.corrcoef(torch.stack([mean.flatten(), deviation.flatten()]))[0, 1]
    assert abs(together) < 0.15, "the mean says nothing about the deviation"


def test_about_half_of_trids_channels_keep_their_own_style_whatever_style_the_others_draw():
    torch.manual_seed(0)
    x = feature().repeat(1, 100, 1, 1)
    y = RandomStyle(1.0, 0.5)(x)
    same = (y - x).abs().amax((2, 3)) < 1e-4
    assert same.float().mean().item() == pytest.approx(0.5, abs=0.06)
    for drawn in style(y):
        assert drawn[~same].mean().item() == pytest.approx(0.5, abs=0.05)


# EFDMix


def rank_by_rank(x: Tensor, share: list[float], partner: list[int]) -> Tensor:
    """EFDMix value by value in plain Python."""
    result = x.clone()
    for i, (own, j) in enumerate(zip(share, partner, strict=True)):
        for c in range(x.shape[1]):
            mine, theirs = x[i, c].flatten().tolist(), sorted(x[j, c].flatten().tolist())
            ranked = sorted(range(len(mine)), key=mine.__getitem__)
            for rank, place in enumerate(ranked):
                result[i, c].view(-1)[place] = own * mine[place] + (1 - own) * theirs[rank]
    return result


def test_efdmix_equals_the_same_done_value_by_value():
    share, partner = [0.25, 0.9, 0.0], [2, 0, 1]
    y = matched(feature(), torch.tensor(share).view(3, 1, 1, 1), torch.tensor(partner))
    torch.testing.assert_close(y, rank_by_rank(feature(), share, partner), atol=1e-6, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_efdmix_mixes_sorted_values_and_keeps_ranks(seed, n):
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, 4, 4, generator=rng) * torch.rand(n, 2, 1, 1, generator=rng).exp()
    partner, share = torch.randperm(n, generator=rng), torch.rand(n, 1, 1, 1, generator=rng)
    y, own = matched(x, share, partner).flatten(2), x.flatten(2)
    values = own.sort(2).values
    expected = torch.lerp(values[partner], values, share.flatten(2))
    torch.testing.assert_close(y.sort(2).values, expected, atol=1e-5, rtol=1e-5)
    assert (y.gather(2, own.argsort(2)).diff(dim=2) >= -1e-6).all()


def test_efdmix_of_equal_values_ranks_them_by_place():
    x = torch.tensor([[0.0, 0.0, 1.0], [3.0, 5.0, 4.0]]).view(2, 1, 1, 3)
    y = matched(x, torch.zeros(2, 1, 1, 1), torch.tensor([1, 0]))
    assert y.view(2, 3).tolist() == [[3, 4, 5], [0, 1, 0]]


# pAdaIN


def test_padain_swaps_mean_and_deviation_exactly():
    x, partner = feature(), torch.tensor([2, 0, 1])
    for new, old in zip(style(swapped(x, partner)), style(x), strict=True):
        torch.testing.assert_close(new, old[partner], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(swapped(x, partner), mixed(x, torch.zeros(3, 1, 1, 1), partner), atol=1e-5, rtol=0)


def test_padain_by_hand():
    """1 and 3 lie one 2^-0.5 th of their deviation off their mean, as 0 and 8 do: they change places."""
    x = torch.tensor([[1.0, 3.0], [0.0, 8.0]]).view(2, 1, 1, 2)
    y = swapped(x, torch.tensor([1, 0]))
    torch.testing.assert_close(y.flatten(), torch.tensor([0.0, 8.0, 1.0, 3.0]), atol=1e-4, rtol=0)


def gradient(of: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    """Of the weighed sum of image 0 alone."""
    x = feature().requires_grad_()
    return torch.autograd.grad((of(x)[0] * weight).sum(), x)[0]


def test_where_gradients_go_through_the_new_styles():
    """An image's own gradient is the layer's scale alone where statistics are held, and loses its mean where not."""
    partner, share = torch.tensor([2, 0, 1]), torch.zeros(3, 1, 1, 1)
    weight = torch.cos(torch.arange(120.0)).view(4, 5, 6) + 1
    held = gradient(
        lambda x: randomised(x, torch.ones(3, 4, 1, 1, dtype=torch.bool), [torch.ones(3, 4, 1, 1)] * 2), weight
    )
    torch.testing.assert_close(held[0], weight / style(feature())[1][0])
    assert torch.equal(gradient(lambda x: matched(x, share, partner), weight)[0], weight)
    through = gradient(lambda x: swapped(x, partner), weight)
    assert through[0].abs().max() > 0.1 and through[0].sum((1, 2)).abs().max() < 1e-4
    for g in (held, gradient(lambda x: matched(x, share, partner), weight), through):
        assert not g[1:].any()


# All as layers


@pytest.mark.parametrize("alpha", [0.1, 3.0])
@pytest.mark.parametrize("layer", [StyleMix, DistributionMix])
def test_each_image_draws_a_share_of_its_own_from_a_beta_of_that_alpha(layer, alpha, monkeypatch):
    """Images of mean 0 and 1 by turns, one deviation: beside a partner of mean 0 those of mean 1 come out at l."""
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n).roll(1))
    x = (torch.arange(2000) % 2).view(-1, 1, 1, 1) + torch.tensor([-1.0, 1.0])
    torch.manual_seed(0)
    share = layer(1.0, alpha)(x).mean((1, 2, 3))[1::2]
    assert share.mean().item() == pytest.approx(0.5, abs=0.04)
    assert share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


LAYERS = [StyleMix(1.0, 0.1), UncertainStyle(1.0, 1.0), DistributionMix(1.0, 0.1), StyleSwap(1.0)]


@pytest.mark.parametrize("layer", LAYERS)
def test_a_single_image_or_a_single_pixel_has_no_style_to_compare(layer):
    for x in (feature()[:1], feature()[:, :, :1, :1]):
        assert layer(x) is x
    torch.manual_seed(0)
    assert not torch.equal(layer(feature()), feature())


@pytest.mark.parametrize("layer", [*LAYERS, RandomStyle(1.0, 1.0)])
def test_an_even_channel_stays_finite_and_so_does_its_gradient(layer):
    x = torch.ones(3, 2, 4, 4, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


@pytest.mark.parametrize("layer", [*LAYERS, RandomStyle(1.0, 1.0)])
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
        (EFDMix, EFDMixHparams(width=4, p_style=0), EFDMixHparams(width=4, p_style=1)),
        (PAdaIN, PAdaINHparams(width=4, p_swap=0), PAdaINHparams(width=4, p_swap=1)),
        (RSC, RSCHparams(width=4, batch_share=0), RSCHparams(width=4)),
    ],
)
def test_without_its_idea_it_is_erm_and_for_a_batch_of_one_as_well(cls, never, always):
    assert loss(cls, never) == loss(ERM, ERM_LOSS)
    assert loss(cls, always) != pytest.approx(loss(ERM, ERM_LOSS), abs=1e-5)
    assert loss(cls, always, 1) == loss(ERM, ERM_LOSS, 1)


def test_trid_without_its_idea_is_erm_and_has_its_idea_for_a_batch_of_one_as_well():
    assert loss(TriD, TriDHparams(width=4, p_random=0)) == loss(ERM, ERM_LOSS)
    assert loss(TriD, TriDHparams(width=4, p_random=1), 1) != pytest.approx(loss(ERM, ERM_LOSS, 1), abs=1e-4)


def test_they_have_a_layer_behind_the_stages_they_are_told():
    assert list(start(TriD, TriDHparams(width=4)).net.inserted) == ["2", "3"]
    assert list(start(EFDMix, EFDMixHparams(width=4)).net.inserted) == ["1", "2", "3"]
    assert list(start(PAdaIN, PAdaINHparams(width=4)).net.inserted) == ["0", "1", "2", "3", "4"]
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
