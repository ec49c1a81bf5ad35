"""AdverIN: the monotone intensity curve that makes an image hardest to segment, found by one step, is trained on.

Zhang et al. AdverIN: Monotonic Adversarial Intensity Attack for Domain Generalization in Medical Image Segmentation.
2023. https://arxiv.org/abs/2304.02720
Family: adversarial.

    c(t)  = cumulative sum of softmax(t), shifted and scaled to run from 0 to 1           t: 21 numbers, 0 at first
    x_c   = c read at (x - min x) / (max x - min x), between its points linearly, back on x's range
    g     = dL(f(x_c), y) / dc at t = 0, where c is a straight line and x_c is x
    t*    = rate * (dc/dt)^T (20 length g / |g|), one curve for each image and channel       loss = L(f(x_c(t*)), y)

t* is a step uphill: the authors reverse the gradient where it passes c, normalised. Rate 0.1, length 10 (times the
steps of the curve, 20) and the points are theirs for prostate; as theirs, the loss is of the changed images alone.
Differs: this is the plain variant. In the one they released for their tables, curves act in some superpixels of the
image and t* is replaced by random numbers before the network's step; its learned end points are an affine map, which a
z-score undoes when the whole image is mapped. |g| is divided by however small it is; theirs adds 1e-4. Passes that only
look leave running statistics alone. A gray image has one curve.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dgbench.losses import in_float32
from dgbench.method import Batch, Method
from dgbench.methods._batchnorm import untracked
from dgbench.methods._curves import through
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import one_channel
from dgbench.settings import Range


@dataclass(frozen=True)
class AdverINHparams(ERMHparams):
    """The curve, and how far the adversary's one step goes."""

    points: Annotated[int, Range(3)] = 21
    attack_rate: Annotated[float, Range(0)] = 0.1
    attack_length: Annotated[float, Range(0)] = 10.0  # of the gradient at the curve, in its steps


@in_float32
def curve(t: Tensor) -> Tensor:
    """(N, C, P) of any values -> (N, C, P), rising from 0 to 1."""
    c = t.softmax(2).cumsum(2)
    return (c - c[..., :1]) / (c[..., -1:] - c[..., :1])


def mapped(image: Tensor, c: Tensor) -> Tensor:
    """(N, C, H, W) through c, (N, C, P), each channel on its own range, which it keeps."""
    low, high = image.amin((2, 3), keepdim=True), image.amax((2, 3), keepdim=True)
    return torch.lerp(low, high, through((image - low) / (high - low).clamp(min=1e-12), c))


def attacked(c: Tensor, t: Tensor, gradient: Tensor, rate: float, length: float) -> Tensor:
    """t*, of the shape of t: one step from t uphill along a gradient at c = curve(t), (N, C, P) all."""
    size = torch.linalg.vector_norm(gradient, dim=2, keepdim=True).clamp(min=1e-30)
    (uphill,) = torch.autograd.grad(c, t, length * (c.shape[2] - 1) * gradient / size)
    return (t + rate * uphill).detach()


class AdverINIdea(Method):
    """Maps images (N, 3, H, W) by the monotone curve that raises the loss most, found by gradient."""

    hparams: AdverINHparams

    def loss(self, batch: Batch) -> Tensor:
        """The criterion on the mapped images alone: a scalar."""
        h, (image, mask) = self.hparams, batch
        gray = one_channel(image)
        t = torch.zeros(*gray.shape[:2], h.points, device=image.device, requires_grad=True)
        c = curve(t)
        with untracked(self):
            tried = self.criterion(self.logits(mapped(gray, c).expand_as(image)), mask)
            (gradient,) = torch.autograd.grad(tried, c, retain_graph=True)
        hard = mapped(gray, curve(attacked(c, t, gradient, h.attack_rate, h.attack_length)))
        return self.criterion(self.logits(hard.expand_as(image)), mask)


class AdverIN(AdverINIdea, ERM):
    """The idea over plain training."""

    hparams: AdverINHparams
    paper = "https://arxiv.org/abs/2304.02720"
