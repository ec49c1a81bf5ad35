"""UniverSeg's network: a U-Net whose blocks let an image and its support, images with masks, look at each other.

Butoi et al. UniverSeg. ICCV 2023. Parameters carry the names of the released weights.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def together(layer: nn.Module, support: Tensor) -> Tensor:
    """A layer of images on a support (N, S, C, H, W)."""
    return layer(support.flatten(0, 1)).unflatten(0, support.shape[:2])


class Cross(nn.Module):
    """z_s = W * [target, support_s] + b for each s: (N, C, H, W) and (N, S, D, H, W) -> (N, S, E, H, W)."""

    def __init__(self, target: int, support: int, width: int):
        super().__init__()
        self.target = target
        self.cross_conv = nn.Conv2d(target + support, width, 3, padding=1)

    def forward(self, target: Tensor, support: Tensor) -> Tensor:
        weight, bias = self.cross_conv.weight, self.cross_conv.bias  # of the target the same for all s: computed once
        theirs = F.conv2d(support.flatten(0, 1), weight[:, self.target :], padding=1).unflatten(0, support.shape[:2])
        return F.conv2d(target, weight[:, : self.target], bias, padding=1)[:, None] + theirs


class Own(nn.Module):
    """A convolution and a leaky ReLU, of the target's maps or of the support's."""

    def __init__(self, width: int):
        super().__init__()
        self.vmapped = nn.Sequential()
        self.vmapped.add_module("conv", nn.Conv2d(width, width, 3, padding=1))
        self.vmapped.add_module("nonlin", nn.LeakyReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.vmapped(x)


class Block(nn.Module):
    """target <- a(U * mean over s of z_s), support_s <- a(V * z_s): the order of the support does not matter."""

    def __init__(self, target: int, support: int, width: int):
        super().__init__()
        self.cross, self.target, self.support = Cross(target, support, width), Own(width), Own(width)

    def forward(self, target: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
        z = self.cross(target, support)
        return self.target(z.mean(1)), together(self.support, z)


class UniverSegNet(nn.Module):
    """Images (N, 1, H, W) with their supports (N, S, 2, H, W), image and mask -> logits (N, 1, H, W).

    H and W are multiples of 2^(levels - 1). widths: of the levels; the release has four of 64.
    """

    def __init__(self, widths: Sequence[int] = (64, 64, 64, 64)):
        super().__init__()
        inside = [(1, 2), *((w, w) for w in widths[:-1])]
        self.enc_blocks = nn.ModuleList(Block(t, s, w) for (t, s), w in zip(inside, widths, strict=True))
        below, skips = widths[:0:-1], widths[-2::-1]
        self.dec_blocks = nn.ModuleList(Block(b + w, b + w, w) for b, w in zip(below, skips, strict=True))
        self.out_conv = nn.Sequential()
        self.out_conv.add_module("conv", nn.Conv2d(widths[0], 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="leaky_relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.downsample = nn.MaxPool2d(2)
        self.upsample = nn.UpsamplingBilinear2d(scale_factor=2)  # which aligns corners

    def forward(self, target: Tensor, support: Tensor) -> Tensor:
        passed = []
        for i, block in enumerate(self.enc_blocks):
            if i:
                passed.append((target, support))
                target, support = self.downsample(target), together(self.downsample, support)
            target, support = block(target, support)
        for block in self.dec_blocks:
            target_skip, support_skip = passed.pop()
            target = torch.cat((self.upsample(target), target_skip), 1)
            support = torch.cat((together(self.upsample, support), support_skip), 2)
            target, support = block(target, support)
        return self.out_conv(target)
