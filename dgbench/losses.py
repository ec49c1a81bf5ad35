"""Segmentation losses: what training minimises. All take logits (N, K, H, W) and masks in {0, 1} of the same shape."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["image", "batch"]


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


def dice_bce(
    logits: Tensor, mask: Tensor, dice_weight: float = 0.5, smooth: float = 1.0, reduction: Reduction = "image"
) -> Tensor:
    """(1 - dice_weight) * binary cross-entropy + dice_weight * `dice_loss`, the mean over structures.

    The cross-entropy, in nats, is the mean over all pixels; it is computed from logits and in float32, so no logit is
    too large for it.
    """
    bce = F.binary_cross_entropy_with_logits(logits.float(), mask)
    return (1 - dice_weight) * bce + dice_weight * dice_loss(logits, mask, smooth, reduction)
