"""Every way of using SAM on every kind of backbone: from scratch, a pretrained ViT, TinyViT or Hiera (SAM 2)."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dgbench.errors import UsageError
from dgbench.method import Method, resolve_hparams
from dgbench.methods._sam import SAMMethod
from dgbench.registry import METHODS, get_method
from dgbench.running import train
from dgbench.running.conformance import check_method
from tests.released_sam import HIERA, NAME, TINY, info, release

SIDE = 32
FAMILY = [n for n in METHODS.names() if "backbone" in {f for f in vars(resolve_hparams(get_method(n), "check"))}]
PLAIN = ("dapsam", "desam", "ma_sam")  # these cannot take a SAM 2
KINDS = [(n, kind) for kind in ("vit", "tiny", "hiera") for n in FAMILY if kind != "hiera" or n not in PLAIN]
SHOWN = ("sam_lora", "sam_adapter")  # on a Hiera; what the others do with it is seen in a step of each
RELEASES = {"vit": (), "tiny": (TINY,), "hiera": (HIERA,)}
AS_MEDSAM = ("sam_box", "sam_point", "sam_auto")  # other prompts to the same frozen encoder: a TinyViT is slow to check


def on(name: str, backbone: str) -> type[Method]:
    """The method with another backbone as its default where it is checked."""
    base = get_method(name)
    check = {**base.per_task.get("check", {}), "backbone": backbone, "image_size": SIDE, "learning_rate": 5e-3}
    return type(base)(base.__name__, (base,), {"per_task": {"check": check}, "__module__": base.__module__})


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    release(tmp_path, monkeypatch, *RELEASES[request.param])
    yield NAME


def test_the_family_is_there():
    assert len(FAMILY) >= 12 and "erm" not in FAMILY


@pytest.mark.parametrize("name", PLAIN)
def test_what_needs_a_plain_vit_refuses_a_sam_2_before_it_looks_for_weights(name: str):
    cls = get_method(name)
    hparams = resolve_hparams(cls, "drawn", {"backbone": "sam2_tiny"})
    for ask in (lambda: cls.find_pretrained(hparams), lambda: cls(info(), hparams)):
        with pytest.raises(UsageError, match=r"backbone 'sam2_tiny' is a SAM 2(?s:.*)choose another: vit_b, ") as told:
            ask()
        assert "medsam2" not in told.value.remedy


@pytest.mark.parametrize(
    "name, backbone",
    [pytest.param(n, k, marks=[pytest.mark.thorough] * (k == "hiera" and n not in SHOWN)) for n, k in KINDS],
    indirect=["backbone"],
)
def test_on_a_pretrained_backbone_it_passes_the_checks(name: str, backbone: str, request: pytest.FixtureRequest):
    if request.node.callspec.params["backbone"] != "vit" and name in AS_MEDSAM:
        pytest.skip("medsam shows it")
    if request.node.callspec.id == "ma_sam-tiny":
        pytest.skip("20 steps are too few on a TinyViT drawn at random: test_sam_on_tiny_vit.py takes LiteMedSAM's")
    assert check_method(on(name, backbone)) == []


@pytest.mark.parametrize("name, backbone", KINDS, indirect=["backbone"])
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
