"""The networks take any size, see each image by itself, learn with all their weights, and let a layer in between."""

import copy
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import Tensor, nn

from dgbench.errors import DataError, UsageError
from dgbench.networks import unet
from dgbench.networks.unet import FeatureUNet, UNet, normalise

TIMM = ("resnet18", "efficientnet_lite0")


def image(n: int = 2, *size: int) -> Tensor:
    return torch.rand(n, 3, *(size or (64, 64)), generator=torch.Generator().manual_seed(n))


def network(name: str, structures: int = 1) -> unet.SegmentationNet:
    torch.manual_seed(0)
    return UNet(structures, width=4) if name == "unet" else FeatureUNet(name, structures, width=4, image_size=64)


@pytest.mark.parametrize(
    ("norm", "size"),
    [
        ("batch", (64, 64)),
        ("batch", (37, 51)),
        ("batch", (1, 3)),
        ("instance", (37, 51)),
        ("instance", (17, 1)),
        ("group", (1, 3)),
    ],
)
def test_a_u_net_takes_any_size(size, norm):
    net = UNet(2, width=4, norm=norm).eval()
    assert net(image(1, *size)).shape == (1, 2, *size)


def test_group_norm_has_32_groups_or_as_many_as_there_can_be_of_two_channels():
    """One group of 8 channels is what a narrow network never learns from: most of them fall silent behind the ReLU."""
    norms = [m for m in UNet(1, width=24, norm="group").modules() if isinstance(m, nn.GroupNorm)]
    assert {n.num_channels: n.num_groups for n in norms} == {24: 12, 48: 24, 96: 32, 192: 32, 384: 32}
    assert [unet.groups_of(n) for n in (1, 2, 3, 8, 10, 22, 66)] == [1, 1, 1, 4, 5, 11, 22]
    x = torch.rand(2, 32, 4, 5, generator=torch.Generator().manual_seed(0))
    seen = unet.convolutions(3, 32, "group")[1](x).view(2, 16, -1)  # 16 groups, each with mean 0 and deviation 1
    torch.testing.assert_close(seen.mean(2), torch.zeros(2, 16), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.std(2, correction=0), torch.ones(2, 16), atol=1e-3, rtol=0)


def test_a_u_net_takes_any_number_of_channels_and_any_depth():
    net = UNet(1, in_channels=1, width=4, depth=2).eval()
    assert net.channels == (4, 8, 16)
    assert net(torch.rand(1, 1, 9, 9)).shape == (1, 1, 9, 9)


@pytest.mark.parametrize("name", TIMM)
def test_a_timm_encoder_takes_odd_sizes(name):
    net = network(name, 2).eval()
    features = net.encode(image(1, 75, 98))
    assert tuple(f.shape[1] for f in features) == net.channels
    assert net.decode(features, (75, 98)).shape == (1, 2, 75, 98)


def test_a_transformer_of_fixed_size_with_its_channels_last_is_an_encoder_too():
    net = network("swin_s3_tiny_224").eval()
    features = net.encode(image(1))
    assert tuple(f.shape[1] for f in features) == net.channels
    assert net(image(1)).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("name", ["unet", *TIMM])
