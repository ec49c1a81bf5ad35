"""Methods that adapt to test images change nothing but what they predict, and forget when they are told to.

The numbers called public were computed once by the public repositories named beside them, on the inputs made by `wave`.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dgbench.errors import UsageError
from dgbench.images.folder_task import FolderTask
from dgbench.images.preparation import PreparedDomain, prepare
from dgbench.method import Batch, Method, resolve_hparams
from dgbench.methods import _batchnorm, _test_time, grata, intent, vptta
from dgbench.methods._curves import new_contrast
from dgbench.methods.erm import ERM
from dgbench.protocol import get_protocol
from dgbench.registry import get_method
from dgbench.running import predict as predict_run
from dgbench.running import test, train
from dgbench.task import TaskInfo
from tests.discs import write_discs

IDEAS = ("adabn", "tent", "sar", "intent", "vptta", "grata")
LEARNING = tuple(name for name in IDEAS if name not in ("adabn", "intent"))
SIZE = 32
INFO = TaskInfo("drawn", ("disc",), SIZE, steps=10)


def wave(*shape: int, start: int = 0) -> Tensor:
    """A fixed uneven image in [0, 1], by a formula."""
    i = torch.arange(start, start + math.prod(shape), dtype=torch.float64)
    return ((torch.sin(0.37 * i) + torch.sin(0.011 * i**1.1)) / 4 + 0.5).float().view(shape)


def images(n: int, start: int = 0) -> Tensor:
    """Gray, as the engine gives them; each `start` has another contrast."""
    return (wave(n, 1, SIZE, SIZE, start=start) ** (1 + start / 1000)).expand(-1, 3, -1, -1)


@cache
def weights(base: str, structures: int, settings: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    """What a few steps on the source teach a method: its norms have statistics then that are not 0 and 1."""
    method = start(base, structures, dict(settings))
    train.configure(method)
    for t in range(4):
        image = images(4, start=t)
        train.step(method.train(), Batch(image, (image[:, :structures] > 0.5).float()), seed=0, t=t)
    return method.state_dict()


def start(name: str, structures: int = 1, settings: dict[str, str] | None = None) -> Method:
    cls = get_method(name)
    info = TaskInfo("drawn", ("disc", "cup")[:structures], SIZE, steps=10)
    hparams = resolve_hparams(cls, "drawn", {"width": "4"} | (settings or {}))
    return train.build(cls, info, hparams, seed=0)[0]


def trained(name: str, structures: int = 1, of_network: dict[str, str] | None = None, **settings: object) -> Method:
    """`erm+tent` and the like on trained weights, ready to predict."""
    own = of_network or {}
    method = start(name, structures, own | {key: str(value) for key, value in settings.items()})
    base = name.rpartition("+")[0] or "erm"
    method.load_state_dict(weights(base, structures, tuple(own.items())))
    return method.eval()


def by_formula(method: Method) -> Method:
    """Weights and statistics that are the same everywhere, as of a trained network: no norm is at 0 and 1."""
    for i, (name, value) in enumerate(sorted(method.state_dict().items())):
        if value.is_floating_point():
            values = 2 * wave(*value.shape, start=1000 * i) - 1
            fan_in = value[0].numel() if value.dim() > 1 else 1
            value.copy_(1 + 0.4 * values if name.endswith(("var", "weight")) and fan_in == 1 else values / fan_in**0.5)
    return method.eval()


def probe(x: Tensor) -> list[float]:
    """Five numbers that tell any two predictions apart: mean, deviation, a projection, the first pixel and the last."""
    x = x.double()
    projection = (x * torch.cos(0.7 * torch.arange(x.numel(), dtype=torch.float64)).view(x.shape)).sum()
    return [float(v) for v in (x.mean(), x.std(correction=0), projection, x.flatten()[0], x.flatten()[-1])]


def predict(method: Method, image: Tensor) -> Tensor:
    with torch.no_grad():
        return method.predict(image)


def still(idea: str) -> dict[str, object]:
    """The settings by which nothing is adapted."""
    rate = {"test_learning_rate": 0} if idea in LEARNING else {}
    return rate | ({"blends": "0"} if idea == "intent" else {"blend": 0})


# All of them


@pytest.mark.parametrize("adaptation", ["episodic", "online"])
@pytest.mark.parametrize("base", ["erm", "ccsdg"])
@pytest.mark.parametrize("idea", IDEAS)
def test_with_the_sources_statistics_and_without_learning_it_is_the_method_below_to_the_bit(idea, base, adaptation):
    adapted, plain = trained(f"{base}+{idea}", 2, adaptation=adaptation, **still(idea)), trained(base + "+cutout", 2)
    for begin in (0, 700):
        image = images(3, begin)
        assert torch.equal(predict(adapted, image), predict(plain, image))


@pytest.mark.parametrize("idea", IDEAS)
def test_it_does_adapt(idea):
    adapted, plain = (predict(trained(f"erm+{other}"), images(3, 700)) for other in (idea, "cutout"))
    assert not torch.allclose(adapted, plain)


@pytest.mark.parametrize("idea", [pytest.param(i, marks=() if i == "tent" else pytest.mark.thorough) for i in IDEAS])
def test_timms_norms_that_activate_too_are_adapted(idea):
    network = {"encoder": "efficientnet_lite0"}
    adapted, plain = trained(f"erm+{idea}", of_network=network), trained("erm+cutout", of_network=network)
    unmoved = trained(f"erm+{idea}", of_network=network, **still(idea))
    image = images(2, 700)
    assert torch.equal(predict(unmoved, image), predict(plain, image))
    assert not torch.allclose(predict(adapted, image), predict(plain, image))


@pytest.mark.parametrize("idea", IDEAS)
def test_an_episode_depends_on_its_case_alone_and_a_stream_on_those_before(idea):
    first, second = images(3), images(2, 700)
    for adaptation in ("episodic", "online"):
        method = trained(f"erm+{idea}", adaptation=adaptation)
        alone = predict(method, second)
        method.forget()
        predict(method, first)
        after = predict(method, second)
        assert torch.equal(after, alone) == (adaptation == "episodic")
        method.forget()
        assert torch.equal(predict(method, second), alone), "a new domain begins as the first did"


@pytest.mark.parametrize("adaptation", ["episodic", "online"])
@pytest.mark.parametrize("idea", IDEAS)
def test_nothing_that_is_learned_from_test_images_is_in_a_checkpoint(idea, adaptation):
    method = trained(f"erm+{idea}", adaptation=adaptation)
    before = {n: t.clone() for n, t in method.state_dict().items()}
    parameters = [id(p) for p in method.parameters()]
    for begin in (0, 500, 900):
        predict(method, images(2, begin))
    after = method.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    assert [id(p) for p in method.parameters()] == parameters and all(p.grad is None for p in method.parameters())
    assert not any(m._forward_pre_hooks for m in method.modules())


@pytest.mark.parametrize("idea", IDEAS)
def test_an_error_in_the_midst_leaves_the_network_as_it_was(idea, monkeypatch):
    method = trained(f"erm+{idea}")
    before, given = {n: id(p) for n, p in method.named_parameters()}, images(2)
    monkeypatch.setattr(ERM, "logits", lambda self, image: self.net(image[:, :2]))
    with pytest.raises(RuntimeError):
        predict(method, given)
    assert {n: id(p) for n, p in method.named_parameters()} == before
    assert not any(m._forward_pre_hooks for m in method.modules()) and torch.is_grad_enabled()


@pytest.mark.parametrize("idea", IDEAS)
def test_training_is_that_of_the_method_below_to_the_bit(idea):
    states = []
    for name in ("erm", f"erm+{idea}", idea):
        method = start(name)
        train.configure(method)
        image = images(4)
        for t in range(2):
            train.step(method.train(), Batch(image, (image[:, :1] > 0.5).float()), seed=0, t=t)
        states.append(method.state_dict())
    for state in states[1:]:
        assert state.keys() == states[0].keys() and all(torch.equal(t, states[0][n]) for n, t in state.items())


@pytest.mark.parametrize("idea", IDEAS)
def test_a_network_without_batch_norm_is_refused(idea):
    with pytest.raises(UsageError, match="batch norms, and this network has none") as caught:
        start(f"erm+{idea}", settings={"norm": "instance"})
    assert "norm=batch" in caught.value.remedy


def test_an_oracle_adapts_to_nothing():
    cls = get_method("sam_box+tent")
    with pytest.raises(UsageError, match="oracle"):
        train.build(cls, INFO, resolve_hparams(cls, "check"), seed=0)


def test_two_ways_of_adapting_do_not_lie_over_one_another():
    with pytest.raises(UsageError, match="both have a setting named"):
        get_method("erm+adabn+tent")


@pytest.mark.parametrize("idea", IDEAS)
def test_an_idea_about_training_lies_beneath(idea):
    method = trained(f"erm+randconv+{idea}")
    assert method.name == f"erm+randconv+{idea}" and predict(method, images(2)).shape == (2, 1, SIZE, SIZE)


@pytest.mark.parametrize("idea", IDEAS)
def test_a_long_volume_is_parted_evenly_and_a_slice_alone_is_a_batch(idea):
    cls, sizes = get_method(f"erm+{idea}"), []

    class Counts(cls):  # type: ignore[misc, valid-type]
        def adapt(self, image):
            sizes.append(len(image))
            return super().adapt(image)

    hparams = resolve_hparams(cls, "drawn", {"width": "4", "slices_at_once": "4"})
    method, _ = train.build(Counts, INFO, hparams, seed=0)
    assert predict(method.eval(), images(9)).shape == (9, 1, SIZE, SIZE) and predict(method, images(1)).isfinite().all()
    assert sizes == [3, 3, 3, 1]


# Statistics


@given(
    st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=9),
    st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=9),
)
def test_moments_of_two_sets_are_those_of_all_their_values(first: list[float], second: list[float]):
    (a, b), both = (torch.tensor(v, dtype=torch.float64) for v in (first, second)), np.array(first + second)
    mean, variance = _batchnorm.pooled(
        (a.mean(), a.var(correction=0)), (b.mean(), b.var(correction=0)), len(second) / len(both)
    )
    assert [float(mean), float(variance)] == pytest.approx([both.mean(), both.var()], abs=1e-9)


def test_a_norm_by_blended_statistics_by_hand():
    """The source has mean 1 and variance 4, the batch 3 and 1; in the midst 2 and 2.5, and 4 becomes 2 / sqrt(2.5)."""
    norm = nn.BatchNorm2d(1, eps=0).eval()
    norm.running_mean, norm.running_var = torch.tensor([1.0]), torch.tensor([4.0])
    x = torch.tensor([2.0, 4.0]).view(1, 1, 1, 2)
    with _batchnorm.normalised_by([norm], lambda i, test: _batchnorm.blended(norm, test, 0.5)):
        torch.testing.assert_close(norm(x).flatten(), torch.tensor([0.0, 2.0]) / math.sqrt(2.5))
    torch.testing.assert_close(norm(x).flatten(), torch.tensor([0.5, 1.5]))


def by_batch(net: nn.Module) -> nn.Module:
    """A copy in which torch's own batch norm normalises by its batch."""
    net = deepcopy(net)
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.train().track_running_stats = False
        norm.running_mean = norm.running_var = None
    return net


