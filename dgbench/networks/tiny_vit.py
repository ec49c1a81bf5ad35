"""TinyViT as the image encoder of small SAMs, MobileSAM's and LiteMedSAM's.

Wu et al. TinyViT. ECCV 2022. https://arxiv.org/abs/2207.10666
Zhang et al. Faster Segment Anything (MobileSAM). 2023. https://arxiv.org/abs/2306.14289
Ma et al. Segment Anything in Medical Images. Nature Communications 2024. https://doi.org/10.1038/s41467-024-44824-z
(LiteMedSAM is on the branch of that name of https://github.com/bowang-lab/MedSAM.)

The parameters are those of timm's blocks, at the sizes of TinyViT-5M. What SAM's variant has of its own: the last patch
merging keeps the resolution, SAM's neck takes the classifier's place, and LiteMedSAM's patch embedding looks at single
pixels. The blocks compute what timm's do with less: channels lie last in memory, batch norms that stand still are part
of their convolutions, and windows end at the border (see `windows`).
Everything can be built on the meta device, which counts parameters without memory.
"""

from __future__ import annotations

import re
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.networks import torchvision_ops  # noqa: F401  # isort: skip - timm and segment_anything import torchvision
from segment_anything.modeling.common import LayerNorm2d
from timm.models import tiny_vit as package

from dgbench.errors import UsageError
from dgbench.networks.windows import by_windows


class ConvNorm(package.ConvNorm):
    """timm's; a batch norm in eval mode goes into the weights, which spares a pass over the maps.

    Not one with hooks: they are how test images' statistics take the place of the trained ones.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H', W')."""
        conv, norm = self.conv, cast(Any, self.bn)
        if norm.training or norm._forward_pre_hooks:
            return norm(_convolve(x, conv, conv.weight, None))
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return _convolve(x, conv, conv.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale)


def _convolve(x: Tensor, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution with other weights; of single pixels it is a product of matrices."""
    if conv.kernel_size == (1, 1):
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding, groups=conv.groups)


class PatchEmbed(package.PatchEmbed):
    """timm's; what it returns, and all that follows, has its channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C, H', W')."""
        return super().forward(x.contiguous(memory_format=torch.channels_last))


class Block(package.TinyVitBlock):
    """timm's, with windows that end at the border."""

    attn: Any

    def attend(self, x: Tensor) -> Tensor:
        """What attention adds to the tokens: (N, H, W, C) -> (N, H, W, C)."""
        attention = self.attn
        # timm fills the windows at the border with zero tokens before this norm.
        filler = attention.qkv(attention.norm(x.new_zeros(x.shape[-1])))
        qkv = attention.qkv(attention.norm(x))
        return attention.proj(by_windows(qkv, self.window_size, lambda windows: self.within(windows, filler)))

    def within(self, qkv: Tensor, filler: Tensor) -> Tensor:
        """Attention within windows: (M, h, w, 3C) -> (M, h, w, C). Filler: (3C,), of the tokens beyond the border."""
        attention, (m, height, width, _) = self.attn, qkv.shape
        bias = attention.attention_biases[:, attention.attention_bias_idxs]
        bias = bias.view(-1, *[self.window_size] * 4)[:, :height, :width]  # heads, queries, keys
        inside = bias[..., :height, :width].flatten(3).flatten(1, 2)
        tokens = qkv.flatten(1, 2)
        if inside.shape[-1] < attention.attention_bias_idxs.shape[-1]:
            beyond = torch.cat((bias[..., height:, :].flatten(3), bias[..., :height, width:].flatten(3)), 3)
            inside = torch.cat((inside, beyond.logsumexp(3).flatten(1)[..., None]), 2)
            tokens = torch.cat((tokens, filler.expand(m, 1, -1)), 1)
        q, k, v = tokens.unflatten(2, (attention.num_heads, 3, -1)).permute(3, 0, 2, 1, 4).unbind()
        out = F.scaled_dot_product_attention(q[:, :, : height * width], k, v, attn_mask=inside[None])
        return out.transpose(1, 2).reshape(m, height, width, -1)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, H, W, C) -> the same shape."""
        x = self.local_conv((x + self.attend(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(x)


OURS = {package.ConvNorm: ConvNorm, package.PatchEmbed: PatchEmbed, package.TinyVitBlock: Block}


class TinyViTEncoder(nn.Module):
    """(N, 3, H, W) -> (N, embedding, H / patch, W / patch), for H and W that are multiples of `patch`.

    Windows that reach over the border see zeros there, so the weights fit every size. Raises `UsageError` for an image
    that the patches do not fill.

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
        self.patch_embed, self.stages = net.patch_embed, net.stages
        if patch == 4:
            self.patch_embed.conv1 = package.ConvNorm(3, 32)
            self.patch_embed.conv2 = package.ConvNorm(32, 64)
        for module in self.modules():
            module.__class__ = OURS.get(type(module), type(module))  # the same parameters, another forward
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
