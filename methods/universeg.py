"""UniverSeg: images of the source with their masks are shown beside the test image; nothing is trained.

Butoi, Gonzalez Ortiz, Ma, Sabuncu, Guttag, Dalca. UniverSeg: Universal Medical Image Segmentation. ICCV 2023.
https://arxiv.org/abs/2304.06131
Code: https://github.com/JJGO/UniverSeg
Family: in context.

    mask k = f(x, {(x_s, y_s,k)})          (x_s, y_s): `support` slices of the source that show structure k
    in each block of f:  z_s = W * [target, support_s],  target <- a(U * mean over s of z_s),  support_s <- a(V * z_s)

Images are gray, 128 px a side, each stretched to [0, 1]; structures are asked for one by one, and the probability is
enlarged; `supports` several give the mean of theirs. They are gathered in an otherwise empty training: the first slices
that its passes, drawn by the seed, bring, none twice. A slice that does not show the structure gets a mask, too.
`initialisation=released` are the authors' weights (OpenRAIL++-M: research only; which test images they have seen with
masks is not known). From scratch, the default elsewhere than on prostate and fundus, f learns on the source to read
supports: each image of a batch is asked for with the others as its support.
Differs: from scratch, tasks, augmentation and loss are not theirs. Names and shapes of the weights are those of the
public code; the released file itself was not at hand.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.method import Batch, Hparams, Method
from dgbench.methods._universeg import UniverSegNet
from dgbench.networks import weights
from dgbench.networks.augmentation import augment
from dgbench.networks.checkpoints import load_into, load_state
from dgbench.networks.unet import resize
from dgbench.settings import Range
from dgbench.task import TaskInfo

RELEASED = "universeg_v1"


@dataclass(frozen=True)
class UniverSegHparams(Hparams):
    """The support, and the network."""

    initialisation: Literal["scratch", "released"] = "scratch"
    support: Annotated[int, Range(1)] = 64  # slices shown beside an image
    supports: Annotated[int, Range(1)] = 1  # whose probabilities are averaged
    side: Annotated[int, Range(8)] = 128  # of what the network sees, in pixels; made a multiple of 8
    width: Annotated[int, Range(1)] = 64  # channels; the release has 64
    augmentation: Literal["base", "none"] = "base"  # of training from scratch, see networks.augmentation


def stretched(image: Tensor) -> Tensor:
    """(..., H, W) -> the same in [0, 1], each by its own least and largest value; an even one is 0."""
    low, high = image.amin((-2, -1), keepdim=True), image.amax((-2, -1), keepdim=True)
    return (image - low) / (high - low).clamp(min=1e-8)


class UniverSeg(Method):
    """A network that is told what to segment by examples from the source."""

    hparams: UniverSegHparams
    paper = "https://arxiv.org/abs/2304.06131"
    pretrained = "UniverSeg by --set initialisation"
    per_task: ClassVar[dict[str, dict[str, Any]]] = {  # 200 steps see each training slice several times
        "prostate": {"initialisation": "released", "steps": 200},
        "fundus": {"initialisation": "released", "steps": 200},
        "phantom": {"width": 8, "side": 64},
        "check": {"width": 8, "side": 32, "support": 4, "learning_rate": 1e-2},
    }
    images: Tensor  # (K, M, side, side) of each structure the slices that show it
    masks: Tensor  # (K, M, side, side) bool
    gathered: Tensor  # (K,) how many are there

    def __init__(self, task: TaskInfo, hparams: UniverSegHparams):
        super().__init__(task, hparams)
        self.net = UniverSegNet((hparams.width,) * 4)
        self.side = -(-hparams.side // 8) * 8
        self.foreground_share = float(hparams.initialisation == "released")
        shape = len(task.structures), hparams.support * hparams.supports, self.side, self.side
        self.register_buffer("images", torch.zeros(shape))
        self.register_buffer("masks", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("gathered", torch.zeros(shape[0], dtype=torch.int64))

    @classmethod
    def find_pretrained(cls, hparams: UniverSegHparams) -> list[Path]:
        """The authors' file, if it is asked for."""
        return [weights.find(RELEASED)] if hparams.initialisation == "released" else []

    def load_pretrained(self) -> dict[str, str]:
        """The authors' file; nothing is trained then."""
        found = self.find_pretrained(self.hparams)
        for path in found:
            load_into(self.net, load_state(path), path)
            self.net.requires_grad_(False)
        return {path.name: weights.checksum(path) for path in found}

    def small(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1, side, side), gray and stretched to [0, 1]."""
        size, gray = (self.side, self.side), image.mean(1, keepdim=True)
        return stretched(F.interpolate(gray, size, mode="bilinear", antialias=True, align_corners=False))

    def small_mask(self, mask: Tensor) -> Tensor:
        """(N, K, H, W) -> (N, K, side, side)."""
        return F.interpolate(mask, (self.side, self.side), mode="nearest-exact")

    def gather(self, batch: Batch) -> None:
        """Keep the slices of a batch that show a structure and are not there yet, while there is room."""
        images, masks = self.small(batch.image), self.small_mask(batch.mask)
        for k, count in enumerate(self.gathered.tolist()):
            for image, mask in zip(images[:, 0], masks[:, k] > 0, strict=True):
                known = (self.images[k, :count] == image).all(2).all(1).any()
                if count < self.images.shape[1] and mask.any() and not known:
                    self.images[k, count], self.masks[k, count] = image, mask
                    count += 1
            self.gathered[k] = count

    def predict(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] -> (N, K, H, W) probabilities; 0 for a structure that no slice of the source shows."""
        small, structures = self.small(image), []
        for k, count in enumerate(self.gathered.tolist()):
            support = torch.stack((self.images[k, :count], self.masks[k, :count].float()), 1)
            seen = [self.one_by_one(small, part).sigmoid() for part in support.split(self.hparams.support) if count]
            structures.append(torch.stack(seen).mean(0) if seen else torch.zeros_like(small))
        return resize(torch.cat(structures, 1), image.shape[-2:])

    def one_by_one(self, small: Tensor, support: Tensor) -> Tensor:
        """Logits (N, 1, side, side) by one support (S, 2, side, side); its maps take memory for each image anew."""
        return torch.cat([self.net(image[None], support[None]).float() for image in small])

    def loss(self, batch: Batch) -> Tensor:
        """The criterion of each image by the others; of one alone by itself."""
        images, masks, n = self.small(batch.image), self.small_mask(batch.mask), len(batch.image)
        others = torch.tensor([[j for j in range(n) if j != i] or [i] for i in range(n)], device=images.device)
        pairs = [torch.stack((images[:, 0], mask), 1) for mask in masks.unbind(1)]
        return self.criterion(torch.cat([self.net(images, pair[others]) for pair in pairs], 1), masks)

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Unchanged: `update` augments once the support is gathered."""
        return batch

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """Gathers from the batch as it is; then, from scratch, one step on it augmented."""
        self.gather(batch)
        if not any(p.requires_grad for p in self.net.parameters()):
            return {"loss": 1 - self.gathered.float().mean() / self.images.shape[1]}
        rng = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        return super().update(augment(batch, rng) if self.hparams.augmentation == "base" else batch)
