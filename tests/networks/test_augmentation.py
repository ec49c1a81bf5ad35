"""Augmentation moves image and mask together, keeps them what they are, and is a function of one random state."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgbench.errors import UsageError
from dgbench.method import Batch
from dgbench.methods.dapsam import PROSTATE
from dgbench.networks.augmentation import (
    BASE,
    Augmentation,
    augment,
    bspline,
    elastic_shift,
    gaussian_blur,
    linear_map,
    sampling_grid,
)

PROBABILITIES: list[str] = [f.name for f in fields(Augmentation) if f.name.startswith("p_")]
GEOMETRY = ("p_flip", "p_rotate", "p_scale", "p_translate", "p_elastic")
ALWAYS: dict[str, Any] = dict.fromkeys(PROBABILITIES, 1.0)
EVERYTHING = Augmentation(**ALWAYS)
SPATIAL = Augmentation(**{p: v for p, v in ALWAYS.items() if p.startswith(GEOMETRY)})


def state(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def letter(n: int = 1, height: int = 48, width: int = 48) -> Tensor:
    """(n, 1, H, W): the letter F, which no flip or turn maps onto itself."""
    mask = torch.zeros(n, 1, height, width)
    mask[..., 10:38, 14:20] = mask[..., 10:16, 20:34] = mask[..., 22:28, 20:28] = 1
    return mask


def drawn(n: int = 1, size: int = 48) -> Batch:
    """A batch whose (gray, expanded) image is its mask."""
    return Batch(letter(n, size, size).expand(-1, 3, -1, -1), letter(n, size, size))


def noisy(n: int = 4, channels: int = 3, height: int = 40, width: int = 56, structures: int = 2) -> Batch:
    rng = state(1)
    mask = (torch.rand(n, structures, height, width, generator=rng) > 0.5).float()
    return Batch(torch.rand(n, channels, height, width, generator=rng), mask)


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.image, b.image) and torch.equal(a.mask, b.mask)


# The random state


def test_one_state_of_the_generator_gives_one_result_and_another_state_another():
    batch = noisy()
    assert same(augment(batch, state(5), EVERYTHING), augment(batch, state(5), EVERYTHING))
    assert not same(augment(batch, state(5), EVERYTHING), augment(batch, state(6), EVERYTHING))


def test_the_generator_moves_on_by_the_same_amount_whatever_is_drawn():
    followers = []
    for batch, ranges in [(noisy(2), EVERYTHING), (noisy(7), BASE), (drawn(), Augmentation())]:
        rng = state()
        augment(batch, rng, ranges)
        followers.append(torch.rand((), generator=rng).item())
    assert len(set(followers)) == 1


def test_what_one_transform_draws_does_not_depend_on_the_probability_of_another():
    batch, turned = drawn(3), Augmentation(p_rotate=1)
    assert same(augment(batch, state(), turned), augment(batch, state(), replace(turned, p_elastic=1, elastic=(0, 0))))


def test_neither_the_global_generator_nor_the_given_batch_is_touched():
    batch = noisy()
    image, mask, before = batch.image.clone(), batch.mask.clone(), torch.get_rng_state()
    augment(batch, state(), EVERYTHING)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(batch, Batch(image, mask))


def test_a_probability_is_the_share_of_images_that_change():
    batch = Batch(letter(2000, 12, 12) + 0.25 * torch.rand(2000, 1, 12, 12), torch.zeros(2000, 1, 12, 12))
    batch.image[:, :, 2:5, 2:9] = 0.6
    for name in ("p_flip_horizontal", "p_rotate", "p_elastic", "p_noise", "p_gamma"):
        result = augment(batch, state(3), Augmentation(**{name: 0.3}))
        share = (result.image != batch.image).flatten(1).any(1).float().mean().item()
        assert share == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 2000) ** 0.5), name


def test_half_of_the_factors_lie_below_one():
    batch = Batch(torch.full((2000, 1, 2, 2), 0.5), torch.zeros(2000, 1, 2, 2))
    gamma = augment(batch, state(), Augmentation(p_gamma=1, gamma=(0.7, 3))).image[:, 0, 0, 0].log2().neg()
    assert (gamma < 1).float().mean().item() == pytest.approx(0.5, abs=0.045)
    assert gamma.min().item() == pytest.approx(0.7, abs=0.01)
    assert gamma.max().item() == pytest.approx(3, abs=0.03)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_what_the_cpu_gives_but_for_the_grain_of_the_noise():
    batch, ranges = noisy(), replace(EVERYTHING, p_noise=0)
    on_gpu = augment(Batch(batch.image.cuda(), batch.mask.cuda()), state(), ranges)
    image, mask = augment(batch, state(), ranges)
    torch.testing.assert_close(on_gpu.image.cpu(), image, atol=1e-3, rtol=0)
    assert (on_gpu.mask.cpu() != mask).float().mean() < 1e-3


# Nothing to do


def test_without_probabilities_the_batch_is_returned_as_it_is():
    batch = noisy()
    result = augment(batch, state(), Augmentation())
    assert result.image is batch.image
    assert result.mask is batch.mask


def test_a_transform_of_strength_nothing_changes_nothing():
    one, zero = (1.0, 1.0), (0.0, 0.0)
    still = dict(rotate=zero, scale=one, translate=zero, elastic=zero, noise=zero, brightness=one, contrast=one)
    still |= dict(low_resolution=one, gamma=one)
    names = [p for p in PROBABILITIES if not p.startswith(("p_flip", "p_blur"))]
    batch = noisy()
    result = augment(batch, state(), Augmentation(**dict.fromkeys(names, 1.0), **still))
    torch.testing.assert_close(result.image, batch.image, atol=2e-5, rtol=0)
    assert torch.equal(result.mask, batch.mask)


# Geometry


def test_a_flip_is_exact():
    batch = noisy()
    horizontal = augment(batch, state(), Augmentation(p_flip_horizontal=1))
    assert same(horizontal, Batch(batch.image.flip(-1), batch.mask.flip(-1)))
    both = augment(batch, state(), Augmentation(p_flip_horizontal=1, p_flip_vertical=1))
    assert same(both, Batch(batch.image.flip(-1, -2), batch.mask.flip(-1, -2)))


def test_a_quarter_turn_is_exact_and_counter_clockwise():
    batch = drawn()
    result = augment(batch, state(), Augmentation(p_rotate=1, rotate=(90, 90)))
    assert torch.equal(result.mask, batch.mask.rot90(1, (-2, -1)))
    torch.testing.assert_close(result.image, batch.image.rot90(1, (-2, -1)), atol=1e-4, rtol=0)


def test_a_rotation_keeps_shapes_in_an_image_that_is_not_square():
    yy, xx = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(120) - 59.5, indexing="ij")
    disc = ((yy**2 + xx**2) < 15**2).float()[None, None]
    result = augment(Batch(disc.expand(-1, 3, -1, -1), disc), state(), Augmentation(p_rotate=1, rotate=(37, 37)))
    assert (result.mask != disc).sum() <= 0.02 * disc.sum()


def test_a_scale_of_two_shows_twice_the_field_of_view_with_black_around_it():
    square = torch.zeros(1, 1, 64, 64)
    square[..., 16:48, 16:48] = 1  # centred, 32 wide
    result = augment(Batch(square + 0.5, square), state(), Augmentation(p_scale=1, scale=(2, 2)))
    expected = torch.zeros(1, 1, 64, 64)
    expected[..., 24:40, 24:40] = 1  # centred, 16 wide
    assert torch.equal(result.mask, expected)
    assert result.image[..., :15, :].max() == 0


def test_a_translation_by_whole_pixels_is_exact():
    batch = drawn(size=50)
    result = augment(batch, state(), Augmentation(p_translate=1, translate=(0.1, 0.1)))  # looks 5 px right and down
    expected = torch.zeros_like(batch.mask)
    expected[..., :-5, :-5] = batch.mask[..., 5:, 5:]
    assert torch.equal(result.mask, expected)


@pytest.mark.parametrize("seed", range(6))
def test_the_mask_moves_exactly_as_the_image_does(seed):
    batch = drawn(4, 96)
    image, mask = augment(batch, state(seed), SPATIAL)
    assert torch.equal((image[:, :1] >= 0.5).float(), mask)
    assert 0.4 < mask.sum() / batch.mask.sum() < 2.5
    assert not torch.equal(mask, batch.mask)


def test_structures_that_overlap_do_so_after_the_warp():
    disc, cup = letter(3), letter(3)
    cup[..., 20:, :] = 0
    _, mask = augment(Batch(disc.expand(-1, 3, -1, -1), torch.cat([disc, cup], 1)), state(), SPATIAL)
    assert mask[:, 1].sum() > 0
    assert (mask[:, 1] <= mask[:, 0]).all()


def jacobian(bend: float, spacing: float, control: Tensor, size: tuple[int, int] = (96, 96)) -> Tensor:
    """Determinant of the map's derivative between neighbouring pixels, relative to 1 where nothing moves."""
    n = len(control)
    turn = linear_map(size, torch.zeros(n), torch.ones(n))
    grid = sampling_grid(size, turn, torch.zeros(n, 2))
    grid = grid + elastic_shift(size, turn, torch.full((n,), bend), torch.full((n,), spacing), control)
    along_x, along_y = grid.diff(dim=3)[:, :, :-1] * size[1] / 2, grid.diff(dim=2)[..., :-1] * size[0] / 2
    return along_x[:, 0] * along_y[:, 1] - along_x[:, 1] * along_y[:, 0]


