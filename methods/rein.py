"""Rein: a few learned tokens correct what leaves each block of a frozen DINO, so that it is neither left nor lost.

Wei et al. Stronger, Fewer, & Superior: Harnessing Vision Foundation Models for Domain Generalized Semantic
Segmentation. CVPR 2024. https://arxiv.org/abs/2312.04265
Family: foundation model.

    T_l  = A_l B_l                                        m learned tokens behind block l; A_l: m x r, B_l: r x C
    S    = softmax(F T_l^T / sqrt(C))                     F: patch tokens as they leave block l, n x C
    D    = S[:, 1:] (T_l[1:] W_t + b_t)                   the first token absorbs attention and adds nothing
    F   <- F + s ((D + F) W_d + b_d)                      W_t, W_d, s: the same behind all blocks; s = 0.001 at first
    mask = Head[f_1, f_2, f_3, f_4]                       of `dino`

Trained are A, B, W, b, s and the head; class and register tokens are not corrected. At the start the encoder is nearly
DINO's own: each correction is a thousandth of a linear map of F. A and B start uniform within sqrt(6 / (3 p^2 +
sqrt(C r))), p the patch. No weight decay on A, B, s and norms.
Differs: their masks come from Mask2Former, whose queries are made of the tokens, too: here the head is `dino`'s, and
the tokens act on features only. Colours, sizes and augmentation are `dino`'s; their encoders are large ones.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch

from dgbench.methods._rein import Reins, attach, spare_decay
from dgbench.methods.dino import Dino, DinoHparams
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class ReinHparams(DinoHparams):
    """The paper's optimizer, and how many tokens of which rank."""

    learning_rate: float = 1e-4
    weight_decay: float = 0.05
    tokens: Annotated[int, Range(2)] = 100  # behind each block
    rank: Annotated[int, Range(1)] = 16  # of these tokens


class Rein(Dino):
    """A frozen ViT of DINOv2 or DINOv3 whose blocks' outputs are corrected by learned tokens."""

    hparams: ReinHparams
    paper = "https://arxiv.org/abs/2312.04265"
    added = ("head.", "reins.")
    per_task: ClassVar[dict[str, dict[str, Any]]] = {
        "phantom": {"learning_rate": 1e-3},  # from scratch, where all is trained
        "check": {"tokens": 8, "rank": 4, "learning_rate": 1e-3},
    }

    def __init__(self, task: TaskInfo, hparams: ReinHparams):
        super().__init__(task, hparams)
        vit = self.encoder.vit
        self.reins = Reins(len(vit.blocks), vit.embed_dim, hparams.tokens, hparams.rank, self.encoder.patch)
        attach(vit.blocks, self.reins, before=vit.num_prefix_tokens)

    def configure(self) -> torch.optim.Optimizer:
        """As `dino`'s, without decay of tokens, scale and norms."""
        return spare_decay(super().configure(), self)
