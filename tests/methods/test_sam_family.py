"""Every way of using SAM on every kind of backbone: from scratch, a pretrained ViT, a pretrained TinyViT."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dgbench.method import Method, resolve_hparams
from dgbench.methods._sam import SAMMethod
from dgbench.registry import METHODS, get_method
from dgbench.running import train
from dgbench.running.conformance import check_method
from tests.released_sam import NAME, TINY, info, release

SIDE = 32
FAMILY = [n for n in METHODS.names() if "backbone" in {f for f in vars(resolve_hparams(get_method(n), "check"))}]
KINDS = pytest.mark.parametrize(
    "name, backbone", [(n, kind) for kind in ("vit", "tiny") for n in FAMILY], indirect=["backbone"]
)
AS_MEDSAM = ("sam_box", "sam_point", "sam_auto")  # other prompts to the same frozen encoder: a TinyViT is slow to check


def on(name: str, backbone: str) -> type[Method]:
    """The method with another backbone as its default where it is checked."""
    base = get_method(name)
    check = {**base.per_task.get("check", {}), "backbone": backbone, "image_size": SIDE, "learning_rate": 5e-3}
    return type(base)(base.__name__, (base,), {"per_task": {"check": check}, "__module__": base.__module__})


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    release(tmp_path, monkeypatch, *([TINY] if request.param == "tiny" else []))
    yield NAME


def test_the_family_is_there():
    assert len(FAMILY) >= 12 and "erm" not in FAMILY


@KINDS
def test_on_a_pretrained_backbone_it_passes_the_checks(name: str, backbone: str, request: pytest.FixtureRequest):
    if request.node.callspec.params["backbone"] == "tiny" and name in AS_MEDSAM:
        pytest.skip("medsam shows it")
    if request.node.callspec.id == "ma_sam-tiny":
        pytest.skip("20 steps are too few on a TinyViT drawn at random: test_sam_on_tiny_vit.py takes LiteMedSAM's")
    assert check_method(on(name, backbone)) == []


@KINDS
def test_a_step_leaves_what_is_frozen_as_the_release_has_it(name: str, backbone: str):
    cls = on(name, backbone)
    method, files = train.build(cls, info(), resolve_hparams(cls, "check", {"batch_size": "2"}), seed=0)
    assert list(files) == ["narrow.pth"]
    before = {n: p.clone() for n, p in method.named_parameters()}
    statistics = {n: b.clone() for n, b in method.named_buffers() if ".bn." in n}
    train.configure(method)
    method.train()
    generator = torch.Generator().manual_seed(0)
    channels = 3 * (2 * method.neighbours + 1)
    image = torch.rand(2, channels, SIDE, SIDE, generator=generator)
    mask = torch.zeros(2, 1, SIDE, SIDE)
    mask[:, :, 10:20, 12:25] = 1
    train.step(method, train.Batch(image, mask), seed=0, t=0)
    changed = {n for n, p in method.named_parameters() if not torch.equal(p, before[n])}
    free = {n for n, p in method.named_parameters() if p.requires_grad}
    assert changed <= free
    assert bool(changed) == bool(free)
    moved = {n for n, b in method.named_buffers() if n in statistics and not torch.equal(b, statistics[n])}
    assert bool(moved) == (name == "sam_full" and bool(statistics)), "frozen batch norms keep their statistics"
    if isinstance(method, SAMMethod) and not any(n.startswith("image_encoder.") for n in free):
        assert method.cache is not None
