"""AdvBias: the bias field that changes the prediction most is put over the image, and the mask must still be found.

Chen, Qin, Qiu, Ouyang, Wang, Chen, Tarroni, Bai, Rueckert. Realistic Adversarial Data Augmentation for MR Image
Segmentation. MICCAI 2020. https://arxiv.org/abs/2006.13322
Family: adversarial.

    x_c  = x exp(B(c))     B: cubic B-spline of control points c half an image apart, log(1 - e) <= c <= log(1 + e)
    D_c  = KL(p(x) || p(x_c)) + 0.5 * mean square difference of their Sobel edges; p(x) is held fixed
    c*   = c + step * dD_c/dc / |dD_c/dc|          from an even draw, then clamped to its range
    loss = L(f(x), y) + L(f(x_c*), y) + weight * D_c*

e = 0.3, spacing and one step of length 1 are those of the authors' library (cherise215/advchain); weight 1, and this D,
are those of MaxStyle's comparison for generalization. What is only tried leaves no trace in batch norms.
Differs: the paper, about few labels, has no L(f(x_c*), y); that comparison adds it (and sets e = 0.4). An image that
gets brighter than 1 is scaled back. KL is summed over inside and outside.
"""

from dataclasses import dataclass
from math import log
from typing import Annotated

import torch
from torch import Tensor

from dgbench.method import Batch, Method
from dgbench.methods._adversary import divergence, unit
from dgbench.methods._batchnorm import untracked
from dgbench.methods._fields import points, spread
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import one_channel
from dgbench.settings import Range

CONTOURS = 0.5  # weight of the edges in D


@dataclass(frozen=True)
class AdvBiasHparams(ERMHparams):
    """How strong the adversary's bias field may get, and how much consistency with the clean image counts."""

    bias: Annotated[float, Range(0, 0.99)] = 0.3  # e: the field lies between 1 - e and 1 + e
    bias_spacing: Annotated[float, Range(0.01, 1)] = 0.5  # of the control points, in sides of the image
    bias_step: Annotated[float, Range(0)] = 1.0
    consistency: Annotated[float, Range(0)] = 1.0


def biased(image: Tensor, control: Tensor, spacing: float) -> Tensor:
    """(N, C, H, W) in [0, 1] under the bias field of control points (N, 1, g, h), still in [0, 1]."""
    size = image.shape[2:]
    result = image * spread(control, size, [spacing * side for side in size], degree=3).exp()
    return result / result.amax((1, 2, 3), keepdim=True).clamp(min=1)


class AdvBiasIdea(Method):
    """Multiplies images (N, 3, H, W) by the smooth bias field that changes the prediction most, found by gradient."""

    hparams: AdvBiasHparams

    def loss(self, batch: Batch) -> Tensor:
        """The criterion on image and disturbed image, and how far their predictions are apart: a scalar."""
        h, (image, mask) = self.hparams, batch
        gray = one_channel(image)
        logits = self.logits(image)
        low, high = log(1 - h.bias), log(1 + h.bias)
        grid = [points(side, h.bias_spacing * side) for side in image.shape[2:]]
        control = torch.empty(len(image), 1, *grid, device=image.device).uniform_(low, high).requires_grad_()
        with untracked(self):
            tried = self.logits(biased(gray, control, h.bias_spacing).expand_as(image))
            (uphill,) = torch.autograd.grad(divergence(logits.detach(), tried, CONTOURS), control)
        control = (control.detach() + h.bias_step * unit(uphill)).clamp(low, high)
        hard = self.logits(biased(gray, control, h.bias_spacing).expand_as(image))
        segmentation = self.criterion(logits, mask) + self.criterion(hard, mask)
        return segmentation + h.consistency * divergence(logits.detach(), hard, CONTOURS)


class AdvBias(AdvBiasIdea, ERM):
    """The idea over plain training."""

    hparams: AdvBiasHparams
    paper = "https://arxiv.org/abs/2006.13322"
