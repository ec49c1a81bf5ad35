"""DAPSAM: a frozen SAM is adapted by low-level features and prompted by a prototype of the image's own domain.

Wei, Dong, Zhou, Gu, Zhao, Xu. Prompting Segment Anything Model with Domain-Adaptive Prototype for Generalizable
Medical Image Segmentation. MICCAI 2024. https://arxiv.org/abs/2409.12522
Family: foundation model.

    e    = W f + b                                   low-level prompt, f: patch embedding plus position
    x   <- x + Adapter_i(gate(x / 2 + e))            before block i of the image encoder
    x   <- x + Attention(x)                          inside block i, with h = LayerNorm(x) after it:
    x   <- x + MLP(h) + Adapter'_i(gate(h + e)) / 2
           gate(z) = z * sigmoid(mean(z) + max(z))   per channel, over the positions; it has no parameters
    p    = mean(F) + max(F)                          prototype of the image embedding F
    p'   = softmax(p M^T) M                          rebuilt from the memory M, which has seen the source only
    mask = SAM decoder(F + Conv1x1[F, p', cos(p', F)])   no points, no boxes
    loss = 0.2 BCE + 0.8 Dice, summed over structures; Dice over the whole batch

Follows the authors' code where it departs from the paper: two adapters per block, the halves above, addressing by dot
product instead of cosine (`memory_similarity`), fresh frequencies instead of SAM's for the decoder's positions
(`position_encoding`), a mask head that starts at random (`load_mask_head`), one Dice for the batch (`dice_reduction`),
and two mixed-up axes (`layout`): e is made of tokens whose memory, channels last, is read as channels first, so its
positions and channels are shuffled; and the gate before a block pools each image column over its rows and channels, not
each channel over the positions. `layout=paper` computes the equations above. Released state dicts load as they are.
Differs: the default backbone is a small ViT trained whole from scratch, so that no download is needed; the paper's
ViT-B with its frozen encoder is the default on its own tasks. Any image size. An even image divides by no zero.

On a TinyViT (lite_medsam, mobile_sam) it is our extension, which the paper and the authors' code do not have. Stages
s = 1, 2, 3 of its encoder each have a grid and a width C_s of their own, hence a low-level prompt of their own:

    e_s = W_s pool_s(f) + b_s     f: patch embedding, 64 channels; pool_s: its means at the places of stage s's grid
    x  <- conv(x + Attention(x))  inside block i, which convolves each channel before h = LayerNorm(x)

All else is as above with e_s for e, `layout` included. Stage 0 convolves only and stays as it is, and so do the frozen
batch norms' statistics. The image has the colours that the backbone was trained on instead of z-scores. The adapters
start as drawn, as the authors': neither here nor there is the encoder SAM's own at the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.errors import UsageError
from dgbench.losses import dice_bce
from dgbench.method import Batch, Hparams, Method
from dgbench.methods import _blocks
from dgbench.methods._batchnorm import keep_frozen
from dgbench.methods._low_level import ChannelAdapter, LowLevelAdapter
from dgbench.networks import checkpoints, sam, weights
from dgbench.networks.augmentation import BASE, Augmentation, augment
from dgbench.networks.unet import normalise, resize
from dgbench.settings import Range
from dgbench.task import TaskInfo

# The authors' augmentations, as they act. Of prostate: Their noise and additive brightness are too small to show in
# raw units, and their multiplicative brightness is undone by the z-score of each slice that follows: all three are left
# out. Their elastic deformation (alpha 0-900, sigma 9-13 px at 384 px) has the size and the smoothness of a spline with
# these ranges; it folds, and so does this.
PROSTATE = Augmentation(
    p_flip_horizontal=0.5,
    p_flip_vertical=0.5,
    p_rotate=0.2,
    p_scale=0.2,
    p_elastic=0.2,
    elastic=(0.0, 2.6),
    elastic_spacing=(0.0406, 0.0586),
    p_blur=0.1,
    p_contrast=0.15,
    p_low_resolution=0.125,
    p_gamma=0.15,
)
# Of fundus, shapes alone: what else they draw are brightness, undone likewise, and too little noise to show. Elastic: a
# random field, smoothed by up to a quarter of the side, moves by an eighth to a half of that at most; a spline of these
# ranges moves by as much in the mean (root mean square, 0.018 of the side, of 300 fields each).
FUNDUS = Augmentation(
    p_flip_horizontal=0.5,
    p_flip_vertical=0.5,
    p_rotate=0.1,
    p_scale=0.1,
    scale=(0.75, 1.25),
    p_elastic=0.1,
    elastic=(0.12, 0.48),
    elastic_spacing=(0.02, 0.43),
)


@dataclass(frozen=True)
class DAPSAMHparams(Hparams):
    """The authors' settings of adapters, memory and optimizer."""

    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    batch_size: int = 8
    backbone: str = (
        "vit_tiny"  # trained from scratch; or a pretrained and frozen one, see dgbench.networks.sam.BACKBONES
    )
    warmup: Annotated[int, Range(0)] = 25  # steps of linear warm-up
    horizon: Annotated[float, Range(above=0)] = 1.25  # zero after horizon * steps: the authors stop at 160 of 200
    dice_weight: Annotated[float, Range(0, 1)] = 0.8
    dice_reduction: Literal["batch", "image"] = "batch"
    adapters: Literal["both", "l", "channel"] = "both"  # before the blocks (l), beside their MLPs (channel)
    reduction: Annotated[int, Range(1)] = 4  # of the adapters' hidden width
    layout: Literal["authors", "paper"] = "authors"  # of the low-level prompt's axes, see above
    memory: Annotated[int, Range(1)] = 256  # prototypes in M
    memory_similarity: Literal["dot", "cosine"] = "dot"
    position_encoding: Literal["random", "sam"] = "random"
    load_mask_head: bool = False
    augmentation: Literal["authors", "base", "none"] = "authors"  # base: as the other methods'


