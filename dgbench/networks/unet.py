"""Segmentation networks that methods build on: a plain U-Net, and one whose encoder is any feature network of timm.

Both read an image in stages. `encode` gives the feature map after each stage, shallow to deep, `decode` turns them into
logits, and `insert` puts a layer of a method's own behind a stage, so that no method needs a copy of a network.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.errors import DataError, UsageError
from dgbench.networks import smp_encoder
from dgbench.networks.checkpoints import load_into

Norm = Literal["batch", "instance", "group"]
GROUPS = 32  # the paper's default: Wu & He. Group Normalization. ECCV 2018
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of its colours in [0, 1]


def one_channel(image: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W) where the three are one gray channel, expanded; else the image itself."""
    return image[:, :1] if image.stride(1) == 0 else image


def normalise(image: Tensor, by: Literal["zscore", "imagenet"]) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> mean 0 and deviation 1, of each image and channel by itself or of ImageNet's colours.

    The z-score of an even channel is 0.
    """
    if by == "zscore":
        variance, mean = torch.var_mean(one_channel(image), (2, 3), correction=0, keepdim=True)
        return (image - mean) / (variance + 1e-8).sqrt()
    mean, deviation = (torch.tensor(values, device=image.device)[:, None, None] for values in IMAGENET)
    return (image - mean) / deviation


def groups_of(channels: int) -> int:
    """How many groups share the channels evenly: at most `GROUPS`, of two channels at least where there are two."""
    return max(n for n in range(1, max(1, min(GROUPS, channels // 2)) + 1) if channels % n == 0)


def convolutions(inside: int, outside: int, norm: Norm) -> list[nn.Module]:
    """Two 3x3 convolutions, each with its norm and a ReLU: (N, inside, H, W) -> (N, outside, H, W).

    There are `GROUPS` groups, or as many as there can be of two channels each: in one group of few channels the larger
    ones silence the others behind the ReLU.
    """
    layers: dict[Norm, Any] = {
        "batch": nn.BatchNorm2d,
        "instance": partial(nn.InstanceNorm2d, affine=True),
        "group": lambda channels: nn.GroupNorm(groups_of(channels), channels),
    }
    layer = layers[norm]
    modules: list[nn.Module] = []
    for channels in (inside, outside):
        modules += [nn.Conv2d(channels, outside, 3, padding=1, bias=False), layer(outside), nn.ReLU(inplace=True)]
    return modules


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """(N, C, h, w) -> (N, C, *size), bilinear."""
    size = tuple(size)
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


class Decoder(nn.Module):
    """From the deepest feature map upwards: narrow, enlarge, join with the encoder's map of that size, convolve twice.

    channels: of the encoder's feature maps, shallow to deep. widths: of the decoder's, one for each but the deepest.
    """

    def __init__(self, channels: Sequence[int], widths: Sequence[int], structures: int, norm: Norm = "batch"):
        super().__init__()
        below = (*widths[1:], channels[-1])
        self.narrow = nn.ModuleList(nn.Conv2d(b, w, 1) for b, w in zip(below, widths, strict=True))
        self.merge = nn.ModuleList(
            nn.Sequential(*convolutions(w + c, w, norm)) for w, c in zip(widths, channels[:-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], structures, 1)

    def maps(self, features: Sequence[Tensor], layers: Mapping[int, Callable[[Tensor], Tensor]] = {}) -> list[Tensor]:
        """The encoder's maps, shallow to deep -> the deepest one, and after it what each stage makes, up to the top.

        layers: what a stage's map goes through, by the index of the encoder's map that it joins, 0 the shallowest.
        """
        found = [features[-1]]
        for i in reversed(range(len(self.merge))):
            x = resize(self.narrow[i](found[-1]), features[i].shape[-2:])
            x = self.merge[i](torch.cat((x, features[i]), 1))
            found.append(layers[i](x) if i in layers else x)
        return found

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        return resize(self.head(self.maps(features)[-1]), size)


class SegmentationNet(nn.Module):
    """What the networks share: an encoder in stages, a decoder, and room for a method's layers behind the stages."""

    channels: tuple[int, ...]  # of the feature map after each stage, shallow to deep
    decoder: Decoder

    def __init__(self) -> None:
        super().__init__()
        self.inserted = nn.ModuleDict()

    def encode(self, image: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> the feature map after each stage, shallow to deep, (N, channels[i], h, w)."""
        raise NotImplementedError

    def stage(self, index: int) -> nn.Module:
        """The module whose output is the feature map of that stage."""
        raise NotImplementedError

    def decode(self, features: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """The feature maps of `encode` -> (N, structures, *size) logits."""
        return self.decoder(features, size)

    def forward(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, structures, H, W) logits."""
        return self.decode(self.encode(image), image.shape[-2:])

    def insert(self, index: int, layer: nn.Module) -> None:
        """Put `layer`, (N, channels[index], h, w) -> the same shape, behind a stage.

        The next stage and the decoder see what it returns. It belongs to the network as `inserted.<index>`; all other
        weights keep their names.
        """
        if str(index) in self.inserted:
            raise ValueError(f"stage {index} has its layer: insert an nn.Sequential of several")
        channels_at_end = getattr(self, "channels_at_end", False)
        # A partial, not a closure: deepcopy then gives the copy's hook the copy's layer.
        self.stage(index).register_forward_hook(partial(_pass_through, layer, channels_at_end), prepend=True)
        self.inserted[str(index)] = layer


def _pass_through(layer: nn.Module, channels_at_end: bool, stage: nn.Module, inputs: Any, x: Tensor) -> Tensor:
    return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if channels_at_end else layer(x)


class UNet(SegmentationNet):
    """Plain U-Net: `depth` halvings, `width` channels at first and twice as many after each.

    Takes images of any size; with instance norm one side must be larger than 2^depth pixels.

    Ronneberger, Fischer, Brox. MICCAI 2015. https://arxiv.org/abs/1505.04597. Differs: norms, padded convolutions, and
    a 1x1 convolution with bilinear interpolation for the transposed convolution.
    """

    def __init__(self, structures: int, in_channels: int = 3, width: int = 16, depth: int = 4, norm: Norm = "batch"):
        super().__init__()
        self.norm = norm
        self.channels = tuple(width * 2**i for i in range(depth + 1))
        self.stages = nn.ModuleList([nn.Sequential(*convolutions(in_channels, width, norm))])
        for above, channels in zip(self.channels, self.channels[1:], strict=False):
            halve = nn.MaxPool2d(2, ceil_mode=True)
            self.stages.append(nn.Sequential(halve, *convolutions(above, channels, norm)))
        self.decoder = Decoder(self.channels, self.channels[:-1], structures, norm)

    def encode(self, image: Tensor) -> list[Tensor]:
        if image.device.type == "cpu" and self.norm == "batch":  # measured: a tenth faster; instance norm gets slower
            image = image.contiguous(memory_format=torch.channels_last)
        features = []
        for stage in self.stages:
            image = stage(image)
            features.append(image)
        return features

    def stage(self, index: int) -> nn.Module:
        return self.stages[index]


class FeatureUNet(SegmentationNet):
    """U-Net decoder on a feature network of timm, or on an encoder of segmentation_models_pytorch, with random weights.

    Parameters
    ----------
    encoder: its name in timm, or `smp:` and its name there; the stages of the latter take no layers.
    width: channels of the decoder at the shallowest feature map; twice as many at each deeper one. The logits are
        computed at the size of the shallowest map, for most networks half of the image's, and enlarged.
    norm: of the decoder.
    image_size: side of the square image; only networks that fix it, such as Swin, need it.
    """

    def __init__(
        self, encoder: str, structures: int, width: int = 16, norm: Norm = "batch", image_size: int | None = None
    ):
        super().__init__()
        self.name, self.image_size = encoder, image_size
        self.encoder = feature_network(encoder, image_size)
        self.channels_at_end = getattr(self.encoder, "output_fmt", None) == "NHWC"
        self.channels = tuple(self.encoder.feature_info.channels())
        self.depthwise = any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in self.encoder.modules())
        widths = [width * 2**i for i in range(len(self.channels) - 1)]
        self.decoder = Decoder(self.channels, widths, structures, norm)

    def encode(self, image: Tensor) -> list[Tensor]:
        if image.device.type == "cpu" and self.depthwise:  # measured: up to 1.4 times as fast
            image = image.contiguous(memory_format=torch.channels_last)
        features = self.encoder(image)
        return [f.permute(0, 3, 1, 2) for f in features] if self.channels_at_end else list(features)

    def stage(self, index: int) -> nn.Module:
        name = self.encoder.feature_info.module_name(index)
        modules = dict(self.encoder.named_modules())
        for known in (name, name.replace(".", "_")):  # timm writes _ where it has flattened
            if known in modules:
                return modules[known]
        raise UsageError(f"the stages of encoder '{self.name}' are no modules", "choose another, for instance resnet34")

    def load_encoder(self, state: dict[str, Tensor], origin: str | Path) -> None:
        """Take the encoder's weights from the whole network as it is published; its classifier may be missing.

        An EfficientNet may also come with the names of EfficientNet-PyTorch, which has timm's layers in timm's order.
        Raises `DataError`, which names `origin`, for weights of another network.
        """
        if isinstance(self.encoder, smp_encoder.SMPEncoder):
            return self.encoder.load(state, origin)
        import timm

        whole: Any = timm.create_model(self.name)
        if "_conv_stem.weight" in state and len(state) == len(whole.state_dict()):
            state = dict(zip(whole.state_dict(), state.values(), strict=True))
        classifier = whole.pretrained_cfg.get("classifier") or ()
        head = [f"{name}.*" for name in ([classifier] if isinstance(classifier, str) else classifier)]
        load_into(whole, state, origin, allow_missing=head, allow_unexpected=head)
        given = {"state_dict": whole.state_dict()}  # timm knows how its feature networks name and resize them
        loaded = feature_network(self.name, self.image_size, pretrained=True, pretrained_cfg_overlay=given)
        self.encoder.load_state_dict(loaded.state_dict())


