"""ERM: plain training on the source, what every other method is compared with.

Vapnik. Statistical Learning Theory. Wiley 1998. The network is a U-Net: Ronneberger, Fischer, Brox. U-Net: Convolutional
Networks for Biomedical Image Segmentation. MICCAI 2015. https://arxiv.org/abs/1505.04597

    loss = mean over source batches of (BCE(f(z), y) + Dice loss(f(z), y)) / 2      z = (x - mean(x)) / std(x)

`--set encoder=resnet34 --set initialisation=imagenet` replaces the U-Net's encoder by a network of timm. The
initialisation is a setting, thus part of the variant's name: it moves scores as much as many methods do.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dgbench.errors import UsageError
from dgbench.files import sha256
from dgbench.losses import dice_bce
from dgbench.method import Batch, Hparams, Method
from dgbench.nets import FeatureUNet, Norm, UNet, normalise, published_weights
from dgbench.task import TaskInfo
from dgbench.weights import load_into, load_state


@dataclass(frozen=True)
class ERMHparams(Hparams):
    encoder: str = "unet"  # or the name of a feature network in timm
    initialisation: str = "scratch"  # or "imagenet" (timm's published weights), or a .safetensors or .pth file
    width: int = 16  # channels of the shallowest stage, of the decoder if the encoder is timm's; twice as many at each deeper
    norm: Norm = "batch"  # of the U-Net, or of the decoder
    normalise: Literal["zscore", "imagenet"] = "zscore"  # by each image's own mean and deviation, or by ImageNet's


class ERM(Method):
    hparams: ERMHparams
    paper = "https://arxiv.org/abs/1505.04597"

    def __init__(self, task: TaskInfo, hparams: ERMHparams):
        super().__init__(task, hparams)
        structures = len(task.structures)
        self.net: UNet | FeatureUNet
        if hparams.encoder == "unet":
            self.net = UNet(structures, width=hparams.width, norm=hparams.norm)
        else:
            self.net = FeatureUNet(hparams.encoder, structures, hparams.width, hparams.norm, self.image_size)

    def load_pretrained(self) -> dict[str, str]:
        """A file holds the whole U-Net (its own names), or timm's network as timm publishes it."""
        h = self.hparams
        if h.initialisation == "scratch":
            return {}
        if h.initialisation != "imagenet":
            path = Path(h.initialisation)
        elif isinstance(self.net, FeatureUNet):
            path = published_weights(h.encoder)
        else:
            raise UsageError("there are no ImageNet weights of the plain U-Net", "choose a timm encoder with --set encoder=resnet34")
        if isinstance(self.net, FeatureUNet):
            self.net.load_encoder(load_state(path), path)
        else:
            load_into(self.net, load_state(path), path)
        return {path.name: sha256(path)}

    def logits(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, K, H, W)."""
        return self.net(normalise(image, self.hparams.normalise))

    def loss(self, batch: Batch) -> Tensor:
        return dice_bce(self.logits(batch.image), batch.mask)

    def predict(self, image: Tensor) -> Tensor:
        return self.logits(image).sigmoid()