def test_adabn_is_batch_norm_as_in_training():
    method, image = trained("erm+adabn"), images(3, 700)
    other = trained("erm+cutout")
    other.net = by_batch(other.net)
    torch.testing.assert_close(predict(method, image), predict(other, image), atol=1e-5, rtol=1e-5)


def test_adabn_online_pools_the_statistics_of_the_domains_cases():
    method, parts = trained("erm+adabn", adaptation="online"), [images(3), images(2, 700)]
    for part in parts:
        predict(method, part)
    seen = torch.cat([method.net.stages[0][0](zscore(part)) for part in parts])
    count, (mean, variance) = method.stream[0]
    assert count == 5
    torch.testing.assert_close(mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(variance, seen.var((0, 2, 3), correction=0))


def zscore(image: Tensor) -> Tensor:
    mean, std = image.mean((2, 3), keepdim=True), image.var((2, 3), correction=0, keepdim=True).add(1e-8).sqrt()
    return (image - mean) / std


# TENT


def binary_entropy(logits: Tensor) -> Tensor:
    """As a softmax over outside and inside has it."""
    both = torch.stack([torch.zeros_like(logits), logits])
    return -(both.softmax(0) * both.log_softmax(0)).sum(0)


def affine(net: nn.Module) -> list[nn.Parameter]:
    return [p for m in net.modules() if isinstance(m, nn.BatchNorm2d) for p in (m.weight, m.bias)]


def test_tent_is_adam_on_the_entropy_by_scale_and_shift():
    """Written again: torch's own batch statistics, entropy from logits, and Adam's formula."""
    batches, rate = [images(3), images(2, 700), images(3, 300)], 1e-2
    method = trained("erm+tent", 2, adaptation="online", test_learning_rate=rate)
    net = by_batch(trained("erm+cutout", 2).net)
    moments: Sequence[list[Tensor]] = [[torch.zeros_like(p) for p in affine(net)] for _ in range(2)]
    for t, image in enumerate(batches, 1):
        logits = net(zscore(image))
        torch.testing.assert_close(predict(method, image), logits.sigmoid().detach(), atol=2e-5, rtol=1e-4)
        net.zero_grad()
        binary_entropy(logits).mean().backward()
        for p, first, second in zip(affine(net), *moments, strict=True):
            g = p.grad if p.grad is not None else torch.zeros_like(p)
            first.mul_(0.9).add_(0.1 * g)
            second.mul_(0.999).add_(0.001 * g * g)
            p.data -= rate * first / (1 - 0.9**t) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)


