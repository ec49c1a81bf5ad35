"""Style: the mean and the deviation of each feature channel over an image, which mixstyle and its like change.

Huang & Belongie. Arbitrary Style Transfer in Real-time with Adaptive
Instance Normalization. ICCV 2017. https://arxiv.org/abs/1703.06868
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from dgbench.errors import UsageError
from dgbench.losses import in_float32
from dgbench.networks.unet import SegmentationNet


@in_float32
def style(x: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) -> mean and deviation, (N, C, 1, 1) each.

    The deviation is the root of unbiased variance + eps, so that an even channel can be divided by it.
    """
    variance, mean = torch.var_mean(x, (2, 3), keepdim=True)
    return mean, (variance + eps).sqrt()


def restyled(x: Tensor, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Tensor:
    """(x - old mean) / old deviation * new deviation + new mean."""
    scale = new[1] / old[1]
    return x * scale + (new[0] - old[0] * scale)


def spread(x: Tensor) -> list[Tensor]:
    """How far mean and deviation vary over the batch, (1, C, 1, 1) each, no gradient; of several images only."""
    return [v.std(0, keepdim=True) for v in style(x.detach())]


def composed(x: Tensor, partner: Tensor, share: Tensor, noises: Iterable[Tensor], spreads: Iterable[Tensor]) -> Tensor:
    """Between the own style and the partner's, and off that by noise (MaxStyle's layer); no gradient through styles.

    partner: (N,); share of the partner's style in [0, 1]; noises: of mean and deviation, in their spreads.
    """
    own = style(x.detach())
    mean, deviation = (
        (1 - share) * v + share * v[partner] + noise * wide for v, noise, wide in zip(own, noises, spreads, strict=True)
    )
    return restyled(x, own, (mean, deviation))


def has_styles(x: Tensor) -> bool:
    """Can styles be compared here: several images, and more than the one pixel that is its own mean."""
    return len(x) > 1 and x.shape[2:].numel() > 1


def insert(net: SegmentationNet, stages: Iterable[int], layer: Callable[[], nn.Module]) -> None:
    """Put a layer behind each of these stages of the encoder. Raises `UsageError` for one that it does not have."""
    for stage in stages:
        if stage not in range(len(net.channels)):
            last = len(net.channels) - 1
            raise UsageError(f"the encoder has no stage {stage}", f"--set stages takes some of 0 to {last}")
        net.insert(stage, layer())
