"""AdvNoise: the noise that changes the prediction most is added to the image, and the mask must still be found.

Miyato, Maeda, Koyama, Ishii. Virtual Adversarial Training: A Regularization Method for Supervised and Semi-Supervised
Learning. TPAMI 2019. https://arxiv.org/abs/1704.03976
Chen et al. Enhancing MR Image Segmentation with Realistic Adversarial Data Augmentation. Medical Image Analysis 2022
(the same for segmentation). https://arxiv.org/abs/2108.03429
Family: adversarial.

    g    = d KL(p(x) || p(x + xi u)) / du      u: a random direction of norm 1; p(x) is held fixed
    loss = L(f(x), y) + L(f(x + e g / |g|), y) + weight * KL(p(x) || p(x + e g / |g|))

e, the Euclidean norm of an image's noise, is that in the example of Chen et al.'s library, cherise215/advchain (1);
MaxStyle's comparison for generalization sets 0.1. The second term is as in that comparison; virtual adversarial
training itself has the consistency only.
Differs: xi = e instead of 1e-6. A norm of 1e-6 over all pixels is less than float32 resolves at one of them, so that g
would be a direction of rounding errors. The noisy image is clamped to [0, 1]. A gray image's noise is gray. KL is
summed over inside and outside.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dgbench.method import Batch, Method
from dgbench.methods._adversary import divergence, unit
from dgbench.methods._batchnorm import untracked
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import one_channel
from dgbench.settings import Range


@dataclass(frozen=True)
class AdvNoiseHparams(ERMHparams):
    """How large the adversary's noise may get, and how much consistency with the clean image counts."""

    noise_norm: Annotated[float, Range(0)] = 1.0  # e
    consistency: Annotated[float, Range(0)] = 1.0


class AdvNoiseIdea(Method):
    """Adds the noise to images (N, 3, H, W) in [0, 1] that changes the prediction most, found by gradient."""

    hparams: AdvNoiseHparams

    def loss(self, batch: Batch) -> Tensor:
        """The criterion on image and disturbed image, and how far their predictions are apart: a scalar."""
        h, (image, mask) = self.hparams, batch
        gray = one_channel(image)
        logits = self.logits(image)
        noise = (h.noise_norm * unit(torch.randn(gray.shape, device=image.device))).requires_grad_()
        with untracked(self):
            tried = self.logits((gray + noise).expand_as(image))
            (uphill,) = torch.autograd.grad(divergence(logits.detach(), tried), noise)
        hard = self.logits((gray + h.noise_norm * unit(uphill)).clamp(0, 1).expand_as(image))
        segmentation = self.criterion(logits, mask) + self.criterion(hard, mask)
        return segmentation + h.consistency * divergence(logits.detach(), hard)


class AdvNoise(AdvNoiseIdea, ERM):
    """The idea over plain training."""

    hparams: AdvNoiseHparams
    paper = "https://arxiv.org/abs/1704.03976"
