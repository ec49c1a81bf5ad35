"""RandConv: a random filter changes the texture and leaves the shapes, so the network must learn shapes.

Xu, Liu, Yang, Raffel, Niethammer. Robust and Generalizable Visual Representation Learning via Random Convolutions.
ICLR 2021. https://arxiv.org/abs/2007.13003
Family: augmentation.

    x'   = a (w * z) + (1 - a) z      z = z-score of x, w ~ N(0, 1 / (C k^2)), k in {1, 3, 5, 7}, a ~ U(0, 1)
    loss = L(f(x'_1), y) + weight * (1/3) sum over i of KL(p_i || (p_1 + p_2 + p_3) / 3)      p_i = prediction of x'_i

The paper's best on digits: RC_mix with consistency, weight 10. `randconv=image` is RC_img: a = 1, and with probability
`p_original` x itself; set `consistency=5` with it, as the paper does. `consistency=0` shows one view only and costs as
much as ERM. One filter and one a for the batch, as in the authors' code, which filters x'_1 once more for x'_2 and x'_3
where the paper, and this, filter x.
Differs: each view is shifted and scaled to [0, 1] again, and each image then standardised by its own mean and
deviation; otherwise a random filter draws a random brightness, too, on which training with MRI diverges. A gray image
stays gray (C = 1). KL is summed over inside and outside, and the mean over pixels and structures.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.losses import in_float32
from dgbench.method import Batch, Method
from dgbench.methods._consistency import disagreement
from dgbench.methods._fields import unit_range
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import normalise, one_channel
from dgbench.settings import Range


@dataclass(frozen=True)
class RandConvHparams(ERMHparams):
    """The filters' sizes, whether they are mixed with the image, and how much consistency counts."""

    randconv: Literal["mix", "image"] = "mix"
    kernel_sizes: Annotated[tuple[int, ...], Range(1, odd=True)] = (1, 3, 5, 7)
    p_original: Annotated[float, Range(0, 1)] = 0.5  # of RC_img
    consistency: Annotated[float, Range(0)] = 10.0


@in_float32
def random_filter(z: Tensor, kernel_size: int) -> Tensor:
    """(N, C, H, W) -> (N, C, H, W): filtered by one random kernel that expects to keep a deviation of 1."""
    c, k = z.shape[1], kernel_size
    return F.conv2d(z, torch.randn(c, c, k, k, device=z.device) / (c * k * k) ** 0.5, padding=k // 2)


class RandConvIdea(Method):
    """Shows images (N, 3, H, W) in the texture that one random convolution gives them."""

    hparams: RandConvHparams

    def view(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> the same, in a random texture."""
        h = self.hparams
        if h.randconv == "image" and torch.rand(()) < h.p_original:
            return image
        z = normalise(one_channel(image), "zscore")
        filtered = random_filter(z, h.kernel_sizes[int(torch.randint(len(h.kernel_sizes), ()))])
        mixed = torch.lerp(z, filtered, float(torch.rand(()))) if h.randconv == "mix" else filtered
        return unit_range(mixed).expand_as(image)

    def loss(self, batch: Batch) -> Tensor:
        """The criterion on one view, and how far the predictions of three views are apart."""
        weight = self.hparams.consistency
        logits = [self.logits(self.view(batch.image)) for _ in range(3 if weight else 1)]
        loss = self.criterion(logits[0], batch.mask)
        return loss + weight * disagreement(logits) if weight else loss


class RandConv(RandConvIdea, ERM):
    """The idea over plain training."""

    hparams: RandConvHparams
    paper = "https://arxiv.org/abs/2007.13003"
