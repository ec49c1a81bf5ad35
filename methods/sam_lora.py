"""Low-rank changes of queries and values (LoRA) adapt SAM's frozen encoder; its decoder is trained: SAMed.

Zhang, Liu. Customized Segment Anything Model for Medical Image Segmentation. 2023. https://arxiv.org/abs/2304.13785
Family: foundation model.

    q = W_q x + B_q A_q x        v = W_v x + B_v A_v x        in every block; A: rank x C, drawn, B: C x rank, zero
    mask = Decoder(Encoder(x), "no prompt")      one mask of each structure and one of the background, m_0
    P(structure k) = e^m_k / (e^m_k + e^m_0)
    loss = 0.2 cross-entropy + 0.8 Dice loss over the batch

B starts at zero, so the encoder starts as SAM's. There is no scale alpha / rank, as in the authors' code. Trained are
A, B, the prompt encoder (of which "no prompt" alone is used) and the decoder, whose mask head starts at random.
Differs: structures may overlap, so each has a softmax of its own with the background; with one structure it is the
authors' softmax. The loss is taken at the image's resolution instead of a quarter of it; its Dice has no squares and no
term for the background. The input has SAM's colours; theirs is in [0, 1]. The augmentation is all methods'; theirs
flips and rotates. On prostate and fundus the rates and the warm-up are theirs, the batch of 24 is not. A TinyViT, which
is not theirs, is changed in the blocks that have attention. Nothing is frozen on a backbone that is trained from
scratch.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import Tensor, nn

from dgbench.methods import _blocks
from dgbench.methods._samed import SAMedHparams, SAMedMethod
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class SAMLoRAHparams(SAMedHparams):
    """The rank of the changes, and the schedule of SAMed."""

    rank: Annotated[int, Range(1)] = 4  # of the changes


class LoRALinear(nn.Linear):
    """The projection to queries, keys and values that it is given, plus low-rank changes of queries and values.

    parts: in how many parts its output lies, each of which has all three.
    """

    def __init__(self, qkv: nn.Linear, rank: int, parts: int):
        super().__init__(qkv.in_features, qkv.out_features)
        self.weight, self.bias, self.parts = qkv.weight, qkv.bias, parts
        self.lora_a_q, self.lora_a_v = (nn.Linear(qkv.in_features, rank, bias=False) for _ in "qv")
        self.lora_b_q, self.lora_b_v = (nn.Linear(rank, qkv.out_features // 3, bias=False) for _ in "qv")
        for change in (self.lora_b_q, self.lora_b_v):
            nn.init.zeros_(change.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., 3 C'): queries, keys and values, in `parts`."""
        qkv = super().forward(x)
        return _blocks.change(qkv, self.lora_b_q(self.lora_a_q(x)), self.lora_b_v(self.lora_a_v(x)), self.parts)


class SAMLoRA(SAMedMethod):
    """SAM with low-rank changes of the queries and values in its encoder's attention (SAMed)."""

    hparams: SAMLoRAHparams
    paper = "https://arxiv.org/abs/2304.13785"
    added = ("image_encoder.*.lora_*",)
    per_task: ClassVar[dict[str, dict[str, Any]]] = {
        task: {"learning_rate": 5e-3, "weight_decay": 0.1, "warmup": 250} for task in ("prostate", "fundus")
    }

    def __init__(self, task: TaskInfo, hparams: SAMLoRAHparams):
        super().__init__(task, hparams)
        for block in _blocks.blocks(self.image_encoder):
            block.attn.qkv = LoRALinear(block.attn.qkv, hparams.rank, _blocks.heads_apart(block))
