"""InTEnt: six mixtures of source and test statistics predict, and weigh the more the more certain each is.

Dong, Konz, Gu, Mazurowski. Medical Image Segmentation with InTEnt: Integrated Entropy Weighting for Single Image
Test-Time Adaptation. CVPR Workshops 2024. https://arxiv.org/abs/2402.09604
Family: test time.

    p_r = prediction with norms by (1 - r) m_source + r m_test, the variance likewise      r = 0, 0.2, ..., 1
    E_r = (mean of H over pixels predicted inside + mean of H over those outside) / 2, or that of the side there is
    prediction = sum over r of softmax_r(1 - (E_r - min E) / (max E - min E)) p_r            H: entropy of a pixel

No gradient, nothing is learned. Weights are of each image by itself, and so are statistics where a case is one image;
of a volume they are over its slices, and online over all cases of the domain so far.
Differs: of several structures, which may overlap, E_r is the mean.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dgbench.losses import in_float32
from dgbench.methods._batchnorm import Moments, blended, normalised_by
from dgbench.methods._test_time import AtTestTime, TestTimeHparams, entropy
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.settings import Range


@dataclass(frozen=True)
class InTEntHparams(TestTimeHparams, ERMHparams):
    """The shares of the test images' statistics; 0 alone is the method without any."""

    blends: Annotated[tuple[float, ...], Range(0, 1)] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@in_float32
def balanced_entropy(probability: Tensor) -> Tensor:
    """(N, K, H, W) -> (N,): inside and outside of a structure count the same, however small it is."""
    h, inside = entropy(probability), probability >= 0.5
    sides = [(h * side).sum((2, 3)) / side.sum((2, 3)).clamp(min=1) for side in (inside, ~inside)]
    there = sum(side.any(3).any(2).float() for side in (inside, ~inside))
    return ((sides[0] + sides[1]) / there).mean(1)


def weights(balanced: Tensor) -> Tensor:
    """(R, N) balanced entropies -> (R, N), which add up to 1 over R."""
    least, most = balanced.amin(0), balanced.amax(0)
    return torch.softmax(1 - (balanced - least) / (most - least).clamp(min=1e-12), 0)


class InTEntIdea(AtTestTime):
    """Predicts (N, 3, H, W) by several mixtures of what norms saw in training and see now."""

    hparams: InTEntHparams

    def mixture(self, image: Tensor, share: float) -> Tensor:
        """(N, K, H, W) probabilities with so much of the test images' statistics."""
        norms = self.norms() if share else []

        def rule(index: int, test: Moments) -> Moments:
            return blended(norms[index], self.since_forgotten((share, index), test, len(image)), share)

        with normalised_by(norms, rule):
            return self.own(image)

    def adapt(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K, H, W) probabilities."""
        predictions = torch.stack([self.mixture(image, share) for share in self.hparams.blends])
        shares = weights(torch.stack([balanced_entropy(p) for p in predictions]))
        return (predictions * shares[..., None, None, None]).sum(0)


class InTEnt(InTEntIdea, ERM):
    """The idea over plain training."""

    hparams: InTEntHparams
    paper = "https://arxiv.org/abs/2402.09604"
