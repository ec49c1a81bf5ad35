"""CoSAM (a reading of the paper): SAM guesses without prompts, says where it erred, and prompts itself with that.

Fu, Chen, Ye, Lei, Wang, Xia. CoSAM: Self-Correcting SAM for Domain Generalization in 2D Medical Image Segmentation.
2024. https://arxiv.org/abs/2411.10136 Family: foundation model.

    y0    = M(E(x), no prompt)                         coarse mask; E the frozen encoder, M SAM's mask decoder
    e     = D([E(x), P(flip(y0))])                     error map; D the error decoder, P SAM's mask encoder;
                                                       flip: each pixel by odds alpha, in training only
    y1    = M(E(x), prompts(y0 corrected by e))        T rounds of these: y2 from y1 and the error map of y1, ...
            points: the K of largest error, a box around the largest region, the mask itself
    loss  = L(y0) + L(y1) + 0.1 L(yg) + Le             L: Dice and BCE; yg: prompted from the reference
    Le    = BCE(e, y0 XOR y), errors weighed by log(1 / the part of the pixels that are wrong)

There is no public code; this follows others' accounts of the paper: the steps, the XOR, weights, alpha, K = 64, T = 4.
Ours, where they are silent: the correction flips the sign of logits where an error is likelier than not; labels, box
and mask follow the corrected mask, and no gradient flows back through them; yg gets K random points of either side; D
enlarges twofold twice, two convolutions with instance norm at each size; training takes one round. A round after which
D does not see fewer pixels in error is undone, and is the last; a mask without errors stays as it is. Errors are told
at the size of SAM's logits. L is the mean of Dice and BCE. Structure k has a mask token, an error map and prompts.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.method import Batch
from dgbench.methods._regions import box_of_largest_region
from dgbench.methods._sam import SAMHparams, SAMMethod
from dgbench.networks.unet import convolutions, resize
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class CoSAMHparams(SAMHparams):
    """The rounds of correction, the prompts drawn from a mask, and the losses' weights."""

    augmentation: Literal["base", "none"] = "none"
    rounds: Annotated[int, Range(0)] = 4  # of correction in testing; 0: the coarse mask
    points: Annotated[int, Range(1)] = 64  # that prompt a correction
    alpha: Annotated[float, Range(0, 1)] = 0.2  # odds of a coarse pixel to be flipped before the error decoder sees it
    refined_weight: Annotated[float, Range(0)] = 1.0  # of the loss of the corrected mask
    guided_weight: Annotated[float, Range(0)] = 0.1  # of the loss of the mask that is prompted from the reference
    error_weight: Annotated[float, Range(0)] = 1.0  # of the loss of the error map