def test_tent_makes_predictions_more_certain():
    image = images(3, 700)
    before = predict(trained("erm+tent", test_learning_rate=0), image)
    after = predict(trained("erm+tent", test_learning_rate=1e-3), image)
    assert _test_time.entropy(after).mean() < _test_time.entropy(before).mean()
    assert torch.equal(before, predict(trained("erm+adabn"), image))


def test_entropy_is_in_nats_and_finite_at_the_ends():
    p = torch.tensor([0.0, 0.5, 1.0, 0.25])
    expected = [0, math.log(2), 0, -0.25 * math.log(0.25) - 0.75 * math.log(0.75)]
    torch.testing.assert_close(_test_time.entropy(p), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_tent_equals_the_public_code():
    """Public: DequanWang/tent@e9e926a, `Tent` over this U-Net with logits (0, z), Adam 1e-2, three batches in order."""
    settings = {"adaptation": "online", "test_learning_rate": "1e-2"}
    method = by_formula(start("erm+tent", settings=settings))
    public = [
        [0.491952321, 0.032627890, 1.086487980, 0.550685644, 0.540687501],
        [0.490884280, 0.033056327, 0.920654220, 0.546944678, 0.537906766],
        [0.490072519, 0.033012772, 1.052564049, 0.522498131, 0.538739920],
    ]
    for image, expected in zip((images(3), images(2, 700), images(3, 300)), public, strict=True):
        assert probe(predict(method, image)) == pytest.approx(expected, abs=2e-5)
    method.forget()
    assert probe(predict(method, images(2, 700))) != pytest.approx(public[1], abs=2e-4)


# SAR


def test_sar_is_momentum_on_the_sharp_entropy_of_certain_pixels():
    """Written again: torch's own batch statistics, entropy from logits, SAM's two passes, and momentum's formula."""
    batches, rate = [images(3), images(2, 700)], 0.5
    settings = {"reset_below": 0, "margin": 0.97, "rho": 0.2}
    method = trained("erm+sar", 2, adaptation="online", test_learning_rate=rate, **settings)
    net = by_batch(trained("erm+cutout", 2).net)
    kept = {id(p) for m in net.decoder.merge[0] if isinstance(m, nn.BatchNorm2d) for p in (m.weight, m.bias)}
    learned = [p for p in affine(net) if id(p) not in kept]
    velocity, average = [torch.zeros_like(p) for p in learned], None
    for image in batches:
        logits = net(zscore(image))
        torch.testing.assert_close(predict(method, image), logits.sigmoid().detach(), atol=2e-5, rtol=1e-4)
        h = binary_entropy(logits)
        certain = h < 0.97 * math.log(2)
        assert 0 < certain.float().mean() < 1
        g = torch.autograd.grad(h[certain].mean(), learned)
        length = sum(float(x.square().sum()) for x in g) ** 0.5
        with torch.no_grad():
            for p, x in zip(learned, g, strict=True):
                p += 0.2 * x / length
        h = binary_entropy(net(zscore(image)))
        loss = h[certain & (h < 0.97 * math.log(2))].mean()
        average = loss.item() if average is None else 0.9 * average + 0.1 * loss.item()
        assert method.stream["loss"].item() == pytest.approx(average, rel=1e-4)
        along = torch.autograd.grad(loss, learned)
        with torch.no_grad():
            for p, x, v, a in zip(learned, g, velocity, along, strict=True):
                p -= 0.2 * x / length
                v.mul_(0.9).add_(a)
                p -= rate * v


@pytest.mark.parametrize("kept", [0, 5])
def test_sar_leaves_as_many_of_the_last_norms_as_it_is_told(kept):
    method, met = trained("erm+sar", norms_kept=kept), []
    for norm in method.norms():
        norm.register_forward_hook(lambda norm, *_: met.append(norm))
    learned = method.in_order(images(1))
    assert learned == met[: len(met) - kept] and len(met) > 5


def test_sar_begins_anew_when_all_is_too_certain():
    first, second = images(3), images(2, 700)
    method = trained("erm+sar", adaptation="online", reset_below=1, test_learning_rate=1)
    alone = predict(method, second)
    assert not method.stream, "an entropy of ln 2 at most is below 1"
    predict(method, first)
    assert torch.equal(predict(method, second), alone)


def test_sar_learns_nothing_where_no_pixel_is_certain():
    method = trained("erm+sar", margin=1e-6, test_learning_rate=1)
    assert torch.equal(predict(method, images(2)), predict(trained("erm+adabn"), images(2)))


# InTEnt


def test_intent_weighs_mixtures_by_balanced_entropy_by_hand():
    """Inside 0.9, outside 0.2 and 0.4: H = 0.3251, and (0.5004 + 0.6730) / 2 = 0.5867, so 0.4559 between the two."""
    p = torch.tensor([0.9, 0.2, 0.4]).view(1, 1, 1, 3)
    torch.testing.assert_close(intent.balanced_entropy(p), torch.tensor([0.4559]), atol=1e-4, rtol=0)
    outside = torch.tensor([0.2, 0.4]).view(1, 1, 1, 2)
    torch.testing.assert_close(intent.balanced_entropy(outside), torch.tensor([0.5867]), atol=1e-4, rtol=0)
    shares = intent.weights(torch.tensor([[0.2], [0.4], [0.3]]))
    expected = torch.tensor([math.e, 1.0, math.sqrt(math.e)]) / (math.e + 1 + math.sqrt(math.e))
    torch.testing.assert_close(shares[:, 0], expected)


def test_intent_is_the_weighted_mean_of_adabns():
    """Written again, a slice at a time, over AdaBN's predictions at the six blends."""
    image = images(3, 700)
    method = trained("erm+intent", 2)
    predictions = [predict(trained("erm+adabn", 2, blend=r), image) for r in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    for n in range(3):
        scores = []
        for p in (p[n].double() for p in predictions):
            h = -(p * p.log() + (1 - p) * (1 - p).log())
            of = [[float(h[k][s].mean()) for s in (p[k] >= 0.5, p[k] < 0.5) if s.any()] for k in range(2)]
            scores.append(-np.mean([np.mean(sides) for sides in of]))
        scaled = (np.array(scores) - min(scores)) / (max(scores) - min(scores))
        shares = np.exp(scaled) / np.exp(scaled).sum()
        expected = sum(float(w) * p[n] for w, p in zip(shares, predictions, strict=True))
        torch.testing.assert_close(predict(method, image)[n], expected, atol=1e-4, rtol=1e-3)


# VPTTA


@pytest.mark.parametrize("side", [32, 33])
def test_a_prompt_multiplies_the_lowest_amplitudes_and_keeps_phases(side):
    x = wave(1, 1, side, side)
    assert torch.equal(vptta.prompted(x, torch.ones(1, 1, 3, 3)), x)
    mean_alone = vptta.prompted(x, torch.full((1, 1, 1, 1), 2.0))
    torch.testing.assert_close(mean_alone, x + x.mean())
    before, after = torch.fft.fft2(x), torch.fft.fft2(vptta.prompted(x, torch.full((1, 1, 3, 3), 1.5)))
    low = torch.zeros(side, dtype=torch.bool)
    low[[0, 1, -1]] = True
    window = low[:, None] & low
    torch.testing.assert_close(after[0, 0][window], 1.5 * before[0, 0][window], atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(after[0, 0][~window], before[0, 0][~window], atol=1e-2, rtol=1e-3)


def test_prompts_move_by_adam_against_the_distance_of_the_statistics_each_from_ones():
    """Written again: amplitude and phase apart, norms by blended statistics, and Adam's formula for two images."""
    method = trained("erm+vptta", 2, adaptation="online", warm_up=3)
    net, norms, moments = method.net, method.norms(), torch.zeros(2, 3, 3)
    for t in (1, 2):
        image, share = images(1, 700 * t), 1 / (t**0.5 / 3 + 1)
        whole, q, distances = torch.fft.fft2(image[:, :1]), torch.ones(3, 3, requires_grad=True), []

        def seen(q, whole=whole, image=image):
            amplitudes = torch.ones(SIZE, SIZE)
            amplitudes = amplitudes.index_put(tuple(torch.meshgrid(*[torch.tensor([-1, 0, 1])] * 2, indexing="ij")), q)
            return zscore(torch.fft.ifft2(torch.polar(whole.abs() * amplitudes, whole.angle())).real.expand_as(image))

        def hook(norm, inputs, output, share=share, distances=distances):
            mean, deviation = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), correction=0).clamp(min=1e-8).sqrt()
            aim = torch.lerp(norm.running_mean, mean.detach(), share)
            spread = torch.lerp(norm.running_var, deviation.detach().square(), share)
            distances.append((mean - aim).abs().mean() + (deviation - spread.sqrt()).abs().mean())
            x = (inputs[0] - aim[:, None, None]) / (spread + norm.eps)[:, None, None].sqrt()
            return x * norm.weight[:, None, None] + norm.bias[:, None, None]

        hooks = [n.register_forward_hook(hook) for n in norms]
        net(seen(q))
        (gradient,) = torch.autograd.grad(torch.stack(distances).mean(), q)
        moments[0].lerp_(gradient, 0.1)
        moments[1].lerp_(gradient.square(), 0.01)
        with torch.no_grad():
            moved = q - 0.05 * moments[0] / (1 - 0.9**t) / ((moments[1] / (1 - 0.99**t)).sqrt() + 1e-8)
            expected = net(seen(moved)).sigmoid()
        for h in hooks:
            h.remove()
        torch.testing.assert_close(predict(method, image), expected, atol=1e-3, rtol=1e-2)
        prompt, around = method.stream["prompt"].detach()[0, 0], torch.ones(3, 3, dtype=torch.bool)
        around[1, 1] = False  # without the mean's amplitude, which the z-score undoes
        torch.testing.assert_close(prompt[around], moved[around], atol=1e-3, rtol=1e-3)
    assert method.stream["optimizer"].defaults["betas"] == (0.9, 0.99), "two steps hardly tell 0.99 from 0.999"


def test_a_prompt_starts_from_those_of_the_most_alike_images():
    method = trained("erm+vptta", neighbours_asked=2, prompts_stored=3, adaptation="online")
    key = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    assert torch.equal(method.recalled(key), torch.ones(1, 1, 1, 2))
    keys, prompts = ([3.0, 0.0], [0.0, 1.0], [1.0, 1.0]), (2.0, 5.0, 4.0)
    stored = [(torch.tensor(k), torch.full((1, 1, 1, 2), p)) for k, p in zip(keys, prompts, strict=True)]
    method.stream["stored"] = stored
    shares = np.exp(np.array([1, 1 / math.sqrt(2)]) / 0.2)
    expected = float((shares * [2, 4]).sum() / shares.sum())
    torch.testing.assert_close(method.recalled(key), torch.full((1, 1, 1, 2), expected))
    method.forget()
    predict(method, images(5))
    assert method.stream["seen"] == 5 and len(method.stream["stored"]) == 3
    newest = vptta.spectrum(images(5)[-1:, :1], 3)[0].abs().flatten()
    torch.testing.assert_close(method.stream["stored"][-1][0], newest)
    method = trained("erm+vptta", prompt_share=0.16)
    predict(method, images(1))
    assert method.stream["prompt"].shape == (1, 1, 5, 5), "16 of 100 of 32 pixels"


# GraTa


def test_gradients_that_agree_are_followed_in_full_and_opposite_ones_not_at_all():
    a, b = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])], [torch.tensor([0.0, 2.0]), torch.tensor([0.0])]
    assert float(grata.agreement(a, a)) == pytest.approx(1)
    assert float(grata.agreement(a, [-g for g in a])) == pytest.approx(0)
    assert float(grata.agreement(a, b)) == pytest.approx(1 / 4)


