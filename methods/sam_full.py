"""All of SAM trained, without prompts: what fine-tuning with fewer parameters has to beat.

Kirillov et al. Segment Anything. ICCV 2023. https://arxiv.org/abs/2304.02643
Family: foundation model.

    mask = Decoder(Encoder(x), "no prompt")          loss = (BCE + Dice loss) / 2, averaged over structures

Structure k is read from mask token k of the stock decoder. Of the prompt encoder only "no prompt" is used, the rest
keeps its weights. `checkpointing` recomputes each block of the encoder in the backward pass: less memory for more time,
same gradients.
"""

from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dgbench.errors import UsageError
from dgbench.methods import _blocks
from dgbench.methods._sam import SAMHparams, SAMMethod
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class SAMFullHparams(SAMHparams):
    """Whether the encoder's blocks are computed again in the backward pass, for less memory."""

    checkpointing: bool = False  # forget what happens inside the encoder's blocks until the backward pass


class SAMFull(SAMMethod):
    """SAM with all of it trained."""

    hparams: SAMFullHparams
    paper = "https://arxiv.org/abs/2304.02643"
    trained = ("*",)

    def __init__(self, task: TaskInfo, hparams: SAMFullHparams):
        super().__init__(task, hparams)
        if hparams.checkpointing and not self.backbone.depth:
            raise UsageError(
                f"backbone '{hparams.backbone}' is not checkpointed: it is small already",
                "leave checkpointing as it is, or choose vit_b, vit_l or vit_h",
            )

    def encode(self, x: Tensor) -> Tensor:
        """The image embedding (N, C, h, w), block by block where memory is to be saved."""
        if not (self.hparams.checkpointing and self.training):
            return self.image_encoder(x)
        return _blocks.embedding(self.image_encoder, x, partial(checkpoint, use_reentrant=False))
