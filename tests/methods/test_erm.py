"""ERM starts from the weights it is told to start from; constant predicts the mean mask and nothing else."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from dgbench.errors import DataError, UsageError
from dgbench.files import sha256
from dgbench.method import Batch, Hparams, hparams_class, resolve_hparams
from dgbench.methods._average import Average
from dgbench.methods.constant import Constant
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import FeatureUNet, UNet
from dgbench.registry import METHODS, get_method
from dgbench.running import train
from dgbench.task import TaskInfo

SIZE = 32


def info(structures: int = 1, size: int = SIZE) -> TaskInfo:
    return TaskInfo("drawn", ("disc", "cup")[:structures], size, steps=10)


def erm(**values) -> tuple[ERM, dict[str, str]]:
    method, files = train.build(ERM, info(2), ERMHparams(**{"width": 4} | values), seed=0)
    assert isinstance(method, ERM)
    return method, files


def image(n: int = 2) -> Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(n))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ERM


@pytest.mark.parametrize("encoder", ["unet", "resnet18"])
def test_it_predicts_probabilities_of_each_structure(encoder):
    method, files = erm(encoder=encoder)
    p = method.eval().predict(image())
    assert p.shape == (2, 2, SIZE, SIZE) and p.min() >= 0 and p.max() <= 1
    assert files == {}


def test_the_network_is_as_wide_as_the_task_needs():
    widths = {t: resolve_hparams(ERM, t).width for t in ("phantom", "prostate", "fundus", "other")}
    assert widths == {"phantom": 8, "prostate": 32, "fundus": 32, "other": 16}


def test_a_prediction_does_not_see_brightness_and_contrast_unless_told_so():
    dark = 0.4 * image() + 0.1
    method, _ = erm()
    torch.testing.assert_close(method.eval().predict(dark), method.predict(image()), atol=1e-4, rtol=0)
    method, _ = erm(normalise="imagenet")
    assert (method.eval().predict(dark) - method.predict(image())).abs().max() > 1e-3


@pytest.mark.parametrize("encoder", ["unet", "efficientnet_lite0"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file_are_loaded_and_recorded_by_their_checksum(tmp_path, encoder, suffix):
    import timm

    torch.manual_seed(1)
    net = UNet(2, width=4) if encoder == "unet" else timm.create_model(encoder)
    path = tmp_path / f"given{suffix}"
    save_file(net.state_dict(), path) if suffix == ".safetensors" else torch.save(net.state_dict(), path)
    method, files = erm(encoder=encoder, initialisation=str(path))
    assert files == {path.name: sha256(path)}
    given = net.state_dict()
    if isinstance(method.net, FeatureUNet):
        loaded = method.net.encoder.state_dict()
        assert len(loaded) > 100
        given = {k: given[k] for k in loaded}
    else:
        loaded = method.net.state_dict()
    assert same(loaded, given)


def test_loaded_weights_are_trained_further(tmp_path):
    torch.save(UNet(2, width=4).state_dict(), tmp_path / "given.pth")
    method, _ = erm(initialisation=str(tmp_path / "given.pth"))
    assert all(p.requires_grad for p in method.parameters())


def test_weights_of_another_width_are_refused_with_the_files_name(tmp_path):
    save_file(UNet(2, width=8).state_dict(), tmp_path / "wide.safetensors")
    with pytest.raises(DataError, match=r"wide\.safetensors does not fit UNet: .*\d+ of another shape"):
        erm(initialisation=str(tmp_path / "wide.safetensors"))


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    save_file(UNet(2, width=4).state_dict(), tmp_path / "unet.safetensors")
    with pytest.raises(DataError, match=r"unet\.safetensors does not fit ResNet"):
        erm(encoder="resnet18", initialisation=str(tmp_path / "unet.safetensors"))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no such weights file"):
        erm(initialisation=str(tmp_path / "nothing.pth"))


def test_the_plain_u_net_has_no_imagenet_weights():
    with pytest.raises(UsageError, match="no ImageNet weights"):
        erm(initialisation="imagenet")


# Averaged weights


def test_the_average_follows_by_the_steps_taken_until_its_decay_is_reached():
    """d is 0, 1/10, 2/11 and then 1/5: 1, 0.1 + 1.8 = 1.9, 2 (1.9) / 11 + 3 (9) / 11 = 2.8, 0.56 + 3.2 = 3.76."""
    net, seen = torch.nn.Linear(1, 1), []
    average = Average(net, 0.2)
    for value in (1.0, 2.0, 3.0, 4.0):
        torch.nn.init.constant_(net.weight, value)
        average.follow(net)
        seen.append(average.get_buffer("weight").item())
    assert seen == pytest.approx([1, 1.9, 2 * 1.9 / 11 + 27 / 11, 0.2 * (2 * 1.9 / 11 + 27 / 11) + 3.2])


def stepped(cls=ERM, **values):
    """After three steps, by the same seed."""
    method, _ = train.build(cls, info(), hparams_class(cls)(**{"width": 4} | values), seed=0)
    train.configure(method)
    mask = torch.stack([LEFT, WIDE]).repeat_interleave(8, 2).repeat_interleave(8, 3)
    for t in range(3):
        train.step(method.train(), Batch(image(2), mask), seed=0, t=t)
    return method


def test_averaged_weights_predict_and_the_last_ones_are_trained():
    """Training is not changed by a bit, and the prediction is that of a network with the averaged weights."""
    plain, averaged = stepped(), stepped(ema=0.9)
    state = averaged.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in plain.state_dict().items())
    average = {n.removeprefix("average.").replace("/", "."): t for n, t in state.items() if n.startswith("average.")}
    assert average.pop("steps") == 3 and "net.0.weight" not in average
    plain.net.load_state_dict(average, strict=False)
    assert torch.equal(averaged.eval().predict(image()), plain.eval().predict(image()))
    assert not torch.equal(averaged.predict(image()), stepped().eval().predict(image()))


def test_the_average_begins_with_the_first_step_not_with_what_it_started_from():
    method, _ = train.build(ERM, info(), ERMHparams(width=4, ema=0.999), seed=0)
    train.configure(method)
    train.step(method.train(), Batch(image(2), image(2)[:, :1].round()), seed=0, t=0)
    average = method.state_dict()
    assert torch.equal(average["average.decoder/head/weight"], method.net.decoder.head.weight)


def derived() -> list[str]:
    """All methods on ERM's network but those that learn at test time."""
    classes = {name: METHODS.get(name) for name in METHODS.names()}
    return [n for n, c in classes.items() if issubclass(c, ERM) and not hasattr(hparams_class(c), "test_learning_rate")]


