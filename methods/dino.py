"""DINO: a vision transformer taught by DINOv2 or DINOv3 without masks gives features; a small head reads its layers.

Oquab et al. DINOv2: Learning Robust Visual Features without Supervision. TMLR 2024. https://arxiv.org/abs/2304.07193
Siméoni et al. DINOv3. 2025. https://arxiv.org/abs/2508.10104
Family: foundation model.

    f_l  = LayerNorm(patch tokens after block l),  l = L/4, L/2, 3L/4, L      of the image at a multiple of the patch
    mask = Head[f_1, f_2, f_3, f_4]                                           loss = (BCE + Dice loss) / 2
    Head = 1x1 convolution, three times (twice the size, two 3x3 convolutions with norm and ReLU), 1x1 convolution

`tune=false` trains the head alone, `tune=true` the encoder, too, at `encoder_rate` times the learning rate. The image
has the colours of ImageNet, as in the encoder's own training; class and register tokens are dropped. The last norm is
applied to all four layers, as in DINOv2's own evaluation. With `augmentation=none` a frozen encoder sees each training
image once: its features are kept on disk, as those of tested images always are. Position embeddings are interpolated.
`initialisation=published` are the weights that timm publishes, those of DINOv3 under Meta's DINOv3 License; a file is
timm's, or the authors' own. Nothing is frozen with `initialisation=scratch`, the default on drawn images.
The papers segment with a linear layer or Mask2Former; this head is deeper than the one and far smaller than the other.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from dgbench.files import sha256
from dgbench.method import Batch, Hparams, Method
from dgbench.networks.augmentation import augment
from dgbench.networks.checkpoints import load_state, weights_file
from dgbench.networks.dino import DinoEncoder, MultiLevelHead, check_name
from dgbench.networks.embeddings import EmbeddingCache
from dgbench.networks.unet import Norm, published_weights, resize
from dgbench.settings import Range
from dgbench.task import TaskInfo

SMALLEST = "vit_tiny_patch16_dinov3_qkvb"


@dataclass(frozen=True)
class DinoHparams(Hparams):
    """Which encoder, where it starts from, whether it is trained, and the head."""

    encoder: str = "vit_small_patch14_dinov2.lvd142m"  # its name in timm: a ViT of DINOv2 or DINOv3
    initialisation: str = "published"  # as timm publishes it; or "scratch", or a .safetensors or .pth file
    tune: bool = False  # train the encoder, too, though it was pretrained
    encoder_rate: Annotated[float, Range(above=0)] = 0.1  # of the learning rate, for a pretrained encoder
    width: Annotated[int, Range(1)] = 64  # channels of the head's last convolutions
    norm: Norm = "batch"  # of the head
    augmentation: Literal["base", "none"] = "base"  # what all see besides their own idea, see networks.augmentation


class Dino(Method):
    """A ViT of DINOv2 or DINOv3, frozen or tuned, and a head on four of its layers."""

    hparams: DinoHparams
    paper = "https://arxiv.org/abs/2304.07193"
    pretrained = "DINOv2, or DINOv3 by --set encoder"
    added: ClassVar[tuple[str, ...]] = ("head.",)  # what a frozen encoder leaves to be trained, by its first letters
    per_task: ClassVar[dict[str, dict[str, Any]]] = {
        "prostate": {"encoder": "vit_base_patch14_dinov2.lvd142m"},
        "fundus": {"encoder": "vit_base_patch14_dinov2.lvd142m"},
        "phantom": {"encoder": SMALLEST, "initialisation": "scratch", "width": 16},
        "check": {"encoder": SMALLEST, "initialisation": "scratch", "width": 8, "image_size": 32},
    }

    def __init__(self, task: TaskInfo, hparams: DinoHparams):
        super().__init__(task, hparams)
        self.encoder = DinoEncoder(hparams.encoder, self.image_size)
        self.head = MultiLevelHead(self.encoder.channels, len(task.structures), hparams.width, hparams.norm)
        self.encoder_rate = 1.0
        self.cache: EmbeddingCache | None = None

    @classmethod
    def find_pretrained(cls, hparams: DinoHparams) -> list[Path]:
        """None, timm's published file, or the one that is named."""
        h = hparams
        if h.initialisation == "scratch":
            return []
        name = check_name(h.encoder)
        return [published_weights(name) if h.initialisation == "published" else weights_file(h.initialisation)]

    def load_pretrained(self) -> dict[str, str]:
        """The encoder's weights, which are frozen unless they are to be tuned."""
        if not (found := self.find_pretrained(self.hparams)):
            return {}
        (path,), h = found, self.hparams
        self.encoder.load(load_state(path), path)
        checksum, self.encoder_rate = sha256(path), h.encoder_rate
        if not h.tune:
            for name, parameter in self.named_parameters():
                parameter.requires_grad = name.startswith(self.added)
        if not any(p.requires_grad for n, p in self.named_parameters() if not n.startswith("head.")):
            self.cache = EmbeddingCache(f"{self.encoder.name}-{checksum[:12]}-{self.encoder.side}-{h.precision}")
        return {path.name: checksum}

    def embed(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> what the head reads; a frozen encoder's is computed once for each image."""
        if self.cache is None or not self.cache.serves(self, image, self.hparams.augmentation == "none"):
            return self.encoder(image)
        return self.cache(image, self.encoder)

    def logits(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> (N, K, S, S)."""
        return resize(self.head(self.embed(image)), image.shape[-2:])

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The base augmentation, or none where features are to be kept."""
        return augment(batch, rng) if self.hparams.augmentation == "base" else batch

    def configure(self) -> torch.optim.Optimizer:
        """AdamW; a pretrained encoder that is tuned has a smaller rate."""
        h, inside, groups = self.hparams, set(self.encoder.parameters()), []
        trained = [p for p in self.parameters() if p.requires_grad]
        for of_encoder, rate in ((True, self.encoder_rate), (False, 1.0)):
            groups.append({"params": [p for p in trained if (p in inside) == of_encoder], "lr": rate * h.learning_rate})
        return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=h.weight_decay)
