"""MoreStyle: images get the low frequencies of a rebuilt image, in the style that is hardest to segment; a reading.

Zhao, Dong, Yu, Zhao, Du, Xu. MoreStyle: Relax Low-frequency Constraint of Fourier-based Image Reconstruction in
Generalizable Medical Image Segmentation. MICCAI 2024. https://arxiv.org/abs/2403.11689
Family: adversarial.

    x' = F^-1(phase of F(x), its amplitude but at low frequencies that of F(G(x, N(n))))      n ~ N(0, 1), F: Fourier
    G  : a second decoder; behind its last two stages `_style.composed` with l, e and e' that N makes, of each channel
    1. N climbs L(f(x'), y)     2. G: 5e-3 (G(x) - x)^2 + 5e-4 ||F(G)| - |F(x)||, a tenth of it at low frequencies
    3. loss = L(f(x), y) + L_u(f(x'), y)

L_u weighs a pixel's cross-entropy: 1 + 0.2 u where the prediction of x' is wrong and that of x right, 1 - 0.2 u in the
opposite case, else 1; u: entropy of the mean prediction of five noisy x' (deviation 0.05), from 0 to 1.
What was released cannot run, as the files with losses and the Fourier exchange are missing: this is made of the paper
and of what is there, and of choices of ours where both are silent. These are the cut-off, MaxStyle's layer for N's
numbers, the formula of u, and that G's losses weigh the same throughout (theirs has a schedule).
Measured, mean target Dice on phantom from source A, seed 0: 49.5 (erm 50.5).
Differs: the network is ERM's (theirs: CCSDG's), which G does not train; passes that only look leave statistics alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.losses import dice_loss, in_float32
from dgbench.method import Batch
from dgbench.methods._batchnorm import untracked
from dgbench.methods._spectrum import low_frequencies, mix_amplitudes
from dgbench.methods._style import composed, spread
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import Decoder, normalise, one_channel, resize
from dgbench.settings import Range
from dgbench.task import TaskInfo

Layer = Callable[[Tensor], Tensor]
NOISES = 32  # numbers that the noise encoder starts from, for each image


@dataclass(frozen=True)
class MoreStyleHparams(ERMHparams):
    """Which frequencies are exchanged, how the hardest style is climbed to, and how uncertainty is found."""

    cutoff: Annotated[float, Range(0, 0.5)] = 0.1  # periods per pixel of the shorter side
    style_rate: Annotated[float, Range(0)] = 0.01
    style_momentum: Annotated[float, Range(0, 1)] = 0.99
    copies: Annotated[int, Range(1)] = 5
    noise: Annotated[float, Range(0)] = 0.05  # of the copies
    emphasis: Annotated[float, Range(0, 1)] = 0.2  # how far a pixel's weight may be from 1


@in_float32
def spectral_loss(rebuilt: Tensor, image: Tensor, cutoff: float) -> Tensor:
    """Mean absolute difference of amplitudes, (N, C, H, W) both, those of low frequencies a tenth of it."""
    weight = torch.where(low_frequencies(image.shape[2:], cutoff, image.device), 0.1, 1.0)
    amplitudes = [torch.fft.rfft2(x, norm="ortho").abs() for x in (rebuilt, image)]
    return (weight * (amplitudes[0] - amplitudes[1]).abs()).mean()


@in_float32
def pixel_weight(plain: Tensor, styled: Tensor, mean: Tensor, mask: Tensor, emphasis: float) -> Tensor:
    """Of the cross-entropy, (N, K, H, W) like logits `plain` and `styled`, mask, and `mean`, a probability."""
    u = (torch.special.entr(mean) + torch.special.entr(1 - mean)) / log(2)
    wrong_plain, wrong_styled = ((z > 0) != (mask > 0.5) for z in (plain, styled))
    return 1 + emphasis * u * (wrong_styled.float() - wrong_plain.float())


class MoreStyle(ERM):
    """ERM's network, trained on images (N, 3, H, W) and on them with the hardest low frequencies found."""

    hparams: MoreStyleHparams
    paper = "https://arxiv.org/abs/2403.11689"
    needs_batch = True  # alone, the rebuilt image keeps its style

    def __init__(self, task: TaskInfo, hparams: MoreStyleHparams):
        super().__init__(task, hparams)
        widths = [m.out_channels for m in self.net.decoder.narrow]
        self.image_decoder = Decoder(self.net.channels, widths, 3, hparams.norm)
        self.noise_encoder = nn.ModuleList(nn.Linear(NOISES, 3 * width) for width in widths[:2])

    def configure(self) -> tuple[torch.optim.Optimizer, ...]:
        """Three: the network's, the image decoder's, and the one that climbs."""
        h = self.hparams
        network, decoder = (
            torch.optim.AdamW(m.parameters(), lr=h.learning_rate, weight_decay=h.weight_decay)
            for m in (self.net, self.image_decoder)
        )
        climber = torch.optim.SGD(
            self.noise_encoder.parameters(), lr=h.style_rate, momentum=h.style_momentum, maximize=True
        )
        return self.followed(network), decoder, climber

    def rebuilt(self, gray: Tensor, features: list[Tensor], styles: dict[int, Layer]) -> Tensor:
        """G of the encoder's maps, of the shape of `gray`, (N, 1 or 3, H, W), in [0, 1]."""
        x = self.image_decoder.head(self.image_decoder.maps(features, styles)[-1])
        return resize(x[:, : gray.shape[1]], gray.shape[2:]).float().sigmoid()

    def recomposed(self, gray: Tensor, features: list[Tensor], noise: Tensor, partner: Tensor) -> Tensor:
        """x' of the equation, of the shape of `gray`, in [0, 1]. noise: (N, NOISES); partner: (N,)."""

        def layer(encoder: nn.Module, x: Tensor) -> Tensor:
            share, *noises = encoder(noise).view(len(x), 3, -1, 1, 1).unbind(1)
            return composed(x, partner, share.sigmoid(), noises, spread(x))

        styles: dict[int, Layer] = {i: partial(layer, encoder) for i, encoder in enumerate(self.noise_encoder)}
        rebuilt = self.rebuilt(gray, features, styles)
        return mix_amplitudes(gray, rebuilt, gray.new_ones(len(gray)), self.hparams.cutoff).clamp(0, 1)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the noise encoder, of the image decoder, and of the network on both images."""
        h, (image, mask) = self.hparams, batch
        network, decoder, climber = self.optimizers
        gray = one_channel(image)
        noise = torch.randn(len(image), NOISES, device=image.device)
        partner = torch.randperm(len(image), device=image.device)
        with untracked(self), torch.no_grad():
            features = self.net.encode(normalise(image, h.normalise))

        climber.zero_grad(set_to_none=True)
        with untracked(self):
            tried = self.recomposed(gray, features, noise, partner)
            self.criterion(self.logits(tried.expand_as(image)), mask).backward()
            climber.step()
            with torch.no_grad():
                hard = self.recomposed(gray, features, noise, partner).expand_as(image)

        decoder.zero_grad(set_to_none=True)
        rebuilt = self.rebuilt(gray, features, {})
        rebuilding = 5e-3 * F.mse_loss(rebuilt, gray) + 5e-4 * spectral_loss(rebuilt, gray, h.cutoff)
        rebuilding.backward()
        decoder.step()

        network.zero_grad(set_to_none=True)
        plain, styled = self.logits(image), self.logits(hard)
        with untracked(self), torch.no_grad():
            noisy = [self.logits(hard + h.noise * torch.randn_like(gray)) for _ in range(h.copies)]
            mean = torch.stack([z.float().sigmoid() for z in noisy]).mean(0)
            weight = pixel_weight(plain, styled, mean, mask, h.emphasis)
        bce = F.binary_cross_entropy_with_logits(styled.float(), mask, weight=weight)
        loss = self.criterion(plain, mask) + (bce + dice_loss(styled, mask)) / 2
        loss.backward()
        network.step()
        return {"loss": loss.detach(), "loss_rebuilt": rebuilding.detach()}
