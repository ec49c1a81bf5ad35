"""Segmentation networks that methods build on: a plain U-Net, and one whose encoder is any timm feature network.

Both read an image in stages. `encode` gives the feature map after each stage, shallow to deep, `decode` turns them into
logits, and `insert` puts a layer of a method's own behind a stage, so that no method needs a copy of a network.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.errors import UsageError

Norm = Literal["batch", "instance"]


def convolutions(inside: int, outside: int, norm: Norm) -> nn.Sequential:
    """Two 3x3 convolutions, each with its norm and a ReLU: (N, inside, H, W) -> (N, outside, H, W)."""
    layer: Any = {"batch": nn.BatchNorm2d, "instance": partial(nn.InstanceNorm2d, affine=True)}[norm]
    modules: list[nn.Module] = []
    for channels in (inside, outside):
        modules += [nn.Conv2d(channels, outside, 3, padding=1, bias=False), layer(outside), nn.ReLU(inplace=True)]
    return nn.Sequential(*modules)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, h, w) -> (N, C, *size), bilinear; untouched when it has that size."""
    size = tuple(size)
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


class Decoder(nn.Module):
    """U-Net decoder: from the deepest feature map upwards, joined at each stage with the encoder's.

    channels: of the encoder's feature maps, shallow to deep; widths: the decoder's own at all but the deepest.
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int], structures: int, norm: Norm = "batch"):
        super().__init__()
        inputs = (*widths[1:], channels[-1])
        self.narrow = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(inputs, widths, strict=True))
        self.merge = nn.ModuleList(convolutions(w + c, w, norm) for w, c in zip(widths, channels, strict=False))
        self.head = nn.Conv2d(widths[0], structures, 1)

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        x = features[-1]
        for narrow, merge, skip in zip(
            reversed(self.narrow), reversed(self.merge), reversed(features[:-1]), strict=True
        ):
            x = merge(torch.cat((resize(narrow(x), skip.shape[-2:]), skip), 1))
        return resize(self.head(x), size)


class _Net(nn.Module):
    """What both networks share: an encoder in stages, a decoder, and room for a method's layers between the stages."""

    channels: tuple[int, ...]  # of the feature map after each stage, shallow to deep
    decoder: Decoder

    def __init__(self) -> None:
        super().__init__()
        self.inserted = nn.ModuleDict()

    def encode(self, image: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> the feature map after each stage, shallow to deep."""
        raise NotImplementedError

    def stage(self, index: int) -> nn.Module:
        """The module whose output is the feature map of that stage."""
        raise NotImplementedError

    def decode(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """The feature maps of `encode` -> (N, structures, *size) logits."""
        return self.decoder(features, size)

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W), any size -> (N, structures, H, W) logits."""
        return self.decode(self.encode(image), image.shape[-2:])

    def insert(self, index: int, layer: nn.Module) -> None:
        """Put `layer` behind a stage: the next stage and the decoder see its output. Names of weights stay as they are."""
        self.inserted[str(index)] = layer
        self.stage(index).register_forward_hook(partial(_through, layer), prepend=True)


def _through(layer: nn.Module, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return layer(output)


class UNet(_Net):
    """Plain U-Net for images of any size: `depth` halvings, bilinear upsampling, `width` channels doubled at each.

    Ronneberger, Fischer, Brox. MICCAI 2015. https://arxiv.org/abs/1505.04597. Differs: padded convolutions, norms.
    """

    def __init__(self, structures: int, in_channels: int = 3, width: int = 16, depth: int = 4, norm: Norm = "batch"):
        super().__init__()
        self.channels = tuple(width * 2**i for i in range(depth + 1))
        inputs = (in_channels, *self.channels)
        self.stages = nn.ModuleList(convolutions(a, b, norm) for a, b in zip(inputs, self.channels, strict=False))
        for i in range(1, depth + 1):
            self.stages[i] = nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), *self.stages[i])  # type: ignore[misc]
        self.decoder = Decoder(self.channels, self.channels[:-1], structures, norm)

    def encode(self, image: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            image = stage(image)
            features.append(image)
        return features

    def stage(self, index: int) -> nn.Module:
        return self.stages[index]


class FeatureUNet(_Net):
    """U-Net decoder on a timm feature network: `encoder` is its name in timm, randomly initialised here.

    The decoder has `width` channels at the shallowest feature map and twice as many at each deeper one. The logits are
    computed at the shallowest feature map's size (half of the image's for most networks) and resized.
    `image_size` is needed by networks that fix it, such as Swin.
    """

    def __init__(
        self, encoder: str, structures: int, width: int = 32, norm: Norm = "batch", image_size: int | None = None
    ):
        super().__init__()
        self.encoder = feature_network(encoder, image_size)
        self.channels = tuple(self.encoder.feature_info.channels())
        self.decoder = Decoder(self.channels, [width * 2**i for i in range(len(self.channels) - 1)], structures, norm)

    def encode(self, image: Tensor) -> list[Tensor]:
        features = list(self.encoder(image))
        if getattr(self.encoder, "output_fmt", None) == "NHWC":
            features = [f.permute(0, 3, 1, 2) for f in features]
        return features

    def stage(self, index: int) -> nn.Module:
        name = self.encoder.feature_info.module_name(index)
        modules = dict(self.encoder.named_modules())
        return modules[name] if name in modules else modules[name.replace(".", "_")]


def feature_network(name: str, image_size: int | None = None, **options: Any) -> Any:
    """timm's `features_only` network of that name. Raises `UsageError` for a name timm does not know."""
    import timm

    known = timm.list_models()
    if name.partition(".")[0] not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=5)) or "resnet34, efficientnet_b2, convnext_tiny"
        raise UsageError(f"unknown encoder '{name}'", f"give 'unet' or a name timm knows, for instance {near}")
    if timm.get_pretrained_cfg(name).fixed_input_size:
        options["img_size"] = image_size
    return timm.create_model(name, features_only=True, **options)
