"""The parts of the Segment Anything Model, at any image size and for any number of masks.

Kirillov et al. Segment Anything. ICCV 2023. https://arxiv.org/abs/2304.02643

The modules come from the segment-anything package, so their parameters carry SAM's own names. What is added here:
smaller sizes, fused attention, one prompt per image, and the way from a release checkpoint to another image size.
Everything can be built on the meta device, which counts parameters without memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.networks import torchvision_ops  # noqa: F401  # isort: skip - segment_anything imports torchvision
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling import image_encoder as package
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom

from dgbench.errors import UsageError, require
from dgbench.losses import in_float32
from dgbench.networks import sam2, tiny_vit
from dgbench.networks.unet import normalise
from dgbench.networks.windows import by_windows

RELEASE_IMAGE_SIZE = 1024  # side of the images the release checkpoints were trained on
RELEASE_MASKS = 4  # one for a clear prompt, three for an ambiguous one


Colours = Literal["sam", "unit", "zscore"]


@dataclass(frozen=True)
class Backbone:
    """Sizes of a SAM. `weights` names its release checkpoint in `networks.weights`; None: trained from scratch."""

    depth: int  # 0: a TinyViT, whose stages differ in width and resolution
    width: int = 0
    heads: int = 0
    global_blocks: tuple[int, ...] = ()  # the blocks that attend to the whole image, the others to windows
    patch: int = 16
    window: int = 14
    stages: tuple[int, ...] = ()  # of a SAM 2, which is a Hiera: blocks of `width` and of each twice as wide
    windows: tuple[int, ...] = (8, 4, 14, 7)  # of a Hiera, in each stage
    positions: int = 7  # of a Hiera: side of its grid of position embeddings
    embedding: int = 256  # channels of the image embedding, of the prompts and of the decoder
    weights: str | None = None
    colours: Colours = "sam"  # how its input is normalised, see `normalise_for`


BACKBONES = {
    "vit_b": Backbone(12, 768, 12, (2, 5, 8, 11), weights="sam_vit_b"),
    "vit_l": Backbone(24, 1024, 16, (5, 11, 17, 23), weights="sam_vit_l"),
    "vit_h": Backbone(32, 1280, 16, (7, 15, 23, 31), weights="sam_vit_h"),
    "vit_tiny": Backbone(3, 96, 3, (0, 1, 2), patch=8, embedding=128, colours="zscore"),
    "medsam_vit_b": Backbone(12, 768, 12, (2, 5, 8, 11), weights="medsam_vit_b", colours="unit"),
    "sam_med2d_b": Backbone(12, 768, 12, (2, 5, 8, 11), weights="sam_med2d_b"),
    "mobile_sam": Backbone(0, weights="mobile_sam"),
    "lite_medsam": Backbone(0, patch=4, weights="lite_medsam", colours="unit"),
    "sam2_tiny": Backbone(12, 96, 1, (5, 7, 9), stages=(1, 2, 7, 2), weights="sam2_tiny"),
    "sam2_small": Backbone(16, 96, 1, (7, 10, 13), stages=(1, 2, 11, 2), weights="sam2_small"),
    "sam2_base_plus": Backbone(24, 112, 2, (12, 16, 20), stages=(2, 3, 16, 3), positions=14, weights="sam2_base_plus"),
    "sam2_large": Backbone(48, 144, 2, (23, 33, 43), stages=(2, 6, 36, 4), windows=(8, 4, 16, 8), weights="sam2_large"),
    "medsam2": Backbone(12, 96, 1, (5, 7, 9), stages=(1, 2, 7, 2), weights="medsam2"),
}


def find_backbone(name: str, takes_sam2: bool = True) -> Backbone:
    """The backbone of that name. Raises `UsageError` for an unknown one, and for a SAM 2 where that cannot be taken."""
    found = BACKBONES[require(name, list(BACKBONES), "backbone")]
    if found.stages and not takes_sam2:
        raise UsageError(
            f"backbone '{name}' is a SAM 2, which works on features of several sizes; this method reads one",
            f"choose another: {', '.join(n for n, b in BACKBONES.items() if not b.stages)}",
        )
    return found


def normalise_for(backbone: Backbone, image: Tensor) -> Tensor:
    """(N, 3, H, W) in [0, 1] as the backbone wants it: by SAM's colours, stretched to [0, 1] ("unit"), or as z-scores.

    Stretching and z-scores are those of each image by itself; an even image becomes 0 by both.
    """
    if backbone.colours == "zscore":
        return normalise(image, "zscore").expand_as(image)
    if backbone.colours == "unit":
        low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
        return (image - low) / (high - low).clamp(min=1e-8)
    return normalise(image, "imagenet")


class Block(package.Block):
    """SAM's transformer block: same parameters, same function, with fused attention."""

    def attend(self, x: Tensor) -> Tensor:
        """What attention adds to the tokens: (N, H, W, C) -> (N, H, W, C)."""
        attention, window = self.attn, self.window_size
        qkv, places = attention.qkv(self.norm1(x)), (attention.rel_pos_h, attention.rel_pos_w)
        if not window:
            return attention.proj(_attention(qkv, attention.num_heads, *places))
        # SAM fills the windows at the border with zero tokens before this projection.
        filler = attention.qkv(x.new_zeros(x.shape[-1]))
        out = by_windows(qkv, window, lambda windows: _in_window(windows, filler, attention.num_heads, *places))
        return attention.proj(out)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (N, H, W, C) -> the same shape."""
        x = x + self.attend(x)
        return x + self.mlp(self.norm2(x))


def _attention(qkv: Tensor, heads: int, rel_pos_h: Tensor, rel_pos_w: Tensor) -> Tensor:
    """Attention with decomposed relative positions (Li et al., MViTv2, CVPR 2022): (N, H, W, 3C) -> (N, H, W, C).

    The logit of query (i, j) and key (k, l) is q.k / sqrt(d) + q.h[i - k] + q.w[j - l]. It is one scalar product of
    [q / sqrt(d), q.h[i - 0], q.h[i - 1], ..., q.w[j - 0], ...] with [k, onehot(k), onehot(l)], so the bias of every
    pair is never stored, and kernels that take no bias apply. These want values as long as the keys: hence the zeros.
    """
    n, height, width, _ = qkv.shape
    q, k, v = qkv.reshape(n, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind()
    d = q.shape[-1]
    rows, columns = _places(q, height, width, rel_pos_h, rel_pos_w)
    one_hot = _one_hot(qkv, height, width)
    query, key = torch.cat((q * d**-0.5, rows, columns), -1), torch.cat((k, one_hot.expand(n, heads, -1, -1)), -1)
    return _fused(query, key, v).transpose(1, 2).reshape(n, height, width, heads * d)


def _fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T) value, for values that may be shorter than keys."""
    longer = F.pad(value, (0, key.shape[-1] - value.shape[-1]))
    return F.scaled_dot_product_attention(query, key, longer, scale=1.0)[..., : value.shape[-1]]


