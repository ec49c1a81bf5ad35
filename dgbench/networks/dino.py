"""Vision transformers trained by DINOv2 or DINOv3, as timm has them, and a head that reads several of their layers.

Oquab et al. DINOv2: Learning Robust Visual Features without Supervision. TMLR 2024. https://arxiv.org/abs/2304.07193
Siméoni et al. DINOv3. 2025. https://arxiv.org/abs/2508.10104
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.networks import torchvision_ops  # noqa: F401  # isort: skip - timm imports torchvision

import timm

from dgbench.errors import DataError, require
from dgbench.networks.unet import Norm, convolutions, normalise, resize

LEVELS = 4  # layers that are read, evenly spaced; the last block is among them


class DinoEncoder(nn.Module):
    """A ViT that gives the patch tokens of four of its layers; class and register tokens are dropped.

    name: its name in timm, one of `names`; randomly initialised. image_size: side of the square image; it is resized to
    the nearest multiple of the patches' size.
    """

    def __init__(self, name: str, image_size: int):
        super().__init__()
        self.name = name
        self.patch = int(check_name(name).partition("_patch")[2][:2])
        self.side = max(1, round(image_size / self.patch)) * self.patch
        self.vit = _create(name, img_size=self.side)
        depth = len(self.vit.blocks)
        self.read = [(i + 1) * depth // LEVELS - 1 for i in range(LEVELS)]
        self.channels = LEVELS * self.vit.embed_dim

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> (N, channels, side / patch, side / patch), the last norm applied to each layer."""
        x = normalise(resize(image, (self.side, self.side)), "imagenet")
        return torch.cat(self.vit.forward_intermediates(x, self.read, norm=True, intermediates_only=True), 1)

    def load(self, state: dict[str, Tensor], origin: str | Path) -> None:
        """Take the weights that timm or the authors publish; position embeddings are interpolated as timm does it.

        Raises `DataError`, which names `origin`, for weights of another network.
        """
        given = {"state_dict": state}
        try:  # timm converts, interpolates and then loads strictly
            loaded = _create(self.name, img_size=self.side, pretrained=True, pretrained_cfg_overlay=given)
        except (RuntimeError, KeyError, ValueError, AttributeError, IndexError) as error:
            text = " ".join(str(error).split())[:300]
            raise DataError(f"{origin} does not fit {self.name}: {text}", "give the weights of this encoder") from error
        self.vit.load_state_dict(loaded.state_dict())


class MultiLevelHead(nn.Module):
    """Concatenated layers (N, channels, h, w) -> logits (N, structures, 8h, 8w), which are to be resized.

    A 1x1 convolution to four times the width, then three times: twice the size, two 3x3 convolutions with norm and
    ReLU; to two times, once and once the width.
    """

    def __init__(self, channels: int, structures: int, width: int = 64, norm: Norm = "batch"):
        super().__init__()
        widths = (4 * width, 2 * width, width, width)
        self.merge = nn.Conv2d(channels, widths[0], 1)
        self.stages = nn.ModuleList(nn.Sequential(*convolutions(a, b, norm)) for a, b in pairwise(widths))
        self.out = nn.Conv2d(width, structures, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.merge(x)
        for stage in self.stages:
            x = stage(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        return self.out(x)


def names() -> list[str]:
    """timm's names of the ViTs of DINOv2 and DINOv3, without the data that they were trained on."""
    return [name for family in ("dinov2", "dinov3") for name in timm.list_models(f"vit_*{family}*")]


def check_name(name: str) -> str:
    """The name. Raises `UsageError` for one that is not among `names`, whatever follows its dot."""
    require(name.partition(".")[0], names(), "DINO encoder")
    return name


def _create(name: str, **options: Any) -> Any:
    return timm.create_model(name, num_classes=0, **options)