def test_the_default_elastic_deformation_never_folds_and_a_strong_one_does():
    corners = torch.rand(40, 2, 11, 11, generator=state()).round() * 2 - 1  # every control point at its limit
    for spacing in BASE.elastic_spacing:
        assert jacobian(BASE.elastic[1], spacing, corners).min() > 0.02
    assert jacobian(3.0, BASE.elastic_spacing[0], corners).min() < 0


def test_an_elastic_deformation_is_smooth_and_moves_no_point_further_than_its_control_points():
    control = torch.rand(8, 2, 11, 11, generator=state()) * 2 - 1
    ones = torch.ones(8)
    shift = elastic_shift((96, 96), linear_map((96, 96), 0 * ones, ones), 0.4 * ones, 0.125 * ones, control) * 48
    assert shift.abs().max() <= 0.4 * 0.125 * 96
    assert shift.diff(n=2, dim=3).abs().max() < 0.12  # px; white noise of this size gives about 10
    assert shift.std() > 0.5


def test_spline_weights_sum_to_one_and_reproduce_straight_lines():
    weights = bspline(50, torch.tensor([7.3]), 11)[0]
    torch.testing.assert_close(weights.sum(-1), torch.ones(50))
    torch.testing.assert_close(weights @ (7.3 * torch.arange(-1.0, 10.0)), torch.arange(50.0), atol=1e-4, rtol=0)


