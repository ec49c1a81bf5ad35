"""Methods since 2023: what each promises, by hand, by properties, and against the same written in another way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgbench.method import Batch, Method, resolve_hparams
from dgbench.methods import adverin, srcsm
from dgbench.methods._curves import through
from dgbench.methods._gin import gin
from dgbench.registry import get_method
from dgbench.running import train
from dgbench.task import TaskInfo

SIZE = 32


def wave(*shape: int) -> Tensor:
    """A fixed uneven image in [0, 1], by a formula."""
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((torch.sin(0.37 * i) + torch.sin(0.011 * i**1.1)) / 4 + 0.5).float().view(shape)


def drawn(n: int = 3, structures: int = 1) -> Batch:
    """Squares on an uneven ground, the second one inside of the first."""
    rows = torch.arange(SIZE)
    mask = torch.zeros(n, structures, SIZE, SIZE)
    for k in range(structures):
        inside = (rows - SIZE // 2).abs() < SIZE // (4 + 4 * k)
        mask[:, k] = (inside[:, None] & inside).float()
    image = 0.6 * wave(n, 1, SIZE, SIZE) + 0.3 * mask[:, :1]
    return Batch(image.expand(-1, 3, -1, -1), mask)


def build(name: str, structures: int = 1, **values: object) -> Method:
    cls = get_method(name)
    text = {"width": "8"} | {key: str(value) for key, value in values.items()}
    info = TaskInfo("drawn", ("disc", "cup")[:structures], SIZE, steps=10)
    method, _ = train.build(cls, info, resolve_hparams(cls, "drawn", text), seed=0)
    train.configure(method)
    return method.train()


def loss_of(method: Method, batch: Batch, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return method.loss(batch)


# Curves


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_a_curve_at_even_steps_is_read_as_numpy_reads_it(steps):
    x, curve = wave(2, 3, 5, 7), wave(2, 3, steps + 1)
    seen = through(x, curve)
    for i in range(2):
        for c in range(3):
            expected = np.interp(x[i, c], np.linspace(0, 1, steps + 1), curve[i, c])
            np.testing.assert_allclose(seen[i, c], expected, atol=1e-5)
    ends = through(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), curve[:1, :1])
    assert torch.equal(ends.flatten(), curve[0, 0, [0, -1]])


# SRCSM


def test_each_pixel_belongs_to_the_last_of_its_structures_but_for_the_blurred_edges():
    mask = drawn(1, 2).mask
    rest, disc, cup = srcsm.classes(mask, edge=1e-3).round()[:, 0, 0]
    assert torch.equal(cup, mask[0, 1]) and torch.equal(disc, mask[0, 0] - mask[0, 1])
    assert torch.equal(rest, 1 - mask[0, 0])
    soft = srcsm.classes(mask, edge=1.0)
    torch.testing.assert_close(soft.sum(0), torch.ones(1, 1, SIZE, SIZE))
    across = torch.exp(-torch.arange(-2.0, 3).square() / 2)  # at the edge of the cup, by hand
    expected = across[:3].sum() / across.sum()
    edge = int(mask[0, 1, SIZE // 2].nonzero()[0])
    assert soft[2, 0, 0, SIZE // 2, edge].item() == pytest.approx(expected.item(), abs=1e-5)


def test_background_and_structure_are_redrawn_by_networks_of_their_own(monkeypatch):
    """With networks that give 1, 2 and 3 the redrawing shows which of them drew a pixel."""
    constants = iter((1.0, 2.0, 3.0))
    monkeypatch.setattr(srcsm, "gin", lambda z, **_: torch.full_like(z, next(constants)))
    batch = drawn(1, 2)
    seen = build("srcsm", 2, edge=1e-3).view(batch)[0, 0]
    inside = batch.mask[0]
    for where, value in ((inside[0] == 0, 0.0), ((inside[0] == 1) & (inside[1] == 0), 0.5), (inside[1] == 1, 1.0)):
        torch.testing.assert_close(seen[where], torch.full_like(seen[where], value), atol=1e-3, rtol=0)


def reference_gin(z: Tensor, slope: float) -> Tensor:
    """One image at a time, with plain convolutions, from the same draws."""
    n, c = z.shape[:2]
    share, x, width = torch.rand(n), list(z), c
    for layer in range(4):
        k = (1, 3)[int(torch.randint(2, ()))]
        out = 2 if layer < 3 else c
        weight, bias = torch.randn(n * out, width, k, k), torch.randn(n * out)
        for i in range(n):
            own = slice(i * out, (i + 1) * out)
            y = torch.nn.functional.conv2d(x[i][None], weight[own], bias[own], padding=k // 2)[0]
            x[i] = torch.where(y > 0, y, slope * y)
        width = out
    mixed = [share[i] * x[i] + (1 - share[i]) * z[i] for i in range(n)]
    return torch.stack([m * z[i].norm() / m.norm() for i, m in enumerate(mixed)])


@pytest.mark.parametrize("seed", range(3))
def test_the_random_network_of_srcsm_is_bent_behind_its_last_layer_too_and_keeps_the_norm(seed):
    z = 4 * wave(2, 1, 16, 16) - 2
    torch.manual_seed(seed)
    ours = gin(z, slope=0.1, bent=True)
    torch.manual_seed(seed)
    torch.testing.assert_close(ours, reference_gin(z, 0.1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.flatten(1).norm(dim=1), z.flatten(1).norm(dim=1), rtol=1e-4, atol=0)


def test_an_even_image_is_redrawn_and_matched_to_an_image():
    even = Batch(torch.full((2, 1, SIZE, SIZE), 0.5).expand(-1, 3, -1, -1), torch.zeros(2, 1, SIZE, SIZE))
    assert build("srcsm").view(even).eq(0).all()
    source = srcsm.cumulative(wave(1, 3, SIZE, SIZE))[0]
    seen = srcsm.matched(even.image, source)
    assert seen.isfinite().all() and seen.min() >= 0 and seen.max() <= 1


def test_a_cumulative_histogram_by_hand():
    """Of 0, 1/4, 1/4 and 1: a quarter at most 0, three quarters from 1/4 on, all at 1."""
    share = srcsm.cumulative(torch.tensor([0.25, 1.0, 0.0, 0.25]).view(1, 1, 2, 2))[0, 0]
    assert share[[0, 1023, 1024, 4095, 4096]].tolist() == [0.25, 0.25, 0.75, 0.75, 1]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 2))
def test_a_matched_image_has_the_sources_histogram_and_keeps_its_order(seed, power):
    rng = torch.Generator().manual_seed(seed)
    image, source = (torch.rand(1, 3, 32, 32, generator=rng) for _ in range(2))
    image = image**power
    seen = srcsm.matched(image, srcsm.cumulative(source)[0])
    quantiles = torch.linspace(0.02, 0.98, 25)
    for c in range(3):
        ours, theirs = (x[0, c].flatten().quantile(quantiles) for x in (seen, source))
        torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)
        order = image[0, c].flatten().argsort()
        assert (seen[0, c].flatten()[order].diff() >= -1e-6).all()


def test_matching_equals_interpolation_by_numpy_and_leaves_the_source_as_it_is():
    image, source = wave(1, 3, 64, 64) ** 2, wave(1, 3, 64, 64).flip(3)
    levels, shares = np.linspace(0, 1, 4097), srcsm.cumulative(source)[0]
    seen = srcsm.matched(image, shares)
    for c in range(3):
        x = image[0, c].numpy().ravel()
        own = np.array([(x <= level).mean() for level in levels])
        known, first = np.unique(shares[c].numpy(), return_index=True)
        new = np.interp(own, known, levels[first])
        np.testing.assert_allclose(seen[0, c].numpy().ravel(), np.interp(x, levels, new), atol=1 / 256)
    assert (srcsm.matched(source, shares) - source).abs().max() < 1 / 256


def test_matching_changes_predictions_and_nothing_of_the_training():
    batch, methods = drawn(4), [build("srcsm", matching=on) for on in (False, True)]
    for method in methods:
        for t in range(3):
            train.step(method, batch, seed=0, t=t)
    plain, matching = methods
    for (name, a), b in zip(plain.named_parameters(), matching.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert matching.get_buffer("source_images") == 12
    noted = matching.get_buffer("source_histogram") / 12  # before any augmentation
    torch.testing.assert_close(noted, srcsm.cumulative(batch.image).mean(0))
    other = Batch(1 - batch.image**2, batch.mask).image
    with torch.no_grad():
        p, like_source = plain.eval().predict(other), matching.eval().predict(other)
        assert not torch.equal(p, like_source)
        assert torch.equal(like_source, plain.predict(srcsm.matched(other, noted)))
        torch.testing.assert_close(matching.predict(other[1:2]), like_source[1:2], atol=1e-5, rtol=0)
        assert build("srcsm", matching=True).eval().predict(other).isfinite().all()  # before the first step


# AdverIN


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 5), st.integers(3, 30))
def test_a_curve_of_adverin_rises_from_0_to_1(seed, size, points):
    c = adverin.curve(size * torch.randn(2, 3, points, generator=torch.Generator().manual_seed(seed)))
    assert (c.diff(dim=2) >= 0).all() and c[..., 0].eq(0).all() and c[..., -1].eq(1).all()


def test_a_curve_of_adverin_by_hand():
    """Of softmax weights 1/6, 2/6 and 3/6: the last two of them, 2 and 3 fifths."""
    c = adverin.curve(torch.tensor([1.0, 2.0, 3.0]).log().view(1, 1, 3))
    assert c.flatten().tolist() == pytest.approx([0, 0.4, 1])


def test_the_straight_curve_leaves_the_image_and_any_curve_its_range():
    image = 0.2 + 0.5 * wave(2, 3, 16, 16)
    torch.testing.assert_close(adverin.mapped(image, adverin.curve(torch.zeros(2, 3, 21))), image)
    steep = adverin.mapped(image, adverin.curve(torch.arange(21.0).expand(2, 3, 21)))
    for x in (steep.amin((2, 3)) - image.amin((2, 3)), steep.amax((2, 3)) - image.amax((2, 3))):
        assert x.abs().max() < 1e-6
    assert (steep <= image + 1e-6).all() and (image - steep).max() > 0.1
    even = torch.full((1, 1, 4, 4), 0.3)
    assert torch.equal(adverin.mapped(even, adverin.curve(torch.randn(1, 1, 21))), even)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e6])
def test_the_step_is_uphill_and_as_long_whatever_the_size_of_the_gradient(size):
    """t* is rate J^T (length steps g / |g|), J by finite differences."""
    gradient = torch.cos(torch.arange(5.0)).view(1, 1, 5)
    t = torch.zeros(1, 1, 5, requires_grad=True)
    found = adverin.attacked(adverin.curve(t), t, size * gradient, rate=0.1, length=10.0)
    steps = 1e-3 * torch.eye(5, dtype=torch.float64)
    plus, minus = (adverin.curve(s * steps[None]) for s in (1, -1))
    jacobian = (plus - minus)[0] / 2e-3  # (t, c)
    expected = 0.1 * jacobian @ (10 * 4 * gradient.double().flatten() / gradient.double().norm())
    torch.testing.assert_close(found.flatten().double(), expected, atol=1e-4, rtol=1e-4)
    raised = ((adverin.curve(found) - adverin.curve(torch.zeros(1, 1, 5))) * gradient).sum()
    assert raised > 0
    still = adverin.attacked(adverin.curve(t), t, torch.zeros(1, 1, 5), rate=0.1, length=10.0)
    assert still.eq(0).all()


def test_adverin_trains_on_harder_images_than_erm_and_its_search_leaves_no_trace():
    batch = drawn(4)
    method = build("adverin", augmentation="none", norm="instance")
    erm = build("erm", augmentation="none", norm="instance")
    for t in range(6):
        train.step(erm, batch, seed=0, t=t)
    method.load_state_dict(erm.state_dict())
    assert loss_of(method, batch) > loss_of(erm, batch) + 1e-3
    method = build("adverin")
    method.loss(batch)
    counts = [b for n, b in method.named_buffers() if n.endswith("num_batches_tracked")]
    assert counts and all(int(c) == 1 for c in counts) and all(p.grad is None for p in method.parameters())
    torch.testing.assert_close(loss_of(build("adverin", attack_rate=0), batch), loss_of(build("erm"), batch))
