"""DSU: the style of features is drawn from a normal distribution as wide as styles differ within the batch.

Li, Dai, Ge, Liu, Shan, Duan. Uncertainty Modeling for Out-of-Distribution Generalization. ICLR 2022.
https://arxiv.org/abs/2202.03958
Family: feature statistics.

    e, e' ~ N(0, 1), one per image and channel      S(v)^2 = variance of v over the batch + 1e-6
    f' = (s + e' S(s)) (f - m) / s + m + e S(m)                               m, s: `_style.style` of f, with gradient

p = 0.5 per place and step, and a factor of 1 on e are the paper's, and so is using it at all places of the encoder:
here after each of its stages (the paper: two more, around ResNet's first pooling). The network is ERM's.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from dgbench.methods._style import has_styles, insert, restyled, style
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class DSUHparams(ERMHparams):
    """How likely a layer's statistics are moved."""

    p_uncertain: Annotated[float, Range(0, 1)] = 0.5  # of each stage at each step
    uncertainty: Annotated[float, Range(0)] = 1.0  # factor on e; 0 leaves the features as they are
    stages: Annotated[tuple[int, ...] | None, Range(0)] = None  # of the encoder, 0 the shallowest; None: all


class UncertainStyle(nn.Module):
    """(N, C, H, W) -> the same shape, restyled in training; unchanged for a single image."""

    def __init__(self, p: float, factor: float):
        super().__init__()
        self.p, self.factor = p, factor

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if not (self.training and has_styles(x)) or torch.rand(()) >= self.p:
            return x
        noise = self.factor * torch.randn(2, *x.shape[:2], 1, 1, device=x.device)
        return shifted(x, noise)


def shifted(x: Tensor, noise: Tensor) -> Tensor:
    """The equation above. noise: (2, N, C, 1, 1), e for the means and e' for the deviations."""
    own = style(x)
    mean, deviation = (v + e * (v.var(0, keepdim=True) + 1e-6).sqrt() for v, e in zip(own, noise, strict=True))
    return restyled(x, own, (mean, deviation))


class DSU(ERM):
    """ERM's network with feature statistics (N, C) drawn anew, as uncertain as the batch says."""

    hparams: DSUHparams
    paper = "https://arxiv.org/abs/2202.03958"
    needs_batch = True

    def __init__(self, task: TaskInfo, hparams: DSUHparams):
        super().__init__(task, hparams)
        stages = range(len(self.net.channels)) if hparams.stages is None else hparams.stages
        insert(self.net, stages, lambda: UncertainStyle(hparams.p_uncertain, hparams.uncertainty))
