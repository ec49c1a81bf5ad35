"""pAdaIN: features get the style of another image of the batch and lose their own, so global statistics say nothing.

Nuriel, Benaim, Wolf. Permuted AdaIN: Reducing the Bias Towards Global Statistics in Image Classification. CVPR 2021.
https://arxiv.org/abs/2010.05785
Family: feature statistics.

    f' = s_j (f_i - m_i) / s_i + m_j         j: the image's partner in a random permutation of the batch
                                             m, s: `_style.style` of f; no gradient reaches m_j and s_j

That is MixStyle with no share of the own style, and with the gradient through the statistics that are taken away.
Differs: the paper has the layer after each convolution, p = 0.01 each. Here it lies after each stage of the encoder,
with p = 0.5 per stage and step, the value of AdverIN's comparison on prostate and fundus images: five places at 0.01
would leave nineteen steps of twenty to plain training. The network is ERM's.
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
class PAdaINHparams(ERMHparams):
    """How likely styles are swapped."""

    p_swap: Annotated[float, Range(0, 1)] = 0.5  # of each stage at each step
    stages: Annotated[tuple[int, ...] | None, Range(0)] = None  # of the encoder, 0 the shallowest; None: all


class StyleSwap(nn.Module):
    """(N, C, H, W) -> the same shape, in another's style in training; unchanged for a single image."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        if not (self.training and has_styles(x)) or torch.rand(()) >= self.p:
            return x
        return swapped(x, torch.randperm(len(x), device=x.device))


def swapped(x: Tensor, partner: Tensor) -> Tensor:
    """The equation above. partner: (N,), whose style each image gets."""
    own = style(x)
    mean, deviation = (v.detach()[partner] for v in own)
    return restyled(x, own, (mean, deviation))


class PAdaIN(ERM):
    """Plain training with feature statistics (N, C) swapped between images of the batch."""

    hparams: PAdaINHparams
    paper = "https://arxiv.org/abs/2010.05785"
    needs_batch = True

    def __init__(self, task: TaskInfo, hparams: PAdaINHparams):
        super().__init__(task, hparams)
        stages = range(len(self.net.channels)) if hparams.stages is None else hparams.stages
        insert(self.net, stages, lambda: StyleSwap(hparams.p_swap))
