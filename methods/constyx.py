"""ConStyX: the last features are moved, by noise as wide as their class is and in the channels the loss wants larger.

Chen et al. ConStyX: Content Style Augmentation for Generalizable Medical Image Segmentation. MICCAI 2025.
https://arxiv.org/abs/2506.10675
Family: feature statistics.

    f' = f + n v_c + s          f: the features before the last convolution, (N, C, h, w); n ~ N(0, 1)
    v_c: variance of f over all pixels so far of the pixel's class c        s ~ U(0, 0.5) in a fifth of the channels of
    a pixel, those with the most negative dL(h(f), y) / df, and 0 elsewhere          h: the last convolution
    loss = L(h(f), y) + L_w(h(f'), y)     w = exp(1 - H) - 1 where cos(f, f') < 0.6, else 1

H is the entropy of the prediction h(f'), for each structure, scaled to [0, 1] in each image: where content and style
moved far, what is uncertain counts less than what is sure. All values are the authors'. As in their code v_c is not its
root, s makes the loss smaller, not larger, the gradient is that of the same images at the same step, a pixel without
any feature counts as moved far, and the classes are the structures and the rest.
Measured, mean target Dice on phantom from source A, seed 0: 47.9 (erm 50.5).
Differs: their code computes f twice, which is the same f; here once, so that a step costs what ERM's does. w weighs the
cross-entropy, not the Dice loss; which is not to be seen in what they released. A pixel in several structures belongs
to the last of them. Their network is a ResNet-34 U-Net with 32 last features (`encoder`, `width`), with SGD.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.losses import dice_loss, in_float32
from dgbench.method import Batch
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import resize
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class ConStyXHparams(ERMHparams):
    """How far style moves features, in how many channels, and which features count as moved far."""

    style_step: Annotated[float, Range(0)] = 0.5
    style_share: Annotated[float, Range(0, 1)] = 0.2  # of the channels of each pixel
    similarity: Annotated[float, Range(-1, 1)] = 0.6


def class_of(mask: Tensor) -> Tensor:
    """(N, K, H, W) in {0, 1} -> (N, H, W) int64: 0 the rest, else 1 + the last structure that the pixel is in."""
    ranks = torch.arange(1, mask.shape[1] + 1, device=mask.device)[:, None, None]
    return (mask * ranks).amax(1).long()


def style_direction(gradient: Tensor, share: float) -> Tensor:
    """(N, C, h, w) -> the same shape: 1 in that share of a pixel's channels where it is most negative, 0 elsewhere."""
    count = int(share * gradient.shape[1] + 1e-9)
    chosen = gradient.topk(count, dim=1, largest=False).indices
    return torch.zeros_like(gradient).scatter(1, chosen, 1.0)


@in_float32
def trust(logits: Tensor, similarity: Tensor, threshold: float) -> Tensor:
    """w of the equation, (N, K, H, W) like the logits. similarity: (N, 1, H, W), the cosine of f and f'."""
    entropy = F.binary_cross_entropy_with_logits(logits, logits.sigmoid(), reduction="none")
    low, high = entropy.amin((2, 3), keepdim=True), entropy.amax((2, 3), keepdim=True)
    certainty = 1 - (entropy - low) / (high - low).clamp(min=1e-12)
    return torch.where(similarity < threshold, certainty.exp() - 1, 1.0)


class ConStyX(ERM):
    """ERM's network, trained on its last features (N, C, h, w) as they are and moved in content and style."""

    hparams: ConStyXHparams
    paper = "https://arxiv.org/abs/2506.10675"
    pixels: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, task: TaskInfo, hparams: ConStyXHparams):
        super().__init__(task, hparams)
        classes, channels = len(task.structures) + 1, self.net.decoder.head.in_channels
        self.register_buffer("pixels", torch.zeros(classes, 1))  # of each class, seen so far
        self.register_buffer("mean", torch.zeros(classes, channels))
        self.register_buffer("variance", torch.zeros(classes, channels))

    @torch.no_grad()
    def remember(self, f: Tensor, inside: Tensor) -> None:
        """Have mean and variance be those of all pixels seen. f: (N, C, h, w); inside: (N, classes, h, w) in {0, 1}."""
        f, inside = f.float().transpose(0, 1).flatten(1).T, inside.transpose(0, 1).flatten(1)
        count = inside.sum(1, keepdim=True)
        mean = inside @ f / count.clamp(min=1)
        variance = (inside @ f.square() / count.clamp(min=1) - mean.square()).clamp(min=0)
        self.pixels += count
        share = count / self.pixels.clamp(min=1)
        self.variance.lerp_(variance, share).add_(share * (1 - share) * (self.mean - mean).square())
        self.mean.lerp_(mean, share)

    def loss(self, batch: Batch) -> Tensor:
        """The criterion on both predictions, the second one's cross-entropy weighed: a scalar."""
        h, mask, head = self.hparams, batch.mask, self.net.decoder.head
        seen: list[Tensor] = []

        def note(module: Any, given: tuple[Tensor]) -> None:
            seen.append(given[0])

        hook = head.register_forward_pre_hook(note)
        try:
            logits = self.logits(batch.image)
        finally:
            hook.remove()
        (f,) = seen
        plain = self.criterion(logits, mask)
        (gradient,) = torch.autograd.grad(plain, f, retain_graph=True)
        owner = F.interpolate(class_of(mask)[:, None].float(), f.shape[2:], mode="nearest-exact")
        inside = (owner == torch.arange(len(self.pixels), device=mask.device)[:, None, None]).float()
        self.remember(f.detach(), inside)
        content = torch.einsum("nkhw,kc->nchw", inside, self.variance) * torch.randn_like(f)
        style = h.style_step * torch.rand_like(f) * style_direction(gradient, h.style_share)
        moved = f + (content + style).to(f.dtype)
        again = resize(head(moved), logits.shape[2:]).float()
        similarity = F.cosine_similarity(f.detach().float(), moved.detach().float(), dim=1)[:, None]
        weight = trust(again.detach(), resize(similarity, again.shape[2:]), h.similarity)
        bce = F.binary_cross_entropy_with_logits(again, mask, weight=weight)
        return plain + (bce + dice_loss(again, mask)) / 2
