"""New contrasts for an image or a region of it: a random monotone curve, then a random scale and shift (SLAug's GLA).

Zhou et al. Models Genesis. Medical Image Analysis 2021 (the curve). https://arxiv.org/abs/2004.07882
Su et al. Rethinking Data Augmentation for Single-Source Domain Generalization in Medical Image Segmentation. AAAI 2023
(scale and shift, regions). https://arxiv.org/abs/2211.14805
"""

from __future__ import annotations

import torch
from torch import Tensor

from dgbench.losses import in_float32

RESOLUTION = 1000  # pieces a curve is made of


@in_float32
def bezier(x: Tensor, inner: Tensor, inverted: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] through one curve per image: cubic Bezier from (0, 0) to (1, 1), so [0, 1] again.

    inner: (N, 2, 2), the two inner control points as (x, y) in [0, 1]; whatever they are, the curve never falls.
    inverted: (N,) bool, whose curve runs from (0, 1) to (1, 0) instead.
    """
    t = torch.linspace(0, 1, RESOLUTION + 1, device=x.device)
    weights = torch.stack([3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t)])
    across, up = (inner.mT @ weights + t**3).unbind(1)
    up = torch.where(inverted[:, None], up.flip(1), up)
    values = x.flatten(1)
    right = torch.searchsorted(across.contiguous(), values.contiguous()).clamp(1, RESOLUTION)
    x0, x1, y0, y1 = (curve.gather(1, right + d) for curve in (across, up) for d in (-1, 0))
    y = torch.lerp(y0, y1, ((values - x0) / (x1 - x0).clamp(min=1e-12)).clamp(0, 1))
    return torch.where(values < 1, y, up[:, -1:]).view_as(x)  # a steep end rounds to 1 before it is reached


@in_float32
def through(x: Tensor, curve: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] through a curve for each image and channel, (N, C, L + 1): its values at even steps.

    Linear between them; the gradient reaches the curve.
    """
    last = curve.shape[2] - 1
    position = x.flatten(2) * last
    left = position.detach().floor().long().clamp(0, last - 1)
    return torch.lerp(curve.gather(2, left), curve.gather(2, left + 1), position - left).view_as(x)


def scale_and_shift(x: Tensor, region: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] -> x * scale + shift, clamped to [0, 1]; scale and shift are (N,).

    The shift is limited so that the region's 20th percentile stays above 0 and its 80th below 1. region: (N, 1, H, W).
    """
    low, high = percentiles(x, region, (0.2, 0.8))
    shift = torch.minimum(torch.maximum(shift, -low), 1 - high)
    return (x * scale[:, None, None, None] + shift[:, None, None, None]).clamp(0, 1)


def percentiles(x: Tensor, region: Tensor, fractions: tuple[float, ...]) -> list[Tensor]:
    """Of the pixels in a region, interpolated linearly: (N,) each; infinite for an empty region."""
    inside = region.expand_as(x).flatten(1)
    ordered = x.flatten(1).masked_fill(~inside, torch.inf).sort(1).values
    last = (inside.sum(1, keepdim=True) - 1).clamp(min=0)
    below = [(f * last).floor().long() for f in fractions]
    pairs = [(ordered.gather(1, b), ordered.gather(1, torch.minimum(b + 1, last)), b) for b in below]
    return [torch.lerp(a, c, f * last - b).squeeze(1) for (a, c, b), f in zip(pairs, fractions, strict=True)]


@torch.no_grad()
def new_contrast(
    image: Tensor, region: Tensor | None = None, p_inverted: float = 0.0, rng: torch.Generator | None = None
) -> Tensor:
    """(N, C, H, W) in [0, 1] with random contrasts, one curve, scale and shift for all channels of an image.

    The curve spans what is darkest and brightest in the region, (N, 1, H, W) bool, everything by default; pixels
    outside of it come out too, without meaning. Draws on the CPU, from `rng` or torch's global generator.
    """
    count, device = len(image), image.device
    inner, inverted = torch.rand(count, 2, 2, generator=rng), torch.rand(count, generator=rng) < p_inverted
    scale = torch.randn(count, generator=rng).mul(0.1).add(1).clamp(0.9, 1.1)
    shift = torch.randn(count, generator=rng).mul(0.5)
    if region is None:
        region = image.new_ones((count, 1, *image.shape[2:]), dtype=torch.bool)
    low = image.masked_fill(~region, torch.inf).amin((1, 2, 3), keepdim=True)
    high = image.masked_fill(~region, -torch.inf).amax((1, 2, 3), keepdim=True)
    x = ((image - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    x = low + (high - low) * bezier(x, inner.to(device), inverted.to(device))
    return scale_and_shift(x, region, scale.to(device), shift.to(device))