def _in_window(qkv: Tensor, filler: Tensor, heads: int, rel_pos_h: Tensor, rel_pos_w: Tensor) -> Tensor:
    """`_attention` in windows of which the tokens inside the image are given: (M, h, w, 3C) -> (M, h, w, C).

    Filler: (3C,), of each token that is not. Windows are small enough to store all pairs, which is less work on a CPU.
    """
    m, height, width, _ = qkv.shape
    q, k, v = qkv.reshape(m, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind()
    rows, columns = _places(q, height, width, rel_pos_h, rel_pos_w)
    queries = [q * q.shape[-1] ** -0.5, rows[..., :height], columns[..., :width]]
    one_hot = _one_hot(qkv, height, width)
    if height < rows.shape[-1] or width < columns.shape[-1]:
        below = rows[..., height:].logsumexp(-1) + columns[..., :width].logsumexp(-1)
        beside = rows.logsumexp(-1) + columns[..., width:].logsumexp(-1)
        queries.append(torch.logaddexp(below, beside)[..., None])
        one_hot = torch.block_diag(one_hot, one_hot.new_ones(1, 1))
        _, key, value = filler.reshape(3, heads, 1, -1).expand(m, -1, -1, -1, -1).unbind(1)
        k, v = torch.cat((k, key), 2), torch.cat((v, value), 2)
    query, key = torch.cat(queries, -1), torch.cat((k, one_hot.expand(m, heads, -1, -1)), -1)
    out = _fused(query, key, v) if qkv.is_cuda else (query @ key.mT).softmax(-1) @ v
    return out.transpose(1, 2).reshape(m, height, width, -1)


def _places(q: Tensor, height: int, width: int, rel_pos_h: Tensor, rel_pos_w: Tensor) -> tuple[Tensor, Tensor]:
    """What each query adds for each row and each column of its window: (N, heads, T, rows), (N, heads, T, columns)."""
    grid = q.unflatten(2, (height, width))
    rows = torch.einsum("nayxd,ykd->nayxk", grid, _by_offset(rel_pos_h)[:height])
    columns = torch.einsum("nayxd,xkd->nayxk", grid, _by_offset(rel_pos_w)[:width])
    return rows.flatten(2, 3), columns.flatten(2, 3)


def _one_hot(like: Tensor, height: int, width: int) -> Tensor:
    """(height * width, height + width): the row and the column of each token."""
    eye = partial(torch.eye, dtype=like.dtype, device=like.device)
    return torch.cat((eye(height).repeat_interleave(width, 0), eye(width).repeat(height, 1)), 1)


def _by_offset(table: Tensor) -> Tensor:
    """(2 size - 1, d) -> (size, size, d): the entry of query minus key, for every pair."""
    size = (len(table) + 1) // 2
    index = torch.arange(size, device=table.device)
    return table[index[:, None] - index + size - 1]


def image_encoder(backbone: Backbone, image_size: int) -> Any:
    """(N, 3, S, S) -> (N, embedding, S / patch, S / patch), of a SAM 2 with three times as many channels behind them.

    Raises `UsageError` when the patches do not fill S.
    """
    step = sam2.STEP if backbone.stages else backbone.patch
    if image_size < step or image_size % step:
        near = max(1, round(image_size / step)) * step
        what = "coarsest stride" if backbone.stages else "patch size"
        raise UsageError(
            f"image_size {image_size} is no multiple of the {what} {step}",
            f"choose a multiple of it: --set image_size={near}",
        )
    if backbone.stages:
        b = backbone
        return sam2.HieraEncoder(b.width, b.heads, b.stages, b.global_blocks, b.windows, b.positions, b.embedding)
    if not backbone.depth:
        return tiny_vit.TinyViTEncoder(backbone.patch, backbone.embedding)
    encoder = ImageEncoderViT(
        img_size=image_size,
        patch_size=backbone.patch,
        embed_dim=backbone.width,
        depth=backbone.depth,
        num_heads=backbone.heads,
        out_chans=backbone.embedding,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=backbone.window,
        global_attn_indexes=backbone.global_blocks,
    )
    nn.init.trunc_normal_(encoder.pos_embed, std=0.02)  # the package leaves zeros, which tell no place from another
    for block in encoder.blocks:
        block.__class__ = Block  # the same parameters, another forward
    return encoder


class Positions(PositionEmbeddingRandom):
    """The package's encoding of places, in float32: bfloat16 tells no more than 256 of them apart along a side."""

    def _pe_encoding(self, coords: Tensor) -> Tensor:
        return in_float32(super()._pe_encoding)(coords)


def prompt_encoder(backbone: Backbone, image_size: int) -> PromptEncoder:
    """Points, boxes and masks -> sparse (N, P, embedding) and dense (N, embedding, S / patch, S / patch) prompts."""
    side = image_size // backbone.patch
    kind: type[PromptEncoder] = sam2.Prompts if backbone.stages else PromptEncoder
    encoder = kind(
        embed_dim=backbone.embedding,
        image_embedding_size=(side, side),
        input_image_size=(image_size, image_size),
        mask_in_chans=16,
    )
    encoder.pe_layer.__class__ = Positions  # the same buffer
    return encoder


def position_encoding(backbone: Backbone) -> Positions:
    """Called with (h, w): the random Fourier features (embedding, h, w) of a grid. Its frequencies are a buffer."""
    return Positions(backbone.embedding // 2)


def mask_decoder(backbone: Backbone, masks: int) -> MaskDecoder:
    """SAM's decoder with one token for each of `masks` masks; call it by `decode`. SAM itself has `RELEASE_MASKS`."""
    width = backbone.embedding
    kind: type[MaskDecoder] = sam2.Decoder if backbone.stages else MaskDecoder
    return kind(
        transformer_dim=width,
        transformer=TwoWayTransformer(depth=2, embedding_dim=width, num_heads=8, mlp_dim=8 * width),
        num_multimask_outputs=masks - 1,
        iou_head_depth=3,
        iou_head_hidden_dim=width,
    )


def decode(
    decoder: MaskDecoder, embedding: Tensor, position: Tensor, dense: Tensor, sparse: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mask logits (N, K, 4h, 4w) and their predicted IoU (N, K): image i is decoded with prompt i.

    Parameters
    ----------
    embedding: (N, C, h, w), of the images; for a SAM 2 all that its encoder gives.
    position: (C, h, w), the encoding of the grid.
    dense: (N, C, h, w), or broadcastable to it, added to the embedding.
    sparse: (N, P, C), points and boxes; None: no such prompt.
    """
    n, c = len(embedding), decoder.transformer_dim
    sparse = embedding.new_zeros(n, 0, c) if sparse is None else sparse
    if isinstance(decoder, sam2.Decoder):
        return decoder.decode(embedding, position, dense, sparse)
    # The package pairs every image with every prompt; an image of zeros leaves each prompt with its own.
    return decoder.predict_masks(
        image_embeddings=embedding.new_zeros(1, c, 1, 1),
        image_pe=position[None],
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=embedding + dense,
    )


MASK_HEAD = (
    "mask_decoder.mask_tokens.",
    "mask_decoder.output_hypernetworks_mlps.",
    "mask_decoder.iou_prediction_head.",
)


def fit_release(
    state: dict[str, Tensor], backbone: Backbone, image_size: int, masks: int, mask_head: bool
) -> dict[str, Tensor]:
    """A release checkpoint's state dict, made to fit another image size and number of masks.

    Positions are interpolated linearly when the grid of patches is another one: the position embedding, and the
    relative positions of the blocks that attend to the whole image. Those of the windowed blocks stay, because the
    windows do; a Hiera interpolates its own as it goes. With `mask_head`, mask k starts from SAM's mask token k modulo
    4, its hypernetwork and its row of the IoU head; without it the three are left out and keep their random start.
    """
    if backbone.stages:
        return _fit_mask_head(sam2.from_release(state), masks, mask_head)
    side = image_size // backbone.patch
    if not backbone.depth:
        prefix = "image_encoder."
        encoder = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        others = {k: v for k, v in state.items() if not k.startswith(prefix)}
        state = others | {f"{prefix}{k}": v for k, v in tiny_vit.from_release(encoder).items()}
        return _fit_mask_head(state, masks, mask_head)
    fitted = dict(state)
    position = fitted["image_encoder.pos_embed"]
    if position.shape[1] != side:
        resized = F.interpolate(position.permute(0, 3, 1, 2), (side, side), mode="bilinear", align_corners=False)
        fitted["image_encoder.pos_embed"] = resized.permute(0, 2, 3, 1)
        for key in (f"image_encoder.blocks.{b}.attn.rel_pos_{axis}" for b in backbone.global_blocks for axis in "hw"):
            fitted[key] = F.interpolate(fitted[key].T[None], 2 * side - 1, mode="linear", align_corners=False)[0].T
    return _fit_mask_head(fitted, masks, mask_head)


def _fit_mask_head(state: dict[str, Tensor], masks: int, mask_head: bool) -> dict[str, Tensor]:
    head = {key: value for key, value in state.items() if key.startswith(MASK_HEAD)}
    fitted = {key: value for key, value in state.items() if key not in head}
    if not mask_head:
        return fitted
    tokens, networks, iou = MASK_HEAD
    rows = torch.arange(masks) % RELEASE_MASKS
    for key, value in head.items():
        if key.startswith(networks):
            number, _, rest = key.removeprefix(networks).partition(".")
            fitted |= {f"{networks}{k}.{rest}": value for k in range(masks) if rows[k] == int(number)}
        else:
            fitted[key] = value[rows] if key.startswith((tokens, f"{iou}layers.2.")) else value
    return fitted
