"""Methods that change what the network sees keep their papers' promises, and equal public code where there is some.

The numbers called public were computed once by the public repositories named beside them, on the inputs made by `wave`.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgbench.losses import dice_loss
from dgbench.method import Batch, Method, resolve_hparams
from dgbench.methods import advbias, csdg, randconv, slaug
from dgbench.methods._adversary import divergence, unit
from dgbench.methods._batchnorm import untracked
from dgbench.methods._consistency import disagreement, kl, log_outcomes, mixture
from dgbench.methods._curves import bezier, new_contrast, percentiles, scale_and_shift
from dgbench.methods._fields import bspline, points, spread, unit_range
from dgbench.methods._spectrum import mix_amplitudes
from dgbench.registry import get_method
from dgbench.running import train
from dgbench.task import TaskInfo

IDEAS = ("cutout", "mixup", "bigaug", "fourier", "randconv", "csdg", "slaug", "advbias", "advnoise")
SIZE = 48


def wave(*shape: int) -> Tensor:
    """A fixed uneven image in [0, 1], by a formula."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((torch.sin(0.37 * i) + torch.sin(0.011 * i**1.1)) / 4 + 0.5).float().view(shape)


def probe(x: Tensor) -> list[float]:
    """Five numbers that tell any two images apart: mean, deviation, a projection, the first pixel and the last."""
    x = x.double()
    projection = (x * torch.cos(0.7 * torch.arange(x.numel(), dtype=torch.float64)).view(x.shape)).sum()
    return [float(v) for v in (x.mean(), x.std(correction=0), projection, x.flatten()[0], x.flatten()[-1])]


def build(name: str, **settings: object) -> Method:
    cls = get_method(name)
    text = {"width": "4"} | {key: str(value) for key, value in settings.items()}
    info = TaskInfo("drawn", ("disc",), SIZE, steps=10)
    method, _ = train.build(cls, info, resolve_hparams(cls, "drawn", text), seed=0)
    train.configure(method)
    return method.train()


