"""Dual-Norm: two sets of batch norms, for images like the source and for inverted ones; each test image chooses one.

Zhou, Qi, Yang, Ni, Shi. Generalizable Cross-modality Medical Image Segmentation via Style Augmentation and Dual
Normalization. CVPR 2022. https://arxiv.org/abs/2112.11177
Family: normalization.

    similar: x through a rising curve          dissimilar: x through a falling one, its minimum kept
    loss = (L(f_s(similar), y) + L(f_d(dissimilar), y)) / 2      f_s, f_d: one network, each with norms of its own
    prediction = f_k(x), k = argmin over s, d: sum over norms |m(z) - running mean_k| + |v(z) - running variance_k|

m and v are mean and variance over the pixels of the one test image where it enters a norm. So the choice is made for
each image by itself, from it alone, and nothing is changed by it. It costs two passes.
The curves are cubic Bezier curves over an image's own range, with random inner points.
Differs: the public code trains on x itself and on its inverse, with an optimizer step for each; test images choose and
are normalised by the statistics of a whole batch of them, and so depend on each other. The public loss is Dice alone;
here it is ERM's, as the network is.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dgbench.errors import UsageError
from dgbench.method import Batch
from dgbench.methods._curves import bezier
from dgbench.methods.erm import ERM, ERMHparams
from dgbench.networks.unet import one_channel
from dgbench.task import TaskInfo

SIMILAR, DISSIMILAR = 0, 1


def new_style(image: Tensor, inner: Tensor, inverted: bool) -> Tensor:
    """(N, C, H, W) through a curve over each image's own range; inner: (N, 2, 2) as `bezier` takes them."""
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    x = (image - low) / (high - low).clamp(min=1e-12)
    curved = bezier(x, inner, torch.full((len(x),), inverted, device=x.device))
    if inverted:
        curved = torch.where(x > 0, curved, 0)  # the background, outside of the body, has no contrast to invert
    return low + (high - low) * curved


class DualNorm(nn.Module):
    """Batch norm, and a copy of it with parameters and running statistics of its own; `path` says which one works."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norms = nn.ModuleList([norm, deepcopy(norm)])
        self.path = SIMILAR
        self.distance = torch.empty(0)  # (N,) from the running statistics, of the last pass in eval mode

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W); in eval mode notes `distance`."""
        norm: Any = self.norms[self.path]
        if not self.training:
            variance, mean = torch.var_mean(x.float(), (2, 3), correction=0)
            self.distance = (mean - norm.running_mean).norm(dim=1) + (variance - norm.running_var).norm(dim=1)
        return norm(x)


def double(net: nn.Module) -> int:
    """Put a `DualNorm` in the place of each batch norm of a network; returns how many."""
    children = [(parent, name, m) for parent in net.modules() for name, m in parent.named_children()]
    places = [(parent, name, m) for parent, name, m in children if isinstance(m, _BatchNorm)]
    for parent, name, norm in places:
        setattr(parent, name, DualNorm(norm))
    return len(places)


class DualNormalization(ERM):
    """Batch norm with two sets of statistics, (N, C, H, W) -> the same; one is chosen for each image."""

    hparams: ERMHparams
    paper = "https://arxiv.org/abs/2112.11177"
    adapts_in_testing = True  # only one image at a time, but it adapts to it: not ranked with those that do not

    def __init__(self, task: TaskInfo, hparams: ERMHparams):
        super().__init__(task, hparams)
        if not double(self.net):
            raise UsageError("dual_norm found no batch norm in the network", "leave norm=batch, or change encoder")
        self.start_average()

    def load_pretrained(self) -> dict[str, str]:
        """Both sets of norms start from the loaded ones."""
        if self.hparams.initialisation == "scratch":
            return {}
        plain = ERM(self.task, self.hparams)
        files = plain.load_pretrained()
        double(plain.net)
        self.net = plain.net
        return files

    def follow(self, path: int) -> list[DualNorm]:
        """Let one set of norms work from here on; returns it."""
        norms = [m for m in self.net.modules() if isinstance(m, DualNorm)]
        for norm in norms:
            norm.path = path
        return norms

    def loss(self, batch: Batch) -> Tensor:
        """The mean of ERM's losses of the similar and the dissimilar images, each by its own norms."""
        image, mask = batch
        gray = one_channel(image)
        inner = torch.rand(2, len(image), 2, 2, device=image.device)
        losses = []
        for path in (SIMILAR, DISSIMILAR):
            self.follow(path)
            styled = new_style(gray, inner[path], inverted=path == DISSIMILAR).expand_as(image)
            losses.append(super().loss(Batch(styled, mask)))
        return torch.stack(losses).mean()

    def both(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (2, N, K, H, W) by each set of norms, and how far each image is from it, (2, N). In eval mode only."""
        logits, distances = [], []
        for path in (SIMILAR, DISSIMILAR):
            norms = self.follow(path)
            logits.append(self.logits(image))
            distances.append(torch.stack([norm.distance for norm in norms]).sum(0))
        return torch.stack(logits), torch.stack(distances)

    def predict(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K, H, W) probabilities, each image by the set nearer to it."""
        logits, distances = self.both(image)
        similar = distances[SIMILAR] <= distances[DISSIMILAR]
        return torch.where(similar[:, None, None, None], logits[SIMILAR], logits[DISSIMILAR]).float().sigmoid()
