"""MixStyle: features get a style between their own and that of another image of the batch.

Zhou, Yang, Qiao, Xiang. Domain Generalization with MixStyle. ICLR 2021. https://arxiv.org/abs/2104.02008
Family: feature statistics.

    l ~ Beta(a, a), one per image            j: the image's partner in a random permutation of the batch
    f' = (l s_i + (1 - l) s_j) (f_i - m_i) / s_i + l m_i + (1 - l) m_j        m, s: `_style.style` of f, no gradient

p = 0.5 per stage and step, a = 0.1 and the stages after the first, second and third reduction are the paper's (its
residual stages 1 to 3). Differs: the paper mixes images of several domains; with a single source both styles come from
it, so l only spans what the source itself varies. The network is ERM's.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.distributions import Beta

from dgbench.methods._style import has_styles, insert, restyled, style
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class MixStyleHparams(ERMHparams):
    """How likely styles are mixed, and by which Beta distribution."""

    p_style: Annotated[float, Range(0, 1)] = 0.5  # of each stage at each step
    alpha: Annotated[float, Range(above=0)] = 0.1  # small: mostly one of both styles, seldom the middle
    stages: Annotated[tuple[int, ...], Range(0)] = (1, 2, 3)  # of the encoder, 0 the shallowest


class StyleMix(nn.Module):
    """(N, C, H, W) -> the same shape, restyled in training; unchanged for a single image."""

    def __init__(self, p: float, alpha: float):
        super().__init__()
        self.p, self.alpha = p, alpha

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if not (self.training and has_styles(x)) or torch.rand(()) >= self.p:
            return x
        alpha = torch.full((), self.alpha, device=x.device)
        share = Beta(alpha, alpha, validate_args=False).sample((len(x), 1, 1, 1))
        return mixed(x, share, torch.randperm(len(x), device=x.device))


def mixed(x: Tensor, share: Tensor, partner: Tensor) -> Tensor:
    """The equation above. share: (N, 1, 1, 1) of the own style in [0, 1]; partner: (N,) whose style is the rest."""
    own = style(x.detach())
    mean, deviation = (share * v + (1 - share) * v[partner] for v in own)
    return restyled(x, own, (mean, deviation))


class MixStyle(ERM):
    """Plain training with feature statistics (N, C) mixed between images of the batch."""

    hparams: MixStyleHparams
    paper = "https://arxiv.org/abs/2104.02008"
    needs_batch = True

    def __init__(self, task: TaskInfo, hparams: MixStyleHparams):
        super().__init__(task, hparams)
        insert(self.net, hparams.stages, lambda: StyleMix(hparams.p_style, hparams.alpha))
