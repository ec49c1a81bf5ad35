"""Stacking: an image and another view of it share a mask, and encoder and prediction shall be alike on both.

Pan, Zhang, Gernand, Goldstein, Wang. S2S2: Semantic Stacking for Robust Semantic Segmentation in Medical Imaging. AAAI
2025. https://arxiv.org/abs/2412.13156
Family: representation.

    loss = L(f(x), y) + L(f(v), y) + weight * ((1 - cos(e(x), e(v))) + (1 - cos_w(f(x), f(v))))      v: the view of x
    cos_w: cosine of two maps whose pixels weigh 1 - the share of their class in the batch       e: encoder's last map

Weight 0.1 and the rarer classes' greater weight are the authors'. As an idea over another method the images are that
method's: `slaug+stacking` adds a view of each of SLAug's two.
Differs: theirs is an image that a diffusion model made of the mask; this view has the mask because it is x redrawn, by
a random network (`gin`) or in a new contrast (`contrast`, SLAug's GLA), so this is the loss of their paper without its
images. Cosines are of whole maps, for each image; the second one is of logits, for each structure, and not of a
decoder's features, so that it means the same over any method. An encoder that is frozen has nothing to make alike.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from dgbench.errors import UsageError
from dgbench.losses import in_float32
from dgbench.method import Batch, Method
from dgbench.methods._curves import new_contrast
from dgbench.methods._fields import unit_range
from dgbench.methods._gin import gin
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import SegmentationNet, normalise, one_channel
from dgbench.settings import Range


@dataclass(frozen=True)
class StackingHparams(ERMHparams):
    """What the other view is, and how much it counts that both are alike."""

    view: Literal["gin", "contrast"] = "gin"
    stacking: Annotated[float, Range(0)] = 0.1


@in_float32
def apart(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    """1 - cosine of two maps, from 0 to 2: (N, M, ...) both, of each entry of the first two axes, then the mean.

    weight: of each value, of that shape, at least 0; all alike by default.
    """
    a, b = a.flatten(2), b.flatten(2)
    w = torch.ones_like(a) if weight is None else weight.flatten(2)
    product, own, other = ((w * x * y).sum(2) for x, y in ((a, b), (a, a), (b, b)))
    return (1 - product / (own * other).clamp(min=1e-12).sqrt()).mean()


def rarity(mask: Tensor) -> Tensor:
    """(N, K, H, W) in {0, 1} -> the same shape: 1 - the share of the batch's pixels on its side of the structure."""
    share = mask.mean((0, 2, 3), keepdim=True)
    return mask * (1 - share) + (1 - mask) * share


def encoder_of(method: Method) -> nn.Module:
    """The module whose output is the encoder's last map. Raises `UsageError` for a method that names none."""
    net, encoder = (getattr(method, name, None) for name in ("net", "image_encoder"))
    if isinstance(net, SegmentationNet):
        return net.stage(len(net.channels) - 1)
    if isinstance(encoder, nn.Module):
        return getattr(encoder, "neck", encoder)  # of SAM's, whose blocks a method may walk through by itself
    raise UsageError(
        f"stacking finds no encoder in {type(method).__name__}",
        "name it `image_encoder`, or let `net` be a SegmentationNet",
    )


class StackingIdea(Method):
    """Trains on images (N, 3, H, W) and on a view of each, with one mask and alike in encoder and prediction."""

    hparams: StackingHparams

    @torch.no_grad()
    def view(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> the same, with the same structures in the same places."""
        gray = one_channel(image)
        view = new_contrast(gray) if self.hparams.view == "contrast" else unit_range(gin(normalise(gray, "zscore")))
        return view.expand_as(image)

    def loss(self, batch: Batch) -> Tensor:
        """The criterion on both, and how far they are apart: a scalar."""
        image, mask = batch
        ends: list[Any] = []
        hook = encoder_of(self).register_forward_hook(lambda module, given, end: ends.append(end))
        try:
            logits = [self.logits(x) for x in (image, self.view(image.detach()))]
        finally:
            hook.remove()
        loss = torch.stack([self.criterion(z, mask) for z in logits]).sum()
        differ = apart(logits[0], logits[1], rarity(mask))
        if len(ends) == 2:  # not where a frozen encoder's embedding was kept
            differ = differ + apart(ends[0][:, None], ends[1][:, None])
        return loss + self.hparams.stacking * differ


class Stacking(StackingIdea, ERM):
    """The idea over plain training."""

    hparams: StackingHparams
    paper = "https://arxiv.org/abs/2412.13156"