def drawn(n: int = 3, structures: int = 1, gray: bool = True) -> Batch:
    image = wave(n, 1 if gray else 3, SIZE, SIZE)
    rows = torch.arange(SIZE)
    mask = torch.zeros(n, structures, SIZE, SIZE)
    for k in range(structures):
        inside = (rows - SIZE // 2).abs() < SIZE // (4 + 4 * k)
        mask[:, k] = (inside[:, None] & inside).float()
    image = 0.7 * image + 0.3 * mask[:, :1]
    return Batch(image.expand(-1, 3, -1, -1), mask)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@contextmanager
def seen_by(method: Method) -> Iterator[list[Tensor]]:
    """The images that go through `logits`."""
    seen: list[Tensor] = []
    logits = method.logits

    def record(image: Tensor) -> Tensor:
        seen.append(image.detach().clone())
        return logits(image)

    method.logits = record  # type: ignore[method-assign]
    yield seen
    del method.logits


# All of them


@pytest.mark.parametrize("name", IDEAS)
@pytest.mark.parametrize("gray", [True, False], ids=["gray", "colour"])
def test_what_the_network_sees_is_an_image(name, gray):
    method, batch = build(name), drawn(gray=gray)
    torch.manual_seed(0)
    with seen_by(method) as seen:
        method.update(method.augment(batch, rng()))
    assert seen
    for image in seen:
        assert image.dtype == torch.float32 and image.shape[1:] == (3, SIZE, SIZE) and image.isfinite().all()
        assert image.min() >= -0.1 and image.max() <= 1.1  # only AdvNoise looks around an image without a clamp
        if gray and name != "csdg":
            assert torch.equal(image[:, 0], image[:, 2])


@pytest.mark.parametrize("name", IDEAS)
def test_a_batch_of_one_and_an_even_image_give_a_finite_step(name):
    even = Batch(torch.full((1, 1, SIZE, SIZE), 0.5).expand(-1, 3, -1, -1), torch.zeros(1, 1, SIZE, SIZE))
    method = build(name, norm="instance")
    for t, batch in enumerate((drawn(1), even)):
        shown = train.step(method, batch, seed=0, t=t)
        assert all(map(math.isfinite, shown.values()))
    assert all(p.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("name", ["mixup", "fourier"])
def test_an_image_alone_has_no_partner_and_stays(name):
    method, batch = build(name, augmentation="none", **({"p_fourier": 1} if name == "fourier" else {})), drawn(1)
    with seen_by(method) as seen:
        method.update(method.augment(batch, rng()))
    torch.testing.assert_close(seen[0], batch.image)
    assert get_method(name).needs_batch


@pytest.mark.parametrize("name", IDEAS)
def test_an_idea_needs_what_it_says_only(name):
    cls = get_method(name)
    assert cls.paper.startswith("https://") and not cls.uses_target_masks and not cls.adapts_in_testing
    assert cls.needs_batch == (name in ("mixup", "fourier"))


# Cutout, Mixup


def test_cutout_erases_a_square_by_the_mean_and_keeps_the_mask():
    method, batch = build("cutout", augmentation="none", cutout_side=0.25), drawn(8)
    image, mask = method.augment(batch, rng())
    assert torch.equal(mask, batch.mask)
    changed = image[:, 0] != batch.image[:, 0]
    assert changed.any()
    for one, where, before in zip(image[:, 0], changed, batch.image[:, 0], strict=True):
        rows, columns = (where.any(axis).nonzero().squeeze(1) for axis in (1, 0))
        assert len(rows) <= 12 and len(columns) <= 12
        torch.testing.assert_close(one[where], before.mean().expand(int(where.sum())))
    assert max(int(where.sum()) for where in changed) == 12 * 12


def test_cutout_may_reach_over_the_border():
    batch = drawn(200)
    image = build("cutout", augmentation="none", cutout_side=0.5).augment(batch, rng()).image
    erased = (image[:, 0] != batch.image[:, 0]).sum((1, 2))
    assert erased.min() < 24 * 24 / 2 < erased.max() <= 24 * 24


def test_mixup_shares_out_images_and_masks_alike():
    method, batch = build("mixup", alpha=2), drawn(4)
    torch.manual_seed(0)
    with seen_by(method) as seen:
        loss = method.loss(batch)
    torch.manual_seed(0)
    share = float(torch.distributions.Beta(2.0, 2.0).sample())
    other = torch.randperm(4)
    assert 0 < share < 1 and not torch.equal(other, torch.arange(4))
    torch.testing.assert_close(seen[0], share * batch.image + (1 - share) * batch.image[other])
    logits = method.logits(seen[0])
    expected = share * method.criterion(logits, batch.mask) + (1 - share) * method.criterion(logits, batch.mask[other])
    torch.testing.assert_close(loss, expected)


# BigAug


def test_bigaug_moves_the_mask_with_the_image():
    """What is bright is inside, whatever happens to it: contrast and position are changed, not their relation."""
    inside = torch.zeros(8, 1, SIZE, SIZE)
    inside[:, :, 12:36, 16:40] = 1
    batch = Batch((0.2 + 0.6 * inside).expand(-1, 3, -1, -1), inside)
    image, mask = build("bigaug", augmentation="none", bigaug_noise="0,0", sharpen="0,0").augment(batch, rng(1))
    assert not torch.equal(mask, inside)
    for one, where in zip(image[:, 0], mask[:, 0] > 0.5, strict=True):
        assert one[where].mean() > one[~where].mean() + 0.2


@pytest.mark.parametrize(("size", "least", "most"), [("0.5,0.5", 0.1, 0.4), ("1.5,1.5", 1.3, 2.5)])
def test_bigaug_shows_structures_as_large_as_it_is_told(size, least, most):
    inside = torch.zeros(8, 1, SIZE, SIZE)
    inside[:, :, 18:30, 18:30] = 1
    batch = Batch(inside.expand(-1, 3, -1, -1), inside)
    mask = build("bigaug", augmentation="none", bigaug_size=size, p_bigaug=1).augment(batch, rng()).mask
    assert least < mask.sum() / inside.sum() < most


def test_bigaug_without_probability_is_the_base_augmentation_up_to_the_z_score():
    method, batch = build("bigaug", p_bigaug=0), drawn(6)
    image, mask = method.augment(batch, rng())
    base = build("erm").augment(batch, rng())
    assert torch.equal(mask, base.mask)
    torch.testing.assert_close(image, unit_range(base.image))


def test_bigaug_keeps_the_order_of_grays_where_it_only_bends_contrast():
    batch = drawn(6)
    method = build("bigaug", augmentation="none", p_bigaug=1, bigaug_gamma="3,3", bigaug_noise="0,0", sharpen="0,0")
    out = method.restyle(batch.image[:, :1], rng())
    soft = build("bigaug", augmentation="none", p_bigaug=1, bigaug_gamma="1,1", bigaug_noise="0,0", sharpen="0,0")
    torch.testing.assert_close(out, soft.restyle(batch.image[:, :1], rng()) ** 3)


# Fourier


def test_mixing_amplitudes_keeps_the_phase():
    a, b = wave(2, 3, 32, 40), wave(2, 3, 32, 40).flip(2) ** 2
    for window in (0.1, 1.0):
        mixed = torch.fft.fft2(mix_amplitudes(a, b, torch.tensor([0.3, 1.0]), window))
        own = torch.fft.fft2(a)
        torch.testing.assert_close(mixed * own.abs(), own * mixed.abs(), atol=2e-2, rtol=1e-3)


def test_a_share_of_0_is_the_image_and_of_1_has_the_others_amplitudes():
    a, b = wave(2, 1, 32, 32), wave(2, 1, 32, 32).flip(3) ** 2
    torch.testing.assert_close(mix_amplitudes(a, b, torch.zeros(2)), a)
    swapped = torch.fft.fft2(mix_amplitudes(a, b, torch.ones(2)))
    torch.testing.assert_close(swapped.abs(), torch.fft.fft2(b).abs(), atol=1e-3, rtol=1e-4)


def test_amplitudes_mix_as_in_the_public_code():
    """FDA (YanchaoYang/FDA, utils: FDA_source_to_target_np, L=0.1); AmpMix (MediaBrain-SJTU/FACT, colorful_spectrum_mix
    with lambda 0.4, before its rounding to bytes)."""
    a, b = wave(3, 32, 40)[None], wave(3, 32, 40).flip(2)[None] ** 2
    fda = [0.3175993, 0.2496199, -1.1556507, 0.2970914, 0.6211474]
    ampmix = [0.4300886, 0.2313444, 0.7781928, 0.4279819, 0.7031643]
    assert probe(mix_amplitudes(a, b, torch.ones(1), 0.1)) == pytest.approx(fda, abs=1e-5)
    assert probe(mix_amplitudes(a, b, torch.full((1,), 0.4))) == pytest.approx(ampmix, abs=1e-5)


def test_fourier_changes_about_half_of_the_images_by_another_of_the_batch():
    batch = Batch(wave(64, 1, 16, 16).expand(-1, 3, -1, -1), torch.zeros(64, 1, 16, 16))
    for kind in ("ampmix", "fda"):
        image = build("fourier", augmentation="none", fourier=kind).augment(batch, rng()).image
        changed = (image != batch.image).flatten(1).any(1)
        assert 20 < int(changed.sum()) < 44
    still = build("fourier", augmentation="none", p_fourier=1, largest_share=0).augment(batch, rng()).image
    torch.testing.assert_close(still, batch.image, atol=1e-5, rtol=0)


# Consistency


def test_equal_views_do_not_disagree_and_opposite_ones_do_by_log_2():
    z = 8 * wave(2, 2, 8, 8) - 4
    assert disagreement([z, z, z]) == pytest.approx(0, abs=1e-6)
    sure = torch.full((1, 1, 4, 4), 40.0)
    assert disagreement([sure, -sure]).item() == pytest.approx(math.log(2))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 30))
