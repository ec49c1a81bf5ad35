"""TinyViT as the image encoder of small SAMs, MobileSAM's and LiteMedSAM's.

Wu et al. TinyViT. ECCV 2022. https://arxiv.org/abs/2207.10666
Zhang et al. Faster Segment Anything (MobileSAM). 2023. https://arxiv.org/abs/2306.14289
Ma et al. Segment Anything in Medical Images. Nature Communications 2024. https://doi.org/10.1038/s41467-024-44824-z
(LiteMedSAM is on the branch of that name of https://github.com/bowang-lab/MedSAM.)

The blocks are timm's, at the sizes of TinyViT-5M. What SAM's variant has of its own: the last patch merging keeps the
resolution, SAM's neck takes the classifier's place, and LiteMedSAM's patch embedding looks at single pixels.
Everything can be built on the meta device, which counts parameters without memory.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from dgbench.networks import torchvision_ops  # noqa: F401  # isort: skip - timm and segment_anything import torchvision
from segment_anything.modeling.common import LayerNorm2d
from timm.models import tiny_vit as package

from dgbench.errors import UsageError


class Attention(package.Attention):
    """timm's attention without its memory of position biases, which outlives the weights that it was made from."""

    attention_bias_idxs: Tensor

    def get_attention_biases(self, device: torch.device) -> Tensor:
        """(heads, N, N), of the weights as they are now."""
        return self.attention_biases[:, self.attention_bias_idxs]


class TinyViTEncoder(nn.Module):
    """(N, 3, H, W) -> (N, embedding, H / patch, W / patch), for H and W that are multiples of `patch`.

    Windows that reach over the border are filled with zeros, so the weights fit every size. Raises `UsageError` for an
    image that the patches do not fill.

    Parameters
    ----------
    patch: total stride. 16, MobileSAM's: the patch embedding convolves 3x3 pixels and halves twice. 4, LiteMedSAM's: it
        keeps every pixel apart, and the merging alone reduces.
    embedding: channels of the image embedding.
    """

    def __init__(self, patch: int, embedding: int = 256):
        super().__init__()
        if patch not in (4, 16):
            raise ValueError(f"TinyViT has patches of 4 or 16 pixels, not {patch}")
        self.patch = patch
        net: Any = package.TinyVit(
            num_classes=0,
            embed_dims=(64, 128, 160, 320),
            depths=(2, 2, 6, 2),
            num_heads=(2, 4, 5, 10),
            window_sizes=(7, 7, 14, 7),
            drop_path_rate=0.0,
        )
        net.stages[-1].downsample.conv2.conv.stride = (1, 1)
        for module in net.stages.modules():
            if isinstance(module, package.Attention):
                module.__class__ = Attention  # the same parameters, another lookup
        self.patch_embed, self.stages = net.patch_embed, net.stages
        if patch == 4:
            self.patch_embed.conv1 = package.ConvNorm(3, 32)
            self.patch_embed.conv2 = package.ConvNorm(32, 64)
        self.neck = nn.Sequential(
            nn.Conv2d(320, embedding, 1, bias=False),
            LayerNorm2d(embedding),
            nn.Conv2d(embedding, embedding, 3, padding=1, bias=False),
            LayerNorm2d(embedding),
        )

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, embedding, H / patch, W / patch)."""
        height, width = image.shape[-2:]
        for side in (height, width):
            if side < self.patch or side % self.patch:
                near = max(1, round(side / self.patch)) * self.patch
                raise UsageError(
                    f"image_size {side} is no multiple of the patch size {self.patch}",
                    f"choose a multiple of it: --set image_size={near}",
                )
        return self.neck(self.stages(self.patch_embed(image)))


# MobileSAM's files still hold the classifier, which its forward pass leaves out.
CLASSIFIER = ("norm_head.", "head.")


def from_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder of MobileSAM's or LiteMedSAM's files, without its prefix -> the state dict of `TinyViTEncoder`.

    The releases end a stage with the patch merging that timm begins the next one with. The classifier is dropped.
    """
    return {_renamed(key): value for key, value in state.items() if not key.startswith(CLASSIFIER)}


def _renamed(key: str) -> str:
    key = key.replace("patch_embed.seq.0.", "patch_embed.conv1.").replace("patch_embed.seq.2.", "patch_embed.conv2.")
    key = re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"stages.{int(found[1]) + 1}.downsample.", key)
    return re.sub(r"^layers\.", "stages.", key).replace(".c.", ".conv.")
