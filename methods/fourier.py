"""Fourier: an image takes amplitudes of another one's Fourier transform and keeps its phase, which holds the shapes.

Xu, Zhang, Zhang, Wang, Tian. A Fourier-based Framework for Domain Generalization. CVPR 2021 (FACT, AmpMix).
https://arxiv.org/abs/2105.11120
Yang, Soatto. FDA: Fourier Domain Adaptation for Semantic Segmentation. CVPR 2020. https://arxiv.org/abs/2004.05498
Family: augmentation.

    x' = F^-1[ ((1 - a) |F x| + a |F r|) exp(i phase(F x)) ]      r: another image of the batch, so of the same source
    ampmix: a ~ U(0, 1) at all frequencies      fda: a = 1 where both frequencies are within window * shorter side

The ranges are the papers': a up to 1 for AmpMix, and FDA's largest window (of 0.01, 0.05 and 0.09). x' is clamped to
[0, 1]. A batch of one is not changed.
Differs: FACT trains on x and x' side by side, with a teacher that compares their predictions; here half of the images
are changed, so that a step costs what ERM's does, and there is no teacher. FDA takes r from the target, which is not
seen here.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch

from dgbench.method import Batch, Method
from dgbench.methods._spectrum import mix_amplitudes
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import one_channel
from dgbench.settings import Range


@dataclass(frozen=True)
class FourierHparams(ERMHparams):
    """Which amplitudes are taken, and in which share of the images."""

    fourier: Literal["ampmix", "fda"] = "ampmix"
    p_fourier: Annotated[float, Range(0, 1)] = 0.5  # of each image
    largest_share: Annotated[float, Range(0, 1)] = 1.0  # of ampmix
    window: Annotated[float, Range(0, 1)] = 0.09  # of fda


class FourierIdea(Method):
    """Gives images (N, 3, H, W) amplitudes of another one's spectrum, of the same batch; phases and masks stay."""

    hparams: FourierHparams
    needs_batch = True

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """What the method does besides, then the spectra; the image stays in [0, 1]."""
        image, mask = super().augment(batch, rng)
        h, n, device = self.hparams, len(image), image.device
        fires, share = torch.rand(2, n, generator=rng)
        away = torch.randint(1, max(n, 2), (n,), generator=rng)
        rows = (fires < h.p_fourier).nonzero().squeeze(1)
        if n == 1 or not len(rows):
            return Batch(image, mask)
        gray = (one_channel(image)).contiguous()
        own, other = gray[rows.to(device)], gray[((rows + away[rows]) % n).to(device)]
        if h.fourier == "ampmix":
            mixed = mix_amplitudes(own, other, (share[rows] * h.largest_share).to(device))
        else:
            mixed = mix_amplitudes(own, other, torch.ones(len(rows), device=device), h.window)
        changed = gray.index_copy(0, rows.to(device), mixed.clamp(0, 1))
        return Batch(changed.expand_as(image), mask)


class Fourier(FourierIdea, ERM):
    """The idea over plain training."""

    hparams: FourierHparams
    paper = "https://arxiv.org/abs/2105.11120"