def test_every_image_is_seen_by_itself_once_trained(name):
    net = network(name)
    net(image(4))  # moves the running statistics
    net.eval()
    torch.testing.assert_close(net(image(3))[1:2], net(image(3)[1:2]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["unet", *TIMM])
def test_the_gradient_reaches_every_parameter(name):
    net = network(name, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(image()).square().mean().backward()
    optimizer.step()  # timm starts each residual block with a gain of 0, which lets nothing through
    net(image()).square().mean().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_deep_feature_sees_far_and_a_skip_keeps_the_pixel():
    net = UNet(1, width=4, depth=3).eval()
    x = image(1, 64, 64).requires_grad_()
    net(x)[0, 0, 32, 32].backward()
    seen = x.grad[0].abs().sum(0)
    assert seen[32, 32] > 0 and seen[32, 12] > 0


class Double(nn.Module):
    """A layer as a method would insert it."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        self.saw = x.shape
        return self.gain * x


@pytest.mark.parametrize("name", ["unet", *TIMM, "convnext_atto", "swin_s3_tiny_224"])
def test_an_inserted_layer_changes_its_stage_and_what_follows(name):
    net = network(name).eval()
    with torch.no_grad():
        before = net.encode(image())
        names = set(net.state_dict())
        net.insert(1, layer := Double())
        after = net.encode(image())
    assert layer.saw == before[1].shape
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[1], 2 * before[1])
    assert not torch.allclose(after[2], before[2])
    assert set(net.state_dict()) == names | {"inserted.1.gain"}


@pytest.mark.parametrize("name", ["unet", "resnet18"])
def test_the_copy_of_a_network_has_a_layer_of_its_own(name):
    net = network(name).eval()
    net.insert(1, Double())
    copied = copy.deepcopy(net)
    with torch.no_grad():
        copied.inserted["1"].gain.fill_(5)
        torch.testing.assert_close(copied.encode(image())[1], 2.5 * net.encode(image())[1])


def test_a_stage_takes_one_layer():
    net = network("unet")
    net.insert(0, nn.Identity())
    with pytest.raises(ValueError, match="stage 0"):
        net.insert(0, nn.Identity())


def test_a_network_without_modules_for_its_stages_says_so():
    with pytest.raises(UsageError, match="no modules"):
        network("vit_tiny_patch16_224").insert(0, nn.Identity())


def test_an_unknown_encoder_is_answered_with_the_nearest_names():
    with pytest.raises(UsageError, match="unknown encoder 'resnt34'") as caught:
        network("resnt34")
    assert "resnet34" in caught.value.remedy


def test_the_encoder_takes_the_whole_network_of_timm_with_or_without_its_classifier():
    import timm

    torch.manual_seed(1)
    whole = timm.create_model("convnext_atto").eval()
    net = network("convnext_atto").eval()
    state = whole.state_dict()
    net.load_encoder(state, "file")
    with torch.no_grad():
        torch.testing.assert_close(net.encode(image())[-1], whole.forward_intermediates(image())[1][-1])
    net.load_encoder({k: v for k, v in state.items() if not k.startswith("head.fc.")}, "file")
    state.pop("stem.0.weight")
    with pytest.raises(DataError, match=r"weights\.pth does not fit"):
        net.load_encoder(state, "weights.pth")


def test_weights_that_cannot_be_fetched_name_what_to_download(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"weights of 'resnet18' cannot be fetched") as caught:
        unet.published_weights("resnet18")
    assert "https://huggingface.co/timm/resnet18" in caught.value.remedy
    assert "initialisation=" in caught.value.remedy


def test_the_hub_is_asked_once_for_what_it_cannot_give(monkeypatch, tmp_path):
    """Its client would try again for minutes."""
    import huggingface_hub

    asked = []

    class Busy(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_error(503)

        def log_message(self, *arguments):
            """Nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        address = f"http://127.0.0.1:{server.server_port}"
        template = "{repo_id}/resolve/{revision}/{filename}"
        for name, there in {"ENDPOINT": "", "HUGGINGFACE_CO_URL_TEMPLATE": f"/{template}"}.items():
            monkeypatch.setattr(huggingface_hub.constants, name, f"{address}{there}")
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(DataError, match=r"weights of 'resnet18' cannot be fetched.*503"):
            unet.published_weights("resnet18")
        server.shutdown()
    assert len(asked) == 1


def test_zscore_has_mean_0_and_deviation_1_in_each_channel_of_each_image():
    z = normalise(image(3, 20, 30) * torch.rand(3, 3, 1, 1) + 0.1, "zscore")
    torch.testing.assert_close(z.mean((2, 3)), torch.zeros(3, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std((2, 3), correction=0), torch.ones(3, 3), atol=1e-4, rtol=0)


def test_zscore_is_blind_to_brightness_and_contrast():
    torch.testing.assert_close(
        normalise(0.3 * image() + 0.2, "zscore"), normalise(image(), "zscore"), atol=1e-4, rtol=0
    )


def test_zscore_of_gray_in_three_channels_is_the_same_whether_expanded_or_repeated():
    gray = torch.rand(2, 1, 8, 8)
    expanded, repeated = gray.expand(-1, 3, -1, -1), gray.repeat(1, 3, 1, 1)
    torch.testing.assert_close(normalise(expanded, "zscore"), normalise(repeated, "zscore"))


def test_zscore_of_an_even_image_is_zero():
    assert normalise(torch.full((1, 3, 4, 4), 0.5), "zscore").abs().max() == 0


def test_the_mean_colour_of_imagenet_becomes_zero():
    mean = torch.tensor([0.485, 0.456, 0.406])[None, :, None, None].expand(1, 3, 2, 2)
    assert normalise(mean, "imagenet").abs().max() == 0
    white = normalise(torch.ones(1, 3, 1, 1), "imagenet").flatten()
    assert white.tolist() == pytest.approx([2.2489, 2.4286, 2.6400], abs=1e-4)
