"""SAM as released, asked everywhere and without prompts from targets: the source's mean shape chooses the answer.

Kirillov et al. Segment Anything. ICCV 2023. https://arxiv.org/abs/2304.02643
Family: foundation model.

    candidates = three masks for each point of a grid, of which those are kept
                 with predicted IoU u > `predicted_iou`, stability IoU({logit > 1}, {logit > -1}) > `stable`,
                 and no better one whose box has IoU > `duplicate` with theirs
    f_k        = mean of y_k over the source's training images that show structure k
    mask k     = the candidate of largest  u d^shape_weight,   d = 2 sum(m f_k) / (sum(m) + sum(f_k)),   if any d > 0

The honest row without training: of the source, only where a structure lies and how large it is (see constant) is used,
and it is gathered in an otherwise empty training. The automatic masks and their filter are SAM's, but with the lower
limits of DeSAM (Gao et al., MICCAI 2024) on medical images, since the shape chooses afterwards; SAM's own are 0.88,
0.95 and 0.7, on 32 points a side. Differs from both: candidates are judged at the decoder's resolution, 4 / patch of
the image's; no crops of the image. The choice, which DeSAM leaves to the predicted IoU alone, is ours. A candidate is
always taken where there is one: slices without the structure get a mask, too. Trap: MedSAM and LiteMedSAM learnt to
answer boxes and not to rate their answers: LiteMedSAM, asked by points on a drawn disc, rated each answer below 0.2.

On a backbone that is trained from scratch, SAM learns to answer random points of the source's masks while the shape is
gathered, as sam_point does; points elsewhere it never meets. Masks are gathered as they are, and augmented afterwards.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.losses import in_float32
from dgbench.method import Batch
from dgbench.methods._grid import grid, nms, stability
from dgbench.methods._prompts import answer_loss, boxes
from dgbench.methods._sam import SAMHparams, SAMMethod
from dgbench.methods.constant import Constant
from dgbench.networks import sam
from dgbench.networks.unet import resize
from dgbench.settings import Range
from dgbench.task import TaskInfo

SEVERAL = slice(1, 4)  # the mask tokens that answer an ambiguous prompt


@dataclass(frozen=True)
class SAMAutoHparams(SAMHparams):
    """The grid of points and the thresholds that masks have to pass."""

    points_per_side: Annotated[int, Range(1)] = 16  # SAM's generator has 32: four times the time
    prompts_at_once: Annotated[int, Range(1)] = 64  # decoded together; memory only
    predicted_iou: float = 0.5  # a candidate needs more
    stable: Annotated[float, Range(-1, 1)] = 0.6  # a candidate needs more
    duplicate: Annotated[float, Range(0, 1)] = 0.7  # IoU of boxes above which the worse of two candidates is removed
    shape_weight: Annotated[float, Range(0)] = 1.0  # power of the overlap with the source's mean shape; 0: by IoU alone


def random_points(mask: Tensor) -> Tensor:
    """(M, 2): x, y of a random pixel inside each mask (M, H, W), none empty."""
    count = mask.flatten(1).cumsum(1)
    chosen = (torch.rand(len(mask), 1, device=mask.device) * count[:, -1:]).floor() + 1
    pixel = torch.searchsorted(count, chosen.minimum(count[:, -1:]))[:, 0]
    return torch.stack([pixel % mask.shape[2], pixel // mask.shape[2]], 1).float()


class SAMAuto(SAMMethod):
    """SAM as released, prompted by a grid of points; the source's mean masks choose among its answers."""

    hparams: SAMAutoHparams
    paper = "https://arxiv.org/abs/2304.02643"
    added = ("shape.*",)
    per_task: ClassVar[dict[str, dict[str, Any]]] = {  # 200 steps see each training slice several times
        "prostate": {"image_size": 1024, "steps": 200},
        "fundus": {"image_size": 1024, "steps": 200},
        "check": {"points_per_side": 4, "predicted_iou": -1.0, "stable": -1.0},
    }

    def __init__(self, task: TaskInfo, hparams: SAMAutoHparams):
        super().__init__(task, hparams)
        self.shape = Constant(task, hparams)

    @property
    def mask_tokens(self) -> int:
        """SAM's four."""
        return sam.RELEASE_MASKS  # structures are told apart by their shape

    def answer(self, embedding: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings and points (M, 2) -> three logits each, (M, 3, 4 S / patch, 4 S / patch), predicted IoU (M, 3)."""
        foreground = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
        sparse, dense = self.prompt_encoder(points=(points[:, None], foreground), boxes=None, masks=None)
        logits, iou = self.decode(embedding, dense, sparse)
        return logits[:, SEVERAL].float(), iou[:, SEVERAL].float()

    def candidates(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """(1, C, h, w) of one image -> logits (n, 4h, 4w) and predicted IoU (n,) of what passes the filter."""
        h, passed = self.hparams, []
        for points in grid(h.points_per_side, self.image_size).to(embedding.device).split(h.prompts_at_once):
            logits, iou = (x.flatten(0, 1) for x in self.answer(embedding.expand(len(points), -1, -1, -1), points))
            good = (iou > h.predicted_iou) & (stability(logits, 1.0) > h.stable) & (logits > 0).any(2).any(1)
            passed.append((logits[good], iou[good]))
        logits, iou = (torch.cat(parts) for parts in zip(*passed, strict=True))
        kept = nms(boxes((logits > 0).float()), iou, h.duplicate) if len(iou) else slice(0)
        return logits[kept], iou[kept]

    @in_float32
    def choose(self, logits: Tensor, iou: Tensor) -> Tensor:
        """Candidates (n, h, w) with predicted IoU (n,) -> logits of each structure's, (K, h, w); none: all -inf."""
        shape = F.interpolate(self.shape.frequency[None], logits.shape[1:], mode="area")[0].flatten(1)
        chosen = torch.full((len(shape), *logits.shape[1:]), -torch.inf, device=logits.device)
        if len(iou):
            inside = (logits > 0).float().flatten(1)
            overlap = 2 * inside @ shape.T / (inside.sum(1)[:, None] + shape.sum(1))
            score = iou[:, None].clamp(min=0) * overlap**self.hparams.shape_weight
            chosen = torch.where((overlap > 0).any(0)[:, None, None], logits[score.argmax(0)], chosen)
        return chosen

    def predict(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, K, S, S) probabilities; 0 for a structure without a candidate."""
        chosen = [self.choose(*self.candidates(e[None])) for e in self.embed(image)]
        return resize(torch.stack(chosen).sigmoid(), image.shape[-2:])

    def loss(self, batch: Batch) -> Tensor:
        """Of the answers to one random point in each mask of the batch; 0 if all are empty."""
        image, structure = batch.mask.amax((2, 3)).nonzero(as_tuple=True)
        if not len(image):
            return 0 * sum(p.sum() for p in self.parameters())  # nothing to ask for in this batch
        asked = batch.mask[image, structure]
        logits, iou = self.answer(self.embed(batch.image)[image], random_points(asked))
        return answer_loss(self.criterion, resize(logits, asked.shape[-2:]), iou, asked)

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Unchanged: `update` augments once the masks are counted."""
        return batch

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Counts the masks as they are; then, where SAM is trained, one step on the batch augmented."""
        gathered = self.shape.update(batch)
        if not any(p.requires_grad for p in self.parameters()):
            return gathered
        rng = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        return super().update(super().augment(batch, rng))
