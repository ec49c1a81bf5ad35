"""Methods since 2023: what each promises, by hand, by properties, and against the same written in another way."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dgbench.errors import UsageError
from dgbench.losses import dice_loss
from dgbench.method import Batch, Method, resolve_hparams
from dgbench.methods import adverin, constyx, freesdg, morestyle, srcsm, stacking
from dgbench.methods._curves import through
from dgbench.methods._gin import gin
from dgbench.networks.unet import normalise
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


@pytest.mark.parametrize("name", ["srcsm", "stacking", "adverin", "constyx", "freesdg", "morestyle"])
def test_even_images_without_the_structure_give_finite_steps(name):
    method = build(name)
    for t, level in enumerate((0.0, 0.5)):
        even = torch.full((2, 1, SIZE, SIZE), level).expand(-1, 3, -1, -1)
        shown = train.step(method, Batch(even, torch.zeros(2, 1, SIZE, SIZE)), seed=0, t=t)
        assert all(map(math.isfinite, shown.values())) and all(p.isfinite().all() for p in method.parameters())


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


def test_the_view_of_srcsm_is_its_equation_redrawn_class_by_class():
    batch = drawn(2, 2)
    method = build("srcsm", 2)
    torch.manual_seed(1)
    seen = method.view(batch)
    torch.manual_seed(1)
    z = normalise(batch.image[:, :1], "zscore")
    expected = sum(part * reference_gin(z, 0.1) for part in srcsm.classes(batch.mask, 1.0))
    low, high = (torch.stack([f(x) for x in expected]).view(2, 1, 1, 1) for f in (torch.min, torch.max))
    torch.testing.assert_close(seen[:, :1], (expected - low) / (high - low), atol=1e-4, rtol=0)
    assert loss_of(build("srcsm", 2), batch) != loss_of(build("erm", 2), batch), "the view is trained on"


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
    for still in ("attack_rate", "attack_length"):
        torch.testing.assert_close(loss_of(build("adverin", **{still: 0}), batch), loss_of(build("erm"), batch))
    assert loss_of(build("adverin", points=3), batch) != loss_of(build("adverin"), batch)


# Stacking


def test_how_far_two_maps_are_apart_by_hand():
    a = torch.tensor([3.0, 4.0]).view(1, 1, 2)
    for b, expected in (([6.0, 8.0], 0.0), ([-3.0, -4.0], 2.0), ([4.0, -3.0], 1.0), ([4.0, 3.0], 1 - 24 / 25)):
        assert stacking.apart(a, torch.tensor(b).view(1, 1, 2)).item() == pytest.approx(expected, abs=1e-6)
    both = torch.tensor([[3.0, 4.0], [0.0, 0.0]]).view(2, 1, 2)  # where nothing is, nothing is alike, and no NaN
    assert stacking.apart(both, both).item() == pytest.approx(0.5)
    weight = torch.tensor([1.0, 0.0]).view(1, 1, 2)
    assert stacking.apart(a, torch.tensor([5.0, -9.0]).view(1, 1, 2), weight).item() == pytest.approx(0, abs=1e-6)


def test_rarer_pixels_weigh_more():
    """A quarter of the pixels is inside: they weigh three quarters, those outside one quarter."""
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, :, :2] = 1
    assert torch.equal(stacking.rarity(mask), torch.where(mask > 0, 0.75, 0.25))


@pytest.mark.parametrize("view", ["gin", "contrast"])
def test_the_loss_of_stacking_is_that_of_both_images_and_what_lies_between_them(view):
    batch = drawn(3, 2)
    method = build("stacking", 2, view=view, stacking=0.7, norm="instance")
    torch.manual_seed(5)
    total = method.loss(batch)
    torch.manual_seed(5)
    other = method.view(batch.image)
    assert (other - batch.image).abs().max() > 0.05 and other.min() >= 0 and other.max() <= 1
    maps, logits = [], []
    for image in (batch.image, other):
        features = method.net.encode(normalise(image, "zscore"))
        maps.append(features[-1].flatten(1))
        logits.append(method.net.decode(features, (SIZE, SIZE)))
    expected = sum(method.criterion(z, batch.mask) for z in logits)
    encoders = 1 - torch.nn.functional.cosine_similarity(*maps).mean()
    root = stacking.rarity(batch.mask).sqrt()
    predictions = 1 - torch.nn.functional.cosine_similarity(*((root * z).flatten(2) for z in logits), dim=2).mean()
    assert encoders > 1e-3 and predictions > 1e-3
    expected = expected + 0.7 * (encoders + predictions)
    torch.testing.assert_close(total, expected)
    names, weights = zip(*method.named_parameters(), strict=True)  # both images teach, through all terms
    ours, theirs = (torch.autograd.grad(x, weights) for x in (total, expected))
    for name, a, b in zip(names, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3, msg=name)


def test_stacking_lies_over_slaug_and_over_dapsam():
    """SLAug makes two images of each, and each of them gets a view: four passes. SLAug's map sees the loss of both."""
    for name, passes in (("slaug+stacking", 4), ("erm+stacking", 2), ("dapsam+stacking", 2)):
        cls = get_method(name)
        small = {} if name.startswith("dapsam") else {"width": "4"}
        side = 64 if name.startswith("dapsam") else SIZE
        method, _ = train.build(cls, TaskInfo("drawn", ("disc",), side, 4), resolve_hparams(cls, "drawn", small), 0)
        train.configure(method)
        seen, ends, logits = [], [], method.logits
        method.logits = lambda x, see=seen, of=logits: (see.append(x), of(x))[1]
        stacking.encoder_of(method).register_forward_hook(lambda m, i, o, end=ends: end.append(o))
        image, mask = (torch.nn.functional.interpolate(x, side) for x in drawn(2))
        shown = train.step(method.train(), Batch(image, mask.round()), seed=0, t=0)
        assert len(seen) == len(ends) == passes and math.isfinite(shown["loss"]), name