def feature_network(name: str, image_size: int | None = None, **options: Any) -> Any:
    """The network of that name, which gives its feature maps. Raises `UsageError` for a name that is not known."""
    if name.startswith(smp_encoder.PREFIX):
        return smp_encoder.SMPEncoder(name)
    import dgbench.networks.torchvision_ops  # noqa: F401, I001
    import timm

    known = timm.list_models()
    if name.partition(".")[0] not in known:
        near = ", ".join(difflib.get_close_matches(name, known, n=5)) or "resnet34, efficientnet_b2, convnext_tiny"
        raise UsageError(f"unknown encoder '{name}'", f"give 'unet' or a name that timm knows, for instance {near}")
    published = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if published and published.fixed_input_size:
        options["img_size"] = image_size
    return timm.create_model(name, features_only=True, **options)


PATIENCE = 5.0  # seconds that a server has for its first word


def published_weights(name: str) -> Path:
    """The file of a network's published weights, fetched from the Hugging Face hub unless it is in its cache.

    Raises `DataError`, which says what to download, when it cannot be had, and without a network at once: the hub's
    client tries again for minutes, but for a file that was asked for first.
    """
    import dgbench.networks.torchvision_ops  # noqa: F401, I001
    import huggingface_hub
    import timm

    if name.startswith(smp_encoder.PREFIX):
        hub, file, revision = smp_encoder.published(name)
    else:
        published = timm.get_pretrained_cfg(name, allow_unregistered=True)
        if not published or not published.hf_hub_id:
            cause = f"timm publishes no weights of '{name}' on its hub"
            raise DataError(cause, "--set initialisation=FILE takes others")
        hub, file, revision = published.hf_hub_id, published.hf_hub_filename or "model.safetensors", None
    url = huggingface_hub.hf_hub_url(hub, file, revision=revision)
    try:
        if isinstance(cached := huggingface_hub.try_to_load_from_cache(hub, file, revision=revision), str):
            return Path(cached)
        huggingface_hub.get_hf_file_metadata(url, timeout=PATIENCE)
        return Path(huggingface_hub.hf_hub_download(hub, file, revision=revision, etag_timeout=PATIENCE))
    except Exception as error:  # the hub's client fails in many ways of its own: offline, refused, gone
        raise DataError(
            f"the published weights of '{name}' cannot be fetched: {' '.join(str(error).split())[:200]}",
            f"download {url} and give its path: --set initialisation=FILE",
        ) from error
