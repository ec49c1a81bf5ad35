"""GraTa: a consistency gradient, taken after a step for certainty, is followed as far as the two gradients agree.

Chen, Ye, Pan, Xia. Gradient Alignment Improves Test-Time Adaptation for Medical Image Segmentation. AAAI 2025.
https://arxiv.org/abs/2408.07343
Family: test time.

    g_e = gradient at w of -sum over structures p ln p, a mean over pixels
    g_c = gradient at w - g_e of BCE(prediction of a strongly recoloured image, mean prediction of six views)
    step of Adam from w with g_c, at the learning rate times (cos(g_e, g_c) + 1)^2 / 4; then predict

w: scale and shift of the batch norms, which use the batch's own statistics. Views: the image, two flips and three
rotations. Adam with 1e-4, betas 0.9 and 0.999, and one step a batch are the public code's. Contrasts are drawn from a
generator of its own that begins anew with each episode or domain: the same for every seed of a run.
Differs: the recolouring is SLAug's new contrast, as elsewhere here; the public code's is a chain of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.losses import in_float32
from dgbench.methods._curves import new_contrast
from dgbench.methods._gradients import gradients, moved, step
from dgbench.methods._test_time import AtTestTime, LearningHparams
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import one_channel
from dgbench.settings import Range

VIEWS: tuple[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]], ...] = (
    (lambda x: x, lambda x: x),
    (lambda x: x.flip(3), lambda x: x.flip(3)),
    (lambda x: x.flip(2), lambda x: x.flip(2)),
    *((lambda x, k=k: x.rot90(k, (2, 3)), lambda x, k=k: x.rot90(-k, (2, 3))) for k in (1, 2, 3)),
)


@dataclass(frozen=True)
class GraTaHparams(LearningHparams, ERMHparams):
    """Those of every method that learns at test time."""

    test_learning_rate: Annotated[float, Range(0)] = 1e-4


@in_float32
def uncertainty(probability: Tensor) -> Tensor:
    """(N, K, H, W) -> a scalar: -p ln p summed over structures, its mean over pixels."""
    return -(probability * (probability + 1e-6).log()).sum(1).mean()


@in_float32
def inconsistency(probability: Tensor, of_views: Tensor) -> Tensor:
    """Cross-entropy of two predictions (N, K, H, W): a scalar."""
    return F.binary_cross_entropy(probability.clamp(1e-7, 1 - 1e-7), of_views)


def agreement(first: list[Tensor], second: list[Tensor]) -> Tensor:
    """(cos + 1)^2 / 4 of two gradients: from 0, opposite, to 1, alike."""
    a, b = (torch.cat([g.flatten() for g in of]) for of in (first, second))
    return (a @ b / (a.norm() * b.norm() + 1e-12) + 1).square() / 4


class GraTaIdea(AtTestTime):
    """Predicts (N, 3, H, W) after a step of scale and shift along two gradients that agree."""

    hparams: GraTaHparams

    def adapt(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K, H, W) probabilities."""
        h = self.hparams
        rng = self.stream.setdefault("rng", torch.Generator().manual_seed(0))
        recoloured = new_contrast(one_channel(image), rng=rng).expand_as(image)
        with self.blending(h.blend), self.learning(self.norms()) as learned:
            adam = self.stream.setdefault("optimizer", torch.optim.Adam(learned, lr=h.test_learning_rate))
            first = gradients(uncertainty(self.own(image)), learned)
            with moved(learned, [-g for g in first]):
                with torch.no_grad():
                    of_views = torch.stack([back(self.own(there(image))) for there, back in VIEWS]).mean(0)
                second = gradients(inconsistency(self.own(recoloured), of_views), learned)
            adam.param_groups[0]["lr"] = h.test_learning_rate * float(agreement(first, second))
            step(adam, learned, second)
            with torch.no_grad():
                return self.own(image)


class GraTa(GraTaIdea, ERM):
    """The idea over plain training."""

    hparams: GraTaHparams
    paper = "https://arxiv.org/abs/2408.07343"