@pytest.mark.parametrize("number", range(6))
def test_a_view_is_undone_and_no_two_are_alike(number):
    there, back = grata.VIEWS[number]
    x = images(2)
    assert torch.equal(back(there(x)), x)
    assert not any(torch.equal(there(x), other(x)) for other, _ in grata.VIEWS[:number])


def test_grata_is_adam_at_the_rate_of_the_agreement():
    """Written again: torch's own batch statistics and Adam's first step."""
    image, rate = images(3, 700), 1e-2
    method = trained("erm+grata", 2, test_learning_rate=rate)
    net = by_batch(trained("erm+cutout", 2).net)
    learned, before = affine(net), [p.detach().clone() for p in affine(net)]
    recoloured = new_contrast(image[:, :1], rng=torch.Generator().manual_seed(0)).expand_as(image)
    p = net(zscore(image)).sigmoid()
    first = torch.autograd.grad(-(p * (p + 1e-6).log()).sum(1).mean(), learned)
    with torch.no_grad():
        for w, g in zip(learned, first, strict=True):
            w -= g
        views = [net(zscore(image)).sigmoid()]
        views += [net(zscore(image.flip(d))).sigmoid().flip(d) for d in (2, 3)]
        views += [net(zscore(image.rot90(k, (2, 3)))).sigmoid().rot90(-k, (2, 3)) for k in (1, 2, 3)]
        aim = torch.stack(views).mean(0)
    loss = nn.functional.binary_cross_entropy_with_logits(net(zscore(recoloured)), aim)
    second = torch.autograd.grad(loss, learned)
    a, b = (torch.cat([g.flatten() for g in of]) for of in (first, second))
    factor = (float(nn.functional.cosine_similarity(a, b, 0)) + 1) ** 2 / 4
    with torch.no_grad():
        for w, w0, g in zip(learned, before, second, strict=True):
            w.copy_(w0 - rate * factor * g / (g.abs() + 1e-8))
        expected = net(zscore(image)).sigmoid()
    assert 0 < factor < 1
    torch.testing.assert_close(predict(method, image), expected, atol=1e-3, rtol=1e-2)
    assert method.stream["optimizer"].param_groups[0]["lr"] == pytest.approx(rate * factor, rel=1e-3)


