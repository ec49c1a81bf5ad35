"""Reading weights without trust: no pickled code is executed, and what does not fit is told at once."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dgbench.errors import DataError


def weights_file(path: str | Path) -> Path:
    """The path of a file of weights. Raises `DataError` when there is none."""
    if not Path(path).is_file():
        raise DataError(f"no such weights file: {path}", "give the path of a .safetensors, .pth or .pt file")
    return Path(path)


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict, on the CPU, from .safetensors or from what torch.save wrote; no pickled code is executed.

    A state dict wrapped as "state_dict" or "model" is unwrapped, an optimizer that was saved beside it passed over; a
    prefix "module." common to all keys is removed.
    Raises `DataError` for a file that is missing, truncated, fails its own checksum or holds anything but tensors.
    """
    path = weights_file(path)
    try:
        content = _read(path)
    except Exception as error:  # torch, zipfile, pickle and safetensors each fail in ways of their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{path} cannot be read as weights: {reason}", "get the file again; it must hold tensors only"
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise DataError(f"{path} holds no state dict but a {type(content).__name__}", "save `model.state_dict()`")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise DataError(f"{path}: '{key}' is no tensor but a {type(value).__name__}", "save `model.state_dict()`")
    prefix = "module." if all(key.startswith("module.") for key in content) else ""
    return {key.removeprefix(prefix): value.detach() for key, value in content.items()}


class _Dropped:
    """Stands where a file holds an optimizer as a whole; what the file says of it is not looked at."""

    def __setstate__(self, state: object) -> None:
        """Nothing."""


def _empty(_: object) -> dict[object, object]:
    """Stands where it keeps its state."""
    return {}


OPTIMIZERS = ("adam.Adam", "adamw.AdamW", "sgd.SGD")


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if not zipfile.is_zipfile(path):  # written before torch 1.6, or no weights at all
        return torch.load(path, map_location="cpu", weights_only=True)
    with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
        if broken := archive.testzip():
            raise ValueError(f"its part {broken} fails its checksum")
    known: list[Any] = [dict, (_empty, "collections.defaultdict")]
    known += [(_Dropped, f"torch.optim.{name}") for name in OPTIMIZERS]
    with torch.serialization.safe_globals(known):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def load_into(
    module: nn.Module,
    state: dict[str, Tensor],
    origin: str | Path,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> None:
    """Copy a state dict into a module; whatever does not fit is told at once, in one `DataError` that names `origin`.

    `allow_missing` and `allow_unexpected` are patterns (`*`, `?`) of the keys that the state dict, or the module, may
    lack. A tensor of another shape is never allowed. Nothing is copied unless everything fits.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state and not _matches(key, allow_missing)]
    unexpected = [key for key in state if key not in own and not _matches(key, allow_unexpected)]
    other = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    report = [
        f"{len(keys)} {what} ({_some(keys)})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", other))
        if keys
    ]
    if report:
        raise DataError(
            f"{origin} does not fit {type(module).__name__}: {'; '.join(report)}",
            "use weights of this architecture, with the same backbone, image size and structures",
        )
    module.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _some(keys: list[str], most: int = 5) -> str:
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")
