"""nnU-Net's 2-D network, and the rules by which it plans patch, depth and widths from the size of the images.

Isensee et al. nnU-Net. Nature Methods 2021, and nnunetv2 2.8.1, for pixels as wide as high and images of one size.
"""

from collections.abc import Sequence
from itertools import product
from math import ceil, prod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]  # height and width
SMALLEST = 4  # side of the deepest feature map at least
MOST_FEATURES = 512
MOST_NUMBERS = 6 * 85e6  # in the feature maps of one image, two of which are to fit into 8 GB of a GPU


class Plan(NamedTuple):
    """patch: what the network sees at once. strides, features: of each stage, the first at full size."""

    patch: Size
    strides: tuple[Size, ...]
    features: tuple[int, ...]

    def numbers(self, classes: int) -> int:
        """In the feature maps of one patch: of all convolutions, and the logits of so many classes."""
        (height, width), maps = self.patch, []
        for (down, across), features in zip(self.strides, self.features, strict=True):
            height, width = height // down, width // across
            maps.append(height * width * features)
        return 2 * sum(maps) + 3 * sum(maps[:-1]) + classes * prod(self.patch)


def topology(patch: Sequence[int], width: int) -> Plan:
    """Halve the axes halved least, while they have 8 pixels, or 12 if it is one alone; then fill the patch up."""
    sides, halved, strides = list(patch), [0, 0], [(1, 1)]
    while able := [a for a in (0, 1) if sides[a] >= 2 * SMALLEST]:
        able = [a for a in able if halved[a] == min(halved[b] for b in able)]
        if len(able) == 1 and sides[able[0]] < 3 * SMALLEST:
            break
        for axis in able:
            sides[axis], halved[axis] = ceil(sides[axis] / 2), halved[axis] + 1
        strides.append((1 + (0 in able), 1 + (1 in able)))
    height, across = (ceil(side / 2**times) * 2**times for side, times in zip(patch, halved, strict=True))
    return Plan((height, across), tuple(strides), tuple(min(MOST_FEATURES, width * 2**i) for i in range(len(strides))))


def plan(image: Size, classes: int, width: int = 32) -> Plan:
    """The image filled up, or where its feature maps are too large, the largest patch whose are not.

    classes: the background among them. The side that gets smaller is the one larger in proportion to the image's; of
    equals the width.
    """
    planned = topology(image, width)
    while planned.numbers(classes) > MOST_NUMBERS:
        patch = list(planned.patch)
        axis = int(patch[1] * image[0] >= patch[0] * image[1])
        smaller = list(patch)
        smaller[axis] -= prod(stride[axis] for stride in planned.strides)
        patch[axis] -= prod(stride[axis] for stride in topology(smaller, width).strides)
        planned = topology(patch, width)
    return planned


def convolutions(inside: int, outside: int, stride: Size = (1, 1)) -> nn.Sequential:
    """Two 3x3 convolutions, each with instance norm and a leaky ReLU."""
    layers: list[nn.Module] = []
    for channels, by in ((inside, stride), (outside, (1, 1))):
        layers += [nn.Conv2d(channels, outside, 3, by, padding=1), nn.InstanceNorm2d(outside, affine=True)]
        layers.append(nn.LeakyReLU(0.01, inplace=True))
    return nn.Sequential(*layers)


class Network(nn.Module):
    """nnU-Net's plain U-Net: (N, C, H, W) -> logits after each stage of the decoder, (N, K, H, W) first."""

    def __init__(self, planned: Plan, structures: int, in_channels: int = 3):
        super().__init__()
        features, strides = planned.features, planned.strides
        self.encoder = nn.ModuleList(map(convolutions, (in_channels, *features), features, strides))
        levels = list(zip(features, features[1:], strides[1:], strict=False))[::-1]
        self.decoder = nn.ModuleList(convolutions(2 * above, above) for above, _, _ in levels)
        self.enlarge = nn.ModuleList(nn.ConvTranspose2d(below, above, by, by) for above, below, by in levels)
        self.heads = nn.ModuleList(nn.Conv2d(above, structures, 1) for above, _, _ in levels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        logits = []
        for i, (enlarge, stage, head) in enumerate(zip(self.enlarge, self.decoder, self.heads, strict=True), 2):
            x = stage(torch.cat((enlarge(x), maps[-i]), 1))
            logits.append(head(x))
        return logits[::-1]


def weights(levels: int) -> list[float]:
    """Of the losses of so many decoder stages, the finest first: half as much at each coarser, 0 at the coarsest."""
    halved = [0.5**i for i in range(max(1, levels - 1))]
    return [w / sum(halved) for w in halved]


def places(image: int, patch: int) -> list[int]:
    """Where the patches that cover a side of an image begin, half a patch apart at most."""
    steps = ceil(2 * (image - patch) / patch)
    return [round(i * (image - patch) / max(steps, 1)) for i in range(steps + 1)]


def by_patches(network: Network, x: Tensor, patch: Size) -> Tensor:
    """(N, C, H, W) -> logits (N, K, H, W): the image filled up with zeros, the mean of overlapping patches.

    A patch counts most in its middle: by a Gaussian of an eighth of its side.
    """
    height, width = x.shape[-2:]
    down, across = (max(0, p - side) for p, side in zip(patch, (height, width), strict=True))
    top, left = down // 2, across // 2
    x = F.pad(x, (left, across - left, top, down - top))
    corners = list(product(*(places(side, p) for side, p in zip(x.shape[-2:], patch, strict=True))))
    if len(corners) == 1:
        logits = network(x)[0]
    else:
        bells = [torch.exp(-32 * ((torch.arange(p, device=x.device) - p // 2) / p) ** 2) for p in patch]
        weight, parts, counted = bells[0][:, None] * bells[1], [], x.new_zeros(x.shape[-2:])
        for row, column in corners:
            around = (column, x.shape[-1] - patch[1] - column, row, x.shape[-2] - patch[0] - row)
            seen = network(x[..., row : row + patch[0], column : column + patch[1]])[0]
            parts.append(F.pad(seen * weight, around))
            counted += F.pad(weight, around)
        logits = torch.stack(parts).sum(0) / counted
    return logits[..., top : top + height, left : left + width]
