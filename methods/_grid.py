"""Asking a SAM everywhere: a grid of points, and what of its many answers is kept."""

import torch
from torch import Tensor


def grid(points_per_side: int, image_size: int) -> Tensor:
    """(points_per_side^2, 2): x, y in pixels, row by row; each point is the middle of its cell."""
    middle = (torch.arange(points_per_side) + 0.5) * image_size / points_per_side
    return torch.cartesian_prod(middle, middle).flip(1)


def stability(logits: Tensor, offset: float) -> Tensor:
    """(..., H, W) -> (...): IoU of the masks {logits > offset} and {logits > -offset}; 0 where both are empty."""
    inner, outer = (logits > offset).sum((-2, -1)), (logits > -offset).sum((-2, -1))
    return inner / outer.clamp(min=1)


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression: indices of the boxes that are kept, the best score first.

    From the best on, a box (x, y, x, y; of (M, 4)) removes all after it whose IoU with it is above `threshold`. The
    earlier of two equal scores is better. A box of no area overlaps with none.
    """
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)
    area = size.prod(1)
    low = torch.maximum(boxes[:, None, :2], boxes[:, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    duplicate = shared > threshold * (area[:, None] + area - shared)
    left = scores.argsort(descending=True, stable=True)
    kept = []
    while len(left):
        kept.append(left[0])
        left = left[1:][~duplicate[left[0], left[1:]]]
    return torch.stack(kept) if kept else left