# Intensity


def test_gamma_brightness_and_contrast_by_hand():
    image = torch.tensor([0.0, 0.25, 0.5, 1.0]).view(1, 1, 2, 2)
    batch = Batch(image, torch.zeros(1, 1, 2, 2))

    def values(**setting):
        return augment(batch, state(), Augmentation(**setting)).image.flatten().tolist()

    assert values(p_gamma=1, gamma=(2, 2)) == pytest.approx([0, 0.0625, 0.25, 1])
    assert values(p_gamma_inverted=1, gamma=(2, 2)) == pytest.approx([0, 0.4375, 0.75, 1])
    assert values(p_brightness=1, brightness=(1.5, 1.5)) == pytest.approx([0, 0.375, 0.75, 1])  # 1.5 is clamped
    assert values(p_contrast=1, contrast=(0.5, 0.5)) == pytest.approx([0.21875, 0.34375, 0.46875, 0.71875])
    assert values(p_contrast=1, contrast=(2, 2)) == pytest.approx([0, 0.0625, 0.5625, 1])  # clamped on both sides


def test_contrast_stays_within_the_range_of_the_image():
    image = noisy().image * 0.4 + 0.3
    result = augment(Batch(image, noisy().mask), state(), Augmentation(p_contrast=1, contrast=(3, 3))).image
    assert torch.equal(result.amax((-2, -1)), image.amax((-2, -1)))
    assert torch.equal(result.amin((-2, -1)), image.amin((-2, -1)))


def test_noise_has_the_deviation_it_was_given_and_differs_between_images_but_not_between_channels():
    flat = Batch(torch.full((3, 3, 64, 64), 0.5), torch.zeros(3, 1, 64, 64))
    noise = augment(flat, state(), Augmentation(p_noise=1, noise=(0.05, 0.05))).image - 0.5
    assert noise.std().item() == pytest.approx(0.05, rel=0.03)
    assert torch.equal(noise[:, 0], noise[:, 2])
    assert abs(torch.corrcoef(noise[:, 0].flatten(1))[0, 1]) < 0.06


def test_a_blurred_point_is_a_gaussian_of_the_same_mean():
    point = torch.zeros(2, 1, 33, 33)
    point[..., 16, 16] = 1
    blurred = gaussian_blur(point, torch.tensor([0.6, 1.0]).view(2, 1, 1, 1), 4)
    torch.testing.assert_close(blurred.sum((1, 2, 3)), torch.ones(2))
    deviation = (blurred[:, 0].sum(-1) * (torch.arange(33) - 16.0) ** 2).sum(-1).sqrt()
    torch.testing.assert_close(deviation, torch.tensor([0.6, 1.0]), atol=0.03, rtol=0)
    flat = torch.full((1, 1, 9, 9), 0.7)
    torch.testing.assert_close(gaussian_blur(flat, torch.ones(1, 1, 1, 1), 3), flat)