def test_online_grata_draws_a_new_contrast_for_each_case_and_the_same_ones_for_each_domain(monkeypatch):
    method, seen = trained("erm+grata", adaptation="online"), []
    monkeypatch.setattr(grata, "new_contrast", lambda x, rng: seen.append(new_contrast(x, rng=rng)) or seen[-1])
    for _ in range(2):
        method.forget()
        for _ in range(2):
            predict(method, images(1))
    assert torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3]) and not torch.equal(seen[0], seen[1])


# In a run


def test_a_run_forgets_before_each_domain_and_gives_a_case_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    task, called = FolderTask(write_discs(tmp_path / "discs", cases=2)), []
    domains = [PreparedDomain(prepare(task, name, SIZE).folder) for name in ("bright", "dim")]

    class Told(ERM):
        adapts_in_testing = whole_case = True

        def forget(self):
            called.append("forget")

        def predict(self, image):
            called.append(len(image))
            return super().predict(image)

    method, _ = train.build(Told, task.info, resolve_hparams(Told, "drawn", {"width": "4", "image_size": "32"}), 0)
    for domain in domains:
        cases = {case: case for case in domain.cases}
        assert len([*test.measure_domain(method, domain, cases, "target", get_protocol("sdg"), 0)]) == 2
    test.mean_dice(method, domains[0], [*domains[0].cases], get_protocol("sdg"), 0)
    assert called == ["forget", 1, 1] * 3
    predict_run.predict_image(method, np.zeros((20, 1, 40, 40), np.float32))
    assert called[-1] == 20 > method.hparams.batch_size
    Told.whole_case = False
    predict_run.predict_image(method, np.zeros((20, 1, 40, 40), np.float32))
    assert called[-3:] == [8, 8, 4]


def test_an_online_run_depends_on_the_order_of_its_cases_which_is_that_of_its_table(tmp_path, monkeypatch):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    task = FolderTask(write_discs(tmp_path / "discs", cases=3))
    domain = PreparedDomain(prepare(task, "dim", SIZE).folder)
    scores = {}
    for adaptation in ("episodic", "online"):
        method = trained("erm+adabn", adaptation=adaptation)
        for order in (1, -1):
            cases = {case: case for case in [*domain.cases][::order]}
            tested = [*test.measure_domain(method, domain, cases, "target", get_protocol("sdg"), 0)]
            assert [t.case for t in tested] == [*cases]
            scores[adaptation, order] = {t.case: t.packed for t in tested}
    assert scores["episodic", 1] == scores["episodic", -1] and scores["online", 1] != scores["online", -1]
