"""TriD: some channels of a feature map get a mean and a deviation drawn evenly from 0 to 1, whatever the image's are.

Chen, Pan, Ye, Cui, Xia. Treasure in Distribution: A Domain Randomization based Multi-Source Domain Generalization for
2D Medical Image Segmentation. MICCAI 2023. https://arxiv.org/abs/2305.19949
Family: feature statistics.

    f' = s' (f - m) / s + m'      m' = b u + (1 - b) m      s' = b u' + (1 - b) s
    u, u' ~ U(0, 1), b ~ Bernoulli(l), l ~ Beta(0.1, 0.1), one each per image and channel
                                                              m, s: `_style.style` of f, no gradient

p = 0.5 per stage and step is the authors', and so are the stages, after the second and third reduction (ResNet-34's
layers 1 and 2: a quarter and an eighth of the image's side; with `encoder=resnet34` these are `stages=1,2`). As l is
drawn for each channel anew and used once, b is a coin that falls to either side alike, for any Beta of equal
parameters: it is drawn as one (`share`).
No second image is needed: unlike MixStyle's, these styles go beyond what a single source varies.
Measured, mean target Dice on phantom from source A, seed 0: 41.2 (erm 50.5).
Differs: the paper trains on several sources. The network and its optimizer are ERM's.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from dgbench.methods._style import insert, restyled, style
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class TriDHparams(ERMHparams):
    """How likely styles are drawn, and for how many channels."""

    p_random: Annotated[float, Range(0, 1)] = 0.5  # of each stage at each step
    share: Annotated[float, Range(0, 1)] = 0.5  # of the channels, where styles are drawn
    stages: Annotated[tuple[int, ...], Range(0)] = (2, 3)  # of the encoder, 0 the shallowest


class RandomStyle(nn.Module):
    """(N, C, H, W) -> the same shape, restyled in training."""

    def __init__(self, p: float, share: float):
        super().__init__()
        self.p, self.share = p, share

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W); a map of one pixel has no deviation and stays."""
        if not self.training or x.shape[2:].numel() == 1 or torch.rand(()) >= self.p:
            return x
        coin, *drawn = torch.rand(3, *x.shape[:2], 1, 1, device=x.device)
        return randomised(x, coin < self.share, drawn)


def randomised(x: Tensor, chosen: Tensor, drawn: list[Tensor]) -> Tensor:
    """The equation above. chosen: (N, C, 1, 1) bool, b; drawn: u for the means and u' for the deviations, like b."""
    own = style(x.detach())
    mean, deviation = (torch.where(chosen, new, old) for new, old in zip(drawn, own, strict=True))
    return restyled(x, own, (mean, deviation))


class TriD(ERM):
    """Plain training with feature statistics (N, C) drawn evenly for some of the channels."""

    hparams: TriDHparams
    paper = "https://arxiv.org/abs/2305.19949"

    def __init__(self, task: TaskInfo, hparams: TriDHparams):
        super().__init__(task, hparams)
        insert(self.net, hparams.stages, lambda: RandomStyle(hparams.p_random, hparams.share))
