"""SAM 2 for single images: its image encoder, Hiera with a feature pyramid, its prompts, and its mask decoder.

Ravi et al. SAM 2: Segment Anything in Images and Videos. 2024. https://arxiv.org/abs/2408.00714

    x_1 ... x_4 = Hiera(image)                            at strides 4, 8, 16, 32
    e           = W_3 x_3 + up(W_4 x_4) + m               stride 16; m: what stands for "no memory" of earlier frames
    s_k         = V_k (W_k x_k),  k = 1, 2                finer features, which the decoder adds as it enlarges
    tokens      = [object score, IoU, masks, prompts]

The trunk is timm's, with the same function; what is of our own is the way through it block by block, so that methods
can put something in. Beside SAM: V_k count as encoder here, so that what a frozen encoder gives can be kept; the
predicted IoU passes a sigmoid; a box has a third token, of "no point"; see also `settled`. Memory, object pointers and
all else for videos is left out, and so is the score of the object, whose parameters are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.networks import torchvision_ops  # noqa: F401  # isort: skip - timm and segment_anything import torchvision
from segment_anything.modeling import MaskDecoder, PromptEncoder
from segment_anything.modeling.mask_decoder import MLP
from timm.models import hieradet_sam2 as package

from dgbench.losses import in_float32

STEP = 32  # stride of the coarsest level, which the image's side is a multiple of
Through = Callable[[Any, Tensor], Tensor]


class Block(package.MultiScaleBlock):
    """timm's block of Hiera, whose attention and what goes round it can be had apart."""

    pool: Any

    def attend(self, x: Tensor) -> Tensor:
        """What attention adds: tokens (N, H, W, C) -> (N, H', W', C'), half the size where a stage begins."""
        x, window = self.norm1(x), self.window_size[0]
        if not window:
            return self.attn(x)
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % window, 0, -height % window))
        x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3)
        windows = x.shape[:3]
        x = self.attn(x.flatten(0, 2)).unflatten(0, windows).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        stride = self.q_stride[0] if self.q_stride else 1
        return x[:, : height // stride, : width // stride]

    def skip(self, x: Tensor) -> Tensor:
        """What goes round attention: tokens (N, H, W, C) -> (N, H', W', C')."""
        if self.dim == self.dim_out:
            return x
        return self.pool(self.proj(self.norm1(x)).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, H, W, C) -> (N, H', W', C')."""
        x = self.skip(x) + self.attend(x)
        return x + self.mlp(self.norm2(x))


class HieraEncoder(nn.Module):
    """(N, 3, S, S) -> (N, 4 channels, S / 16, S / 16): the image embedding, then the finer features, folded.

    stages: blocks of each of the four widths, the first of which is `width`, with so many `heads`. windows: side of the
    windows in each; `global_blocks` attend to the whole image. positions: side of the grid of position embeddings.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        stages: Sequence[int],
        global_blocks: Sequence[int],
        windows: Sequence[int],
        positions: int,
        channels: int,
    ):
        super().__init__()
        self.trunk = package.HieraDet(
            embed_dim=width,
            num_heads=heads,
            stages=tuple(stages),
            global_att_blocks=tuple(global_blocks),
            window_spec=tuple(windows),
            global_pos_size=(positions, positions),
            num_classes=0,
        )
        del self.trunk.head
        for block in self.trunk.blocks:
            block.__class__ = Block  # the same parameters, another forward
        self.lateral = nn.ModuleList(nn.Conv2d(width * 2**i, channels, 1) for i in range(len(stages)))
        self.no_memory = nn.Parameter(0.02 * torch.randn(channels, 1, 1))
        self.fine = nn.ModuleList(nn.Conv2d(channels, c, 1) for c in (channels // 8, channels // 4))

    def patches(self, x: Tensor) -> Tensor:
        """Image (N, 3, S, S) -> embedded patches with their positions, (N, S / 4, S / 4, width)."""
        x = self.trunk.patch_embed(x)
        return x + _positions(self.trunk.pos_embed, self.trunk.pos_embed_window, *x.shape[1:3])

    def forward(self, x: Tensor, through: Through = lambda block, x: block(x)) -> Tensor:
        """By `through(block, tokens)` for each block of the trunk."""
        levels: list[Tensor] = []
        x = self.patches(x)
        for i, block in enumerate(self.trunk.blocks):
            x = through(block, x)
            if i in self.trunk.stage_ends:
                levels.append(self.lateral[len(levels)](x.permute(0, 3, 1, 2)))
        finest, finer, middle, coarse = levels
        embedding = middle + F.interpolate(coarse, scale_factor=2.0, mode="nearest") + self.no_memory
        fine = (F.pixel_unshuffle(v(x), k) for v, x, k in zip(self.fine, (finest, finer), (4, 2), strict=True))
        return torch.cat((embedding, *fine), 1)


@in_float32
def _positions(image: Tensor, window: Tensor, height: int, width: int) -> Tensor:
    """One for each token of an image, (1, C, n, n), enlarged, plus one for each of a window, (1, C, m, m), repeated.

    Bicubic interpolation is a matrix along each axis; as a product of matrices it has one gradient on every device.
    """
    eye = torch.eye(image.shape[-1], device=image.device)[None, None]
    rows, columns = (F.interpolate(eye, (side, len(eye[0, 0])), mode="bicubic")[0, 0] for side in (height, width))
    enlarged = torch.einsum("yi,ncij,xj->nyxc", rows, image, columns)
    again = height // window.shape[2], width // window.shape[3]
    return enlarged + window.permute(0, 2, 3, 1).tile(1, *again, 1)


class Prompts(PromptEncoder):
    """SAM's, with the token of "no point" behind the two corners of a box."""

    def _embed_boxes(self, boxes: Tensor) -> Tensor:
        corners = super()._embed_boxes(boxes)
        return torch.cat((corners, self.not_a_point_embed.weight.expand(len(corners), 1, -1)), 1)


class Decoder(MaskDecoder):
    """SAM's decoder with a token for the object's score; finer features are added as it enlarges."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        width = options["transformer_dim"]
        self.obj_score_token = nn.Embedding(1, width)
        self.pred_obj_score_head = MLP(width, width, 1, 3)

    def decode(self, embedding: Tensor, position: Tensor, dense: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Of `HieraEncoder`'s (N, 4 C, h, w), position (C, h, w), prompts: logits (N, M, 4h, 4w), IoU (N, M)."""
        c = self.transformer_dim
        image, finest, finer = embedding.split((c, 2 * c, c), 1)
        own = torch.cat((self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight))
        tokens = torch.cat((own.expand(len(image), -1, -1), sparse), 1)
        source = image + dense
        tokens, pixels = self.transformer(source, position.expand_as(source), tokens)
        enlarge, norm, act, enlarge_again, act_again = self.output_upscaling
        pixels = act(norm(enlarge(pixels.mT.reshape(source.shape)) + F.pixel_shuffle(finer, 2)))
        pixels = act_again(enlarge_again(pixels) + F.pixel_shuffle(finest, 4))
        weights = torch.stack([f(tokens[:, 2 + k]) for k, f in enumerate(self.output_hypernetworks_mlps)], 1)
        logits = (weights @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])
        return logits, self.iou_prediction_head(tokens[:, 1]).sigmoid()


def settled(logits: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
    """Answers (N, M, h, w) and their predicted IoU (N, M), the first exchanged for the best of the others if unstable.

    That is where fewer than 98 of 100 pixels with a logit above -0.05 have one above 0.05.
    """
    inside, around = ((logits[:, 0] > limit).sum((1, 2)) for limit in (0.05, -0.05))
    unstable = (inside < 0.98 * around)[:, None]
    rows, best = torch.arange(len(iou), device=iou.device), 1 + iou[:, 1:].argmax(1)
    first = torch.where(unstable[..., None, None], logits[rows, best][:, None], logits[:, :1])
    rated = torch.where(unstable, iou[rows, best][:, None], iou[:, :1])
    return torch.cat((first, logits[:, 1:]), 1), torch.cat((rated, iou[:, 1:]), 1)


VIDEO = (  # what a release has for videos only
    *("memory_attention.", "memory_encoder.", "mask_downsample.", "obj_ptr_proj.", "obj_ptr_tpos_proj."),
    *("maskmem_tpos_enc", "no_mem_pos_enc", "no_obj_ptr", "no_obj_embed_spatial"),
)


def from_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A release of SAM 2.1 -> the state dict of encoder, prompts and decoder by our names.

    A key that no release has keeps its name, and so does not fit.
    """
    levels = sum(key.startswith("image_encoder.neck.convs.") and key.endswith("weight") for key in state)
    names = {
        "image_encoder.trunk.": "image_encoder.trunk.",
        "sam_prompt_encoder.": "prompt_encoder.",
        "sam_mask_decoder.conv_s0.": "image_encoder.fine.0.",
        "sam_mask_decoder.conv_s1.": "image_encoder.fine.1.",
        "sam_mask_decoder.": "mask_decoder.",
        **{f"image_encoder.neck.convs.{i}.conv.": f"image_encoder.lateral.{levels - 1 - i}." for i in range(levels)},
    }
    given = {}
    for key, value in state.items():
        if key.startswith(VIDEO):
            continue
        if key == "no_mem_embed":
            given["image_encoder.no_memory"] = value.reshape(-1, 1, 1)
            continue
        old = next((old for old in names if key.startswith(old)), "")
        new = names.get(old, "") + key.removeprefix(old)
        first, second = ("fc1", "fc2") if new.startswith("image_encoder.") else ("lin1", "lin2")
        given[new.replace("mlp.layers.0.", f"mlp.{first}.").replace("mlp.layers.1.", f"mlp.{second}.")] = value
    return given