def test_divergences_are_never_negative_and_never_infinite(seed, spread_of_logits):
    z = [spread_of_logits * torch.randn(2, 1, 4, 4, generator=rng(seed + i)) for i in range(3)]
    assert -1e-5 <= float(disagreement(z)) <= math.log(3) + 1e-5
    assert -1e-5 <= float(kl(log_outcomes(z[0]), log_outcomes(z[1]))) < math.inf


def test_consistency_is_that_of_the_public_code():
    """wildphoton/RandConv (randconv_trainer: KL to the mixture, per pixel) and CSDG (exp_trainer: KLDivLoss of the mean
    of three against each), with two classes whose logits are 0 and z."""
    z = [(wave(3, 1, 8, 8) * 6 - 3).roll(s, 3) * (1 + s / 3) for s in range(3)]
    assert disagreement(z).item() == pytest.approx(0.0407818854, rel=1e-5)
    views = [log_outcomes(v) for v in z]
    divergences = torch.stack([kl(mixture(views), v) for v in views])
    assert divergences.mean().item() / 2 == pytest.approx(0.025799118, rel=1e-5)


# RandConv


@pytest.mark.parametrize(
    ("size", "public"),
    [
        (1, [0.002039, 0.7005137, -2.0020045, -0.0374694, -0.2397924]),
        (3, [0.0245162, 0.7549149, -1.0425601, 0.3683225, -0.1497386]),
        (7, [0.0132924, 0.7771062, -0.4227314, 0.1985074, -0.480136]),
    ],
)
def test_a_random_filter_is_that_of_the_public_code(size, public):
    """wildphoton/RandConv, rand_conv.py: RandConvModule with kaiming_normal, mixing by 0.3, torch seeded with 3."""
    z = 4 * wave(2, 3, 24, 24) - 2
    torch.manual_seed(3)
    assert probe(torch.lerp(z, randconv.random_filter(z, size), 0.3)) == pytest.approx(public, abs=1e-5)


