"""What the ways of using SAM share: a SAM on any backbone, its weights, and what of it is trained."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dgbench.method import Batch, Hparams, Method
from dgbench.methods._batchnorm import keep_frozen
from dgbench.networks import checkpoints, sam, weights
from dgbench.networks.augmentation import augment
from dgbench.networks.embeddings import EmbeddingCache
from dgbench.networks.unet import resize
from dgbench.task import TaskInfo


@dataclass(frozen=True)
class SAMHparams(Hparams):
    """Which SAM, and the base augmentation."""

    learning_rate: float = 5e-4
    backbone: str = "vit_tiny"  # trained from scratch; or a pretrained one, see dgbench.networks.sam.BACKBONES
    augmentation: Literal["base", "none"] = "base"  # what all see besides their own idea, see networks.augmentation


class SAMMethod(Method):
    """SAM without prompts: structure k is the mask of token k, read from the embedding of "no prompt".

    A method of the family says what of a pretrained SAM it trains and what it puts in. Nothing is frozen on a backbone
    that is trained from scratch.
    """

    hparams: SAMHparams
    pretrained = "SAM by --set backbone"
    # Patterns, of which a variant may set its own.
    trained: tuple[str, ...] = ()  # of the parameters that are trained though they were pretrained
    added: tuple[str, ...] = ()  # of what SAM does not have: it starts at random and is trained
    takes_sam2: ClassVar[bool] = True  # whether it can do with a SAM 2, whose blocks differ in width and grid
    load_mask_head: ClassVar[bool] = True  # start the mask tokens and what belongs to them from SAM's, too
    per_task: ClassVar[dict[str, dict[str, Any]]] = {
        "prostate": {"backbone": "vit_b", "image_size": 384},
        "fundus": {"backbone": "vit_b", "image_size": 512},
    }

    def __init__(self, task: TaskInfo, hparams: SAMHparams):
        super().__init__(task, hparams)
        self.backbone = sam.find_backbone(hparams.backbone, self.takes_sam2)
        self.image_encoder = sam.image_encoder(self.backbone, self.image_size)
        self.prompt_encoder = sam.prompt_encoder(self.backbone, self.image_size)
        self.mask_decoder = sam.mask_decoder(self.backbone, self.mask_tokens)
        self.cache: EmbeddingCache | None = None

    @property
    def mask_tokens(self) -> int:
        """Masks that the decoder has: SAM's four, or as many as there are structures."""
        return max(sam.RELEASE_MASKS, len(self.task.structures))

    @classmethod
    def find_pretrained(cls, hparams: SAMHparams) -> list[Path]:
        """The backbone's release, where it has one."""
        name = sam.find_backbone(hparams.backbone, cls.takes_sam2).weights
        return [weights.find(name)] if name else []

    def load_pretrained(self) -> dict[str, str]:
        """The backbone's release, fitted to this size and number of masks, then frozen where the method says so."""
        name = self.backbone.weights
        if name is None:
            return {}
        path = weights.find(name)
        state = sam.fit_release(
            checkpoints.load_state(path), self.backbone, self.image_size, self.mask_tokens, self.load_mask_head
        )
        head = () if self.load_mask_head else tuple(f"{prefix}*" for prefix in sam.MASK_HEAD)
        checkpoints.load_into(self, state, path, allow_missing=(*self.added, *head))
        checksum = weights.checksum(path)
        self.freeze()
        if not any(p.requires_grad for p in self.image_encoder.parameters()):
            by = "" if self.hparams.precision == "float32" else f"-{self.hparams.precision}"
            self.cache = EmbeddingCache(f"{name}-{checksum[:12]}-{self.image_size}{by}")
        return {path.name: checksum}

    def freeze(self) -> None:
        """Train what the method says only; called once the pretrained weights are there."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad = any(fnmatchcase(name, p) for p in (*self.trained, *self.added))

    def train(self, mode: bool = True) -> "SAMMethod":
        """As torch's, but the frozen batch norms of a TinyViT stay in eval mode."""
        super().train(mode)
        keep_frozen(self.image_encoder)
        return self

    def encode(self, x: Tensor) -> Tensor:
        """Normalised image (N, 3, S, S) -> image embedding (N, C, S / patch, S / patch).

        That of a SAM 2 has three times as many channels behind these: its finer features, folded.
        """
        return self.image_encoder(x)

    def embed(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> image embedding (N, C, S / patch, S / patch).

        That of a frozen encoder is computed once for each image, see `EmbeddingCache`; not for augmented images, which
        do not come again.
        """
        return self.cached(image, lambda x: self.encode(sam.normalise_for(self.backbone, x)))

    def cached(self, image: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """compute(image), (N, ...), or what the cache holds of it where the images come again."""
        if self.cache is None or not self.cache.serves(self, image, self.hparams.augmentation == "none"):
            return compute(image)
        return self.cache(image, compute)

    def no_prompt(self) -> Tensor:
        """(1, C, 1, 1): what SAM adds to the embedding where it is given no mask."""
        return self.prompt_encoder.no_mask_embed.weight[..., None, None]

    def decode(self, embedding: Tensor, dense: Tensor, sparse: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All mask tokens' logits (N, M, 4 S / patch, 4 S / patch) and predicted IoU (N, M): image i by prompt i."""
        position = self.prompt_encoder.pe_layer(embedding.shape[-2:])
        return sam.decode(self.mask_decoder, embedding, position, dense, sparse)

    def low_res_logits(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] -> (N, K, 4 S / patch, 4 S / patch)."""
        return self.decode(self.embed(image), self.no_prompt())[0][:, : len(self.task.structures)]

    def logits(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, K, H, W): SAM's masks, enlarged from a quarter of the image's side."""
        return resize(self.low_res_logits(image), image.shape[-2:])

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The base augmentation, or none where embeddings are to be kept."""
        return augment(batch, rng) if self.hparams.augmentation == "base" else batch
