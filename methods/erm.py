"""ERM: plain training on the source, what every other method is compared with.

Vapnik. Statistical Learning Theory. Wiley 1998 (empirical risk minimization). The network is the U-Net: Ronneberger,
Fischer, Brox. U-Net: Convolutional Networks for Biomedical Image Segmentation. MICCAI 2015.
https://arxiv.org/abs/1505.04597
Family: baseline.

    z = (x - mean(x)) / std(x)          loss = (BCE(f(z), y) + Dice loss(f(z), y)) / 2

`--set encoder=resnet34 --set initialisation=imagenet` puts a network of timm in the encoder's place, `encoder=smp:NAME`
one of segmentation_models_pytorch. The initialisation
is a setting, and so in the name of the variant: it can move the scores as much as a method does. z stays the same with
it, so that nothing else differs. `norm` and `ema` are settings for the same reason: what a method does to feature
statistics should be compared with another norm, and what smooths a prediction with averaged weights (`_average`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from dgbench.errors import UsageError
from dgbench.files import sha256
from dgbench.method import Batch, Hparams, Method
from dgbench.methods._average import Average
from dgbench.networks.augmentation import augment
from dgbench.networks.checkpoints import load_into, load_state, weights_file
from dgbench.networks.unet import FeatureUNet, Norm, UNet, normalise, published_weights
from dgbench.settings import Range
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class ERMHparams(Hparams):
    """The network, where it starts from, and the base augmentation."""

    encoder: str = "unet"  # or the name of a network in timm, or smp:NAME in segmentation_models_pytorch
    initialisation: str = "scratch"  # or "imagenet", as it is published, or a .safetensors or .pth file
    width: Annotated[int, Range(1)] = 16  # channels of the (decoder's) shallowest stage, doubled at each deeper one
    norm: Norm = "batch"  # of the U-Net, or of the decoder on timm's encoder
    normalise: Literal["zscore", "imagenet"] = "zscore"  # by the image's own mean and deviation, or ImageNet's
    ema: Annotated[float, Range(0, 0.99999)] = 0.0  # decay of the averaged weights that predict, as 0.999; 0: the last
    augmentation: Literal["base", "none"] = "base"  # what all see besides their own idea, see networks.augmentation


class ERM(Method):
    """Plain training on the source: a network's logits, (N, 3, H, W) -> (N, K, H, W), and the default criterion."""

    hparams: ERMHparams
    paper = "https://arxiv.org/abs/1505.04597"
    pretrained = "ImageNet by --set initialisation"
    sets_budget = True
    per_task: ClassVar = {
        "check": {"width": 8, "image_size": 32},
        **{task: {"width": 8} for task in ("phantom", "nuclei", "sarcoma")},
        "prostate": {"width": 32},
        "fundus": {"width": 32},
    }

    def __init__(self, task: TaskInfo, hparams: ERMHparams):
        super().__init__(task, hparams)
        structures, h = len(task.structures), hparams
        self.net: UNet | FeatureUNet
        if h.encoder != "unet":
            self.net = FeatureUNet(h.encoder, structures, h.width, h.norm, self.image_size)
        elif h.initialisation == "imagenet":
            raise UsageError("the plain U-Net has no ImageNet weights", "choose an encoder: --set encoder=resnet34")
        else:
            self.net = UNet(structures, width=h.width, norm=h.norm)
        self.average: Average | None = None
        self.start_average()

    def start_average(self) -> None:
        """Follow the weights of `net` from here on, with `ema`; to be called again by what changes its modules.

        Raises `UsageError` where weights are learned at test time: they would be those that predict no longer.
        """
        if self.hparams.ema and hasattr(self.hparams, "test_learning_rate"):
            raise UsageError("averaged weights (ema) cannot be learned further at test time", "leave ema=0")
        if self.hparams.ema:
            self.average = Average(self.net, self.hparams.ema)

    @classmethod
    def find_pretrained(cls, hparams: ERMHparams) -> list[Path]:
        """None, the published file, or the one that is named."""
        h = hparams
        if h.initialisation == "scratch":
            return []
        return [published_weights(h.encoder) if h.initialisation == "imagenet" else weights_file(h.initialisation)]

    def load_pretrained(self) -> dict[str, str]:
        """A file holds all of the U-Net, by the names of `net`, or all of the encoder; all is trained further."""
        if not (found := self.find_pretrained(self.hparams)):
            return {}
        (path,) = found
        if isinstance(self.net, FeatureUNet):
            self.net.load_encoder(load_state(path), path)
        else:
            load_into(self.net, load_state(path), path)
        return {path.name: sha256(path)}

    def logits(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, K, H, W)."""
        return self.forward_net(normalise(image, self.hparams.normalise))

    def forward_net(self, z: Tensor) -> Tensor:
        """What goes into the network, (N, 3, H, W) -> (N, K, H, W) logits; in eval mode by averaged weights, if any."""
        return self.net(z) if self.training or self.average is None else self.average(self.net, z)

    def configure(self) -> torch.optim.Optimizer | tuple[torch.optim.Optimizer, ...]:
        """One optimizer, after whose steps the averaged weights follow."""
        optimizer = super().configure()
        assert isinstance(optimizer, torch.optim.Optimizer)
        return self.followed(optimizer)

    def followed(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """The network's optimizer, after each of whose steps the averaged weights follow, if there are any."""
        if average := self.average:
            optimizer.register_step_post_hook(lambda *_: average.follow(self.net))
        return optimizer

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The augmentation that every method on this network sees besides its own idea."""
        return augment(batch, rng) if self.hparams.augmentation == "base" else batch
