"""RSC: the deepest features that speak most for the truth are muted, so that the others must learn to.

Huang, Wang, Xing, Huang. Self-Challenging Improves Cross-Domain Generalization. ECCV 2020.
https://arxiv.org/abs/2007.02454
Family: representation.

    g = d(score of the truth) / dz            z: deepest feature map       score of the truth: sum of (2y - 1) logit
    keep = 0 where g, averaged over channels or (each half of the steps) over pixels, is in its upper third, 1 elsewhere
    loss = criterion(decode(z keep), y) for the third of the batch whose confidence in the truth suffers most by it,
           criterion(decode(z), y) for the rest

The thirds are the paper's. Differs: it classifies by a linear layer on z, so z is all that is known; here the
shallower maps reach the decoder unchanged. The truth is an outcome of each pixel and structure, and confidence the mean
probability of these. The two passes that choose leave the running statistics of batch norm alone. The public code
weighs the spatial gradient by z and lets the share of the batch grow with the epochs.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dgbench.losses import in_float32
from dgbench.method import Batch
from dgbench.methods._batchnorm import untracked
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import normalise
from dgbench.settings import Range


@dataclass(frozen=True)
class RSCHparams(ERMHparams):
    """Which share of the features is muted, and for which share of the batch."""

    feature_share: Annotated[float, Range(0, 1)] = 1 / 3  # of the pixels, or channels, of z that are muted
    batch_share: Annotated[float, Range(0, 1)] = 1 / 3  # of the images in a batch that are challenged


@in_float32
def keep(gradient: Tensor, share: float, spatial: bool) -> Tensor:
    """(N, C, h, w) -> 0 for the `share` of pixels (N, 1, h, w), or channels (N, C, 1, 1), with the largest gradient."""
    score = gradient.mean(1 if spatial else (2, 3), keepdim=True)
    dominant = score.flatten(1).topk(int(share * score[0].numel())).indices
    return torch.ones_like(score).flatten(1).scatter(1, dominant, 0).view_as(score)


class RSC(ERM):
    """ERM's network with those of its deepest features (N, C, h, w) muted that speak most for the truth."""

    hparams: RSCHparams
    paper = "https://arxiv.org/abs/2007.02454"
    needs_batch = True  # the third of a batch of one is none: plain ERM

    def loss(self, batch: Batch) -> Tensor:
        """The criterion, with muted features for the images whose confidence suffers most: a scalar."""
        h, truth, size = self.hparams, 2 * batch.mask - 1, batch.image.shape[-2:]
        *shallow, deep = self.net.encode(normalise(batch.image, h.normalise))
        kept = torch.ones_like(deep[:, :1, :1, :1])
        if count := round(h.batch_share * len(deep)):
            z, seen = deep.detach().requires_grad_(), [f.detach() for f in shallow]
            with untracked(self.net):
                score = self.net.decode([*seen, z], size).float() * truth
                challenge = keep(torch.autograd.grad(score.sum(), z)[0], h.feature_share, bool(torch.rand(()) < 0.5))
                with torch.no_grad():
                    challenged = self.net.decode([*seen, z * challenge], size).float() * truth
            loss_of_confidence = (score.sigmoid() - challenged.sigmoid()).mean((1, 2, 3))
            hit = torch.zeros_like(loss_of_confidence).index_fill(0, loss_of_confidence.topk(count).indices, 1)
            kept = torch.where((hit * loss_of_confidence > 0)[:, None, None, None], challenge, kept)
        return self.criterion(self.net.decode([*shallow, deep * kept], size), batch.mask)