@pytest.mark.parametrize("name", derived())
def test_the_average_and_group_norm_are_settings_of_all_that_derives_from_erm(name):
    cls = get_method(name)
    norm = "batch" if cls.adapts_in_testing else "group"  # what adapts chooses among batch norms, or changes them
    method = stepped(cls, ema=0.9, norm=norm)
    assert method.average.steps == (9 if name == "ccsdg" else 3)  # of the network's optimizer
    assert any(isinstance(m, torch.nn.GroupNorm) for m in method.net.modules()) == (norm == "group")
    p = method.eval().predict(image())
    method.average = None
    assert not torch.equal(p, method.predict(image()))


def test_averaged_weights_are_not_learned_at_test_time():
    @dataclasses.dataclass(frozen=True)
    class Learning(ERMHparams):
        test_learning_rate: float = 1e-3

    ERM(info(), Learning(width=4))
    with pytest.raises(UsageError, match="averaged weights"):
        ERM(info(), Learning(width=4, ema=0.9))


# Constant


def constant(structures: int = 1, size: int = 8) -> Constant:
    method = Constant(info(structures, size), Hparams())
    train.configure(method)
    return method


def drawn(*rows: str) -> Tensor:
    """(1, H, W): 1 where a row has a #."""
    return torch.tensor([[[float(c == "#") for c in row] for row in rows]])


def show(method: Constant, *masks: Tensor) -> dict[str, Tensor]:
    mask = torch.stack(masks)
    return method.update(Batch(torch.zeros(len(mask), 3, *mask.shape[2:]), mask))


LEFT = drawn("##..", "##..", "....", "....")
WIDE = drawn("####", "####", "....", "....")
NOTHING = drawn("....", "....", "....", "....")


def test_constant_predicts_the_only_mask_it_saw():
    method = constant(size=4)
    show(method, LEFT)
    assert torch.equal(method.predict(torch.rand(3, 3, 4, 4)), LEFT.expand(3, 1, 4, 4))


def test_constant_predicts_the_pixels_most_often_inside_as_many_as_the_mean_area():
    method = constant(size=4)
    show(method, LEFT, LEFT, LEFT, WIDE)  # areas 4, 4, 4, 8: 5 pixels, and of the equal ones the first
    assert torch.equal(method.predict(image(1))[0], drawn("###.", "##..", "....", "...."))


def test_constant_passes_over_images_without_the_structure():
    method = constant(size=4)
    show(method, LEFT, NOTHING, NOTHING, NOTHING)
    assert torch.equal(method.predict(image(1))[0], LEFT)


def test_constant_counts_each_structure_by_itself():
    method = constant(2, size=4)
    show(method, torch.cat([WIDE, LEFT]), torch.cat([WIDE, NOTHING]))
    assert torch.equal(method.predict(image(1))[0], torch.cat([WIDE, LEFT]))


def test_constant_predicts_nothing_before_the_first_mask():
    assert not constant(2).predict(image(2)).any()


def test_the_loss_of_constant_is_the_brier_score_of_the_mean_mask():
    method = constant(size=4)
    loss = show(method, LEFT, WIDE)["loss"]
    assert loss.item() == pytest.approx(2 * 4 * 0.5**2 / 32)  # half right at four pixels of each of two images


def test_constant_trains_nothing_and_remembers_in_its_state():
    method, again = constant(), constant()
    show(method, *(torch.rand(5, 1, 8, 8) > 0.6).float())
    again.load_state_dict(method.state_dict())
    assert list(method.parameters()) == []
    assert torch.equal(again.predict(image(1)), method.predict(image(1)))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.floats(0.02, 0.98))
def test_constant_is_never_empty_always_inside_what_was_seen_and_blind_to_order(seed, n, share):
    rng = torch.Generator().manual_seed(seed)
    masks = (torch.rand(n, 1, 8, 8, generator=rng) < share).float()
    method, reverse = constant(), constant()
    show(method, *masks)
    for mask in masks.flip(0):
        show(reverse, mask)
    chosen = method.predict(image(1))[0] >= 0.5
    assert torch.equal(reverse.predict(image(1))[0] >= 0.5, chosen)
    shown = masks[masks.amax((1, 2, 3)) > 0]
    if not len(shown):
        assert not chosen.any()
        return
    assert chosen.sum() == shown.sum((1, 2, 3)).mean().round()
    assert (chosen <= (shown.amax(0) > 0)).all()
    assert (chosen >= (shown.amin(0) > 0)).all()
    inside = shown.mean(0)
    assert inside[chosen].min() >= inside[~chosen].max() if not chosen.all() else True


def test_constant_is_not_augmented():
    batch = Batch(image(2), (image(2)[:, :1] > 0.5).float())
    assert constant().augment(batch, torch.Generator()) is batch
