"""EFDMix: feature values move towards those of equal rank in another image of the batch, so all moments are mixed.

Zhang, Li, Li, Jia, Zhang. Exact Feature Distribution Matching for Arbitrary Style Transfer and Domain Generalization.
CVPR 2022. https://arxiv.org/abs/2203.07740
Family: feature statistics.

    l ~ Beta(a, a), one per image            j: the image's partner in a random permutation of the batch
    f' = f + (1 - l) (f_j sorted at the rank of f in its own channel - f)             no gradient in the parentheses

So the sorted values of f' are l times those of f plus 1 - l times those of f_j: MixStyle mixes mean and deviation, this
the whole distribution. p = 0.5 per stage and step, a = 0.1 and the stages are MixStyle's, as in the paper.
Differs: the paper mixes images of several domains; with a single source both distributions come from it. The network
is ERM's. Values that are equal, as the zeros that a ReLU leaves, are ranked by their place.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.distributions import Beta

from dgbench.methods._style import has_styles, insert
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class EFDMixHparams(ERMHparams):
    """How likely distributions are mixed, and by which Beta distribution."""

    p_style: Annotated[float, Range(0, 1)] = 0.5  # of each stage at each step
    alpha: Annotated[float, Range(above=0)] = 0.1  # small: mostly one of both, seldom the middle
    stages: Annotated[tuple[int, ...], Range(0)] = (1, 2, 3)  # of the encoder, 0 the shallowest


class DistributionMix(nn.Module):
    """(N, C, H, W) -> the same shape, mixed in training; unchanged for a single image."""

    def __init__(self, p: float, alpha: float):
        super().__init__()
        self.p, self.alpha = p, alpha

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if not (self.training and has_styles(x)) or torch.rand(()) >= self.p:
            return x
        alpha = torch.full((), self.alpha, device=x.device)
        share = Beta(alpha, alpha, validate_args=False).sample((len(x), 1, 1, 1))
        return matched(x, share, torch.randperm(len(x), device=x.device))


def matched(x: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """The equation above. share: (N, 1, 1, 1) of the own values in [0, 1]; partner: (N,) whose values are the rest."""
    values, place = x.detach().flatten(2).sort(dim=2, stable=True)
    difference = torch.empty_like(values).scatter(2, place, values[partner] - values)
    return x + (1 - share).to(x.dtype) * difference.view(x.shape)


class EFDMix(ERM):
    """Plain training with the distributions of features (N, C) mixed between images of the batch."""

    hparams: EFDMixHparams
    paper = "https://arxiv.org/abs/2203.07740"
    needs_batch = True

    def __init__(self, task: TaskInfo, hparams: EFDMixHparams):
        super().__init__(task, hparams)
        insert(self.net, hparams.stages, lambda: DistributionMix(hparams.p_style, hparams.alpha))
