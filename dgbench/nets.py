"""Segmentation networks that methods build on: a plain U-Net, and one whose encoder is any timm feature network.

Both read an image in stages. `encode` gives the feature map after each stage, shallow to deep, `decode` turns them into
logits, and `insert` puts a layer of a method's own behind a stage, so that no method needs a copy of a network.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.errors import DataError, UsageError
from dgbench.weights import load_into

Norm = Literal["batch", "instance"]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of the colours, in [0, 1]


def normalise(image: Tensor, by: Literal["zscore", "imagenet"]) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> what a network sees: mean 0 and deviation 1 of each image and channel, or of ImageNet.

    An even image has no deviation: its z-score is 0.
    """
    if by == "zscore":
        gray = image.stride(1) == 0
        variance, mean = torch.var_mean(image[:, :1] if gray else image, (2, 3), correction=0, keepdim=True)
    else:
        mean, deviation = (torch.tensor(v, device=image.device)[:, None, None] for v in IMAGENET)
        variance = deviation**2
    return (image - mean) / (variance + 1e-8).sqrt()


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
        self.name, self.image_size = encoder, image_size
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
        for known in (name, name.replace(".", "_")):  # timm joins with _ what it flattens
            if known in modules:
                return modules[known]
        raise UsageError(f"the stages of encoder '{self.name}' are no modules", "choose another, for instance resnet34")

    def load_encoder(self, state: dict[str, Tensor], origin: str | Path) -> None:
        """Take the encoder's weights from the whole network as timm publishes it; its classifier may be missing.

        Raises `DataError`, which names `origin`, for weights of another network.
        """
        import timm

        whole = timm.create_model(self.name)
        classifier = whole.pretrained_cfg.get("classifier") or ()
        head = [f"{name}.*" for name in ([classifier] if isinstance(classifier, str) else classifier)]
        load_into(whole, state, origin, allow_missing=head, allow_unexpected=head)
        overlay = {"state_dict": whole.state_dict()}
        donor = feature_network(self.name, self.image_size, pretrained=True, pretrained_cfg_overlay=overlay)
        self.encoder.load_state_dict(donor.state_dict())


def feature_network(name: str, image_size: int | None = None, **options: Any) -> Any:
    """timm's `features_only` network of that name. Raises `UsageError` for a name timm does not know."""
    import dgbench.torchvision_ops  # noqa: F401  (before timm)
    import timm

    known = timm.list_models()
    if name.partition(".")[0] not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=5)) or "resnet34, efficientnet_b2, convnext_tiny"
        raise UsageError(f"unknown encoder '{name}'", f"give 'unet' or a name timm knows, for instance {near}")
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    return timm.create_model(name, features_only=True, **options)


def published_weights(name: str) -> Path:
    """The file of weights timm publishes for a network, fetched unless it is in the Hugging Face cache.

    Raises `DataError` when it cannot be had, with what to download.
    """
    import huggingface_hub
    import dgbench.torchvision_ops  # noqa: F401
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise DataError(f"timm publishes no weights of '{name}' on its hub", "choose another encoder, or give a file: --set initialisation=PATH")
    file = config.hf_hub_filename or "model.safetensors"
    try:
        return Path(huggingface_hub.hf_hub_download(config.hf_hub_id, file))
    except Exception as error:  # offline, refused, gone: the hub's client fails in many ways
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"the published weights of '{name}' cannot be fetched: {reason}",
            f"download https://huggingface.co/{config.hf_hub_id}/resolve/main/{file} and --set initialisation=PATH",
        ) from error
