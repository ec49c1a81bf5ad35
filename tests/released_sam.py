"""A SAM release in miniature: a checkpoint with the keys of a release, known to dgbench under a name of its own."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgbench.files import sha256
from dgbench.method import Method
from dgbench.networks import checkpoints, sam, weights
from dgbench.task import TaskInfo

NAME = "narrow"
NARROW = sam.Backbone(3, 32, 2, (1, 2), embedding=32, window=4, weights=NAME)


def release(folder: Path, monkeypatch: pytest.MonkeyPatch, backbone: sam.Backbone = NARROW) -> dict[str, Tensor]:
    """Write a checkpoint of `backbone` at 1024 px, drawn at random, and make it the backbone "narrow"."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        parts = {
            "image_encoder": sam.image_encoder(backbone, sam.RELEASE_IMAGE_SIZE),
            "prompt_encoder": sam.prompt_encoder(backbone, sam.RELEASE_IMAGE_SIZE),
            "mask_decoder": sam.mask_decoder(backbone, sam.RELEASE_MASKS),
        }
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    path = folder / "narrow.pth"
    torch.save(state, path)
    monkeypatch.setenv("DGBENCH_WEIGHTS", str(folder))
    monkeypatch.setenv("DGBENCH_CACHE", str(folder / "cache"))
    known = weights.Weights(path.name, "https://host/narrow.pth", sha256(path), path.stat().st_size, "")
    monkeypatch.setitem(weights.WEIGHTS, NAME, known)
    monkeypatch.setitem(sam.BACKBONES, NAME, backbone)
    return checkpoints.load_state(path)


def info(structures: int = 1, image_size: int = 64) -> TaskInfo:
    return TaskInfo("drawn", tuple(f"part{k}" for k in range(structures)), image_size, steps=10)


def trained(method: Method) -> int:
    return sum(p.numel() for p in method.parameters() if p.requires_grad)
