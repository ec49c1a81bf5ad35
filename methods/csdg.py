"""CSDG: shallow random networks redraw an image, and blends of two redrawings must be predicted alike.

Ouyang, Chen, Li, Li, Qin, Bai, Rueckert. Causality-inspired Single-source Domain Generalization for Medical Image
Segmentation. TMI 2022. https://arxiv.org/abs/2111.12525
Family: augmentation.

    g    = a random net of 4 convolutions, leaky ReLUs between, weights and biases ~ N(0, 1), new for each image
    v    = (a g(z) + (1 - a) z) * |z| / |a g(z) + (1 - a) z|     a ~ U(0, 1), z = z-score of x            (GIN)
    x_1  = b v_1 + (1 - b) v_2    x_2 = (1 - b) v_1 + b v_2    x_3 = v_3    b: smooth random map in [0, 1]  (IPA)
    loss = L(f(x_1), y) + 5 * mean over views, pixels and outcomes of m log(m / p_i)     m = (p_1 + p_2 + p_3) / 3

All values are the authors'; b is exp of a quadratic B-spline with control points a quarter of the image apart, drawn
from N(0, 1) and scaled to a norm of 1. Their weight is 10 beside the sum of cross-entropy and Dice loss; L is the mean
of the two, so 5 here. As in their code the divergence is KL(m || p_i), its mean is over inside and outside, too, and a
gray image gets three channels that differ. `ipa=false` is GIN alone.
Differs: each view is shifted and scaled to [0, 1], and then standardised channel by channel as all methods' inputs are,
which undoes the norm |z|; theirs goes into the network as it is. Theirs is an EfficientNet-b2 (`encoder`).
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dgbench.method import Batch, Method
from dgbench.methods._consistency import kl, log_outcomes, mixture
from dgbench.methods._fields import points, spread, unit_range
from dgbench.methods._gin import gin
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import normalise
from dgbench.settings import Range


@dataclass(frozen=True)
class CSDGHparams(ERMHparams):
    """The random networks that redraw an image, and how much the consistency of its views counts."""

    gin_layers: Annotated[int, Range(1)] = 4
    gin_channels: Annotated[int, Range(1)] = 2  # between the layers
    gin_kernels: Annotated[tuple[int, ...], Range(1, odd=True)] = (1, 3)
    ipa: bool = True
    blend_spacing: Annotated[float, Range(0.01, 1)] = 0.25  # of the control points, in sides of the image
    consistency: Annotated[float, Range(0)] = 5.0


def blending_map(count: int, size: torch.Size, spacing: float, device: torch.device) -> Tensor:
    """(count, 1, H, W) in [0, 1], from 0 to 1 in each image."""
    steps = [spacing * side for side in size]
    grid = [points(side, step) for side, step in zip(size, steps, strict=True)]
    control = torch.randn(count, 1, *grid, device=device)
    control = control / torch.linalg.vector_norm(control, dim=(1, 2, 3), keepdim=True)
    return unit_range(spread(control, size, steps, degree=2).exp())


class CSDGIdea(Method):
    """Shows each image (N, 3, H, W) redrawn by random shallow networks, two redrawings blended by a smooth map."""

    hparams: CSDGHparams

    @torch.no_grad()
    def views(self, image: Tensor) -> list[Tensor]:
        """Three redrawings of (N, 3, H, W), in [0, 1] all."""
        h = self.hparams
        z = normalise(image, "zscore").expand_as(image)
        v = [gin(z, h.gin_layers, h.gin_channels, h.gin_kernels) for _ in range(3)]
        if h.ipa:
            b = blending_map(len(z), z.shape[2:], h.blend_spacing, z.device)
            v[:2] = torch.lerp(v[1], v[0], b), torch.lerp(v[0], v[1], b)
        return [unit_range(x) for x in v]

    def loss(self, batch: Batch) -> Tensor:
        """The criterion of one view, and how far the predictions of three are apart."""
        logits = self.logits(torch.cat(self.views(batch.image))).chunk(3)
        views = [log_outcomes(z) for z in logits]
        mean = mixture(views)
        divergence = torch.stack([kl(mean, p) for p in views]).mean() / 2
        return self.criterion(logits[0], batch.mask) + self.hparams.consistency * divergence


class CSDG(CSDGIdea, ERM):
    """The idea over plain training."""

    hparams: CSDGHparams
    paper = "https://arxiv.org/abs/2111.12525"
