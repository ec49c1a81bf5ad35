"""Encoders of segmentation_models_pytorch, by its names: `smp:resnet34`. The package is an extra of dgbench's."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from dgbench.errors import DataError, UsageError, require

PREFIX = "smp:"


class Published(NamedTuple):
    """Where weights lie on the Hugging Face hub."""

    repository: str
    file: str
    revision: str | None = None


@cache
def known() -> dict[str, Any]:
    """What the package tells of each encoder. Raises `UsageError` where it is not installed."""
    import dgbench.networks.torchvision_ops  # noqa: F401

    try:
        from segmentation_models_pytorch.encoders import encoders
    except ImportError:
        raise UsageError(
            f"encoders '{PREFIX}...' need segmentation_models_pytorch, which is not installed",
            "pip install 'dgbench[smp]', or choose one of timm's encoders, for instance --set encoder=resnet34",
        ) from None
    return {f"{PREFIX}{name}": told for name, told in encoders.items() if not name.startswith("timm-")}


def published(name: str) -> Published:
    """The encoder's ImageNet weights. Raises `DataError` for one that has none."""
    settings = known()[require(name, sorted(known()), "encoder")]["pretrained_settings"]
    if "imagenet" not in settings:
        raise DataError(f"'{name}' has no ImageNet weights", "--set initialisation=FILE takes others")
    return Published(settings["imagenet"]["repo_id"], "model.safetensors", settings["imagenet"]["revision"])


class SMPEncoder(nn.Module):
    """(N, 3, H, W) -> the feature maps of five halvings, shallow to deep, without the image itself.

    A VGG has one more at full size, a Mix Transformer none at half. Raises `UsageError` for an unknown name.
    """

    def __init__(self, name: str):
        super().__init__()
        require(name, sorted(known()), "encoder")
        from segmentation_models_pytorch.encoders import get_encoder

        self.name = name
        self.net: Any = get_encoder(name.removeprefix(PREFIX), in_channels=3, depth=5, weights=None)
        self.kept = [i for i, c in enumerate(self.net.out_channels) if c and (i or c != 3)]

    @property
    def feature_info(self) -> SMPEncoder:
        """What timm's networks tell by theirs."""
        return self

    def channels(self) -> list[int]:
        """Of the feature maps."""
        return [self.net.out_channels[i] for i in self.kept]

    def reduction(self) -> list[int]:
        """By how much they are smaller than the image."""
        return [2**i for i in self.kept]

    def module_name(self, index: int) -> str:
        """None: a stage is no module of its own."""
        return f"feature {index}"

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.net(x)
        return [features[i] for i in self.kept]

    def load(self, state: dict[str, Tensor], origin: str | Path) -> None:
        """Take weights as the package publishes them, a classifier among them or not; raises `DataError` for others."""
        try:
            self.net.load_state_dict(dict(state))
        except (RuntimeError, KeyError) as error:
            told = " ".join(str(error).split())[:300]
            raise DataError(f"{origin} does not fit {self.name}: {told}", "use weights of this encoder") from error