def test_a_random_filter_keeps_the_deviation_on_average():
    torch.manual_seed(0)
    z = torch.randn(1, 3, 64, 64)
    for size in (1, 3, 5, 7):
        power = [randconv.random_filter(z, size)[..., 8:-8, 8:-8].square().mean() for _ in range(200)]
        assert float(torch.stack(power).mean()) == pytest.approx(1, abs=0.15)


def test_the_network_never_sees_the_brightness_that_a_random_filter_draws():
    """Filtered MRI without a new standardisation makes training diverge."""
    method, batch = build("randconv"), drawn()
    inputs = []
    method.get_submodule("net").register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    for seed in range(10):
        torch.manual_seed(seed)
        method.loss(batch)
    for z in inputs:
        torch.testing.assert_close(z.mean((2, 3)), torch.zeros(z.shape[:2]), atol=1e-4, rtol=0)
        torch.testing.assert_close(z.std((2, 3), correction=0), torch.ones(z.shape[:2]), atol=1e-3, rtol=0)


def test_without_consistency_one_view_is_seen_and_with_it_three():
    batch = drawn()
    for weight, views in ((0, 1), (10, 3)):
        method = build("randconv", consistency=weight)
        with seen_by(method) as seen:
            method.loss(batch)
        assert len(seen) == views
        assert not any(torch.equal(seen[0], other) for other in seen[1:])


def test_randconv_of_images_leaves_the_image_as_it_is_by_its_probability():
    method, batch = build("randconv", randconv="image", consistency=0), drawn()
    torch.manual_seed(0)
    kept = [torch.equal(method.view(batch.image), batch.image) for _ in range(100)]
    assert 30 < sum(kept) < 70


# CSDG


@pytest.mark.parametrize(
    ("seed", "public"),
    [
        (0, [-0.1138282, 0.9912596, 4.0863839, 0.5011036, -0.0630598]),
        (1, [0.2535299, 0.9650259, -6.4082867, -0.1365754, 0.0828972]),
    ],
)
def test_gin_is_that_of_the_public_code(seed, public):
    """cheng-01037/Causality-Medical-Image-Domain-Generalization, models/imagefilter.py: GINGroupConv, torch seeded."""
    torch.manual_seed(seed)
    assert probe(csdg.gin(4 * wave(2, 3, 24, 24) - 2)) == pytest.approx(public, abs=2e-5)


