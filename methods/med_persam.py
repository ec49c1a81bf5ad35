"""Med-PerSAM, a reading of the paper: one source image, warped onto each test image, prompts a frozen SAM.

Yoon et al. Med-PerSAM: One-Shot Visual Prompt Tuning for Personalized Segment Anything Model in Medical Domain. 2024.
https://arxiv.org/abs/2411.16123 (no code is public)
Family: foundation model.

    d = Net(x_r, x)                             a displacement for each pixel of the test image x
    m_0 = y_r warped by d                       (x_r, y_r): the reference, an image of the source and its mask
    a_t = SAM(x; point, box, mask of m_t-1)     m_t = (m_0 + sigmoid(a_t)) / 2,  t = 1 ... rounds
    prediction = sigmoid(a_rounds)
    loss = 1 - LNCC^2(x_b, x_a warped by Net(x_a, x_b)) + smoothness |grad d|^2       a, b: two images of the source

The paper's, as its abstract has it: one labelled reference, SAM frozen and only prompted, a light model that warps it,
prompts without a person, refined in several rounds. All details are ours: the network (convolutions to an 8 x 8 grid
of displacements), its loss (VoxelMorph's, Balakrishnan et al., 2019, blind to inverted contrast), that it is trained on
pairs of source images and not on the test image, how prompts are drawn (box and central pixel of {m > 1/2}, logit of m)
and how SAM's answer refines them: the mean with m_0 keeps it from straying, and an empty one changes nothing.

The reference: of the training images seen so far, the one whose mask is nearest to the mean mask of the source, by the
Dice overlap averaged over structures; found step by step and kept with the weights. All structures share one warp. A
volume has one reference slice for all its slices, and each of them gets a mask.
On a backbone that is trained from scratch, SAM learns meanwhile to answer prompts from x_a's warped mask with x_b's.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.method import Batch
from dgbench.methods._prompts import boxes, centres
from dgbench.methods._sam import SAMHparams, SAMMethod
from dgbench.methods._warp import SIDE, Warper, likeness, small, strain, warp
from dgbench.methods.constant import Constant
from dgbench.networks import sam
from dgbench.networks.unet import resize
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class MedPerSAMHparams(SAMHparams):
    """The warp's network and its loss, and the rounds of prompting."""

    rounds: Annotated[int, Range(0)] = 3  # of prompting; 0: the prediction is the reference's warped mask
    smoothness: Annotated[float, Range(0)] = 1.0  # weight of the displacement's squared gradient, both in pixels
    warp_width: Annotated[int, Range(1)] = 32  # channels of the warping network


class MedPerSAM(SAMMethod):
    """SAM as released, prompted by the mask of one source image that is warped onto the test image."""

    hparams: MedPerSAMHparams
    paper = "https://arxiv.org/abs/2411.16123"
    added = ("warper.*", "shape.*", "reference_*")
    per_task: ClassVar[dict[str, dict[str, Any]]] = {  # SAM's own size; the steps are those of the warping network
        "prostate": {"image_size": 1024, "steps": 2000},
        "fundus": {"image_size": 1024, "steps": 2000},
    }
    reference_image: Tensor  # (3, S, S), 0 before the first step
    reference_mask: Tensor  # (K, S, S)

    def __init__(self, task: TaskInfo, hparams: MedPerSAMHparams):
        super().__init__(task, hparams)
        self.warper, self.shape = Warper(hparams.warp_width), Constant(task, hparams)
        self.register_buffer("reference_image", torch.zeros(3, self.image_size, self.image_size))
        self.register_buffer("reference_mask", torch.zeros_like(self.shape.frequency))

    @property
    def sam_learns(self) -> bool:
        """Whether SAM itself is trained, as it is from scratch."""
        return any(p.requires_grad for p in self.mask_decoder.parameters())

    @property
    def mask_tokens(self) -> int:
        """SAM's four."""
        return sam.RELEASE_MASKS  # each structure is a prompt of its own

    def answer(self, embedding: Tensor, mask: Tensor) -> Tensor:
        """Logits (M, S, S) of SAM, prompted with masks (M, S, S) in [0, 1], which exceed 1/2 somewhere."""
        inside = (mask > 0.5).float()
        point = centres(inside)[:, None], torch.ones(len(mask), 1, dtype=torch.int, device=mask.device)
        dense = resize(mask[:, None], [4 * side for side in embedding.shape[-2:]]).logit(1e-3)
        sparse, dense = self.prompt_encoder(points=point, boxes=boxes(inside), masks=dense)
        return resize(self.decode(embedding, dense, sparse)[0][:, :1].float(), mask.shape[-2:])[:, 0]

    def predict(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, K, S, S) probabilities; 0 where the warped mask nowhere exceeds 1/2."""
        moving, reference = (x.expand(len(image), -1, -1, -1) for x in (self.reference_image, self.reference_mask))
        warped = warp(reference, self.warper(moving, image)).flatten(0, 1)
        present = warped.amax((1, 2)) > 0.5
        probability = torch.zeros_like(warped)
        if present.any():
            embedding = self.embed(image).repeat_interleave(reference.shape[1], 0)[present]
            start = mask = answered = warped[present]
            for _ in range(self.hparams.rounds):
                answered = self.answer(embedding, mask).sigmoid()
                refined = (start + answered) / 2
                mask = torch.where((refined > 0.5).any(2).any(1)[:, None, None], refined, mask)
            probability[present] = answered
        return probability.view_as(reference)

    def loss(self, batch: Batch) -> Tensor:
        """Of warping each image's neighbour in the batch onto it, plus SAM's answers where SAM learns."""
        moving = Batch(*(x.roll(1, 0) for x in batch))
        d = self.warper(moving.image, batch.image)
        moved = warp(small(moving.image), d, "border")
        loss = 1 - likeness(moved, small(batch.image)) + self.hparams.smoothness * strain(d)
        if self.sam_learns:
            warped = warp(moving.mask, d.detach()).flatten(0, 1)
            present = warped.amax((1, 2)) > 0.5
            if present.any():
                embedding = self.embed(batch.image).repeat_interleave(batch.mask.shape[1], 0)[present]
                asked = batch.mask.flatten(0, 1)[present][:, None]
                loss = loss + self.criterion(self.answer(embedding, warped[present])[:, None], asked)
        return loss

    def gather(self, batch: Batch) -> None:
        """Look for a better reference among the images of a training batch, now that the mean mask is known better."""
        self.shape.update(batch)
        mean = self.shape.frequency
        masks = torch.cat([self.reference_mask[None], batch.mask])
        overlap = 2 * (masks * mean).sum((2, 3)) / (masks + mean).sum((2, 3)).clamp(min=1)
        best = int(overlap.mean(1).argmax())  # the first of equals
        if best:
            self.reference_image.copy_(batch.image[best - 1])
            self.reference_mask.copy_(batch.mask[best - 1])

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Unchanged: `update` augments once it has looked for a reference."""
        return batch

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Gathers from the batch as it is, then one step on it augmented, made small if SAM does not learn."""
        self.gather(batch)
        if not self.sam_learns:  # the warping network sees no more
            batch = Batch(
                F.interpolate(batch.image, (SIDE, SIDE), mode="area"), F.interpolate(batch.mask, (SIDE, SIDE))
            )
        rng = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        return super().update(super().augment(batch, rng))