def test_stacking_says_where_it_finds_no_encoder():
    with pytest.raises(UsageError, match="no encoder in Method"):
        stacking.encoder_of(Method(TaskInfo("drawn", ("disc",), SIZE, 4), resolve_hparams(Method, "drawn")))


# ConStyX


def test_the_class_of_a_pixel_is_its_last_structure():
    mask = torch.tensor([[0.0, 1, 1, 0], [0, 0, 1, 1]]).view(1, 2, 1, 4)
    assert constyx.class_of(mask).flatten().tolist() == [0, 1, 2, 2]


def test_the_variance_of_a_class_is_that_of_all_its_pixels_so_far():
    method, rng = build("constyx", 2), torch.Generator().manual_seed(0)
    features = [(1 + t) * torch.randn(2, 8, 5, 6, generator=rng) + t for t in range(3)]
    owners = [torch.randint(3, (2, 5, 6), generator=rng) for _ in range(3)]
    owners[0] = owners[0].clamp(max=1)  # a class that comes later
    for f, owner in zip(features, owners, strict=True):
        method.remember(f, torch.nn.functional.one_hot(owner, 3).permute(0, 3, 1, 2).float())
    for k in range(3):
        pixels = torch.cat([f.permute(0, 2, 3, 1)[o == k] for f, o in zip(features, owners, strict=True)])
        assert method.pixels[k] == len(pixels)
        torch.testing.assert_close(method.mean[k], pixels.mean(0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(method.variance[k], pixels.var(0, correction=0), atol=1e-3, rtol=1e-4)


def test_style_goes_where_the_gradient_is_most_negative():
    gradient = torch.tensor([3.0, -2, 0, -5, 1, 7, -1, 2, 4, 6]).view(1, 10, 1, 1)
    assert constyx.style_direction(gradient, 0.2).flatten().tolist() == [0, 1, 0, 1, 0, 0, 0, 0, 0, 0]
    assert constyx.style_direction(gradient, 1.0).eq(1).all() and constyx.style_direction(gradient, 0.0).eq(0).all()


def test_what_moved_far_counts_by_how_sure_it_is():
    """Probabilities 1/2, 1/4 and about 0 have entropies ln 2, 0.5623 and 0: of 1, 0.811278 and 0 of the way up."""
    logits = torch.tensor([0.0, -math.log(3), -40]).view(1, 1, 1, 3)
    far, near = torch.full((1, 1, 1, 3), 0.5), torch.full((1, 1, 1, 3), 0.7)
    expected = [0.0, math.exp(1 - 0.8112781) - 1, math.e - 1]
    assert constyx.trust(logits, far, 0.6).flatten().tolist() == pytest.approx(expected, abs=1e-5)
    assert constyx.trust(logits, near, 0.6).eq(1).all()
    assert constyx.trust(torch.zeros(1, 1, 2, 2), far[..., :2], 0.6).isfinite().all()


def test_constyx_without_noise_and_style_is_twice_erm_and_style_lowers_the_loss():
    batch = drawn(3, 2)
    erm, method = build("erm", 2), build("constyx", 2, style_step=0, similarity=-1)
    method.remember = lambda f, inside: None  # no pixel seen, no content moved
    plain, both = loss_of(erm, batch), loss_of(method, batch)
    torch.testing.assert_close(both, 2 * plain)
    both.backward()
    plain.backward()
    for (name, a), b in zip(method.named_parameters(), erm.parameters(), strict=True):
        torch.testing.assert_close(a.grad, 2 * b.grad, atol=1e-5, rtol=1e-3, msg=name)
    styled = build("constyx", 2, style_step=0.5, similarity=-1)
    styled.remember = lambda f, inside: None
    assert loss_of(styled, batch) < both - 1e-3


def test_the_second_loss_of_constyx_equals_its_equation_step_by_step():
    batch = drawn(2, 2)
    method, again = build("constyx", 2, norm="instance"), build("constyx", 2, norm="instance")
    torch.manual_seed(3)
    total = method.loss(batch)
    f = again.net.decoder.maps(again.net.encode(normalise(batch.image, "zscore")))[-1].detach().requires_grad_()
    head, mask = again.net.decoder.head, batch.mask
    plain = again.criterion(head(f), mask)
    (g,) = torch.autograd.grad(plain, f, retain_graph=True)
    owner = (mask[:, 0] + mask[:, 1]).long()  # the second lies inside of the first
    variance = torch.stack([f.detach().permute(0, 2, 3, 1)[owner == k].var(0, correction=0) for k in range(3)])
    torch.manual_seed(3)
    content, even = torch.randn_like(f), torch.rand_like(f)
    moved = f + content * variance[owner].permute(0, 3, 1, 2)
    lowest = g.argmin(1, keepdim=True)  # a fifth of 8 channels is one
    moved = moved + torch.zeros_like(f).scatter(1, lowest, 0.5 * even.gather(1, lowest))
    logits = head(moved)
    weight = constyx.trust(logits.detach(), torch.nn.functional.cosine_similarity(f, moved)[:, None].detach(), 0.6)
    p = logits.sigmoid()
    bce = -(weight * (mask * p.log() + (1 - mask) * (1 - p).log())).mean()
    dice = 1 - ((2 * (p * mask).sum((2, 3)) + 1) / (p.sum((2, 3)) + mask.sum((2, 3)) + 1)).mean()
    expected = plain + (bce + dice) / 2
    torch.testing.assert_close(total, expected, atol=1e-4, rtol=1e-4)
    (ours,) = torch.autograd.grad(total, method.net.decoder.head.weight)
    (theirs,) = torch.autograd.grad(expected, head.weight)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3, msg="trust is a weight, and not learned through")


# FreeSDG


def test_an_even_image_has_no_high_frequencies_and_an_edge_has_both_signs():
    for level in (0.0, 0.3, 1.0):
        assert freesdg.high_pass(torch.full((1, 3, SIZE, SIZE), level), 9, 27).abs().max() < 1e-5
    edge = torch.zeros(1, 1, SIZE, SIZE)
    edge[..., SIZE // 2 :] = 1
    seen = freesdg.high_pass(edge, 9, 27)[0, 0, 5]
    assert seen.min() == -1 and seen.max() == 1 and seen[0].abs() < 1e-5
    torch.testing.assert_close(seen, -seen.flip(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("sigma", "width"), [(9, 27), (2, 5), (21, 43)])
def test_the_high_pass_at_512_pixels_is_that_of_its_kernel(sigma, width):
    image = torch.zeros(1, 1, 512, 512)
    image[0, 0, 256, 256] = 0.5  # so that 4 (x - G * x) is 4 (1 - G(0)) there, cut, and - 4 G elsewhere
    seen = freesdg.high_pass(image, sigma, width)[0, 0]
    kernel = np.exp(-((np.arange(width) - width // 2) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    around = slice(256 - width // 2, 257 + width // 2)
    expected = np.clip(-4 * np.outer(kernel, kernel), -1, 1)
    expected[width // 2, width // 2] = min(1, 4 * (1 - kernel[width // 2] ** 2))
    np.testing.assert_allclose(seen[around, around], expected, atol=1e-5)
    outside = seen.clone()
    outside[around, around] = 0
    assert outside.abs().max() < 1e-5


def test_a_mixture_is_one_filters_view_with_a_rectangle_of_anothers():
    method, image = build("freesdg"), drawn(2).image[:, :1]
    views = torch.stack([freesdg.high_pass(image, *f) for f in freesdg.FILTERS])
    assert freesdg.FILTERS[0] == (2, 5) and freesdg.FILTERS[-1] == (21, 43)
    kinds = set()
    for seed in range(12):
        torch.manual_seed(seed)
        seen = method.mixture(image)
        equal = (views == seen).all(2).all(1)  # (20, H, W): which filters a pixel may be from
        assert equal.any(0).all()
        most = int(equal.sum((1, 2)).argmax())
        rows, columns = (~equal[most]).any(1).nonzero(), (~equal[most]).any(0).nonzero()
        kinds.add((most, len(rows), len(columns)))
    assert len(kinds) > 8


def test_freesdg_takes_no_setting_that_it_does_not_read():
    """Another row's name would stand over the same numbers."""
    with pytest.raises(UsageError, match="does not normalise the high frequencies"):
        build("freesdg", normalise="imagenet")


def test_freesdg_segments_from_what_it_rebuilds_and_weighs_it_by_attention():
    method, batch = build("freesdg"), drawn(2)
    logits = method.logits(batch.image)
    rebuilt = method.net.decoder.rebuilt
    assert rebuilt.shape == batch.image.shape and rebuilt.abs().max() <= 1
    (g,) = torch.autograd.grad(logits.sum(), method.net.decoder.rebuild.merge[0][0].weight, retain_graph=True)
    assert g.abs().max() > 0  # through the segmentation alone
    for attention in method.net.decoder.attention:
        (g,) = torch.autograd.grad(logits.sum(), attention.where.weight, retain_graph=True)
        assert g.abs().max() > 0, "each size's map is weighed on its way"
    look = method.net.decoder.attention[1]
    x = wave(2, 16, 4, 4)
    ratio = look(x) / x
    assert ratio.min() > 0 and ratio.max() < 1
    by_channel = torch.stack([x.mean((2, 3)), x.amax((2, 3))])
    hidden = (by_channel @ look.squeeze.weight[:, :, 0, 0].T).relu() @ look.excite.weight[:, :, 0, 0].T
    y = x * hidden.sum(0).sigmoid()[:, :, None, None]
    where = look.where(torch.stack([y.mean(1), y.max(1).values], 1)).sigmoid()
    torch.testing.assert_close(look(x), y * where)


def test_the_loss_of_freesdg_adds_how_badly_the_tested_view_is_rebuilt():
    method, without = build("freesdg", norm="instance"), build("freesdg", norm="instance", reconstruction=0)
    batch = drawn(2)
    added = loss_of(method, batch) - loss_of(without, batch)
    target = freesdg.high_pass(batch.image, *freesdg.TESTED)
    torch.testing.assert_close(added, (method.net.decoder.rebuilt - target).abs().mean())
    torch.manual_seed(0)
    mixture = without.mixture(batch.image)
    assert not torch.equal(mixture, target)
    expected = without.criterion(without.net(mixture), batch.mask)
    torch.testing.assert_close(loss_of(without, batch), expected)
    lost = (without.net.decoder.rebuilt - target).abs().mean()
    learns = [without.net.stages[0][0].weight, without.net.decoder.rebuild.merge[0][0].weight]
    for g in torch.autograd.grad(lost, learns):
        assert g.abs().max() > 0, "encoder and decoder learn to rebuild, and not its head alone"


def test_freesdg_predicts_from_the_high_frequencies_alone():
    method = build("freesdg").eval()
    image = 0.5 * drawn(2).image + 0.1
    torch.testing.assert_close(method.predict(image + 0.3), method.predict(image), atol=1e-4, rtol=0)


# MoreStyle


def parts(method: Method, batch: Batch) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """What `recomposed` takes: of a batch, with noise and partners by a seed."""
    n = len(batch.image)
    noise = torch.randn(n, morestyle.NOISES, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return batch.image[:, :1], method.net.encode(normalise(batch.image, "zscore")), noise, torch.arange(n).roll(1)


def test_a_recomposed_image_keeps_phase_and_high_frequencies_and_takes_low_amplitudes():
    """Looked at before it is cut to [0, 1], with numpy's transform."""
    method, batch = build("morestyle", cutoff=0.1), drawn(3)
    gray, features, noise, partner = parts(method, batch)
    gray = 0.4 + 0.2 * gray  # so that nothing is cut
    rebuilt, exchanged = [], morestyle.mix_amplitudes
    morestyle.mix_amplitudes = lambda own, other, *rest: (rebuilt.append(other), exchanged(own, other, *rest))[1]
    try:
        with torch.no_grad():
            seen = method.recomposed(gray, features, noise, partner)
    finally:
        morestyle.mix_amplitudes = exchanged
    assert seen.min() > 0 and seen.max() < 1
    before, after, other = (np.fft.fft2(x[:, 0].double().numpy()) for x in (gray, seen, rebuilt[0]))
    frequency = np.abs(np.fft.fftfreq(SIZE) * SIZE).round()
    low = (frequency[:, None] <= 3) & (frequency <= 3)  # a tenth of 32 pixels
    assert 0 < low.sum() < SIZE**2
    np.testing.assert_allclose(after[:, ~low], before[:, ~low], atol=2e-4)
    np.testing.assert_allclose(np.abs(after[:, low]), np.abs(other[:, low]), atol=2e-3)
    np.testing.assert_allclose(
        after[:, low] / np.abs(after[:, low]), before[:, low] / np.abs(before[:, low]), atol=0.01
    )


def test_the_noise_encoder_composes_styles_and_climbs_the_loss():
    method, batch = build("morestyle", augmentation="none", norm="instance"), drawn(4)
    powers = torch.tensor([0.3, 1.0, 2.0, 4.0]).view(4, 1, 1, 1)  # four styles
    batch = Batch((batch.image[:, :1] ** powers).expand(-1, 3, -1, -1), batch.mask)
    for t in range(6):
        train.step(method, batch, seed=0, t=t)
    gray, features, noise, partner = parts(method, batch)

    def hardness() -> Tensor:
        image = method.recomposed(gray, features, noise, partner).expand_as(batch.image)
        return method.criterion(method.logits(image), batch.mask)

    climber = torch.optim.SGD(method.noise_encoder.parameters(), lr=10.0, maximize=True)  # gradients are of 0.006
    before = hardness().item()
    for _ in range(10):
        climber.zero_grad()
        hardness().backward()
        climber.step()
    assert hardness().item() > before + 1e-3
    other = method.recomposed(gray, features, noise.flip(0), partner)
    assert (other - method.recomposed(gray, features, noise, partner)).abs().max() > 1e-3


def test_low_frequencies_weigh_a_tenth_in_rebuilding():
    image = torch.full((1, 1, 16, 16), 0.4)
    brighter = image + 0.1  # of frequency 0 alone: 0.1 * 16 in the orthonormal transform, one of 16 * 9 entries
    assert morestyle.spectral_loss(brighter, image, 0.1).item() == pytest.approx(0.1 * 1.6 / 144, rel=1e-5)
    waves = image + 0.1 * torch.tensor([1.0, -1.0]).repeat(8)  # of the highest
    assert morestyle.spectral_loss(waves, image, 0.1).item() == pytest.approx(1.6 / 144, rel=1e-5)


def test_only_what_the_style_made_wrong_weighs_more():
    """Four pixels inside: both right, only the styled wrong, only the plain wrong, both wrong; the mean is unsure."""
    plain, styled = (torch.tensor(z).view(1, 1, 1, 4) for z in ([2.0, 2, -2, -2], [2.0, -2, 2, -2]))
    mask, mean = torch.ones(1, 1, 1, 4), torch.full((1, 1, 1, 4), 0.5)
    assert morestyle.pixel_weight(plain, styled, mean, mask, 0.2).flatten().tolist() == pytest.approx([1, 1.2, 0.8, 1])
    sure = morestyle.pixel_weight(plain, styled, torch.ones_like(mean), mask, 0.2)
    torch.testing.assert_close(sure, torch.ones_like(sure))
    quarter = morestyle.pixel_weight(plain, styled, mean / 2, mask, 0.2).flatten()[1].item()
    assert quarter == pytest.approx(1 + 0.2 * 0.8112781, abs=1e-5)  # the entropy of 1/4 in bits


def test_each_optimizer_of_morestyle_moves_its_own_part():
    method, batch = build("morestyle"), drawn(3)
    kinds = ("net", "image_decoder", "noise_encoder")
    for moved, optimizer in zip(kinds, method.optimizers, strict=True):
        state = {k: [p.clone() for p in getattr(method, k).parameters()] for k in kinds}
        others = [o for o in method.optimizers if o is not optimizer]
        for other in others:
            for group in other.param_groups:
                group["lr"], group["weight_decay"] = 0.0, 0.0
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        torch.manual_seed(0)
        method.update(batch)
        for k in kinds:
            after = list(getattr(method, k).parameters())
            assert any(not torch.equal(a, b) for a, b in zip(after, state[k], strict=True)) == (k == moved), (k, moved)


def test_the_three_steps_of_morestyle_are_their_equations_one_after_the_other():
    """Written again on a second copy from the same draws; compared are the gradients that an update leaves."""
    settings = {"norm": "instance", "copies": 3, "noise": 0.5, "style_rate": 5, "cutoff": 0.2, "emphasis": 1}
    batch, (method, again) = drawn(3, 2), (build("morestyle", 2, **settings) for _ in range(2))
    torch.manual_seed(3)
    shown = method.update(batch)
    torch.manual_seed(3)
    gray, mask = batch.image[:, :1], batch.mask
    noise, partner = torch.randn(3, morestyle.NOISES), torch.randperm(3)
    features = [f.detach() for f in again.net.encode(normalise(batch.image, "zscore"))]

    def segmented(image: Tensor) -> Tensor:
        return again.logits(image.expand_as(batch.image))

    climbed = list(again.noise_encoder.parameters())
    uphill = torch.autograd.grad(
        again.criterion(segmented(again.recomposed(gray, features, noise, partner)), mask), climbed
    )
    with torch.no_grad():
        for p, g in zip(climbed, uphill, strict=True):
            p += 5 * g
        hard = again.recomposed(gray, features, noise, partner)
    image = again.rebuilt(gray, features, {})
    amplitudes = (torch.fft.rfft2(image, norm="ortho").abs() - torch.fft.rfft2(gray, norm="ortho").abs()).abs()
    amplitudes[..., :7, :7] *= 0.1  # frequencies up to a fifth of 32 pixels
    amplitudes[..., -6:, :7] *= 0.1
    rebuilding = 5e-3 * (image - gray).square().mean() + 5e-4 * amplitudes.mean()
    plain, styled = segmented(gray), segmented(hard)
    with torch.no_grad():
        mean = torch.stack([segmented(hard + 0.5 * torch.randn_like(gray)).sigmoid() for _ in range(3)]).mean(0)
        weight = morestyle.pixel_weight(plain, styled, mean, mask, 1.0)
    assert (weight != 1).float().mean() > 0.01
    bce = torch.nn.functional.binary_cross_entropy_with_logits(styled, mask, weight=weight)
    loss = again.criterion(plain, mask) + (bce + dice_loss(styled, mask)) / 2
    assert shown["loss"].item() == pytest.approx(loss.item(), rel=1e-4)
    assert shown["loss_rebuilt"].item() == pytest.approx(rebuilding.item(), rel=1e-4)
    for a, b, g in zip(method.noise_encoder.parameters(), climbed, uphill, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(a.grad, g, atol=1e-5, rtol=1e-3)
    for x, part in ((rebuilding, "image_decoder"), (loss, "net")):
        names, ours = zip(*getattr(method, part).named_parameters(), strict=True)
        theirs = torch.autograd.grad(x, list(getattr(again, part).parameters()))
        for name, a, g in zip(names, ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, g, atol=1e-5, rtol=5e-3, msg=f"{part}.{name}")


def test_the_climber_of_morestyle_gathers_momentum():
    method, batch = build("morestyle", style_rate=0.5, style_momentum=0.9), drawn(3)
    velocity = 0.0
    for _ in range(2):
        before = [p.detach().clone() for p in method.noise_encoder.parameters()]
        method.update(batch)
        after = list(method.noise_encoder.parameters())
        velocity = 0.9 * velocity + after[0].grad
        torch.testing.assert_close(after[0], before[0] + 0.5 * velocity, atol=1e-6, rtol=1e-4)