def test_gin_keeps_the_norm_of_each_image_and_redraws_each_by_itself():
    z = 4 * wave(4, 3, 24, 24) - 2
    z[1:] = z[:1]
    torch.manual_seed(0)
    redrawn = csdg.gin(z)
    torch.testing.assert_close(redrawn.flatten(1).norm(dim=1), z.flatten(1).norm(dim=1), rtol=1e-4, atol=0)
    assert all((redrawn[i] - redrawn[j]).abs().max() > 0.1 for i in range(4) for j in range(i))


def test_the_blending_map_is_that_of_the_public_code():
    """The same repository, biasfield_interpolate_cchen/adv_bias.py as exp_trainer.py sets it up, torch seeded with 5.

    The public spline is made of boxes at half the resolution and stretched: half a pixel of 48, hence the tolerance.
    """
    torch.manual_seed(5)
    ours = csdg.blending_map(2, torch.Size([192, 192]), 0.25, torch.device("cpu"))[1, 0, 10::57, 5::61]
    public = [0.55165, 0.24303, 0.2808, 0.37288, 0.7102, 0.55281, 0.79575, 0.54385]
    public += [0.42914, 0.44287, 0.0399, 0.27863, 0.89257, 0.54015, 0.71044, 0.94528]
    assert ours.flatten().tolist() == pytest.approx(public, abs=0.04)


def test_the_blending_map_runs_from_0_to_1_in_each_image():
    b = csdg.blending_map(5, torch.Size([40, 64]), 0.25, torch.device("cpu"))
    assert b.shape == (5, 1, 40, 64)
    assert torch.equal(b.amin((1, 2, 3)), torch.zeros(5)) and torch.equal(b.amax((1, 2, 3)), torch.ones(5))
    assert float((b[..., 1:] - b[..., :-1]).abs().max()) < 0.25


def test_csdg_shows_three_views_and_no_two_alike():
    method, batch = build("csdg"), drawn()
    views = method.views(batch.image)
    assert len(views) == 3 and all(view.shape == batch.image.shape for view in views)
    assert not any(torch.equal(views[i], views[j]) for i in range(3) for j in range(i))


def test_csdg_weighs_its_losses_against_each_other_as_the_public_code_does():
    """models/exp_trainer.py: Dice loss + cross-entropy + 10 * KLDivLoss()(log p, mean p), with logits 0 and z."""
    method, batch = build("csdg"), drawn()
    views = [batch.image, batch.image.flip(-1), batch.image**2]
    method.views = lambda image: views
    z = method.logits(torch.cat(views)).chunk(3)
    log_p = [F.log_softmax(torch.stack([torch.zeros_like(v), v]), 0) for v in z]
    mean = sum(v.exp() for v in log_p) / 3
    consistency = F.kl_div(torch.stack(log_p), mean.expand(3, *mean.shape), reduction="none").mean()
    segmentation = F.binary_cross_entropy_with_logits(z[0], batch.mask) + dice_loss(z[0], batch.mask)
    assert 2 * method.loss(batch).item() == pytest.approx((segmentation + 10 * consistency).item(), rel=1e-5)
    assert consistency > 1e-4


@pytest.mark.parametrize("name", ["randconv", "csdg", "advbias", "advnoise"])
def test_consistency_is_the_weight_of_what_it_adds(name):
    losses = []
    for weight in (0, 100, 300):
        torch.manual_seed(0)
        losses.append(build(name, consistency=weight, norm="instance").loss(drawn()).item())
    alone, once, thrice = losses
    assert once > alone and thrice - alone == pytest.approx(3 * (once - alone), rel=1e-2)


# Curves


@settings(max_examples=100, deadline=None)
@example(732, False)  # both control points at x = 1: the curve ends upright
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_a_bezier_curve_never_turns_back(seed, inverted):
    inner = torch.rand(1, 2, 2, generator=rng(seed)).round(decimals=1)  # with many 0 and 1 among them
    x = torch.linspace(0, 1, 501).view(1, 1, 1, -1)
    y = bezier(x, inner, torch.tensor([inverted])).flatten()
    steps = (y[1:] - y[:-1]) * (-1 if inverted else 1)
    assert steps.min() >= -1e-6 and y.min() >= 0 and y.max() <= 1
    assert sorted([round(float(y[0]), 5), round(float(y[-1]), 5)]) == [0, 1]


