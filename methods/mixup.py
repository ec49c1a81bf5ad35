"""Mixup: pairs of images are blended, and the prediction is held to both masks by the same shares.

Zhang, Cisse, Dauphin, Lopez-Paz. mixup: Beyond Empirical Risk Minimization. ICLR 2018. https://arxiv.org/abs/1710.09412

    x' = a x_i + (1 - a) x_j      loss = a L(f(x'), y_i) + (1 - a) L(f(x'), y_j)      a ~ Beta(alpha, alpha)

One share a for the batch, x_j from a permutation of it, and alpha as the paper's for ImageNet (0.2). A batch of one is
not changed.
Differs: the paper mixes one-hot labels, which is the same for the cross-entropy; Dice loss is not linear in the mask,
so the two losses are mixed instead.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dgbench.method import Batch, Method
from dgbench.methods.erm import ERM, ERMHparams


@dataclass(frozen=True)
class MixupHparams(ERMHparams):
    alpha: float = 0.2


class MixupIdea(Method):
    hparams: MixupHparams
    needs_batch = True

    def loss(self, batch: Batch) -> Tensor:
        image, mask = batch
        alpha = self.hparams.alpha
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        other = torch.randperm(len(image)).to(image.device)
        gray = image[:, :1] if image.stride(1) == 0 else image
        logits = self.logits(torch.lerp(gray[other], gray, share).expand_as(image))
        return share * self.criterion(logits, mask) + (1 - share) * self.criterion(logits, mask[other])


class Mixup(MixupIdea, ERM):
    hparams: MixupHparams
    paper = "https://arxiv.org/abs/1710.09412"
