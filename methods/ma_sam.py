"""MA-SAM: a frozen SAM sees neighbouring slices through 3-D adapters and is changed by factors that its blocks share.

Chen et al. MA-SAM: Modality-agnostic SAM Adaptation for 3D Medical Image Segmentation. Medical Image Analysis, 2024.
https://arxiv.org/abs/2309.08842. The factors: Jie, Deng. FacT. AAAI 2023. https://arxiv.org/abs/2212.03145
Family: foundation model.

    q = W_q x + V drop(S_q U x)      v = W_v x + V drop(S_v U x)      U, V: of all blocks; S: rank x rank, of each
    x <- x + A(x) before the attention, x <- x + A'(x) before the MLP of each block, with
         A(x) = Up gelu(Conv(Down LayerNorm(x)))     Conv: 3 taps along the slices, at every position of the image
    mask = Decoder(Encoder(2n + 1 slices), "no prompt")      a mask of the background and one of each structure
    loss = 0.2 cross-entropy + 0.8 Dice loss over the batch, as SAMed's

The image is a stack: a slice amid its n `neighbours` on each side, each with three channels and normalised by itself.
Where a volume ends its last slice is repeated, and a photograph is its own neighbour. The decoder gets transposed
convolutions until its masks have the image's resolution. V starts at zero, the adapters as torch draws them. Trained
are factors, adapters, the prompt encoder (of which "no prompt" alone is used) and the decoder, whose mask head is new.
Differs: the slice in the middle alone is decoded and learned; the authors learn all five masks, and in testing add up
what a slice is given in each stack that holds it. They use ViT-H and a batch of 24: here, on prostate and fundus, ViT-B
and the common batch, see `backbone` and `batch_size`. The adapters are half as wide as the backbone: 384 channels in
ViT-B, which is the authors' number for every backbone. The input has SAM's colours; theirs is stretched to [0, 1] in
each stack. The augmentation is all methods'. For structures that overlap, and for the loss, see SAMed (sam_lora).
In a TinyViT, which is not theirs, the blocks of a stage share U and V, A works on the grid of each stage, and A' stands
between a block's convolution and its MLP; the convolutions before the first attention see each slice alone. Trap: an
idea put over it (ma_sam+randconv) takes the slices for colours and may mix them. From scratch nothing is frozen.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.errors import UsageError
from dgbench.methods import _blocks
from dgbench.methods._samed import SAMedHparams, SAMedMethod
from dgbench.networks import sam
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class MASAMHparams(SAMedHparams):
    """How many neighbouring slices are seen, and the adapters' widths."""

    neighbours: Annotated[int, Range(0)] = 2  # slices seen before and after each; 0: a slice alone
    rank: Annotated[int, Range(1)] = 32  # of the factors
    dropout: Annotated[float, Range(0, 1)] = 0.1  # between the factors
    adapter_width: Annotated[int | None, Range(1)] = None  # channels inside the adapters; None: half the backbone's


class FacTLinear(nn.Linear):
    """The projection to queries, keys and values that it is given, plus changes of queries and values: V S U x.

    parts: in how many parts its output lies, each of which has all three.
    """

    def __init__(self, qkv: nn.Linear, u: nn.Linear, v: nn.Linear, dropout: float, parts: int):
        super().__init__(qkv.in_features, qkv.out_features)
        self.weight, self.bias = qkv.weight, qkv.bias
        self.shared = (u, v)  # in a tuple, which does not make them this block's own
        self.fact_q, self.fact_v = (nn.Linear(u.out_features, u.out_features, bias=False) for _ in "qv")
        self.dropout, self.parts = dropout, parts

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., 3 C): queries, keys and values, in `parts`."""
        u, v = self.shared
        qkv, inner = super().forward(x), u(x)
        change_q, change_v = (v(F.dropout(s(inner), self.dropout, self.training)) for s in (self.fact_q, self.fact_v))
        return _blocks.change(qkv, change_q, change_v, self.parts)


class SliceAdapter(nn.Module):
    """What the slices of a stack tell one another: (N D, H, W, C) -> the same, for N stacks of D slices."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.down = nn.Linear(width, hidden, bias=False)
        self.conv = nn.Conv3d(hidden, hidden, (3, 1, 1), padding=(1, 0, 0))
        self.up = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, depth: int) -> Tensor:
        """What is added to tokens (N D, H, W, C), of that shape; depth: D."""
        stacks = self.down(self.norm(x)).unflatten(0, (-1, depth)).permute(0, 4, 1, 2, 3)
        return self.up(F.gelu(self.conv(stacks)).permute(0, 2, 3, 4, 1).flatten(0, 1))


