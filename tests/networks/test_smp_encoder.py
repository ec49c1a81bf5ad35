"""Encoders of segmentation_models_pytorch go under the decoder by name; without the package a sentence says so."""

import sys

import pytest
import torch

from dgbench.errors import DataError, UsageError
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks import smp_encoder, unet
from dgbench.networks.unet import FeatureUNet
from dgbench.running import train
from dgbench.task import TaskInfo


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch.encoders", None)
    smp_encoder.known.cache_clear()
    with pytest.raises(UsageError, match="not installed") as told:
        FeatureUNet("smp:resnet34", 1)
    assert "dgbench[smp]" in told.value.remedy


@pytest.fixture
def package():
    smp_encoder.known.cache_clear()
    return pytest.importorskip("segmentation_models_pytorch")


def test_an_unknown_name_is_answered_with_the_nearest(package):
    with pytest.raises(UsageError, match="smp:resnt34") as told:
        FeatureUNet("smp:resnt34", 1)
    assert "smp:resnet34" in f"{told.value.cause} {told.value.remedy}"


@pytest.mark.parametrize(
    "name, channels", [("smp:resnet18", (64, 64, 128, 256, 512)), ("smp:vgg11", (64, 128, 256, 512, 512, 512))]
)
def test_its_feature_maps_are_the_packages_without_the_image(package, name, channels):
    net = FeatureUNet(name, 2, width=4).eval()
    assert net.channels == channels
    image = torch.rand(1, 3, 64, 64)
    theirs = net.encoder.net(image)[-len(channels) :]
    assert all(torch.equal(a, b) for a, b in zip(net.encode(image), theirs, strict=True))
    assert net(image).shape == (1, 2, 64, 64)


def test_a_mix_transformer_has_no_map_at_half_size(package):
    net = FeatureUNet("smp:mit_b0", 1, width=4)
    assert net.channels == (32, 64, 160, 256) and net(torch.rand(2, 3, 64, 64)).shape == (2, 1, 64, 64)


def test_weights_as_the_package_publishes_them_are_loaded_and_others_refused(package, tmp_path):
    net = FeatureUNet("smp:resnet18", 1, width=4)
    state = {n: torch.full_like(t, 0.5) for n, t in net.encoder.net.state_dict().items()}
    classifier = {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(state | classifier, tmp_path / "resnet18.pth")
    hparams = ERMHparams(encoder="smp:resnet18", initialisation=str(tmp_path / "resnet18.pth"), width=4)
    method, files = train.build(ERM, TaskInfo("drawn", ("disc",), 32, steps=2), hparams, seed=0)
    assert list(files) == ["resnet18.pth"]
    assert all(bool((t == 0.5).all()) for n, t in method.net.encoder.net.state_dict().items() if t.is_floating_point())
    del state["conv1.weight"]
    with pytest.raises(DataError, match=r"other.pth does not fit smp:resnet18.*conv1.weight"):
        net.load_encoder(state, "other.pth")


def test_a_stage_takes_no_layer(package):
    with pytest.raises(UsageError, match="no modules"):
        FeatureUNet("smp:resnet18", 1, width=4).insert(0, torch.nn.Identity())


def test_offline_it_names_the_file_of_that_revision(package, monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="weights of 'smp:resnet34' cannot be fetched") as told:
        unet.published_weights("smp:resnet34")
    assert "smp-hub/resnet34.imagenet/resolve/7a57b34f723329ff020b3f8bc41771163c519d0c" in told.value.remedy
