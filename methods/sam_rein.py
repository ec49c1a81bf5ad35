"""Rein on SAM: learned tokens correct what leaves each block of SAM's frozen encoder; its decoder is trained.

Wei et al. Stronger, Fewer, & Superior: Harnessing Vision Foundation Models for Domain Generalized Semantic
Segmentation. CVPR 2024. https://arxiv.org/abs/2312.04265 (of DINOv2, CLIP and others; on SAM's own decoder it is ours)
Family: foundation model.

    T_l  = A_l B_l                                        m learned tokens behind block l; A_l: m x r, B_l: r x C
    S    = softmax(F T_l^T / sqrt(C))                     F: tokens as they leave block l, n x C
    D    = S[:, 1:] (T_l[1:] W_t + b_t)                   the first token absorbs attention and adds nothing
    F   <- F + s ((D + F) W_d + b_d)                      W_t, W_d, s: the same behind all blocks; s = 0.001 at first
    mask = Decoder(F, "no prompt")                        structure k is read from mask token k

Trained are A, B, W, b, s and the mask decoder, without weight decay on A, B, s and norms. At the start the encoder is
nearly SAM's own. Differs from the paper: SAM's decoder in the place of Mask2Former, whose queries are made of the
tokens, too. The stages of a TinyViT or a Hiera (SAM 2) differ in width: each has its own W_t, W_d and s. Nothing is
frozen on a backbone that is trained from scratch.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import nn

from dgbench.methods import _blocks
from dgbench.methods._rein import Reins, attach, spare_decay
from dgbench.methods._sam import SAMHparams, SAMMethod
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class SAMReinHparams(SAMHparams):
    """How many tokens of which rank; the weight decay is the paper's."""

    weight_decay: float = 0.05
    tokens: Annotated[int, Range(2)] = 100  # behind each block
    rank: Annotated[int, Range(1)] = 16  # of these tokens


class SAMRein(SAMMethod):
    """SAM whose encoder's blocks are corrected by learned tokens."""

    hparams: SAMReinHparams
    paper = "https://arxiv.org/abs/2312.04265"
    trained = ("mask_decoder.*",)
    added = ("image_encoder.reins.*",)
    per_task: ClassVar[dict[str, dict[str, Any]]] = {
        "prostate": {"learning_rate": 1e-4},
        "fundus": {"learning_rate": 1e-4},
        "check": {"tokens": 8, "rank": 4},
    }

    def __init__(self, task: TaskInfo, hparams: SAMReinHparams):
        super().__init__(task, hparams)
        self.image_encoder.reins = nn.ModuleList()
        for stage in _blocks.stages(self.image_encoder):
            width, h = _blocks.width(stage.blocks[0]), hparams
            self.image_encoder.reins.append(Reins(len(stage.blocks), width, h.tokens, h.rank, self.backbone.patch))
            attach(stage.blocks, self.image_encoder.reins[-1])

    def configure(self) -> torch.optim.Optimizer:
        """AdamW without decay of tokens, scale and norms."""
        optimizer = super().configure()
        assert isinstance(optimizer, torch.optim.Optimizer)
        return spare_decay(optimizer, self)
