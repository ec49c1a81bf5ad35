"""DeSAM's decoder, and the choice among the masks that a grid of points gives."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.methods._grid import nms, stability
from dgbench.methods._prompts import boxes
from dgbench.methods._regions import without_small_regions


def prim(decoder: Any, embedding: Tensor, position: Tensor, dense: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
    """Prompt-relevant IoU module: SAM's decoder up to its transformer, without its way to masks.

    embedding: (N, C, h, w), image i for prompt i. position: (C, h, w). dense: (N or 1, C, h or 1, w or 1).
    sparse: (N, P, C). Gives the mask embedding (N, C, h, w) and the predicted IoU of every mask token (N, M).
    """
    n = len(sparse)
    tokens = torch.cat((decoder.iou_token.weight, decoder.mask_tokens.weight)).expand(n, -1, -1)
    source = (embedding + dense).expand(n, -1, -1, -1)
    out, mixed = decoder.transformer(source, position.expand(n, -1, -1, -1), torch.cat((tokens, sparse), 1))
    return mixed.transpose(1, 2).reshape(source.shape), decoder.iou_prediction_head(out[:, 0])


class ResidualSE(nn.Module):
    """Two convolutions, channels weighed by squeeze and excitation, and a shortcut: (N, inside, H, W) -> outside."""

    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inside, outside, 1, bias=False)  # idle where the width stays, as the authors'
        narrow = max(1, outside // 16)
        self.weigh = nn.Sequential(
            nn.Linear(outside, narrow, bias=False), nn.ReLU(), nn.Linear(narrow, outside, bias=False), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inside, H, W) -> (N, outside, H, W)."""
        out = F.leaky_relu(F.instance_norm(self.conv1(x)), 0.01)
        out = F.instance_norm(self.conv2(out))
        out = out * self.weigh(out.mean((2, 3)))[..., None, None]
        if x.shape[1] != out.shape[1]:
            x = F.instance_norm(self.shortcut(x))
        return F.leaky_relu(out + x, 0.01)


def double(inside: int, outside: int) -> nn.Module:
    """(N, inside, H, W) -> (N, outside, 2H, 2W)"""
    return nn.ConvTranspose2d(inside, outside, 2, 2, bias=False)


class PDMM(nn.Module):
    """Prompt-decoupled mask module: masks from features of the image encoder's blocks and PRIM's mask embedding.

    width: channels of the blocks' features. embedding: of the mask embedding and of the deepest level here; each level
    above has half as many at twice the resolution. levels: how many blocks.
    """

    def __init__(self, width: int, embedding: int, levels: int, structures: int):
        super().__init__()
        widths = [embedding // 2**i for i in range(levels)]
        self.levels = nn.ModuleList()
        for i, w in enumerate(widths):
            enlarge = [layer for _ in range(i) for layer in (double(w, w), ResidualSE(w, w))]
            self.levels.append(nn.Sequential(ResidualSE(width, w), *enlarge))
        self.fuse = ResidualSE(2 * embedding, embedding)
        steps = list(pairwise(widths))
        self.up = nn.ModuleList(double(below, above) for below, above in steps)
        self.merge = nn.ModuleList(ResidualSE(2 * above, above) for _, above in steps)
        # Of the heads the last one answers; the others are the authors' for deep supervision, which they leave off.
        self.heads = nn.ModuleList(nn.Conv2d(w, structures, 1, bias=False) for w in widths[1:])

    def context(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """What no prompt changes, deepest first: blocks (N, width, h, w), shallow to deep -> (N, w_i, h 2^i, w 2^i)."""
        return [level(x) for level, x in zip(self.levels, reversed(blocks), strict=True)]

    def forward(self, mask_embedding: Tensor, context: Sequence[Tensor]) -> Tensor:
        """(N, C, h, w) and a context of N images, or of one -> logits (N, K, h 2^(levels - 1), w 2^(levels - 1))."""
        deepest, *above = (c.expand(len(mask_embedding), -1, -1, -1) for c in context)
        x = self.fuse(torch.cat((mask_embedding, deepest), 1))
        for up, merge, skip in zip(self.up, self.merge, above, strict=True):
            x = merge(torch.cat((up(x), skip), 1))
        return self.heads[-1](x)


def random_points(mask: Tensor) -> Tensor:
    """(N, 2): x, y of a random pixel in each mask (N, H, W) or, by even odds, off it, as far as there is one."""
    inside = torch.rand(len(mask), 1, 1, device=mask.device) < 0.5
    drawn = (torch.rand_like(mask) + ((mask > 0.5) == inside)).flatten(1).argmax(1)
    return torch.stack((drawn % mask.shape[2], drawn // mask.shape[2]), 1)


def tidy(logits: Tensor, smallest: float) -> tuple[Tensor, bool]:
    """Logits (H, W) -> probabilities, 1 in small holes of the mask and 0 in its specks; whether there was any such."""
    mask = logits > 0
    cleaned = without_small_regions(mask, smallest)
    return torch.where(cleaned == mask, logits.sigmoid(), cleaned.float()), not torch.equal(cleaned, mask)


def choose(
    logits: Tensor, iou: Tensor, least_iou: float, least_stability: float, overlap: float, smallest: float
) -> Tensor:
    """Probabilities (H, W) of the best of masks (M, H, W) by their predicted IoU (M,); zeros where none is good enough.

    A mask without small holes and specks goes before all others: these are tidied up.
    """
    good = (iou > least_iou) & (stability(logits, 1.0) >= least_stability)
    logits, iou = logits[good], iou[good]
    first = torch.zeros(logits.shape[1:], device=logits.device)
    for rank, i in enumerate(nms(boxes((logits > 0).float()), iou, overlap).tolist()):
        probability, changed = tidy(logits[i], smallest)
        if not changed:
            return probability
        if rank == 0:
            first = probability
    return first
