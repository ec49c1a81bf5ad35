"""Warping one image onto another: the displacement, a network that finds it, and how alike two images are then."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.losses import in_float32
from dgbench.networks.unet import normalise, resize

SIDE = 64  # of the images that are compared
WINDOW = 9  # of the local correlation


@in_float32
def warp(x: Tensor, displacement: Tensor, outside: str = "zeros") -> Tensor:
    """(N, C, H, W) read at each pixel plus its displacement (N, 2, h, w): x, y in halves of the image's side."""
    identity = torch.eye(2, 3, device=x.device).expand(len(x), -1, -1)
    place = F.affine_grid(identity, list(x.shape), align_corners=False)
    moved = place + resize(displacement, x.shape[-2:]).permute(0, 2, 3, 1)
    return F.grid_sample(x, moved, padding_mode=outside, align_corners=False)


@in_float32
def strain(displacement: Tensor) -> Tensor:
    """Mean squared difference of neighbouring displacements (N, 2, h, w), both in pixels of the compared images."""
    pixels = resize(displacement, (SIDE, SIDE)) * SIDE / 2
    return pixels.diff(dim=2).square().mean() + pixels.diff(dim=3).square().mean()


@in_float32
def likeness(a: Tensor, b: Tensor) -> Tensor:
    """Squared correlation of two images (N, 1, H, W) in a window about each pixel: its mean, from 0 to 1."""

    def near(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, WINDOW, 1, WINDOW // 2, count_include_pad=False)

    a, b = a - near(a), b - near(b)
    return (near(a * b) ** 2 / (near(a * a) * near(b * b) + 1e-4)).mean()


def small(image: Tensor) -> Tensor:
    """(N, C, S, S) -> gray, (N, 1, 64, 64), mean 0 and deviation 1."""
    gray = F.interpolate(image.mean(1, keepdim=True), (SIDE, SIDE), mode="area")
    return normalise(gray, "zscore")


class Warper(nn.Module):
    """Images (N, C, S, S), moving and fixed -> displacement (N, 2, 8, 8) for `warp`, in five convolutions and one.

    It says where each pixel of `fixed` is found in `moving`; nothing moves before it is trained.
    """

    def __init__(self, width: int):
        super().__init__()
        layers: list[nn.Module] = []
        for inside, stride in ((2, 2), (width, 2), (width, 2), (width, 1), (width, 1)):
            layers += [nn.Conv2d(inside, width, 3, stride, 1), nn.LeakyReLU(0.2)]
        self.features, self.head = nn.Sequential(*layers), nn.Conv2d(width, 2, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacement (N, 2, 8, 8): x, y in halves of the image's side."""
        return self.head(self.features(torch.cat([small(moving), small(fixed)], 1)))
