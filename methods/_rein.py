"""Rein's corrections: what learned tokens make of the patch tokens that leave the blocks of a frozen encoder."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class Reins(nn.Module):
    """Corrections behind `layers` blocks of one width C, (..., C) -> (..., C); see `rein` for the equations.

    tokens: learned for each block, of which the first only absorbs attention. rank: of these tokens. patch: side of the
    encoder's patches in pixels, which sets the range that the tokens are drawn from.
    """

    def __init__(self, layers: int, width: int, tokens: int, rank: int, patch: int):
        super().__init__()
        bound = (6 / (3 * patch**2 + (width * rank) ** 0.5)) ** 0.5
        self.a = nn.Parameter(torch.empty(layers, tokens, rank).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(layers, rank, width).uniform_(-bound, bound))
        self.scale = nn.Parameter(torch.tensor(0.001))
        self.from_tokens, self.to_correction = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, f: Tensor, layer: int) -> Tensor:
        """Patch tokens (..., C) as they leave a block -> corrected ones."""
        t = self.a[layer] @ self.b[layer]
        attention = (f @ t.mT / f.shape[-1] ** 0.5).softmax(-1)
        return f + self.scale * self.to_correction(attention[..., 1:] @ self.from_tokens(t[1:]) + f)


def attach(blocks: Sequence[Any], reins: Reins, before: int = 0) -> None:
    """Put corrections behind each block; `before` so many tokens (N, n, C), of no patch, lie first and stay."""
    for layer, block in enumerate(blocks):
        block.register_forward_hook(partial(_correct, reins, layer, before))


def _correct(reins: Reins, layer: int, before: int, block: nn.Module, inputs: Any, x: Tensor) -> Tensor:
    if not before:
        return reins(x, layer)
    return torch.cat((x[:, :before], reins(x[:, before:], layer)), 1)


def spare_decay(optimizer: torch.optim.Optimizer, method: nn.Module) -> torch.optim.AdamW:
    """The same with no weight decay on learned tokens, their scale and norms."""
    modules = [m for m in method.modules() if isinstance(m, Reins) or "Norm" in type(m).__name__]
    spared = {p for m in modules for p in m.parameters(recurse=False)}
    groups = []
    for group in optimizer.param_groups:
        kept = [p for p in group["params"] if p in spared]
        groups += [group | {"params": [p for p in group["params"] if p not in spared]}]
        groups += [group | {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]])