class ErrorDecoder(nn.Module):
    """(N, inside, h, w) -> (N, structures, 4h, 4w), logits of being wrong."""

    def __init__(self, inside: int, structures: int):
        super().__init__()
        widths = (inside // 2, inside // 4, inside // 8)
        self.stages = nn.ModuleList(nn.Sequential(*convolutions(*w, "instance")) for w in pairwise((inside, *widths)))
        self.head = nn.Conv2d(widths[-1], structures, 1)

    def forward(self, x: Tensor) -> Tensor:
        for i, stage in enumerate(self.stages):
            x = stage(resize(x, [side * 2 for side in x.shape[-2:]]) if i else x)
        return self.head(x)


class CoSAM(SAMMethod):
    """SAM's frozen encoder; its decoder prompted by its own first mask, corrected by a predicted map of errors."""

    hparams: CoSAMHparams
    paper = "https://arxiv.org/abs/2411.10136"
    trained = ("mask_decoder.*",)
    added = ("error_decoder.*",)
    per_task: ClassVar[dict[str, dict[str, Any]]] = {"prostate": {"learning_rate": 1e-4, "weight_decay": 0.0}}

    def __init__(self, task: TaskInfo, hparams: CoSAMHparams):
        super().__init__(task, hparams)
        self.error_decoder = ErrorDecoder(2 * self.backbone.embedding, len(task.structures))

    def own(self, maps: Tensor) -> Tensor:
        """Of maps (N K, M, h, w) the own one of each row, that is of each structure of each image: (N K, h, w)."""
        rows = torch.arange(len(maps), device=maps.device)
        return maps[rows, rows % len(self.task.structures)]

    def coarse(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, S, S) -> image embedding (N K, C, h, w) of each row, logits (N K, 4h, 4w)."""
        embedding, structures = self.embed(image), len(self.task.structures)
        logits = self.decode(embedding, self.no_prompt())[0][:, :structures]
        return embedding.repeat_interleave(structures, 0), logits.flatten(0, 1).float()

    def error(self, embedding: Tensor, mask: Tensor) -> Tensor:
        """Logits that masks (N K, H, W) in {0, 1} are wrong, for the embedding of each row: (N K, H, W)."""
        seen = self.prompt_encoder(points=None, boxes=None, masks=mask[:, None])[1]
        coarse = embedding[:, : self.backbone.embedding]  # without the finer features of a SAM 2
        return self.own(self.error_decoder(torch.cat((coarse, seen), 1))).float()

    def prompted(self, embedding: Tensor, logits: Tensor, place: Tensor) -> Tensor:
        """Logits of masks prompted from `logits` (N K, H, W): pixels `place` (N K, P), the box, and the mask itself."""
        mask, width = logits > 0, logits.shape[2]
        points = torch.stack((place % width, place // width), 2)
        corners = torch.stack([box_of_largest_region(m) for m in mask])
        points, corners = ((xy + 0.5) * (self.image_size / width) - 0.5 for xy in (points, corners))  # centres
        labels = mask.flatten(1).gather(1, place).float()
        sparse, dense = self.prompt_encoder(points=(points, labels), boxes=corners, masks=logits[:, None])
        return self.own(self.decode(embedding, dense, sparse)[0]).float()

    def corrected(self, embedding: Tensor, logits: Tensor, error: Tensor) -> Tensor:
        """Logits prompted from `logits` after their correction by the error map, logits too; all of N K rows."""
        return self.prompted(embedding, torch.where(error > 0, -logits, logits), self.largest(error))

    def largest(self, x: Tensor) -> Tensor:
        """(M, P): where the P largest values of each (H, W) lie in it when it is flattened."""
        return x.flatten(1).topk(min(self.hparams.points, x[0].numel()), 1).indices

    def low_res_logits(self, image: Tensor) -> Tensor:
        embedding, logits = self.coarse(image)
        error = self.error(embedding, (logits > 0).float())
        wrong = (error > 0).sum((1, 2))
        goes_on = wrong > 0
        for _ in range(self.hparams.rounds):
            refined = self.corrected(embedding, logits, error)
            left = self.error(embedding, (refined > 0).float())
            goes_on = goes_on & ((left > 0).sum((1, 2)) < wrong)
            if not goes_on.any():
                break
            logits, error = (torch.where(goes_on[:, None, None], *pair) for pair in ((refined, logits), (left, error)))
            wrong = (error > 0).sum((1, 2))
        return logits.unflatten(0, (len(image), -1))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Of the coarse, the refined and the guided mask, and of the error map."""
        embedding, coarse = self.coarse(batch.image)
        given = coarse.detach()
        reference = F.interpolate(batch.mask, given.shape[-2:], mode="area").flatten(0, 1) > 0.5
        wrong = (given > 0) ^ reference
        shown = (given > 0) ^ (torch.rand_like(given) < self.hparams.alpha)
        error = self.error(embedding, shown.float())
        masks = {
            "coarse": coarse,
            "refined": self.corrected(embedding, given, error.detach()),
            "guided": self.prompted(embedding, torch.where(wrong, -given, given), self.either_side(reference)),
        }
        shape, size = batch.mask.shape[:2], batch.mask.shape[2:]
        losses = {k: self.criterion(resize(x.unflatten(0, shape), size), batch.mask) for k, x in masks.items()}
        weight = (wrong.numel() / wrong.sum().clamp(min=1)).log()
        return losses | {"error": F.binary_cross_entropy_with_logits(error, wrong.float(), pos_weight=weight)}

    def loss(self, batch: Batch) -> Tensor:
        h, of = self.hparams, self.losses(batch)
        prompted = h.refined_weight * of["refined"] + h.guided_weight * of["guided"]
        return of["coarse"] + prompted + h.error_weight * of["error"]

    def either_side(self, mask: Tensor) -> Tensor:
        """(M, 2P): for each mask (M, H, W) random pixels in it and off it, P of either, as far as there are so many."""
        drawn = torch.rand(mask.shape, device=mask.device)
        return torch.cat([self.largest(drawn + side) for side in (mask, ~mask)], 1)