def refine(decoder: Any, factor: int) -> None:
    """Make a decoder's masks `factor`, a power of two, times as fine by further transposed convolutions."""
    *layers, activation = decoder.output_upscaling
    norm, channels = type(layers[1]), layers[-1].out_channels
    for _ in range(factor.bit_length() - 1):
        layers += [norm(channels), type(activation)(), nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)]
        channels //= 2
    decoder.output_upscaling = nn.Sequential(*layers, activation)
    for network in decoder.output_hypernetworks_mlps:
        network.layers[-1] = nn.Linear(network.layers[-1].in_features, channels)


class MASAM(SAMedMethod):
    """SAM with adapters that convolve over neighbouring slices: image (N, 3 (2n + 1), H, W)."""

    hparams: MASAMHparams
    paper = "https://arxiv.org/abs/2309.08842"
    takes_sam2 = False
    of_encoder = tuple(f"image_encoder.*{part}*" for part in ("shared_", ".fact_", "_adapter."))
    added = (*of_encoder, "mask_decoder.output_upscaling.[4-9].*")
    per_task: ClassVar[dict[str, dict[str, Any]]] = {
        task: {"learning_rate": 8e-4, "weight_decay": 0.1, "warmup": 250, "horizon": 4 / 3, "decay": 7.0}
        for task in ("prostate", "fundus")
    }

    def __init__(self, task: TaskInfo, hparams: MASAMHparams):
        super().__init__(task, hparams)
        if hparams.neighbours < 0:
            raise UsageError(f"neighbours is {hparams.neighbours}", "0 shows a slice alone, 2 is the paper's")
        self.neighbours = hparams.neighbours
        for stage in _blocks.stages(self.image_encoder):
            self.put_into(stage, hparams)
        refine(self.mask_decoder, self.backbone.patch // 4)

    def put_into(self, stage: _blocks.Stage, hparams: MASAMHparams) -> None:
        """Factors that the blocks of a stage share, those of each block, and its adapters."""
        home, width = stage.module, _blocks.width(stage.blocks[0])
        home.shared_u = nn.Linear(width, hparams.rank, bias=False)
        home.shared_v = nn.Linear(hparams.rank, width, bias=False)
        nn.init.zeros_(home.shared_v.weight)
        for block in stage.blocks:
            parts = _blocks.heads_apart(block)
            block.attn.qkv = FacTLinear(block.attn.qkv, home.shared_u, home.shared_v, hparams.dropout, parts)
            sizes = width, hparams.adapter_width or width // 2
            block.first_adapter, block.second_adapter = SliceAdapter(*sizes), SliceAdapter(*sizes)

    def embed(self, image: Tensor) -> Tensor:
        """(N, 3 (2n + 1), S, S) in [0, 1] -> (N, C, S / patch, S / patch), of the slice in the middle."""
        slices = image.unflatten(1, (-1, 3)).flatten(0, 1)
        return self.encode(sam.normalise_for(self.backbone, slices))

    def encode(self, x: Tensor) -> Tensor:
        """Stacks (N D, 3, S, S), normalised -> (N, C, S / patch, S / patch) of the middle slices."""
        depth = 2 * self.neighbours + 1
        x = _blocks.tokens(self.image_encoder, x, self.through)
        middle = x[self.neighbours :: depth]
        return self.image_encoder.neck(middle.permute(0, 3, 1, 2))

    def through(self, block: Any, x: Tensor) -> Tensor:
        """Tokens (N D, H, W, C) through one block and its adapters."""
        depth = 2 * self.neighbours + 1
        x = x + block.first_adapter(x, depth)
        x = _blocks.mix(block, x + block.attend(x))
        x = x + block.second_adapter(x, depth)
        return x + _blocks.mlp(block, _blocks.normed(block, x))
