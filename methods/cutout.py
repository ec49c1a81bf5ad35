"""Cutout: a random square of each image is erased, its mask kept, so that no one place may decide.

DeVries, Taylor. Improved Regularization of Convolutional Neural Networks with Cutout. 2017.
https://arxiv.org/abs/1708.04552
Family: augmentation.

    x' = x outside a square around a random pixel, mean(x) inside

The square may reach over the border, as in the paper, and then erases less. Its side lies between the paper's for
CIFAR-10 (half of the image's) and for CIFAR-100 (a quarter). The paper erases with 0 after subtracting the training
set's mean; each image's own mean is 0 after the z-score that follows here.
Differs: the mask is of pixels, and stays as it was under the square.
"""

from dataclasses import dataclass
from typing import Annotated

import torch

from dgbench.method import Batch, Method
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import one_channel
from dgbench.settings import Range


@dataclass(frozen=True)
class CutoutHparams(ERMHparams):
    """The size of the square."""

    cutout_side: Annotated[float, Range(0, 1)] = 1 / 3  # of the square, in shorter sides of the image


class CutoutIdea(Method):
    """Erases a square around a random pixel of each image (N, 3, H, W) with the image's mean; masks stay."""

    hparams: CutoutHparams

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """What the method does besides, then the squares."""
        image, mask = super().augment(batch, rng)
        sides = image.shape[-2:]
        length = round(self.hparams.cutout_side * min(sides))
        inside = []
        for side, u in zip(sides, torch.rand(2, len(image), 1, generator=rng), strict=True):
            first = (u * side).floor() - length // 2
            pixel = torch.arange(side)
            inside.append((pixel >= first) & (pixel < first + length))
        square = (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(image.device)
        gray = one_channel(image)
        erased = torch.where(square, gray.mean((2, 3), keepdim=True), gray)
        return Batch(erased.expand_as(image), mask)


class Cutout(CutoutIdea, ERM):
    """The idea over plain training."""

    hparams: CutoutHparams
    paper = "https://arxiv.org/abs/1708.04552"