def test_a_bezier_curve_through_the_thirds_of_the_diagonal_changes_nothing():
    x, inner = wave(1, 1, 16, 16), torch.tensor([[[1 / 3, 1 / 3], [2 / 3, 2 / 3]]])
    torch.testing.assert_close(bezier(x, inner, torch.tensor([False])), x)
    torch.testing.assert_close(bezier(x, inner, torch.tensor([True])), 1 - x)


def test_contrasts_are_those_of_the_public_code():
    """Kaiseem/SLAug, dataloaders/location_scale_augmentation.py, with these inner points, scales and shifts."""
    x, inner = wave(1, 1, 20, 20), torch.tensor([[[0.15, 0.35], [0.9, 0.2]]])
    low, high = x.min(), x.max()
    for inverted, public in (
        (False, [0.3828962, 0.1844086, 1.7785896, 0.3241883, 0.4854708]),
        (True, [0.3477826, 0.1757417, 0.2142988, 0.3441782, 0.2294945]),
    ):
        curved = low + (high - low) * bezier((x - low) / (high - low), inner, torch.tensor([inverted]))
        assert probe(curved) == pytest.approx(public, abs=2e-5)
    everything = torch.ones(1, 1, 20, 20, dtype=torch.bool)
    for scale, shift, public in (
        (1.07, 0.9, [0.7633372, 0.2202147, -1.0835348, 0.7521469, 1.0]),
        (0.93, -0.9, [0.2104095, 0.1848267, -0.1075746, 0.1383401, 0.3745192]),
        (1.02, 0.05, [0.6019191, 0.2494425, -0.3371414, 0.56, 0.8190351]),
    ):
        assert probe(scale_and_shift(x, everything, torch.tensor([scale]), torch.tensor([shift]))) == pytest.approx(
            public, abs=1e-5
        )


def test_percentiles_are_numpys_of_the_region_only():
    import numpy as np

    x, region = wave(2, 3, 9, 9), wave(2, 1, 9, 9) > 0.45
    ours = torch.stack(percentiles(x, region, (0.2, 0.8)))
    for i in range(2):
        values = x[i][region[i].expand(3, -1, -1)].double().numpy()
        assert ours[:, i].tolist() == pytest.approx(np.percentile(values, [20, 80]).tolist(), abs=1e-6)


def test_curves_span_the_images_own_range():
    """A curve from 0 to 1 over an image between 0.4 and 0.6 would bend it by next to nothing, whatever its shape."""
    narrow = 0.4 + 0.2 * wave(1, 1, 24, 24)
    torch.manual_seed(0)
    spans = []
    for _ in range(20):
        bent = new_contrast(narrow)
        order = narrow.flatten().argsort()
        assert (bent.flatten()[order].diff() >= -1e-6).all()
        middle = bent.flatten()[order[len(order) // 2]]
        spans.append(float((middle - bent.min()) / (bent.max() - bent.min())))
    assert min(spans) < 0.35 and max(spans) > 0.65


# SLAug


def test_local_contrasts_change_each_region_by_itself_and_leave_the_dark():
    image, mask = drawn(2, structures=2)
    gray = image[:, :1].clone()
    gray[..., :4, :] = 0.005
    torch.manual_seed(1)
    local = slaug.local_contrasts(gray, mask)
    assert torch.equal(local[..., :4, :], gray[..., :4, :])
    rest = (mask[:, :1] == 0) & (gray > 0.01)
    for i in range(2):
        order = gray[i][rest[i]].argsort()
        assert (local[i][rest[i]][order].diff() <= 1e-6).all()  # always inverted
    cup, rim = mask[:, 1:] > 0.5, (mask[:, :1] > 0.5) & (mask[:, 1:] < 0.5)
    assert (local[cup] != gray[cup]).any() and (local[rim] != gray[rim]).any()


def test_the_fusion_map_is_that_of_the_public_code():
    """Kaiseem/SLAug, dataloaders/saliency_balancing_fusion.py: get_SBF_map at 192 pixels with 3 and with 18 cells.

    The cells differ as at random, and the public spline is made of boxes, half a pixel off: hence the tolerance.
    """
    gradient = (wave(2, 1, 192, 192) - 0.5) * 1e-3
    coarse = [0.3763, 0.4579, 0.412, 0.8943, 0.9596, 0.8744, 0.9156, 0.9611, 0.8553, 0.8888, 0.9552, 0.8793]
    fine = [0.4358, 0.4529, 0.3541, 0.5437, 0.6046, 0.5454, 0.6702, 0.6048, 0.3729, 0.6143, 0.5296, 0.5676]
    for cells, public, tolerance in ((3, coarse, 0.005), (18, fine, 0.05)):
        ours = slaug.fusion_map(gradient, cells)[0, 0, ::48, 27::64].flatten().tolist()
        assert ours == pytest.approx(public, abs=tolerance)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e6])
