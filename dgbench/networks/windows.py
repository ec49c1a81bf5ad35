"""Tokens in windows that end where the image ends.

SAM's encoders fill the windows that reach over the border with zero tokens. All of these have one key and one value, so
one more key stands for them all: its logit is theirs plus the logarithm of the sum of what their places add, exp(bias).
"""

from collections.abc import Callable

import torch
from torch import Tensor


def by_windows(x: Tensor, window: int, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """(N, H, W, C) -> (N, H, W, C') by `attend`, (M, h, w, C) -> (M, h, w, C'), for the windows of each size.

    The windows start at the first token. They have `window` tokens along each side, fewer at the far borders.
    """
    bands = [[_equal(part, window, attend) for part in _cut(band, window, 2)] for band in _cut(x, window, 1)]
    return torch.cat([torch.cat(band, 2) for band in bands], 1)


def _cut(x: Tensor, window: int, dim: int) -> list[Tensor]:
    """What whole windows fill, and the rest."""
    rest = x.shape[dim] % window
    return [part for part in x.split((x.shape[dim] - rest, rest), dim) if part.shape[dim]]


def _equal(x: Tensor, window: int, attend: Callable[[Tensor], Tensor]) -> Tensor:
    """`by_windows` where all windows have one size."""
    n, height, width, _ = x.shape
    h, w = min(window, height), min(window, width)
    windows = x.unflatten(2, (-1, w)).unflatten(1, (-1, h)).transpose(2, 3).flatten(0, 2)
    return attend(windows).unflatten(0, (n, height // h, width // w)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
