"""Prompts drawn from masks, and a SAM that is given them: what the oracles of the SAM family share."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.method import Batch
from dgbench.methods._sam import SAMHparams, SAMMethod
from dgbench.networks import sam, sam2
from dgbench.networks.unet import resize
from dgbench.settings import Range


def boxes(mask: Tensor) -> Tensor:
    """Tight boxes (M, 4) around masks (M, H, W), none empty: x, y of the first and x, y of the last pixel inside."""
    ends = []
    for inside in (mask.amax(1) > 0, mask.amax(2) > 0):  # over the rows: x; over the columns: y
        position = torch.arange(inside.shape[1], device=mask.device).expand_as(inside)
        ends += [position.masked_fill(~inside, inside.shape[1]).amin(1), position.masked_fill(~inside, -1).amax(1)]
    return torch.stack([ends[0], ends[2], ends[1], ends[3]], 1).float()


def centres(mask: Tensor) -> Tensor:
    """(M, 2): x, y of the pixel inside each mask (M, H, W), none empty, that lies nearest to its centroid."""
    y, x = (torch.arange(side, device=mask.device, dtype=torch.float) for side in mask.shape[1:])
    area = mask.sum((1, 2))
    centroid_y, centroid_x = (mask.sum(2) * y).sum(1) / area, (mask.sum(1) * x).sum(1) / area
    away = (y[:, None] - centroid_y[:, None, None]) ** 2 + (x - centroid_x[:, None, None]) ** 2
    nearest = away.masked_fill(mask <= 0, torch.inf).flatten(1).argmin(1)
    return torch.stack([nearest % len(x), nearest // len(x)], 1).float()


def answer_loss(criterion: Callable[[Tensor, Tensor], Tensor], logits: Tensor, iou: Tensor, mask: Tensor) -> Tensor:
    """Loss of SAM's answers (M, T, S, S), with predicted IoU (M, T), to prompts for masks (M, S, S): a scalar.

    Of the T answers to a prompt only the one nearest to the mask is trained: by `criterion`, and its IoU.
    """
    mask, inside = mask[:, None], logits.detach() > 0
    true_iou = (inside * mask).sum((2, 3)) / (inside + mask).clamp(max=1).sum((2, 3)).clamp(min=1)
    rows, best = torch.arange(len(iou)), true_iou.argmax(1)
    return criterion(logits[rows, best][:, None], mask) + F.mse_loss(iou[rows, best], true_iou[rows, best])


@dataclass(frozen=True)
class PromptedHparams(SAMHparams):
    """Settings of SAM prompted from a mask."""

    jitter: Annotated[float, Range(0, 1)] = 0.0  # how far prompts are moved at random at most, in sides of the image


class PromptedSAM(SAMMethod):
    """SAM as released, prompted from the reference mask: an oracle. A structure that is not there gets no prompt.

    Nothing of a pretrained SAM is trained, and its training ends after one step. On a backbone that is trained from
    scratch, all of it learns to answer such prompts on the source: the answer nearest to the mask is trained, and its
    predicted IoU.
    """

    hparams: PromptedHparams
    uses_target_masks = True
    per_task: ClassVar[dict[str, dict[str, Any]]] = {  # SAM's own size: nothing adapts it to another
        "prostate": {"image_size": 1024},
        "fundus": {"image_size": 1024},
    }
    tokens: ClassVar[slice]  # the mask tokens that answer; of several the one of largest predicted IoU is taken

    @property
    def mask_tokens(self) -> int:
        """SAM's four."""
        return sam.RELEASE_MASKS  # each structure is a prompt of its own

    def load_pretrained(self) -> dict[str, str]:
        """As the family's; one step is enough where nothing is left to train."""
        files = super().load_pretrained()
        if files and not any(p.requires_grad for p in self.parameters()):
            self.steps = 1
        return files

    def prompt(self, mask: Tensor, draw: Tensor) -> Tensor:
        """Sparse prompts (M, P, C) of masks (M, H, W), none empty, displaced by `draw` (M, 4) in [0, 1)."""
        raise NotImplementedError(f"{type(self).__name__} must write prompt(mask, draw)")

    def draws(self, mask: Tensor) -> Tensor:
        """(M, 4) in [0, 1). In testing a function of the seed and of each mask alone, whatever it is tested with."""
        if self.training:
            return torch.rand(len(mask), 4, device=mask.device)
        seeds = [torch.initial_seed() ^ zlib.crc32(m.cpu().contiguous().numpy().data) for m in mask]
        return torch.stack([torch.rand(4, generator=torch.Generator().manual_seed(s)) for s in seeds]).to(mask.device)

    def settled(self, logits: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
        """Answers (M, 4, h, w) and predicted IoU (M, 4); SAM 2 exchanges an unstable first one in testing."""
        return sam2.settled(logits, iou) if self.backbone.stages and not self.training else (logits, iou)

    def answers(self, image: Tensor, mask: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (M, T, S, S) and predicted IoU (M, T) of the M present ones of the N x K structures."""
        structures = mask.shape[1]
        embedding = self.embed(image).repeat_interleave(structures, 0)[present]
        asked = mask.flatten(0, 1)[present]
        logits, iou = self.settled(*self.decode(embedding, self.no_prompt(), self.prompt(asked, self.draws(asked))))
        return resize(logits[:, self.tokens], image.shape[-2:]), iou[:, self.tokens]

    def predict_prompted(self, image: Tensor, mask: Tensor) -> Tensor:
        """(N, 3, S, S) and masks (N, K, S, S) -> (N, K, S, S) probabilities; 0 for an empty mask."""
        present = mask.flatten(0, 1).amax((1, 2)) > 0
        probability = torch.zeros_like(mask).flatten(0, 1)
        if present.any():
            logits, iou = self.answers(image, mask, present)
            probability[present] = logits[torch.arange(len(iou)), iou.argmax(1)].float().sigmoid()
        return probability.view_as(mask)

    def loss(self, batch: Batch) -> Tensor:
        """The mean over the structures that are there of `answer_loss`; 0 where none is."""
        present = batch.mask.flatten(0, 1).amax((1, 2)) > 0
        if not present.any():
            return 0 * sum(p.sum() for p in self.parameters())  # nothing to ask for in this batch
        logits, iou = self.answers(batch.image, batch.mask, present)
        return answer_loss(self.criterion, logits, iou, batch.mask.flatten(0, 1)[present])

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """A step; where nothing is trained, the loss of the batch's first image and no step."""
        if any(p.requires_grad for p in self.parameters()):
            return super().update(batch)
        with torch.no_grad():  # nothing to learn: the loss of one image says whether prompts are answered at all
            return {"loss": self.loss(Batch(batch.image[:1], batch.mask[:1]))}