def test_the_fusion_map_runs_from_0_to_1_however_small_the_gradient(size):
    gradient = size * (wave(3, 3, 40, 40) - 0.5)
    s = slaug.fusion_map(gradient, 18)
    assert torch.equal(s.amin((1, 2, 3)), torch.zeros(3)) and torch.equal(s.amax((1, 2, 3)), torch.ones(3))
    assert not slaug.fusion_map(torch.zeros(1, 1, 40, 40), 18).isnan().any()


def test_slaug_steps_along_the_sum_of_both_passes():
    """The gradient left after an update is that of the loss of both images together."""
    method, batch = build("slaug", norm="instance"), drawn()
    torch.manual_seed(0)
    with seen_by(method) as seen:
        before = {n: p.detach().clone() for n, p in method.named_parameters()}
        shown = method.update(batch)
    left = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    with torch.no_grad():
        for n, p in method.named_parameters():
            p.copy_(before[n])
    method.zero_grad()
    assert len(seen) == 2
    loss = torch.stack([method.criterion(method.logits(image), batch.mask) for image in seen]).sum()
    loss.backward()
    assert shown["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for n, p in method.named_parameters():
        torch.testing.assert_close(p.grad, left[n], atol=1e-5, rtol=1e-3)


def test_slaugs_second_image_has_the_whole_ones_contrast_where_its_map_is_large(monkeypatch):
    ramp = torch.linspace(0, 1, SIZE).expand(3, 1, SIZE, SIZE)
    monkeypatch.setattr(slaug, "fusion_map", lambda gradient, cells: ramp * (cells == 5))
    monkeypatch.setattr(slaug, "local_contrasts", lambda image, mask: torch.zeros_like(image))
    method = build("slaug", saliency_grid=5)
    with seen_by(method) as seen:
        method.update(drawn())
    torch.testing.assert_close(seen[1], ramp * seen[0])


# Fields


def test_a_spline_of_equal_points_is_even_inside():
    for degree in (1, 2, 3):
        weights = bspline(60, 10, 10.0, degree)
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(1), torch.ones(60))


def test_a_quadratic_spline_has_its_textbook_weights():
    weights = bspline(5, 5, 1.0, 2)[2]
    assert weights.tolist() == pytest.approx([0, 1 / 8, 3 / 4, 1 / 8, 0])


def test_points_reach_one_beyond_each_end():
    assert points(96, 24) == 6 and points(100, 24) == 7 and points(96, 48) == 4


def test_unit_range_scales_channels_together_and_makes_an_even_image_0():
    x = torch.stack([torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 5.0]])])[None]
    assert unit_range(x).flatten().tolist() == [0, 0.5, 0.25, 1]
    assert unit_range(torch.full((1, 1, 2, 2), 7.0)).eq(0).all()


# AdvBias, AdvNoise


def test_the_bias_field_is_that_of_the_public_code():
    """cherise215/advchain, adv_bias.py: log space, spacing half the image, downscale 1, these control points."""
    control = (wave(2, 1, 4, 4) - 0.5) * 0.5
    field = spread(control, (96, 96), (48.0, 48.0), degree=3).exp()[1, 0, ::30, ::30]
    public = [1.0827, 1.1011, 1.1154, 1.1242, 1.1284, 1.1317, 1.1275, 1.1178]
    public += [1.1013, 1.0879, 1.0697, 1.0506, 1.0313, 1.0151, 0.9994, 0.9868]
    assert field.flatten().tolist() == pytest.approx(public, abs=2e-3)


