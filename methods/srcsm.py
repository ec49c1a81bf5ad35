"""SRCSM: each structure, and the rest, is redrawn by a random network of its own, so contrasts between them change too.

Thaler et al. Semantic-aware Random Convolution and Source Matching for Domain Generalization in Medical Image
Segmentation. IEEE Access 2026. https://arxiv.org/abs/2512.01510
Family: augmentation.

    x' = sum over classes c of m_c g_c(z)       m_c: one-hot mask of c, blurred by a Gaussian (5 pixels wide, sigma 1)
    g  = GIN: a random net of 4 convolutions, leaky ReLUs (0.1) behind all of them, mixed with z, its norm kept
    matching: F_source^-1(F_x(x)) is predicted, not x      F: cumulative histogram, F_source that of the source's images

z is the z-score of x; g is new for each class, image and step (`_gin`). Nothing else is trained on: a step costs what
ERM's does.
`matching=true` is the paper's second half. It changes each test image by itself, from it and what training noted of the
source's images, before their augmentation; weights are the same to the bit with and without. No target set is seen and
nothing is adapted, but it is processing at test time: it is a setting, so that tables have a row with it and one
without. The source's masks are used in training, none in testing.
Differs: the paper is about volumes, and matches volumes inside a central box; this redraws and matches slices, all of
what the network sees. A pixel in several structures belongs to the last of them (the cup, not the disc). Each image is
shifted and scaled to [0, 1] after it is redrawn, and standardised as all methods' inputs are.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.losses import in_float32
from dgbench.method import Batch, Method
from dgbench.methods._curves import through
from dgbench.methods._fields import unit_range
from dgbench.methods._gin import gin
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.augmentation import gaussian_blur
from dgbench.networks.unet import normalise, one_channel
from dgbench.settings import Range
from dgbench.task import TaskInfo

LEVELS = 4096  # steps of a cumulative histogram: fine enough for images most of whose range is dark


@dataclass(frozen=True)
class SRCSMHparams(ERMHparams):
    """The edge between two redrawings, and whether test images are matched to the source."""

    edge: Annotated[float, Range(above=0)] = 1.0  # sigma of the masks' blur, in pixels
    matching: bool = False


def classes(mask: Tensor, edge: float) -> Tensor:
    """Masks (N, K, H, W) in {0, 1} -> (K + 1, N, 1, H, W), weights of the rest and of each structure; they add to 1."""
    later = mask.flip(1).cummax(1).values.flip(1)  # in it or in one of those after it
    first = F.pad(later[:, 1:], (0, 0, 0, 0, 0, 1))
    owned = torch.cat([1 - later[:, :1], mask * (1 - first)], 1)
    sigma = torch.full((len(mask), 1, 1, 1), edge, device=mask.device)
    return gaussian_blur(owned, sigma, radius=2).transpose(0, 1)[:, :, None]


@in_float32
def cumulative(image: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] -> (N, C, LEVELS + 1): the share of pixels at most as bright as each even step."""
    values = image.flatten(2).sort(2).values
    levels = torch.linspace(0, 1, LEVELS + 1, device=image.device).repeat(*values.shape[:2], 1)
    return torch.searchsorted(values, levels, right=True) / values.shape[2]


@in_float32
def matched(image: Tensor, source: Tensor) -> Tensor:
    """(N, C, H, W) in [0, 1] with the histogram that the cumulative one of the source, (C, LEVELS + 1), belongs to."""
    share = cumulative(image)
    shares = source.expand_as(share).contiguous()
    right = torch.searchsorted(shares, share).clamp(1, LEVELS)
    low, high = shares.gather(2, right - 1), shares.gather(2, right)
    beyond = ((share - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    return through(image, (right - 1 + beyond) / LEVELS)


class SRCSMIdea(Method):
    """Shows images (N, 3, H, W) with each structure redrawn by itself; may match test images to the source's."""

    hparams: SRCSMHparams

    def __init__(self, task: TaskInfo, hparams: SRCSMHparams):
        super().__init__(task, hparams)
        if hparams.matching:
            self.register_buffer("source_histogram", torch.zeros(3, LEVELS + 1))  # summed over images
            self.register_buffer("source_images", torch.zeros(()))

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The method's own; before it, with `matching`, the batch's histograms are noted."""
        if self.hparams.matching:
            image = batch.image.unflatten(1, (-1, 3)).flatten(0, 1)
            self.get_buffer("source_histogram").add_(cumulative(image).sum(0))
            self.get_buffer("source_images").add_(len(image))
        return super().augment(batch, rng)

    @torch.no_grad()
    def view(self, batch: Batch) -> Tensor:
        """Of images (N, 3, H, W) with their masks: the same shape, in [0, 1]."""
        z = normalise(one_channel(batch.image), "zscore")
        parts = classes(batch.mask, self.hparams.edge)
        redrawn = torch.stack([part * gin(z, slope=0.1, bent=True) for part in parts]).sum(0)
        return unit_range(redrawn).expand_as(batch.image)

    def loss(self, batch: Batch) -> Tensor:
        """The criterion on the redrawn images."""
        return self.criterion(self.logits(self.view(batch)), batch.mask)

    def predict(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K, H, W) probabilities, of the matched image if so set."""
        if self.hparams.matching:
            images = self.get_buffer("source_images")
            slices = image.unflatten(1, (-1, 3)).flatten(0, 1)
            like_source = matched(slices, self.get_buffer("source_histogram") / images.clamp(min=1))
            image = torch.where(images > 0, like_source.view(image.shape), image)
        return super().predict(image)


class SRCSM(SRCSMIdea, ERM):
    """The idea over plain training."""

    hparams: SRCSMHparams
    paper = "https://arxiv.org/abs/2512.01510"
