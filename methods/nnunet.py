"""nnU-Net's recipe under dgbench's protocol: a plain U-Net, and everything about its training done with care.

Isensee, Jaeger, Kohl, Petersen, Maier-Hein. nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation. Nature Methods 2021. https://doi.org/10.1038/s41592-020-01008-z
Code: https://github.com/MIC-DKFZ/nnUNet; network, plans and transforms equal those of nnunetv2 2.8.1 (see tests).
Family: baseline.

    loss = sum over decoder stages i of w_i (BCE(f_i(z), y_i) + Dice loss(f_i(z), y_i))     w_i ~ 2^-i, the coarsest 0
    z    = augmented z-score of x                   Dice over the batch, y_i = y at the resolution of stage i
    SGD, momentum 0.99 (Nesterov), rate 0.01 (1 - t/T)^0.9, decay 3e-5, gradients clipped to norm 12

Strided convolutions, transposed ones, instance norm, leaky ReLU; depth and patch are planned from the image's size, as
far as that goes in 2-D: up to 1254 pixels a side a patch is the whole image. A third of each batch is drawn among the
slices that hold a structure, and its patches are centred on one. Prediction: mean of the logits of the four mirrored
images, and of overlapping patches where they are smaller than the image.
Differs: steps, slices, image size and batch size are the protocol's (theirs: 250,000 steps, the data's median size, a
batch that fills 8 GB); slices come in shuffled passes, not by case; z-scores are of a slice, not of a volume, and an
RGB image's of each channel. Structures may overlap, so each is a binary problem of its own, as theirs
are with region-based labels; for one structure that equals their softmax. Masks are resampled one by one. No 3-D, no
ensembles, no choice of the largest component. `augmentation=base` puts erm's augmentation in the place of theirs.
Measured: phantom, source A, seed 0, both at width 8, mean Dice (%) of the targets. Momentum 0.99 needs many steps: the
task's 250 find nothing yet (erm: 50.48), 1000 give 45.77 (erm: 61.18), and on the source's own validation cases 96.18
(erm: 95.81).
An idea can be put over it that only augments (`nnunet+bigaug`), none with a loss of its own.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.losses import dice_bce
from dgbench.method import Batch, Hparams, Method
from dgbench.methods._nnunet import Network, by_patches, plan, weights
from dgbench.methods._nnunet_augmentation import augmented
from dgbench.networks.augmentation import augment
from dgbench.networks.unet import normalise, one_channel
from dgbench.settings import Range
from dgbench.task import TaskInfo

FLIPS = ((), (-2,), (-1,), (-2, -1))


@dataclass(frozen=True)
class NNUNetHparams(Hparams):
    """The recipe's numbers, and which parts of it are used."""

    learning_rate: float = 1e-2
    weight_decay: float = 3e-5
    momentum: Annotated[float, Range(0, 1)] = 0.99
    width: Annotated[int, Range(1)] = 32  # channels at full size, doubled at each halving, up to 512
    foreground: Annotated[float, Range(0, 1)] = 0.33  # part of a batch that is forced to hold a structure
    deep_supervision: bool = True
    augmentation: Literal["nnunet", "base", "none"] = "nnunet"
    mirrored_tests: bool = True  # predict the mean of four mirrored images


class NNUNet(Method):
    """nnU-Net's network, loss, augmentation and optimizer."""

    hparams: NNUNetHparams
    paper = "https://doi.org/10.1038/s41592-020-01008-z"
    per_task: ClassVar = {
        "check": {"width": 8, "image_size": 32},
        **{task: {"width": 8} for task in ("phantom", "nuclei", "sarcoma")},
    }

    def __init__(self, task: TaskInfo, hparams: NNUNetHparams):
        super().__init__(task, hparams)
        self.foreground_share = hparams.foreground
        structures = len(task.structures)
        self.plan = plan((self.image_size, self.image_size), structures + 1, hparams.width)
        self.net = Network(self.plan, structures)

    def criterion(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The sum of cross-entropy and Dice loss over the batch."""
        return 2 * dice_bce(logits, mask, smooth=1e-5, reduction="batch")

    def loss(self, batch: Batch) -> Tensor:
        """Of the logits of every decoder stage."""
        kind, z = self.hparams.augmentation, normalise(one_channel(batch.image), "zscore")
        forced = len(z) - round(len(z) * (1 - self.foreground_share))
        image, mask = augmented(Batch(z, batch.mask), self.plan.patch, forced, changed=kind == "nnunet")
        levels = self.net(image.expand(-1, 3, -1, -1))
        if not self.hparams.deep_supervision:
            return self.criterion(levels[0], mask)
        shares = weights(len(levels))
        masks = [F.interpolate(mask, level.shape[-2:], mode="nearest-exact") for level in levels]
        terms = [w * self.criterion(f, y) for w, f, y in zip(shares, levels, masks, strict=False)]
        return torch.stack(terms).sum()

    def logits(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, K, H, W), of the finest stage."""
        return by_patches(self.net, normalise(image, "zscore"), self.plan.patch)

    def predict(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, K, H, W) probabilities."""
        flips = FLIPS if self.hparams.mirrored_tests else FLIPS[:1]
        seen = [self.logits(image.flip(axes)).float().flip(axes) for axes in flips]
        return torch.stack(seen).mean(0).sigmoid()

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Unchanged, for nnU-Net changes z-scores: `loss` does. Or as erm's."""
        return augment(batch, rng) if self.hparams.augmentation == "base" else batch

    def configure(self) -> torch.optim.Optimizer:
        """SGD with Nesterov's momentum."""
        h = self.hparams
        return torch.optim.SGD(
            self.parameters(), h.learning_rate, h.momentum, weight_decay=h.weight_decay, nesterov=h.momentum > 0
        )

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step, its gradient clipped to norm 12."""
        loss = self.loss(batch)
        (optimizer,) = self.optimizers
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(), 12)
        optimizer.step()
        return {"loss": loss.detach()}