def test_the_divergence_is_that_of_the_public_code():
    """cherise215/advchain, common/loss.py: calc_segmentation_consistency, kl and contour, classes' logits 0 and z."""
    z = [(wave(3, 1, 8, 8) * 6 - 3).roll(s, 3) * (1 + s / 3) for s in range(2)]
    assert divergence(z[0], z[1]).item() == pytest.approx(0.0935203955, rel=1e-5)
    assert divergence(z[0], z[1], contours=0.5).item() == pytest.approx(0.1172565818, rel=1e-5)
    assert divergence(z[0], z[0], contours=0.5).item() == pytest.approx(0, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.9))
def test_a_bias_field_stays_between_1_minus_e_and_1_plus_e(seed, e):
    low, high = math.log(1 - e), math.log(1 + e)
    control = low + (high - low) * torch.rand(2, 1, 4, 4, generator=rng(seed)).round()
    field = spread(control, (32, 32), (16.0, 16.0), degree=3).exp()
    assert field.min() >= 1 - e - 1e-4 and field.max() <= 1 + e + 1e-4
    biased = advbias.biased(torch.ones(2, 1, 32, 32), control, 0.5)
    assert biased.min() >= 0 and biased.max() <= 1


def trained(name: str, **settings: object) -> tuple[Method, Batch]:
    """A method that has learnt a little, so that its prediction depends on the image."""
    method, batch = build(name, augmentation="none", norm="instance", **settings), drawn(4)
    for t in range(6):
        train.step(method, batch, seed=0, t=t)
    return method, batch


@pytest.mark.parametrize("name", ["advbias", "advnoise"])
def test_the_step_uphill_moves_the_prediction_more_than_the_draw_it_started_from(name):
    method, batch = trained(name)
    gains = []
    for seed in range(3):
        torch.manual_seed(seed)
        with seen_by(method) as seen:
            method.loss(batch)
        clean, tried, hard = (method.logits(image).detach() for image in seen)
        gains.append(float(divergence(clean, hard) - divergence(clean, tried)))
    assert min(gains) > 0


def test_adversarial_noise_has_the_norm_it_is_given():
    method, batch = trained("advnoise", noise_norm=0.5)
    batch = Batch((0.2 + 0.6 * batch.image[:, :1]).expand(-1, 3, -1, -1), batch.mask)
    torch.manual_seed(0)
    with seen_by(method) as seen:
        method.loss(batch)
    norms = (seen[2] - batch.image)[:, 0].flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((4,), 0.5), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["advbias", "advnoise"])
def test_what_is_only_tried_leaves_no_trace(name):
    """Batch norms remember the clean and the hard images, not those of the search, and gradients go to neither."""
    method, batch = build(name), drawn()
    with untracked(method):
        before = {n: b.clone() for n, b in method.named_buffers()}
        method.logits(batch.image)
        assert all(torch.equal(b, before[n]) for n, b in method.named_buffers())
    method.loss(batch)
    counts = [b for n, b in method.named_buffers() if n.endswith("num_batches_tracked")]
    assert counts and all(int(c) == 2 for c in counts)
    assert all(p.grad is None for p in method.parameters())


def test_unit_scales_each_image_and_leaves_zeros():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]]).view(2, 1, 1, 2)
    assert torch.allclose(unit(x).view(2, 2), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


def test_an_adversary_of_no_step_leaves_what_it_drew():
    method = build("advbias", bias_step=0)
    with seen_by(method) as seen:
        method.loss(drawn())
    assert torch.equal(seen[2], seen[1]) and not torch.equal(seen[1], seen[0])


@pytest.mark.parametrize(("name", "nothing"), [("advbias", {"bias": 1e-6}), ("advnoise", {"noise_norm": 0})])
def test_adversaries_do_not_disagree_with_themselves_when_nothing_may_change(name, nothing):
    method, batch = build(name, norm="instance", **nothing), drawn()
    torch.manual_seed(0)
    expected = 2 * method.criterion(method.logits(batch.image), batch.mask)
    assert method.loss(batch).item() == pytest.approx(expected.item(), rel=1e-3)
