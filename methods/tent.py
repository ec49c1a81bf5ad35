"""TENT: at test time a gradient step on scale and shift of the batch norms makes the predictions more certain.

Wang, Shelhamer, Liu, Olshausen, Darrell. Tent: Fully Test-Time Adaptation by Entropy Minimization. ICLR 2021.
https://arxiv.org/abs/2006.10726
Family: test time.

    loss = mean over pixels and structures of H(p)          H(p) = -p ln p - (1 - p) ln(1 - p)

The batch norms use the batch's own mean and variance. Adam, 1e-3, betas 0.9 and 0.999, no decay, one step a batch, are
the public code's. Online, the prediction is that before the step, as there: the step serves the cases that follow. In
episodes nothing follows, and the prediction is that after it.
Differs: structures may overlap, so the entropy is of each by itself, not of a softmax over classes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dgbench.methods._gradients import gradients, step
from dgbench.methods._test_time import AtTestTime, LearningHparams, entropy
from dgbench.methods.erm import ERM, ERMHparams


@dataclass(frozen=True)
class TentHparams(LearningHparams, ERMHparams):
    """Those of every method that learns at test time."""


class TentIdea(AtTestTime):
    """Predicts (N, 3, H, W) by batch norms whose scale and shift have been made certain of it."""

    hparams: TentHparams

    def adapt(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K, H, W) probabilities."""
        h = self.hparams
        with self.blending(h.blend), self.learning(self.norms()) as learned:
            adam = self.stream.setdefault("optimizer", torch.optim.Adam(learned, lr=h.test_learning_rate))
            before = self.own(image)
            step(adam, learned, gradients(entropy(before).mean(), learned))
            if h.adaptation == "online":
                return before
            with torch.no_grad():
                return self.own(image)


class Tent(TentIdea, ERM):
    """The idea over plain training."""

    hparams: TentHparams
    paper = "https://arxiv.org/abs/2006.10726"
