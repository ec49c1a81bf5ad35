"""Pretrained weights: which are known, where they must lie, and how a file of weights is read without trusting it."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from dgbench import files
from dgbench.errors import DataError, require


@dataclass(frozen=True)
class Weights:
    """A published checkpoint. `size` in bytes."""

    file: str
    url: str
    sha256: str
    size: int
    licence: str


def _sam(file: str, sha256: str, size: int) -> Weights:
    return Weights(file, f"https://dl.fbaipublicfiles.com/segment_anything/{file}", sha256, size, "Apache-2.0")


WEIGHTS = {
    "sam_vit_b": _sam(
        "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", 375_042_383
    ),
    "sam_vit_l": _sam(
        "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", 1_249_524_607
    ),
    "sam_vit_h": _sam(
        "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 2_564_550_879
    ),
}


def folder() -> Path:
    """Where weights lie: `$DGBENCH_WEIGHTS`, else dgbench/weights in the user's cache."""
    if chosen := os.environ.get("DGBENCH_WEIGHTS"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dgbench" / "weights"


def find(name: str) -> Path:
    """The file of known weights, its checksum verified. Raises `DataError` when it is missing or another file."""
    known = WEIGHTS[require(name, list(WEIGHTS), "weights")]
    path = folder() / known.file
    remedy = f"download {known.url} ({known.size / 1e6:,.0f} MB, sha256 {known.sha256}) into {path.parent}"
    try:
        stat = path.stat()
    except OSError:
        raise DataError(f"the weights {known.file} are missing in {path.parent}", remedy) from None
    found = _sha256(path, stat.st_size, stat.st_mtime_ns)
    if found != known.sha256:
        size = f"{stat.st_size:,} of {known.size:,} bytes"
        raise DataError(
            f"{path} is not the published file: its sha256 is {found} ({size})", f"delete it, then {remedy}"
        )
    return path


@lru_cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:  # size and time make a changed file another question
    return files.sha256(path)


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict, on the CPU, from .safetensors or from what torch.save wrote; no pickled code is executed.

    A state dict wrapped as "state_dict" or "model" is unwrapped; a prefix "module." common to all keys is removed.
    Raises `DataError` for a file that is missing, truncated, fails its own checksum or holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"no such weights file: {path}", "give the path of a .safetensors, .pth or .pt file")
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


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if not zipfile.is_zipfile(path):  # written before torch 1.6, or no weights at all
        return torch.load(path, map_location="cpu", weights_only=True)
    with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
        if broken := archive.testzip():
            raise ValueError(f"its part {broken} fails its checksum")
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
