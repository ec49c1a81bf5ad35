"""Mixing the amplitudes of two images' Fourier transforms while each keeps its own phase: new style, same shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dgbench.losses import in_float32


@in_float32
def mix_amplitudes(image: Tensor, reference: Tensor, share: Tensor, window: float = 1.0) -> Tensor:
    """The image with (1 - share) of its own amplitudes and `share` of the reference's: (N, C, H, W), not clamped.

    share: (N,) in [0, 1]. window: the highest frequency that is mixed, along either axis, in periods per pixel of the
    shorter side; from 0.5 on that is all of a square image. Each channel by itself.
    """
    size = image.shape[-2:]
    own, other = torch.fft.rfft2(image), torch.fft.rfft2(reference)
    weight = share[:, None, None, None] * low_frequencies(size, window, image.device)
    amplitude = torch.lerp(own.abs(), other.abs(), weight)
    return torch.fft.irfft2(torch.polar(amplitude, own.angle()), s=size)


def low_frequencies(size: Sequence[int], window: float, device: torch.device) -> Tensor:
    """Which entries of `rfft2` of an image of that size the window holds: bool, (H, W // 2 + 1)."""
    reach = int(window * min(size))
    rows = (torch.fft.fftfreq(size[0], device=device) * size[0]).abs().round() <= reach
    columns = (torch.fft.rfftfreq(size[1], device=device) * size[1]).round() <= reach
    return rows[:, None] & columns
