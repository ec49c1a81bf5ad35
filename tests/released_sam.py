"""A SAM release in miniature: a checkpoint with the keys of a release, known to dgbench under a name of its own."""

import functools
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dgbench.method import Method
from dgbench.networks import checkpoints, sam, sam2, tiny_vit, weights
from dgbench.task import TaskInfo

NAME = "narrow"
NARROW = sam.Backbone(3, 32, 2, (1, 2), embedding=32, window=4, weights=NAME)
TINY = sam.Backbone(0, embedding=32, weights=NAME)
HIERA = sam.Backbone(8, 16, 1, (4,), embedding=32, stages=(1, 2, 3, 2), weights=NAME)
SAM2 = Path(__file__).parent / "golden" / "sam2.npz"
MOBILE_SAM = Path(__file__).parent / "golden" / "tiny_vit_mobile_sam.npz"


def release(folder: Path, monkeypatch: pytest.MonkeyPatch, backbone: sam.Backbone = NARROW) -> dict[str, Tensor]:
    """Write a checkpoint of `backbone` at 1024 px, drawn at random, and make it the backbone "narrow"."""
    content, checksum = drawn(backbone)
    path = folder / "narrow.pth"
    path.write_bytes(content)
    monkeypatch.setenv("DGBENCH_WEIGHTS", str(folder))
    monkeypatch.setenv("DGBENCH_CACHE", str(folder / "cache"))
    known = weights.Weights(path.name, "https://host/narrow.pth", checksum, len(content), "")
    monkeypatch.setitem(weights.WEIGHTS, NAME, known)
    monkeypatch.setitem(sam.BACKBONES, NAME, backbone)
    return checkpoints.load_state(path)


@functools.cache
def drawn(backbone: sam.Backbone) -> tuple[bytes, str]:
    """The file's content and its sha256; drawn once, for many tests start from it."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        parts = {
            "image_encoder": sam.image_encoder(backbone, sam.RELEASE_IMAGE_SIZE),
            "prompt_encoder": sam.prompt_encoder(backbone, sam.RELEASE_IMAGE_SIZE),
            "mask_decoder": sam.mask_decoder(backbone, sam.RELEASE_MASKS),
        }
    states = {name: part.state_dict() for name, part in parts.items()}
    if not backbone.depth:
        states["image_encoder"] = with_mobile_sams_keys(states["image_encoder"])
    whole = {f"{name}.{key}": value for name, part in states.items() for key, value in part.items()}
    content = io.BytesIO()
    torch.save({"model": with_sam2s_keys(whole)} if backbone.stages else whole, content)
    return content.getvalue(), hashlib.sha256(content.getvalue()).hexdigest()


def with_mobile_sams_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A TinyViT's state dict -> the same values under the keys of MobileSAM's file, and the classifier it has."""
    golden, given = np.load(MOBILE_SAM), {}
    for name, shape in zip(golden["state_names"].tolist(), golden["state_shapes"].tolist(), strict=True):
        kept = list(tiny_vit.from_release({name: torch.empty(0)}))
        given[name] = state[kept[0]] if kept else torch.zeros(json.loads(shape))
    return given


def with_sam2s_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A SAM 2's state dict -> the same values under the keys of a release, with zeros for what is for videos only."""
    names = np.load(SAM2)["state_names"].tolist()
    place = {ours: int(i) for ours, i in sam2.from_release({n: torch.tensor([i]) for i, n in enumerate(names)}).items()}
    assert place.keys() == state.keys()
    given = dict.fromkeys(names, torch.zeros(1))
    given |= {names[i]: state[ours] for ours, i in place.items()}
    return given | {"no_mem_embed": state["image_encoder.no_memory"].reshape(1, 1, -1)}


def info(structures: int = 1, image_size: int = 64) -> TaskInfo:
    return TaskInfo("drawn", tuple(f"part{k}" for k in range(structures)), image_size, steps=10)


def trained(method: Method) -> int:
    return sum(p.numel() for p in method.parameters() if p.requires_grad)
