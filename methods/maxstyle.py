"""MaxStyle: a second decoder rebuilds images in the style that is hardest to segment, and these are trained on as well.

Chen, Li, Ouyang, Sinclair, Bai, Rueckert. MaxStyle: Adversarial Style Composition for Robust Medical Image
Segmentation. MICCAI 2022. https://arxiv.org/abs/2206.01737
Family: adversarial.

    m'   = (1 - l) m_i + l m_j + e S(m)      s' = (1 - l) s_i + l s_j + e' S(s)      f' = s' (f - m_i) / s_i + m'
    l, e <- 5 steps of Adam (0.1) up the segmentation loss of the rebuilt image, from l ~ Beta(0.1, 0.1), e ~ N(0, 1)
    loss = L(x + noise) + L(rebuilt image)      L(v) = criterion(segmentation(v), y) + mean (rebuilt(v) - x)^2 / 2

m, s: `_style.style`, no gradient; S: their deviation over the batch; j: another image of it. Layers f' lie behind the
last two blocks of the image decoder and behind its image, each used in half of the steps. All values are the authors'
(noise: 0.05), and their image decoder sees the deepest map alone, for a U-Net too. The search and the pass over the
rebuilt image leave running statistics alone.
Differs: the search climbs ERM's loss (theirs: cross-entropy). The image decoder has ERM's blocks, not residual ones. A
style given to the image itself is undone by standardising it, as it is by the authors' rescaling to [0, 1]; they
rescale x, too. In their pass over the rebuilt image scale and bias of batch norms are not trained, here they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Beta

from dgbench.method import Batch
from dgbench.methods._batchnorm import untracked
from dgbench.methods._fields import unit_range
from dgbench.methods._style import composed, spread
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import convolutions, normalise, one_channel, resize
from dgbench.settings import Range
from dgbench.task import TaskInfo

Layer = Callable[[Tensor], Tensor]


def _same(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class MaxStyleHparams(ERMHparams):
    """The auxiliary decoder, and the search for the hardest style."""

    p_layer: Annotated[float, Range(0, 1)] = 0.5  # of each layer at each step
    style_steps: Annotated[int, Range(0)] = 5
    style_rate: Annotated[float, Range(0)] = 0.1
    style_alpha: Annotated[float, Range(above=0)] = 0.1
    noise: Annotated[float, Range(0)] = 0.05  # deviation, on the image that is segmented and rebuilt


class Composition:
    """A layer f' for features (N, channels, H, W), drawn at random; `parameters` are l, e and e', to be climbed."""

    def __init__(self, n: int, channels: int, alpha: float, device: torch.device):
        partner = torch.randperm(n)
        if torch.equal(partner, torch.arange(n)):
            partner = partner.roll(1)
        self.partner = partner.to(device)
        shape = torch.full((), alpha, device=device)
        share = Beta(shape, shape, validate_args=False).sample((n, 1, 1, 1))
        self.parameters = [share, *torch.randn(2, n, channels, 1, 1, device=device).unbind()]
        for parameter in self.parameters:
            parameter.requires_grad_()
        self.spread: list[Tensor] = []  # S of mean and deviation, as they are before the search

    def __call__(self, x: Tensor) -> Tensor:
        self.spread = self.spread or spread(x)
        share, *noises = self.parameters
        return composed(x, self.partner, share.clamp(0, 1), noises, self.spread)


class ImageDecoder(nn.Module):
    """From the deepest feature map alone to an image in [0, 1]; of the others, only the size is used."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        pairs = list(zip(channels[1:], channels, strict=False))
        self.blocks = nn.ModuleList(nn.Sequential(*convolutions(*pair, "batch")) for pair in reversed(pairs))
        self.head = nn.Conv2d(channels[0], 3, 1)

    def begin(self, features: Sequence[Tensor]) -> Tensor:
        """All blocks but the last, whose results no style changes."""
        x = features[-1]
        for block, shallower in zip(self.blocks[:-1], features[-2:0:-1], strict=True):
            x = block(resize(x, shallower.shape[2:]))
        return x

    def finish(self, x: Tensor, features: Sequence[Tensor], image: Tensor, layers: Sequence[Layer]) -> Tensor:
        """The rest, with the layers in their places: an image of the shape of `image`, (N, 1 or 3, H, W)."""
        x = self.blocks[-1](resize(layers[0](x), features[0].shape[2:]))
        rebuilt = self.head(layers[1](x))[:, : image.shape[1]].float()
        return layers[2](resize(rebuilt, image.shape[2:]).sigmoid())


class MaxStyle(ERM):
    """ERM's network, trained on images rebuilt in the style that is hardest to segment as well."""

    hparams: MaxStyleHparams
    paper = "https://arxiv.org/abs/2206.01737"
    needs_batch = True  # alone, the rebuilt image keeps its style

    def __init__(self, task: TaskInfo, hparams: MaxStyleHparams):
        super().__init__(task, hparams)
        self.image_decoder = ImageDecoder(self.net.channels)

    def both(self, seen: Tensor, clean: Tensor, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """L, and the features. seen, clean: (N, C, H, W), a single channel if the batch's image is gray."""
        features = self.net.encode(normalise(seen.expand_as(batch.image), self.hparams.normalise))
        logits = self.net.decode(features, clean.shape[2:])
        rebuilt = self.image_decoder.finish(self.image_decoder.begin(features), features, clean, [_same] * 3)
        return self.criterion(logits, batch.mask) + F.mse_loss(rebuilt, clean) / 2, features

    def hardest(self, features: list[Tensor], clean: Tensor, batch: Batch) -> Tensor:
        """The image rebuilt in the hardest style found, of the shape of `clean`."""
        h, n, features = self.hparams, len(clean), [f.detach() for f in features]
        with torch.no_grad():
            begun = self.image_decoder.begin(features)
        layers: list[Layer] = [_same] * 3
        for i, channels in enumerate((begun.shape[1], self.net.channels[0], clean.shape[1])):
            if n > 1 and torch.rand(()) < h.p_layer:
                layers[i] = Composition(n, channels, h.style_alpha, clean.device)
        styles = [p for layer in layers if isinstance(layer, Composition) for p in layer.parameters]
        if styles:
            optimizer = torch.optim.Adam(styles, lr=h.style_rate, maximize=True)
            for _ in range(h.style_steps):
                rebuilt = self.image_decoder.finish(begun, features, clean, layers)
                loss = self.criterion(self.logits(rebuilt.expand_as(batch.image)), batch.mask)
                for p, gradient in zip(styles, torch.autograd.grad(loss, styles), strict=True):
                    p.grad = gradient
                optimizer.step()
        with torch.no_grad():
            return self.image_decoder.finish(begun, features, clean, layers)

    def loss(self, batch: Batch) -> Tensor:
        """The criterion on the noisy image and on the rebuilt one, each with how well it is rebuilt: a scalar."""
        clean = one_channel(batch.image)
        noisy = (clean + self.hparams.noise * torch.randn_like(clean)).clamp(0, 1)
        standard, features = self.both(noisy, clean, batch)
        with untracked(self):
            hard, _ = self.both(unit_range(self.hardest(features, clean, batch)), clean, batch)
        return standard + hard
