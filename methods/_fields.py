"""Smooth maps over an image: a coarse grid of values, spread by a B-spline."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, comb, factorial

import torch
from torch import Tensor

from dgbench.losses import in_float32


@in_float32
def spread(control: Tensor, size: Sequence[int], spacing: Sequence[float], degree: int) -> Tensor:
    """Control points (N, C, g, h) -> (N, C, H, W), at each pixel a weighted mean of the points around it.

    The points lie `spacing` pixels apart along each axis, and the middle of the grid on the middle of the image. A
    point reaches (degree + 1) / 2 spacings far. Where points outside the grid would reach in, they count as 0.
    """
    rows, columns = (
        bspline(side, points, step, degree, control.device)
        for side, points, step in zip(size, control.shape[-2:], spacing, strict=True)
    )
    return rows @ control @ columns.T


def points(side: int, spacing: float) -> int:
    """How many control points cover a side of so many pixels, with one beyond each end."""
    return ceil(side / spacing) + 2


def bspline(length: int, points: int, spacing: float, degree: int, device: torch.device | None = None) -> Tensor:
    """(length, points): weight of each control point at each pixel.

    b(t) = sum over j of (-1)^j C(d + 1, j) max((d + 1) / 2 - |t| - j, 0)^d / d!, t in spacings (Schoenberg 1946).
    """
    pixel, point = (torch.arange(n, device=device) - (n - 1) / 2 for n in (length, points))
    t = (pixel[:, None] / spacing - point).abs()
    weight = torch.zeros_like(t)
    for j in range(degree + 2):
        weight += (-1) ** j * comb(degree + 1, j) * ((degree + 1) / 2 - t - j).clamp(min=0) ** degree
    return weight / factorial(degree)


def unit_range(x: Tensor) -> Tensor:
    """(N, C, H, W) shifted and scaled to [0, 1], each image by itself, its channels alike; an even one becomes 0."""
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    return ((x - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
