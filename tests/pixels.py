"""A network of two convolutions with noise and dropout: small enough to be trained in every test."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dgbench.losses import dice_bce
from dgbench.method import Batch, Hparams, Method


@dataclass(frozen=True)
class PixelsHparams(Hparams):
    learning_rate: float = 1e-2
    batch_size: int = 4
    fail_at: int = -1  # step whose loss is NaN


class Pixels(Method):
    hparams: PixelsHparams

    def __init__(self, task, hparams):
        super().__init__(task, hparams)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 5, padding=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
            nn.Conv2d(8, len(task.structures), 5, padding=2),
        )  # fmt: skip
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        noise = torch.randn(batch.image.shape, generator=rng)
        return batch._replace(image=(batch.image + 0.05 * noise).clamp(0, 1))

    def loss(self, batch: Batch) -> Tensor:
        self.seen += 1
        loss = dice_bce(self.net(batch.image), batch.mask)
        return loss * torch.nan if self.seen == self.hparams.fail_at + 1 else loss

    def predict(self, image: Tensor) -> Tensor:
        return self.net(image).sigmoid()