def test_blur_smooths_an_image_and_keeps_its_mean():
    batch = noisy(height=64, width=64)
    blurred = augment(batch, state(), Augmentation(p_blur=1, blur=(1, 1))).image
    # white noise keeps 1 / (4 pi sigma^2) of its variance; the border's repeated pixels add a little
    assert blurred.var().item() == pytest.approx(batch.image.var().item() / (4 * torch.pi), rel=0.1)
    torch.testing.assert_close(blurred.mean((2, 3)), batch.image.mean((2, 3)), atol=5e-3, rtol=0)


def test_a_saturated_image_stays_finite_where_what_leaves_the_range_by_rounding_meets_a_root():
    """The weights of a blur add up to 1.0000002; of 1 - 1.0000002, which is below 0, no root is a number."""
    white = Batch(torch.ones(256, 1, 8, 8), torch.zeros(256, 1, 8, 8))
    assert gaussian_blur(white.image, torch.linspace(0.5, 1, 256).view(-1, 1, 1, 1), 3).max() > 1
    image = augment(white, state(), Augmentation(p_blur=1, p_gamma_inverted=1)).image
    assert image.min() >= 0.9999 and image.max() <= 1


def test_low_resolution_takes_away_what_is_finer_than_its_pixels():
    checkers = (torch.arange(64)[:, None] + torch.arange(64)).remainder(2).float()[None, None]
    half = Augmentation(p_low_resolution=1, low_resolution=(0.5, 0.5))
    flat = augment(Batch(checkers, torch.zeros(1, 1, 64, 64)), state(), half).image
    assert flat.std() < 0.01
    ramp = torch.linspace(0.1, 0.9, 64).expand(1, 1, 64, 64)
    moved = augment(Batch(ramp, torch.zeros(1, 1, 64, 64)), state(), half).image - ramp
    assert moved.abs().max() < 0.015


@pytest.mark.parametrize("preset", [BASE, PROSTATE, EVERYTHING], ids=["base", "dapsam", "everything"])
def test_images_stay_between_0_and_1_and_masks_stay_masks(preset):
    for seed in range(8):
        batch = noisy(6)
        image, mask = augment(batch, state(seed), preset)
        assert image.shape == batch.image.shape
        assert mask.shape == batch.mask.shape
        assert image.dtype == mask.dtype == torch.float32
        assert image.isfinite().all() and image.min() >= 0 and image.max() <= 1
        assert set(mask.unique().tolist()) <= {0.0, 1.0}


SIDE = st.integers(8, 40)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 3), height=SIDE, width=SIDE, k=st.integers(1, 3), seed=st.integers(0, 99))
def test_any_size_and_number_of_structures_works_and_one_image_is_a_batch(n, height, width, k, seed):
    image, mask = augment(noisy(n, 3, height, width, k), state(seed), EVERYTHING)
    assert image.shape == (n, 3, height, width)
    assert mask.shape == (n, k, height, width)
    assert image.isfinite().all() and image.min() >= 0 and image.max() <= 1


def test_a_gray_view_gives_what_three_equal_channels_give_and_stays_a_view():
    gray = noisy(5, channels=1)
    view = Batch(gray.image.expand(-1, 3, -1, -1), gray.mask)
    colour = Batch(gray.image.repeat(1, 3, 1, 1), gray.mask)
    for seed, preset in enumerate([BASE, PROSTATE, EVERYTHING]):
        a, b = augment(view, state(seed), preset), augment(colour, state(seed), preset)
        assert a.image.stride(1) == 0
        assert a.image.shape == b.image.shape
        torch.testing.assert_close(a.image, b.image, atol=1e-6, rtol=0)
        assert torch.equal(a.mask, b.mask)


def test_colours_keep_their_hue_under_brightness():
    colour = torch.tensor([0.2, 0.4, 0.6]).view(1, 3, 1, 1).expand(1, 3, 4, 4).contiguous()
    result = augment(Batch(colour, torch.zeros(1, 1, 4, 4)), state(), Augmentation(p_brightness=1)).image
    ratio = (result / colour).unique()
    assert np.ptp(ratio.numpy()) < 1e-6
    assert abs(ratio[0] - 1) > 1e-3


# Settings


def test_the_base_changes_brightness_and_dapsams_preset_does_not():
    assert (BASE.p_brightness, PROSTATE.p_brightness) == (0.3, 0.0)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"p_rotate": 1.5}, "p_rotate is 1.5"),
        ({"p_noise": float("nan")}, "p_noise is nan"),
        ({"scale": (1.25, 0.85)}, "scale is (1.25, 0.85)"),
        ({"gamma": (0.0, 1.5)}, "gamma is (0.0, 1.5)"),
        ({"noise": (-0.1, 0.1)}, "noise is (-0.1, 0.1)"),
    ],
)
def test_a_setting_that_cannot_be_is_named(setting, told):
    with pytest.raises(UsageError, match="augmentation") as error:
        Augmentation(**setting)
    assert told in error.value.cause
    assert error.value.remedy