class Memory(nn.Module):
    """Prototypes of the source, (slots, channels); a prototype is rebuilt as a mixture of them."""

    def __init__(self, slots: int, channels: int, similarity: str):
        super().__init__()
        self.similarity = similarity
        self.weight = nn.Parameter(torch.empty(slots, channels).uniform_(-(channels**-0.5), channels**-0.5))

    def forward(self, p: Tensor) -> Tensor:
        """Prototypes (N, channels) -> rebuilt ones, (N, channels)."""
        if self.similarity == "cosine":
            scores = F.normalize(p, dim=1) @ F.normalize(self.weight, dim=1).T
        else:
            scores = p @ self.weight.T
        return scores.softmax(1) @ self.weight


class PromptGenerator(nn.Module):
    """Image embedding (N, C, h, w) -> dense prompt of the same shape."""

    def __init__(self, backbone: sam.Backbone, slots: int, similarity: str):
        super().__init__()
        channels = backbone.embedding
        self.memory_bank = Memory(slots, channels, similarity)
        self.pe_layer = sam.position_encoding(backbone)
        self.fuse_conv = nn.Conv2d(2 * channels + 1, channels, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        prototype = self.memory_bank(feature.mean((2, 3)) + feature.amax((2, 3)))[:, :, None, None]
        likeness = F.cosine_similarity(prototype, feature, dim=1)[:, None]
        return self.fuse_conv(torch.cat((feature, prototype.expand_as(feature), likeness), 1))


class DAPSAM(Method):
    """SAM's encoder with low-level adapters, prompted by a prototype of the source kept in a memory."""

    hparams: DAPSAMHparams
    paper = "https://arxiv.org/abs/2409.12522"
    pretrained = "SAM ViT-B on prostate and fundus"
    # The authors train 160 epochs. An epoch has about 250 steps in prostate, 20 in fundus (BinRushed).
    per_task: ClassVar[dict[str, dict[str, Any]]] = {
        "prostate": {"backbone": "vit_b", "image_size": 384, "steps": 40_000, "warmup": 250},
        "fundus": {"backbone": "vit_b", "image_size": 512, "steps": 3_200, "warmup": 25},
    }

    def __init__(self, task: TaskInfo, hparams: DAPSAMHparams):
        super().__init__(task, hparams)
        h = hparams
        self.backbone = sam.find_backbone(h.backbone, takes_sam2=False)
        if self.backbone.weights is None and (h.load_mask_head or h.position_encoding == "sam"):
            raise UsageError(
                f"backbone '{h.backbone}' is trained from scratch: it has no mask head or position encoding to load",
                "choose a pretrained one, or leave load_mask_head and position_encoding as they are",
            )
        self.image_encoder = sam.image_encoder(self.backbone, self.image_size)
        if h.adapters != "l":
            for block in _blocks.blocks(self.image_encoder):
                block.channel_adapter = ChannelAdapter(_blocks.width(block), h.reduction)
        stages = [
            (_blocks.width(stage.blocks[0]), len(stage.blocks) if h.adapters != "channel" else 0)
            for stage in _blocks.stages(self.image_encoder)
        ]
        low = _blocks.low_width(self.image_encoder)
        self.image_encoder.l_adapter = LowLevelAdapter(low, stages, h.reduction, h.layout)
        self.prompt_generator = PromptGenerator(self.backbone, h.memory, h.memory_similarity)
        self.mask_decoder = sam.mask_decoder(self.backbone, len(task.structures))

    @classmethod
    def find_pretrained(cls, hparams: DAPSAMHparams) -> list[Path]:
        """The backbone's release, where it has one."""
        name = sam.find_backbone(hparams.backbone, takes_sam2=False).weights
        return [weights.find(name)] if name else []

    def load_pretrained(self) -> dict[str, str]:
        """SAM's weights, fitted to this image size; what came from them is frozen but for what the paper trains."""
        if self.backbone.weights is None:
            return {}
        h, path = self.hparams, weights.find(self.backbone.weights)
        state = sam.fit_release(
            checkpoints.load_state(path), self.backbone, self.image_size, len(self.task.structures), h.load_mask_head
        )
        frequencies = "pe_layer.positional_encoding_gaussian_matrix"
        if h.position_encoding == "sam":
            state[f"prompt_generator.{frequencies}"] = state[f"prompt_encoder.{frequencies}"]
        missing = ["image_encoder.*adapter.*", "prompt_generator.*"]
        if not h.load_mask_head:
            missing += [f"{prefix}*" for prefix in sam.MASK_HEAD]
        checkpoints.load_into(self, state, path, allow_missing=missing, allow_unexpected=["prompt_encoder.*"])
        self.freeze()
        return {path.name: weights.checksum(path)}

    def freeze(self) -> None:
        """Train the adapters, the prompt and the decoder only; called once the encoder holds pretrained weights."""
        for name, parameter in self.image_encoder.named_parameters():
            parameter.requires_grad = "adapter" in name

    def train(self, mode: bool = True) -> DAPSAM:
        """As torch's, but the frozen batch norms of a TinyViT stay in eval mode."""
        super().train(mode)
        keep_frozen(self.image_encoder)
        return self

    def embed(self, x: Tensor) -> Tensor:
        """Normalised image (N, 3, S, S) -> image embedding (N, C, S / patch, S / patch)."""
        encoder, i = self.image_encoder, 0
        x = f = _blocks.patches(encoder, x)
        for s, stage in enumerate(_blocks.stages(encoder)):
            x = stage.enter(x)
            e = encoder.l_adapter.low_level(f, (x.shape[1], x.shape[2]), s)
            for block in stage.blocks:
                x = self.through(block, x, e, i)
                i += 1
        return encoder.neck(x.permute(0, 3, 1, 2))

    def through(self, block: Any, x: Tensor, e: Tensor, i: int) -> Tensor:
        """Tokens (N, H, W, C) through block i and its adapters; e of that shape."""
        adapters = self.hparams.adapters
        if adapters != "channel":
            x = x + self.image_encoder.l_adapter(x, e, i)
        x = _blocks.mix(block, x + block.attend(x))
        h = _blocks.normed(block, x)
        x = x + _blocks.mlp(block, h)
        return x if adapters == "l" else x + 0.5 * block.channel_adapter(h + e)

    def low_res_logits(self, x: Tensor) -> Tensor:
        """Normalised image (N, 3, S, S) -> (N, K, 4 S / patch, 4 S / patch)."""
        feature = self.embed(x)
        position = self.prompt_generator.pe_layer(feature.shape[-2:])
        return sam.decode(self.mask_decoder, feature, position, self.prompt_generator(feature))[0]

    def logits(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, K, S, S). Each channel of each image is brought to mean 0 and deviation 1."""
        return resize(self.low_res_logits(self.normalised(image)), image.shape[-2:])

    def normalised(self, image: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] as z-scores; for a TinyViT in its own colours."""
        if self.backbone.depth:
            return normalise(image, "zscore").expand_as(image)
        return sam.normalise_for(self.backbone, image)

    def augment(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The authors' augmentation: image (N, 3, H, W) in [0, 1], mask (N, K, H, W) in {0, 1}."""
        kind = self.hparams.augmentation
        authors = FUNDUS if self.task.name == "fundus" else PROSTATE
        return batch if kind == "none" else augment(batch, rng, authors if kind == "authors" else BASE)

    def criterion(self, logits: Tensor, mask: Tensor) -> Tensor:
        """The authors' loss: cross-entropy and Dice of logits (N, K, H, W), a scalar."""
        h = self.hparams
        return mask.shape[1] * dice_bce(logits, mask, dice_weight=h.dice_weight, reduction=h.dice_reduction)

    def schedule(self, step: int) -> float:
        """Linear warm-up, then polynomial decay; both one step late, as the authors set the rate after each step."""
        warmup, last = self.hparams.warmup, max(step - 1, 0)
        if last < warmup:
            return max(step, 1) / warmup
        return max(0.0, 1 - (last - warmup) / (self.hparams.horizon * self.steps)) ** 0.9
