"""What an image file holds, whatever its format, and what none of them may hold.

Axes: everything here is (D, H, W) = (z, y, x), for images and masks alike.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dgbench.errors import DataError

WHOLE = 0.001  # a mask's value this near to a whole number is that number: scaled headers round, resampling does more
MEND = "copy or download it again, or mend it"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM's and ITK's axes point left and back, ours right and forward
CHANNELS = (
    "save one channel, or one point in time, as a volume with its slices on the third axis; colours as PNG or TIFF"
)

MOST, TIMES = 4 << 30, 50  # a file may become so many bytes in any case, and so many times as large as it is
BOMB = "look at where it comes from; if it is meant, save it uncompressed or in parts"

Spacing = tuple[float, float, float]


class Pixels(NamedTuple):
    """What an image file holds, in the file's own numbers.

    values: (D, H, W), or (D, H, W, 3) when the file has colours; D = 1 for a photograph.
    spacing: mm between voxel centres along (D, H, W); None where the format has none, as PNG, whose dots per inch mean
        nothing.
    affine: (4, 4) from (x, y, z) indices to mm, the axes pointing right, forward and up; None where spacing is.
    """

    values: np.ndarray
    spacing: Spacing | None = None
    affine: np.ndarray | None = None


def sniff(path: Path) -> None:
    """Refuse what no decoder should be asked about: nothing there, nothing in it, a saved web page."""
    try:
        with open(path, "rb") as file:
            head = file.read(64).lstrip().lower()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "copy or download it again") from None
    if not head:
        raise broken(path, ["it is empty"])
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"{")):
        raise broken(path, ["it is a web page that was saved in place of the file"])


def broken(path: Path, problems: Iterable[str], remedy: str = MEND) -> DataError:
    """The error that says all that is wrong with a file."""
    return DataError(f"{path} is no usable image: {', and '.join(problems)}", remedy)


def bounded(path: Path, unpacked: int, packed: int | None = None) -> None:
    """Refuse, by what its header says and before memory is taken, a small file that would fill it.

    unpacked: bytes of its pixels. packed: bytes on the disk, by default of `path`. Raises `DataError`.
    """
    packed = path.stat().st_size if packed is None else packed
    if unpacked > max(MOST, TIMES * packed):
        raise broken(path, [f"its {packed} bytes would become {unpacked / 1e9:.1f} GB"], BOMB)


def library(name: str, extra: str, path: Path) -> Any:
    """An optional library that reads `path`. Raises `DataError` that names what to install."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(f"{path} can only be read with {name}", f"pip install 'dgbench[{extra}]'") from None


def checked(path: Path, pixels: Pixels, mask: bool) -> Pixels:
    """Slices first, of a mask whole numbers in one channel. Raises `DataError` that says all that is wrong."""
    values = pixels.values
    if problems := list(value_problems(values, mask)):
        raise broken(path, problems)
    values = _whole(values[..., 0] if mask and values.ndim == 4 else values, mask)
    return _one_slice(path, pixels._replace(values=values))


def affine_problems(axes: np.ndarray, steps: Sequence[float]) -> Iterator[str]:
    """`axes`: a column for each voxel axis, in mm."""
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(axes).all() or not np.allclose(lengths, steps, rtol=0.01):
        yield f"its header gives two spacings: {np.round(lengths, 4).tolist()} and {np.round(steps, 4).tolist()}"
    elif np.abs((axes / lengths).T @ (axes / lengths) - np.eye(len(steps))).max() > 0.01:
        yield "its axes are not at right angles"


def value_problems(values: np.ndarray, mask: bool) -> Iterator[str]:
    """What no image or, with `mask`, no mask may hold."""
    if values.dtype.kind == "f":
        bad = int(np.count_nonzero(~np.isfinite(values)))
        if bad:
            yield f"{bad} of its values are NaN or infinite"
        elif mask and (between := np.abs(values - np.rint(values)) > WHOLE).any():
            few = f"{values[between][0]:.7g} is one of {np.count_nonzero(between)} that are not"
            yield f"a mask must hold whole numbers, to within {WHOLE}, and {few}"
    if mask and values.ndim == 4 and not (values == values[..., :1]).all():
        yield "a mask must hold numbers, not colours"


def _whole(values: np.ndarray, mask: bool) -> np.ndarray:
    """C-ordered; of a mask stored as floats the integers, since its values are names."""
    return np.ascontiguousarray(np.rint(values).astype(np.int64) if mask and values.dtype.kind == "f" else values)


def _one_slice(path: Path, pixels: Pixels) -> Pixels:
    """The axis of length 1 first, where there is one. Raises `DataError` where height or width hold channels."""
    depth, height, width = pixels.values.shape[:3]
    if depth > 1 and (height == 1) != (width == 1):
        order = (1, 0, 2) if height == 1 else (2, 0, 1)
        values = np.ascontiguousarray(np.moveaxis(pixels.values, order[0], 0))
        if pixels.spacing is None or pixels.affine is None:
            return Pixels(values)
        d, h, w = (pixels.spacing[i] for i in order)
        return Pixels(values, (d, h, w), pixels.affine[:, [*(2 - i for i in reversed(order)), 3]])
    if min(height, width) <= 4 and min(depth, max(height, width)) > 16:
        raise broken(path, [f"its slices are {height} x {width} pixels: that looks like channels"], CHANNELS)
    return pixels
