"""Mixup: pairs of images are blended, and the prediction is held to both masks by the same shares.

Zhang, Cisse, Dauphin, Lopez-Paz. mixup: Beyond Empirical Risk Minimization. ICLR 2018. https://arxiv.org/abs/1710.09412
Family: augmentation.

    x' = a x_i + (1 - a) x_j      loss = a L(f(x'), y_i) + (1 - a) L(f(x'), y_j)      a ~ Beta(alpha, alpha)

One share a for the batch, x_j from a permutation of it, and alpha as the paper's for ImageNet (0.2). A batch of one is
not changed.
Differs: the paper mixes one-hot labels, which is the same for the cross-entropy; Dice loss is not linear in the mask,
so the two losses are mixed instead.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dgbench.method import Batch, Method
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import one_channel
from dgbench.settings import Range


@dataclass(frozen=True)
class MixupHparams(ERMHparams):
    """The Beta distribution that weights are drawn from."""

    alpha: Annotated[float, Range(above=0)] = 0.2


class MixupIdea(Method):
    """Blends each image (N, 3, H, W) of a batch with another one, and the two losses by the same weight."""

    hparams: MixupHparams
    needs_batch = True

    def loss(self, batch: Batch) -> Tensor:
        """The criterion of the blended images against both masks, (N, K, H, W), by their weights."""
        image, mask = batch
        alpha = self.hparams.alpha
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        other = torch.randperm(len(image)).to(image.device)
        gray = one_channel(image)
        logits = self.logits(torch.lerp(gray[other], gray, share).expand_as(image))
        return share * self.criterion(logits, mask) + (1 - share) * self.criterion(logits, mask[other])


class Mixup(MixupIdea, ERM):
    """The idea over plain training."""

    hparams: MixupHparams
    paper = "https://arxiv.org/abs/1710.09412"
