"""The transformer blocks of SAM's image encoders, for methods that put something into them.

A plain ViT has one stage of blocks. A TinyViT has three, each on a grid and of a width of its own; the convolutions
before them, its stage 0, have no attention and no tokens: nothing is put in there. The Hiera of a SAM 2 has four; the
first block of each but the first halves the grid and doubles the width. A block of any kind does

    x <- skip(x) + attention(x)       skip(x) = x, but where a Hiera changes grid and width
    x <- mix(x)                       a convolution of each channel by itself; of a TinyViT only
    x <- x + MLP(h)                   h = LayerNorm(x)

Tokens are (N, H, W, C) throughout.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dgbench.networks.sam2 import Block as HieraBlock
from dgbench.networks.sam2 import HieraEncoder
from dgbench.networks.tiny_vit import TinyViTEncoder


class Stage(NamedTuple):
    """Blocks of one width. `enter` brings the tokens of the stage before, or the patches, to its grid and width."""

    module: Any  # of the encoder; what belongs to the stage as a whole is put there
    enter: Callable[[Tensor], Tensor]
    blocks: list[Any]


def stages(encoder: Any) -> list[Stage]:
    """The stages whose blocks have attention, in order."""
    if isinstance(encoder, HieraEncoder):
        ends, every = encoder.trunk.stage_ends, list(encoder.trunk.blocks)
        starts = [0, *(end + 1 for end in ends)]
        return [Stage(encoder, nn.Identity(), every[a : b + 1]) for a, b in zip(starts, ends, strict=False)]
    if not isinstance(encoder, TinyViTEncoder):
        return [Stage(encoder, nn.Identity(), list(encoder.blocks))]
    convolutions, *others = encoder.stages
    before = [nn.Sequential(convolutions, others[0].downsample), *(stage.downsample for stage in others[1:])]
    return [Stage(s, _on_tokens(b), list(s.blocks)) for s, b in zip(others, before, strict=True)]


def _on_tokens(convolutions: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: convolutions(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def blocks(encoder: Any) -> list[Any]:
    """The blocks that have attention, in order."""
    return [block for stage in stages(encoder) for block in stage.blocks]


def patches(encoder: Any, x: Tensor) -> Tensor:
    """Normalised image (N, 3, S, S) -> what the first stage enters with: the embedded patches, where they lie added."""
    if isinstance(encoder, TinyViTEncoder):
        return encoder.patch_embed(x).permute(0, 2, 3, 1)
    return encoder.patch_embed(x) + encoder.pos_embed


def low_width(encoder: Any) -> int:
    """Channels of the embedded patches."""
    embedding = encoder.patch_embed
    return (embedding.conv2.conv if isinstance(encoder, TinyViTEncoder) else embedding.proj).out_channels


def tokens(encoder: Any, x: Tensor, through: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """Normalised image (N, 3, S, S) -> what its neck gets, (N, h, w, C), by `through(block, tokens)` for each block."""
    x = patches(encoder, x)
    for stage in stages(encoder):
        x = stage.enter(x)
        for block in stage.blocks:
            x = through(block, x)
    return x


def embedding(encoder: Any, x: Tensor, through: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """Normalised image (N, 3, S, S) -> what `encoder(x)` is, by `through(block, tokens)` for each block."""
    if isinstance(encoder, HieraEncoder):
        return encoder(x, through)
    return encoder.neck(tokens(encoder, x, through).permute(0, 3, 1, 2))


def features(encoder: Any, x: Tensor, which: Collection[int]) -> list[Tensor]:
    """Normalised image (N, 3, S, S) -> maps (N, C, h, w): what leaves `which` blocks, then what the neck gets."""
    maps: list[Tensor] = []

    def through(block: Any, x: Tensor) -> Tensor:
        x = block(x)
        maps.append(x.permute(0, 3, 1, 2))
        return x

    last = tokens(encoder, x, through).permute(0, 3, 1, 2)
    return [*(maps[i] for i in which), last]


def width(block: Any) -> int:
    """Channels of the tokens that leave the block."""
    return block.attn.proj.out_features


def is_tiny(block: Any) -> bool:
    """Whether it is a block of a TinyViT."""
    return hasattr(block, "local_conv")


def skip(block: Any, x: Tensor) -> Tensor:
    """What goes round attention, of the tokens that enter the block."""
    return block.skip(x) if isinstance(block, HieraBlock) else x


def mix(block: Any, x: Tensor) -> Tensor:
    """The tokens as they leave attention -> as they come to the MLP."""
    return block.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if is_tiny(block) else x


def normed(block: Any, x: Tensor) -> Tensor:
    """h of the tokens."""
    return block.mlp.norm(x) if is_tiny(block) else block.norm2(x)


def mlp(block: Any, h: Tensor) -> Tensor:
    """What the MLP adds to the tokens, of their h."""
    return block.mlp.fc2(block.mlp.act(block.mlp.fc1(h))) if is_tiny(block) else block.mlp(h)


def heads_apart(block: Any) -> int:
    """In how many parts the projection to queries, keys and values lies, each of which has all three.

    A plain ViT has all queries, then all keys, then all values; a TinyViT those of each head together.
    """
    return block.attn.num_heads if is_tiny(block) else 1


def change(qkv: Tensor, change_q: Tensor, change_v: Tensor, parts: int) -> Tensor:
    """Queries, keys and values (..., 3 C) in so many `parts`, plus changes (..., C) of queries and values."""
    q, k, v = qkv.unflatten(-1, (parts, 3, -1)).unbind(-2)
    change_q, change_v = (x.unflatten(-1, (parts, -1)) for x in (change_q, change_v))
    return torch.stack((q + change_q, k, v + change_v), -2).flatten(-3)
