"""Segmentation losses: what training minimises. All take logits (N, K, H, W) and masks in {0, 1} of the same shape.

They are computed in float32, whatever the precision of a run; `in_float32` does that for what else needs it.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["image", "batch"]
Given = ParamSpec("Given")
Result = TypeVar("Result")


def in_float32(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Decorate what bfloat16's three digits are too few for: coordinates, spectra, statistics, losses.

    Under autocast the function is computed without it, on float32 copies of the tensors among its arguments, of which
    one at least must be a tensor. Elsewhere it is the function itself.
    """

    @functools.wraps(function)
    def computed(*arguments: Given.args, **named: Given.kwargs) -> Result:
        device = next(a.device.type for a in (*arguments, *named.values()) if isinstance(a, Tensor))
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return function(*arguments, **named)
        with torch.autocast(device, enabled=False):
            return function(*map(_single, arguments), **{n: _single(a) for n, a in named.items()})

    return computed


def _single(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@in_float32
def dice_loss(logits: Tensor, mask: Tensor, smooth: float = 1.0, reduction: Reduction = "image") -> Tensor:
    """Soft Dice loss in [0, 1): 1 - (2 sum(p m) + smooth) / (sum(p) + sum(m) + smooth) with p = sigmoid(logits).

    The sums run over the pixels of one structure: of each image on its own ("image"), so that every image weighs the
    same, or of the whole batch at once ("batch"), so that large masks weigh more. The ratios are averaged. An image
    without the structure still costs what is predicted there; `smooth`, in pixels, keeps its loss finite and near 0
    only when next to nothing is predicted. After Milletari et al., V-Net, 3DV 2016, without squares in the denominator.
    """
    over = (2, 3) if reduction == "image" else (0, 2, 3)
    p = logits.float().sigmoid()
    overlap, total = (p * mask).sum(over), p.sum(over) + mask.sum(over)
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


@in_float32
def dice_bce(
    logits: Tensor, mask: Tensor, dice_weight: float = 0.5, smooth: float = 1.0, reduction: Reduction = "image"
) -> Tensor:
    """(1 - dice_weight) * binary cross-entropy + dice_weight * `dice_loss`, the mean over structures.

    The cross-entropy, in nats, is the mean over all pixels; it is computed from logits and in float32, so no logit is
    too large for it.
    """
    bce = F.binary_cross_entropy_with_logits(logits.float(), mask)
    return (1 - dice_weight) * bce + dice_weight * dice_loss(logits, mask, smooth, reduction)
