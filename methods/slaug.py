"""SLAug: new contrasts for the image and for each structure in it, fused where the network does not look yet.

Su, Yao, Yang, Huang, Sun. Rethinking Data Augmentation for Single-Source Domain Generalization in Medical Image
Segmentation. AAAI 2023. https://arxiv.org/abs/2211.14805
Family: augmentation.

    G    = new contrast of the whole image: a Bezier curve, then scale ~ N(1, 0.1) and shift ~ N(0, 0.5)    (GLA)
    L    = a new contrast in each structure and in the rest by itself                                       (LLA)
    s    = |dL(f(G), y) / dG|, mean over a grid of cells, a quadratic B-spline of these, from 0 to 1         (SBF)
    x'   = s G + (1 - s) L          loss = L(f(G), y) + L(f(x'), y), two backward passes and one step

As the authors' code: the rest's curve is always inverted, a structure's by half, GLA's never; scale and shift are
limited (0.9-1.1, and such that about a fifth of the pixels may saturate); what is darker than 0.01 stays; curves span
the region's own range. The mask is used, of the source only. The grid is theirs for cardiac images (18); for abdominal
ones it is 3.
Differs: contrasts change after the base augmentation, in their code before it. A pixel in several structures belongs to
the last of them (the cup, not the disc). s is the gradient before the image is standardised, theirs after. Their
network is an EfficientNet-b2 (`encoder`).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.errors import UsageError
from dgbench.method import Batch, Method
from dgbench.methods._curves import new_contrast
from dgbench.methods._fields import spread, unit_range
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import one_channel
from dgbench.settings import Range

BACKGROUND = 0.01  # at most this bright: it has no contrast to change


@dataclass(frozen=True)
class SLAugHparams(ERMHparams):
    """The grid on which the two contrasts are fused."""

    saliency_grid: Annotated[int, Range(2)] = 18  # cells along each side


def local_contrasts(image: Tensor, mask: Tensor) -> Tensor:
    """Images (N, C, H, W) in [0, 1] with masks (N, K, H, W): a contrast of its own for each structure and the rest."""
    owner = torch.zeros_like(mask[:, :1])
    for k in range(mask.shape[1]):
        owner = torch.where(mask[:, k : k + 1] > 0.5, k + 1.0, owner)
    result = image
    for k in range(mask.shape[1] + 1):
        region = owner == k
        result = torch.where(region, new_contrast(image, region, p_inverted=0.5 if k else 1.0), result)
    return torch.where(image <= BACKGROUND, image, result)


def fusion_map(gradient: Tensor, cells: int) -> Tensor:
    """(N, C, H, W) gradient of a loss -> (N, 1, H, W), from 0 to 1 in each image."""
    size = gradient.shape[2:]
    # A gradient may be so small that its square is 0.
    gradient = gradient / gradient.abs().amax((1, 2, 3), keepdim=True).clamp(min=1e-38)
    saliency = gradient.square().mean(1, keepdim=True).sqrt()
    cells = max(2, min(cells, *size))
    coarse = F.adaptive_avg_pool2d(saliency, cells)
    return unit_range(spread(coarse, size, [(side - 1) / (cells - 1) for side in size], degree=2))


class SLAugIdea(Method):
    """Shows images (N, 3, H, W) in a new contrast of the whole, and fused with new contrasts of each structure."""

    hparams: SLAugHparams

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step on two views: the gradient of the first says where the second takes which contrast."""
        image, mask = batch
        gray = one_channel(image)
        whole = new_contrast(gray).requires_grad_()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        first = self.loss(Batch(whole.expand_as(image), mask))
        first.backward()
        if whole.grad is None:
            raise UsageError("slaug needs the gradient of the image, and none reaches it", "put it over another method")
        s = fusion_map(whole.grad, self.hparams.saliency_grid)
        fused = torch.lerp(local_contrasts(gray, mask), whole.detach(), s)
        second = self.loss(Batch(fused.expand_as(image), mask))
        second.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return {"loss": (first + second).detach(), "loss_fused": second.detach()}


class SLAug(SLAugIdea, ERM):
    """The idea over plain training."""

    hparams: SLAugHparams
    paper = "https://arxiv.org/abs/2211.14805"
