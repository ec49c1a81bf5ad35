"""FreeSDG: only high frequencies are shown, in a random mixture, and rebuilt in the one that tests show.

Li, Li, Zhao, Fu, Su, Hu, Liu. Frequency-mixed Single-source Domain Generalization for Medical Image Segmentation.
MICCAI 2023. https://arxiv.org/abs/2307.09005
Family: representation.

    h_i(x) = 4 (x - G_i * x), cut to [-1, 1]        x in [-1, 1]; G_i: Gaussian of sigma 2 + i, 5 + 2 i wide, i < 20
    v      = h_i(x), a random rectangle of it from h_j(x)                                  i, j and rectangle: at random
    loss   = L(f(v), y) + mean |r(v) - h(x)|        f(h(x)) is predicted                   h: sigma 9, 27 wide

r is a second decoder; its maps are what f's decoder joins at each size, in place of the encoder's, each weighed by
attention over channels and over pixels (CBAM). Filters and weights are the authors', whose images have 512 pixels: here
sigma and width grow with the image.
Measured, mean target Dice on phantom from source A, seed 0: 74.8 (erm 50.5).
Differs: attention is on r's maps alone, theirs on these and f's own together. The rectangle has any size, theirs 100
pixels unless told otherwise. The blur repeats the border's pixels; outside of a camera's field of view theirs first
fills in the image's median. h keeps its scale: no z-score. Blocks, L and optimizer are ERM's (theirs: instance norm).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.errors import UsageError
from dgbench.losses import in_float32
from dgbench.method import Batch
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.augmentation import gaussian_blur
from dgbench.networks.unet import Decoder, Norm, one_channel, resize
from dgbench.settings import Range
from dgbench.task import TaskInfo

SIDE = 512  # of the authors' images
TESTED = (9, 27)
FILTERS = [(2 + i, 5 + 2 * i) for i in range(20)]


@dataclass(frozen=True)
class FreeSDGHparams(ERMHparams):
    """How much rebuilding counts."""

    reconstruction: Annotated[float, Range(0)] = 1.0


@in_float32
def high_pass(image: Tensor, sigma: float, width: float) -> Tensor:
    """(N, C, H, W) in [0, 1] -> (N, C, H, W) in [-1, 1], 0 where it is even. sigma, width: at 512 pixels a side."""
    scale = max(image.shape[2:]) / SIDE
    deviation = torch.full((len(image), 1, 1, 1), sigma * scale, device=image.device)
    x = 2 * image - 1
    return (4 * (x - gaussian_blur(x, deviation, max(1, round((width - 1) / 2 * scale))))).clamp(-1, 1)


class Attention(nn.Module):
    """CBAM (Woo et al., ECCV 2018): (N, C, H, W) -> the same shape, weighed by channel, then by pixel."""

    def __init__(self, channels: int):
        super().__init__()
        hidden = max(1, channels // 16)
        self.squeeze = nn.Conv2d(channels, hidden, 1, bias=False)
        self.excite = nn.Conv2d(hidden, channels, 1, bias=False)
        self.where = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        pooled = (x.mean((2, 3), keepdim=True), x.amax((2, 3), keepdim=True))
        x = x * torch.stack([self.excite(F.relu(self.squeeze(p))) for p in pooled]).sum(0).sigmoid()
        return x * self.where(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()


class TwoDecoders(nn.Module):
    """In place of a network's decoder: rebuilds an image on the way to the logits, (N, 3, *size) kept in `rebuilt`."""

    def __init__(self, channels: Sequence[int], widths: Sequence[int], structures: int, norm: Norm):
        super().__init__()
        self.rebuild = Decoder(channels, widths, 3, norm)
        self.attention = nn.ModuleList(Attention(width) for width in widths)
        self.segment = Decoder((*widths, channels[-1]), widths, structures, norm)
        self.rebuilt = torch.empty(0)

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """The encoder's maps, shallow to deep -> (N, structures, *size)."""
        deepest, *maps = self.rebuild.maps(features)
        self.rebuilt = resize(self.rebuild.head(maps[-1]), size).tanh()
        shown = [look(x) for look, x in zip(self.attention, reversed(maps), strict=True)]
        return self.segment([*shown, deepest], size)


class FreeSDG(ERM):
    """ERM's encoder on high frequencies, with a decoder that rebuilds them below the one that segments."""

    hparams: FreeSDGHparams
    paper = "https://arxiv.org/abs/2307.09005"

    def __init__(self, task: TaskInfo, hparams: FreeSDGHparams):
        super().__init__(task, hparams)
        if hparams.normalise != "zscore":
            raise UsageError("freesdg does not normalise the high frequencies it sees", "leave normalise out")
        widths = [m.out_channels for m in self.net.decoder.narrow]
        structures = len(task.structures)
        self.net.decoder = TwoDecoders(self.net.channels, widths, structures, hparams.norm)
        self.start_average()

    def logits(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, K, H, W), of its high frequencies as tests show them."""
        return self.forward_net(high_pass(one_channel(image), *TESTED).expand_as(image))

    def mixture(self, image: Tensor) -> Tensor:
        """v of the equation: (N, C, H, W) in [0, 1] -> the same shape, in [-1, 1]."""
        first, second = (high_pass(image, *FILTERS[int(i)]) for i in torch.randint(len(FILTERS), (2,)))
        height, width = image.shape[2:]
        (top, bottom), (left, right) = (sorted(torch.randint(side + 1, (2,)).tolist()) for side in (height, width))
        result = first.clone()
        result[:, :, top:bottom, left:right] = second[:, :, top:bottom, left:right]
        return result

    def loss(self, batch: Batch) -> Tensor:
        """The criterion on the mixture, and how far its high frequencies are from being rebuilt: a scalar."""
        gray = one_channel(batch.image)
        loss = self.criterion(self.forward_net(self.mixture(gray).expand_as(batch.image)), batch.mask)
        decoder: Any = self.net.decoder
        rebuilt = decoder.rebuilt.float()
        return loss + self.hparams.reconstruction * F.l1_loss(rebuilt, high_pass(gray, *TESTED).expand_as(rebuilt))
