"""DeSAM: masks come from the frozen encoder's own features, so that a poor prompt costs the predicted IoU only.

Gao, Xia, Hu, Wang, Gao. DeSAM: Decoupled Segment Anything Model for Generalizable Medical Image Segmentation. MICCAI
2024. https://arxiv.org/abs/2306.00499
Family: foundation model.

    e, iou = PRIM(F, prompt)          SAM's decoder as it is, up to its transformer: mask embedding, predicted IoU
    mask   = PDMM(e, B_1, B_2, B_3)   residual SE blocks from the encoder's global-attention blocks B_i up to F's 4 x
    box:     the prompt is the whole image                                           loss = Dice + CE
    points:  one point on a structure or off it (even odds), label always "foreground"; the mask is trained in any case
             loss = Dice + CE + |iou - (1 on it, 0 off it)|; in testing a grid of points, and of the masks of predicted
             IoU and stability enough, with distinct boxes, the one of largest predicted IoU; if none, no mask

Dice has squares in its denominator. Follows the authors' code: the IoU loss is L1 (paper: 10 times the squared error);
specks and small holes of the mask are removed, and of a grid's masks those without any go first; a frame along the
border is zero, a fifth of the side for prostate. Parameters that compute nothing are kept and counted: SAM's own way to
masks, three shortcuts, a head. The authors set the stability to 0.6 but do not apply it (`least_stability=0`), and with
the library's version they name the cross-entropy of one structure is always 0 (`cross_entropy=0`).
Differs: K structures are K outputs of PDMM's head, and structure k's IoU is mask token k's; points are drawn for one of
them. Widths follow the backbone (theirs are ViT-H's); one with fewer than four global blocks gives all it has. In a
TinyViT the B_i are every second block of stage 2, the longest, whose grid is F's. The loss is taken at the image's
size. Trap: ViT-H's features of a 1024 px image take 34 MB on disk. From scratch all is trained.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.method import Batch
from dgbench.methods import _blocks
from dgbench.methods._desam import PDMM, choose, prim, random_points, tidy
from dgbench.methods._grid import grid
from dgbench.methods._sam import SAMHparams, SAMMethod
from dgbench.networks.embeddings import EmbeddingCache
from dgbench.networks.unet import resize
from dgbench.settings import Range
from dgbench.task import TaskInfo

OF_TINY_VIT = (3, 5, 7)  # of its ten blocks with attention
FRAME = {"border": 50 / 256}  # of the images that the authors prepare


@dataclass(frozen=True)
class DeSAMHparams(SAMHparams):
    """The prompt (the whole image as a box, or points), and how masks are chosen and tidied."""

    augmentation: Literal["base", "none"] = "none"
    mode: Literal["box", "points"] = "box"
    grid: Annotated[int, Range(1)] = 9  # points along each side in testing
    least_iou: float = 0.5  # predicted, of a mask that may be chosen
    least_stability: Annotated[float, Range(0, 1)] = 0.6  # IoU with itself cut a unit higher, lower; 0: the authors'
    overlap: Annotated[float, Range(0, 1)] = 0.7  # IoU of two masks' boxes above which the worse one is dropped
    smallest_region: Annotated[float, Range(0, 1)] = 1000 / 256**2  # part of the image below which specks and holes go
    border: Annotated[float, Range(0, 0.5)] = 0.0  # width of the frame that is set to zero; part of the side
    cross_entropy: Annotated[float, Range(0)] = 1.0  # its weight beside Dice; 0: the authors' in effect
    iou_loss: Literal["l1", "mse"] = "l1"
    iou_weight: Annotated[float, Range(0)] = 1.0  # of the loss of the predicted IoU, which "points" has


class DeSAM(SAMMethod):
    """SAM's frozen encoder; masks from its features, and from the prompt their predicted IoU only."""

    hparams: DeSAMHparams
    cache: EmbeddingCache | None
    paper = "https://arxiv.org/abs/2306.00499"
    takes_sam2 = False
    trained = ("mask_decoder.*",)
    added = ("pdmm.*",)
    per_task: ClassVar[dict[str, dict[str, Any]]] = {
        "prostate": {"backbone": "vit_h", "image_size": 1024, "learning_rate": 1e-4, "weight_decay": 0.0, **FRAME}
    }

    def __init__(self, task: TaskInfo, hparams: DeSAMHparams):
        super().__init__(task, hparams)
        self.blocks = self.backbone.global_blocks[:3] if self.backbone.depth else OF_TINY_VIT
        self.width = _blocks.width(_blocks.blocks(self.image_encoder)[self.blocks[0]])
        self.pdmm = PDMM(self.width, self.backbone.embedding, len(self.blocks), len(task.structures))

    def load_pretrained(self) -> dict[str, str]:
        files = super().load_pretrained()
        if self.cache is not None:  # what is kept here is not what other methods keep
            self.cache = EmbeddingCache(f"{self.cache.folder.name}-blocks")
        return files

    def encode(self, x: Tensor) -> Tensor:
        """Normalised image (N, 3, S, S) -> features of the blocks, then the image embedding, along the channels."""
        *seen, last = _blocks.features(self.image_encoder, x, self.blocks)
        return torch.cat((*seen, self.image_encoder.neck(last)), 1)

    def features(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """(N, 3, S, S) in [0, 1] -> PDMM's context and the image embedding."""
        widths = [self.width] * len(self.blocks) + [self.backbone.embedding]
        *blocks, embedding = self.embed(image).split(widths, 1)
        return self.pdmm.context(blocks), embedding

    def prompted(self, embedding: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """PRIM for N prompts, one for each image or all for one image: mask embedding and predicted IoU (N, K)."""
        position = self.prompt_encoder.pe_layer(embedding.shape[-2:])
        mask_embedding, iou = prim(self.mask_decoder, embedding, position, self.no_prompt(), sparse)
        return mask_embedding, iou[:, : len(self.task.structures)]

    def whole_image(self, n: int) -> Tensor:
        box = self.no_prompt().new_tensor([[0, 0, self.image_size, self.image_size]])
        return self.prompt_encoder(points=None, boxes=box.expand(n, -1), masks=None)[0]

    def points(self, xy: Tensor) -> Tensor:
        return self.prompt_encoder(points=(xy[:, None], xy.new_ones(len(xy), 1)), boxes=None, masks=None)[0]

    def low_res_logits(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> (N, K, h 2^(levels - 1), w 2^(levels - 1)), by the box."""
        context, embedding = self.features(image)
        return self.pdmm(self.prompted(embedding, self.whole_image(len(image)))[0], context)

    def criterion(self, logits: Tensor, mask: Tensor) -> Tensor:
        logits = logits.float()
        p = logits.sigmoid()
        ratio = (2 * (p * mask).sum((2, 3)) + 1e-5) / ((p * p).sum((2, 3)) + mask.sum((2, 3)) + 1e-5)
        return (1 - ratio).mean() + self.hparams.cross_entropy * F.binary_cross_entropy_with_logits(logits, mask)

    def loss(self, batch: Batch) -> Tensor:
        if self.hparams.mode == "box":
            return super().loss(batch)
        mask, images = batch.mask, torch.arange(len(batch.mask), device=batch.mask.device)
        xy = random_points(mask[images, torch.randint(mask.shape[1], images.shape, device=mask.device)])
        context, embedding = self.features(batch.image)
        mask_embedding, iou = self.prompted(embedding, self.points(xy.float()))
        loss = self.criterion(resize(self.pdmm(mask_embedding, context), mask.shape[-2:]), mask)
        distance = F.l1_loss if self.hparams.iou_loss == "l1" else F.mse_loss
        return loss + self.hparams.iou_weight * distance(iou.float(), mask[images, :, xy[:, 1], xy[:, 0]])

    def predict(self, image: Tensor) -> Tensor:
        context, embedding = self.features(image)
        each = [self.predict_one([c[i : i + 1] for c in context], embedding[i : i + 1]) for i in range(len(image))]
        probability = resize(torch.stack(each), image.shape[-2:])
        frame = round(self.hparams.border * self.image_size)
        return F.pad(probability[..., frame : self.image_size - frame, frame : self.image_size - frame], [frame] * 4)

    def predict_one(self, context: list[Tensor], embedding: Tensor) -> Tensor:
        """Probabilities (K, h, w) of one image."""
        h = self.hparams
        smallest = h.smallest_region * (embedding[0, 0].numel() * 4 ** (len(self.blocks) - 1))
        if h.mode == "box":
            logits = self.pdmm(self.prompted(embedding, self.whole_image(1))[0], context)[0].float()
            return torch.stack([tidy(x, smallest)[0] for x in logits])
        rows = grid(h.grid, self.image_size).to(embedding.device).split(h.grid)
        answers = [self.prompted(embedding, self.points(row)) for row in rows]
        mask_embedding, iou = (torch.cat(part).float() for part in zip(*answers, strict=True))
        kept = (iou > h.least_iou).any(1)  # no mask is computed for the others: most of the time goes there
        masks = torch.cat([self.pdmm(part, context).float() for part in mask_embedding[kept].split(h.grid)])
        limits = h.least_iou, h.least_stability, h.overlap, smallest
        return torch.stack([choose(masks[:, k], iou[kept, k], *limits) for k in range(masks.shape[1])])
