"""AdaBN: batch norms use the test images' mean and variance in the place of the source's; nothing is learned.

Li, Wang, Shi, Liu, Hou. Revisiting Batch Normalization For Practical Domain Adaptation. ICLR Workshop 2017.
https://arxiv.org/abs/1603.04779
Family: test time.

    m = (1 - blend) m_source + blend m_test          v = (1 - blend) v_source + blend v_test

m_test, v_test: over all pixels of the slices of a case (Nado et al. Evaluating Prediction-Time Batch Normalization.
2020. https://arxiv.org/abs/2006.10963), or, online, of all cases of the domain so far. A photograph is a batch of one.
`blend` between 0 and 1 is the mixture of Schneider et al. (NeurIPS 2020), which have a rule for it.
Differs: the paper takes the statistics of the whole target domain, before it predicts the first image.
"""

from dataclasses import dataclass

from torch import Tensor

from dgbench.methods._batchnorm import Moments, blended, normalised_by
from dgbench.methods._test_time import AtTestTime, BlendHparams
from dgbench.methods.erm import ERM, ERMHparams


@dataclass(frozen=True)
class AdaBNHparams(BlendHparams, ERMHparams):
    """Those of every method at test time."""


class AdaBNIdea(AtTestTime):
    """Predicts (N, 3, H, W) with batch norms that know the test images."""

    hparams: AdaBNHparams

    def adapt(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K, H, W) probabilities."""
        norms = self.norms() if self.hparams.blend else []

        def rule(index: int, test: Moments) -> Moments:
            seen = self.since_forgotten(index, test, len(image))
            return blended(norms[index], seen, self.hparams.blend)

        with normalised_by(norms, rule):
            return self.own(image)


class AdaBN(AdaBNIdea, ERM):
    """The idea over plain training."""

    hparams: AdaBNHparams
    paper = "https://arxiv.org/abs/1603.04779"
