"""BigAug: strong transforms in a row, each for half of the images: of space, of quality, then of appearance.

Zhang, Wang, Yang, Sanford, Harmon, Turkbey, Wood, Roth, Myronenko, Xu, Xu. Generalizing Deep Learning for Medical Image
Segmentation to Unseen Domains via Deep Stacked Transformation. TMI 2020. https://doi.org/10.1109/TMI.2020.2973595
Family: augmentation.

    space      rotation by up to 20 degrees, size 0.4-1.6, elastic deformation
    sharpen    B + a (B - B_2), B = x blurred by U(0.25, 1.5) pixels, B_2 = B blurred again so, a ~ U(10, 30)
    blur       by U(0.25, 1.5) pixels
    noise      of deviation U(0.1, 1), x having mean 0 and deviation 1
    contrast   x^g between minimum and maximum, g ~ U(0.5, 4.5)

each with probability 0.5, after the base augmentation. There is no code of the authors'; the ranges are those of a
public re-implementation (kari-jg/BigAug_torchio).
Differs: two of the paper's nine, a shift of brightness and a scale and shift, are left out: the standardisation of each
image that follows undoes them. Space comes first, not last, so that what lies outside the image is as dark as the dark
in it. Slices, not volumes. The size is drawn evenly in the field of view, half below and half above 1. The elastic
deformation is the benchmark's, by the paper's probability.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from dgbench.method import Batch, Method
from dgbench.methods._fields import unit_range
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.augmentation import Augmentation, augment, gaussian_blur
from dgbench.networks.unet import one_channel
from dgbench.settings import Range


@dataclass(frozen=True)
class BigAugHparams(ERMHparams):
    """How likely and how strong the transforms are."""

    p_bigaug: Annotated[float, Range(0, 1)] = 0.5  # of each transform
    sharpen: Annotated[tuple[float, float], Range(0)] = (10.0, 30.0)
    bigaug_noise: Annotated[tuple[float, float], Range(0)] = (0.1, 1.0)
    bigaug_gamma: Annotated[tuple[float, float], Range(above=0)] = (0.5, 4.5)
    bigaug_size: Annotated[tuple[float, float], Range(above=0)] = (0.4, 1.6)


class BigAugIdea(Method):
    """Puts strong transforms of space, quality and appearance over the base augmentation, each for half of the
    images.
    """

    hparams: BigAugHparams

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Image (N, 3, H, W) in [0, 1] and mask (N, K, H, W), the mask moved with its image."""
        h = self.hparams
        p, (smallest, largest) = h.p_bigaug, h.bigaug_size
        space = Augmentation(p_rotate=p, rotate=(-20, 20), p_scale=p, scale=(1 / largest, 1 / smallest), p_elastic=p)
        image, mask = augment(super().augment(batch, rng), rng, space)
        gray = one_channel(image)
        return Batch(self.restyle(gray, rng).expand_as(image), mask)

    def restyle(self, image: Tensor, rng: torch.Generator) -> Tensor:
        """Quality and appearance of (N, C, H, W) in [0, 1]."""
        h, shape = self.hparams, (len(image), 1, 1, 1)
        grain = torch.Generator(image.device).manual_seed(int(torch.randint(2**62, (), generator=rng)))

        def draw(low: float, high: float) -> Tensor:
            return (low + (high - low) * torch.rand(shape, generator=rng)).to(image.device)

        def half(changed: Tensor, x: Tensor) -> Tensor:
            return torch.where((torch.rand(shape, generator=rng) < h.p_bigaug).to(image.device), changed, x)

        def blur(x: Tensor) -> Tensor:
            return gaussian_blur(x, draw(0.25, 1.5), radius=5)

        variance, mean = torch.var_mean(image, (1, 2, 3), correction=0, keepdim=True)
        x = (image - mean) / (variance + 1e-8).sqrt()
        smooth = blur(x)
        x = half(smooth + draw(h.sharpen[0], h.sharpen[1]) * (smooth - blur(smooth)), x)
        x = half(blur(x), x)
        noise = torch.randn(x[:, :1].shape, generator=grain, device=x.device)
        x = half(x + draw(h.bigaug_noise[0], h.bigaug_noise[1]) * noise, x)
        x = unit_range(x)
        return half(x ** draw(h.bigaug_gamma[0], h.bigaug_gamma[1]), x)


class BigAug(BigAugIdea, ERM):
    """The idea over plain training."""

    hparams: BigAugHparams
    paper = "https://doi.org/10.1109/TMI.2020.2973595"
