"""Constant: the source's mean mask for every image, the floor of every table.

Family: baseline.

What a method scores above it, it has read from the image. The mask of a structure is the set of those pixels that were
most often inside it, as many as its mean area; both are taken over the training images that show the structure, since
one prediction must serve slices with and without it, and over all images it would shrink with each slice that lacks it.

    f = mean of y over training images with the structure      prediction = the sum(f) pixels of largest f

Nothing is trained by gradient; the loss shown is the Brier score of f, mean (f - y)^2.
"""

import torch
from torch import Tensor

from dgbench.method import Batch, Hparams, Method
from dgbench.task import TaskInfo


class Constant(Method):
    """Predicts the mean mask of its training slices for every image: the floor of every table. Nothing is trained."""

    ignores_images = True

    inside: Tensor  # (K, H, W) in how many training images the pixel was inside the structure
    present: Tensor  # (K,) in how many there was any of it

    def __init__(self, task: TaskInfo, hparams: Hparams):
        super().__init__(task, hparams)
        structures = len(task.structures)
        self.register_buffer("inside", torch.zeros(structures, self.image_size, self.image_size, dtype=torch.int64))
        self.register_buffer("present", torch.zeros(structures, dtype=torch.int64))

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Unchanged: the masks' places are what it learns."""
        return batch

    @property
    def frequency(self) -> Tensor:
        """(K, H, W) in [0, 1]; zero before the first mask."""
        return self.inside / self.present.clamp(min=1)[:, None, None]

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Adds the batch's masks (N, K, H, W) to their running mean."""
        self.inside += batch.mask.sum(0).long()
        self.present += batch.mask.amax((2, 3)).sum(0).long()
        return {"loss": (self.frequency - batch.mask).square().mean()}

    def predict(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K, H, W), the mean mask for each image."""
        order = self.frequency.flatten(1).argsort(dim=1, descending=True, stable=True)  # ties: upper pixels first
        area = (self.inside.sum((1, 2)) / self.present.clamp(min=1)).round()
        rank = order.argsort(dim=1).view_as(self.inside)
        return (rank < area[:, None, None]).float().expand(len(image), -1, -1, -1)
