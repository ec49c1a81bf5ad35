"""MedSAM prompted with the whole image as its box, or, as an oracle, with the box of the reference mask.

Ma et al. Segment Anything in Medical Images. Nature Communications 2024. https://arxiv.org/abs/2304.12306
Code: https://github.com/bowang-lab/MedSAM
Family: foundation model.

    box=image        mask k = Decoder(Encoder(x), box (0, 0, S - 1, S - 1))         nobody draws anything
    box=reference    mask k = Decoder(Encoder(x), box of reference k)               an oracle, never ranked with others

SAM with weights of MedSAM ("medsam_vit_b", or "lite_medsam", which is small enough for a CPU), or SAM 2 with those of
MedSAM2 ("medsam2": Ma et al., 2025, https://arxiv.org/abs/2504.03600). A box of the reference is moved outwards by up
to `jitter` on each side, theirs 20 of 1024 pixels. Nothing pretrained is trained unless `fine_tune`: then encoder and
decoder are, and the prompt encoder is not, as MedSAM itself was trained from SAM; their learning rate and weight decay
are the defaults on prostate and fundus.

A whole image does not say which structure is meant: without training all structures get the one answer of SAM's token
for a clear prompt. With training, structure k is read from mask token k.
Differs: the loss is the mean of cross-entropy and Dice loss, theirs their sum with squares in Dice's denominator; an
oracle's predicted IoU is trained, too; logits are resized before the sigmoid, not after it; the image is resized by
the engine. Trap: each was trained at one size (MedSAM 1024, LiteMedSAM 256, MedSAM2 512); others are less good.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from dgbench.method import Batch
from dgbench.methods._prompts import PromptedHparams
from dgbench.methods.sam_box import SAMBox
from dgbench.networks import sam
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class MedSAMHparams(PromptedHparams):
    """Which box prompts it: the whole image, or (an oracle) the target's reference mask."""

    box: Literal["image", "reference"] = "image"
    jitter: Annotated[float, Range(0, 1)] = 20 / 1024  # of a box of the reference, in sides of the image
    fine_tune: bool = False  # train encoder and decoder though they were pretrained


class MedSAM(SAMBox):
    """MedSAM as released, prompted by one box for each structure."""

    hparams: MedSAMHparams
    paper = "https://arxiv.org/abs/2304.12306"
    pretrained = "MedSAM by --set backbone"
    uses_target_masks = False
    per_task: ClassVar[dict[str, dict[str, Any]]] = {
        task: {"backbone": "medsam_vit_b", "image_size": 1024, "learning_rate": 1e-4, "weight_decay": 0.01}
        for task in ("prostate", "fundus")
    }

    def __init__(self, task: TaskInfo, hparams: MedSAMHparams):
        super().__init__(task, hparams)
        self.uses_target_masks = hparams.box == "reference"
        self.token_of_structure = hparams.fine_tune or self.backbone.weights is None

    @property
    def mask_tokens(self) -> int:
        """SAM's four, or as many as there are structures, prompted with the image."""
        if self.hparams.box == "reference":
            return sam.RELEASE_MASKS
        return max(sam.RELEASE_MASKS, len(self.task.structures))

    def freeze(self) -> None:
        """Trains nothing, or by `fine_tune` all but the prompt encoder."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad = self.hparams.fine_tune and not name.startswith("prompt_encoder.")

    def low_res_logits(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> (N, K, 4 S / patch, 4 S / patch), prompted with the whole image."""
        structures, last = len(self.task.structures), self.image_size - 1.0
        box = torch.tensor([[0.0, 0.0, last, last]], device=image.device).expand(len(image), -1)
        sparse, dense = self.prompt_encoder(points=None, boxes=box, masks=None)
        logits, iou = self.decode(self.embed(image), dense, sparse)
        if self.token_of_structure:
            return logits[:, :structures]
        return self.settled(logits, iou)[0][:, self.tokens].expand(-1, structures, -1, -1)

    def loss(self, batch: Batch) -> Tensor:
        """An oracle's, or the criterion of the whole image's answer."""
        return super().loss(batch) if self.uses_target_masks else self.criterion(self.logits(batch.image), batch.mask)
