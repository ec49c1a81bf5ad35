"""DAPSAM's low-level prompt, one for each stage of an encoder, and the adapters that it reaches the blocks by."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def gate(x: Tensor, over: tuple[int, int] = (1, 2)) -> Tensor:
    """(N, H, W, C) -> (N, H, W, C), weighed by its mean and maximum `over` two axes: those of the image, (H, W)."""
    return x * (x.mean(over, keepdim=True) + x.amax(over, keepdim=True)).sigmoid()


class ChannelAdapter(nn.Module):
    """Bottleneck beside a block's MLP."""

    def __init__(self, width: int, reduction: int):
        super().__init__()
        self.D_fc1 = nn.Linear(width, width // reduction)
        self.D_fc2 = nn.Linear(width // reduction, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, H, W, C) -> what is added to them, of that shape."""
        return self.D_fc2(F.gelu(self.D_fc1(gate(x))))


class LowLevelAdapter(nn.Module):
    """The low-level prompt e of each stage, and one bottleneck before each of its blocks.

    low: channels of the embedded patches. stages: of each, the channels and how many of its blocks get a bottleneck.
    """

    def __init__(self, low: int, stages: Sequence[tuple[int, int]], reduction: int, layout: str):
        super().__init__()
        self.layout = layout
        for s, (width, _) in enumerate(stages):
            self.add_module(self.generator(s), nn.Linear(low, width))
        for i, width in enumerate(width for width, depth in stages for _ in range(depth)):
            hidden = width // reduction
            bottleneck = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
            self.add_module(f"lightweight_mlp_{i}", bottleneck)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @staticmethod
    def generator(stage: int) -> str:
        """The name of the projection to a stage's e; the only one of a plain ViT has the authors'."""
        return f"embedding_generator_{stage}" if stage else "embedding_generator"

    def low_level(self, f: Tensor, grid: tuple[int, int], stage: int) -> Tensor:
        """Embedded patches (N, H, W, C) -> e of a stage, on its grid (h, w) and of its width."""
        if f.shape[1:3] != grid:
            f = F.adaptive_avg_pool2d(f.permute(0, 3, 1, 2), grid).permute(0, 2, 3, 1)
        n, height, width, c = f.shape
        if self.layout == "authors":
            f = f.reshape(n, c, height * width).mT.reshape(n, height, width, c)
        return self.get_submodule(self.generator(stage))(f)

    def forward(self, x: Tensor, e: Tensor, i: int) -> Tensor:
        """Tokens and e, (N, H, W, C) both -> what is added before block `i`."""
        over = (1, 3) if self.layout == "authors" else (1, 2)
        return self.get_submodule(f"lightweight_mlp_{i}")(gate(0.5 * x + e, over))
