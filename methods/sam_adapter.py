"""Medical SAM Adapter: small bottlenecks after the attention and beside the MLP of each block of a frozen SAM.

Wu et al. Medical SAM Adapter: Adapting Segment Anything Model for Medical Image Segmentation. Medical Image Analysis,
2025. https://arxiv.org/abs/2304.12620
Family: foundation model.

    A(x) = W_2 gelu(W_1 x + b_1) + b_2               W_1: C / 4 x C, one A and one A' for each block
    x   <- x + Attention(x) + A(Attention(x))
    x   <- x + MLP(h) + A'(h) / 2                    h = LayerNorm(x)
    mask = Decoder(Encoder(x), "no prompt")          structure k is read from mask token k

Trained are the adapters and the decoder: the authors' code encodes prompts without a gradient. The adapters start as
torch draws them, as the authors', so that the encoder is disturbed from the first step on. `zero_init` starts W_2 and
b_2 at zero, hence from SAM's own encoder: that differs from the paper.
Differs: 2-D only. No prompts: the authors click into the reference, here nothing tells where the structure lies. The
loss is all methods' instead of a cross-entropy that counts the inside twice; polynomial decay with AdamW instead of
Adam with steps. The authors' code normalises tokens after it fills the windows at the border, here, as in SAM, before;
it also names the relative positions otherwise than SAM's checkpoints and so does not load them: here they are loaded.
In a TinyViT, which is not theirs, A follows the attention of each block that has one, and A' stands beside its MLP,
behind its convolution. Nothing is frozen on a backbone that is trained from scratch.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.methods import _blocks
from dgbench.methods._sam import SAMHparams, SAMMethod
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class SAMAdapterHparams(SAMHparams):
    """The bottlenecks' width, and what of SAM is trained beside them."""

    reduction: Annotated[int, Range(1)] = 4  # of the adapters' hidden width
    mlp_scale: Annotated[float, Range(0)] = 0.5  # of the adapter beside the MLP
    zero_init: bool = False  # start as SAM's own encoder; not the paper's


class Adapter(nn.Module):
    """A bottleneck with a residual: (..., C) -> (..., C); it adds nothing at the start."""

    def __init__(self, width: int, reduction: int, zero_init: bool):
        super().__init__()
        self.D_fc1 = nn.Linear(width, width // reduction)
        self.D_fc2 = nn.Linear(width // reduction, width)
        if zero_init:
            nn.init.zeros_(self.D_fc2.weight)
            nn.init.zeros_(self.D_fc2.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> what is added to them, (..., C)."""
        return self.D_fc2(F.gelu(self.D_fc1(x)))


class SAMAdapter(SAMMethod):
    """SAM with bottlenecks in every block of its encoder (Medical SAM Adapter)."""

    hparams: SAMAdapterHparams
    paper = "https://arxiv.org/abs/2304.12620"
    trained = ("mask_decoder.*",)
    added = ("image_encoder.*_adapter.*",)
    per_task: ClassVar[dict[str, dict[str, Any]]] = {
        task: {"learning_rate": 1e-4, "weight_decay": 0.0} for task in ("prostate", "fundus")
    }

    def __init__(self, task: TaskInfo, hparams: SAMAdapterHparams):
        super().__init__(task, hparams)
        for block in _blocks.blocks(self.image_encoder):
            settings = _blocks.width(block), hparams.reduction, hparams.zero_init
            block.space_adapter, block.mlp_adapter = Adapter(*settings), Adapter(*settings)

    def encode(self, x: Tensor) -> Tensor:
        """Normalised image (N, 3, S, S) -> (N, C, S / patch, S / patch)."""
        return _blocks.embedding(self.image_encoder, x, self.through)

    def through(self, block: Any, x: Tensor) -> Tensor:
        """Tokens (N, H, W, C) through one block and its adapters."""
        attended = block.attend(x)
        x = _blocks.mix(block, _blocks.skip(block, x) + attended + block.space_adapter(attended))
        h = _blocks.normed(block, x)
        return x + _blocks.mlp(block, h) + self.hparams.mlp_scale * block.mlp_adapter(h)
