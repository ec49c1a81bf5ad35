"""DICOM as images: a series in a folder, one file of it, an enhanced or other file of many frames, a DICOM-SEG.

The slices are ordered by their position along the normal of their plane, ascending, whatever the files are called. What
a volume cannot be made of is refused by name: several series in a folder, several orientations, two slices at one
place, a missing slice, a tilted gantry. Contours (RTSTRUCT) are not read: how they become voxels is a choice of whoever
rasterizes them, and the libraries differ in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dgbench.errors import DataError
from dgbench.images.pixels import (
    LPS_TO_RAS,
    MEND,
    Pixels,
    Spacing,
    affine_problems,
    broken,
    checked,
    library,
    sniff,
)

DICOM = (".dcm", ".dicom", ".ima")
APART = 0.01  # mm; slices nearer to each other than that lie at one place
UNEVEN = 0.2  # of the usual distance; rounded positions differ by less, a missing slice by all of it
ONE_EACH = "one folder for each series (`dgbench data adopt` lists them), or keep the files of one"
REPEATS = "phases, echoes or repeats share the series: keep the files of one"
COMPLETE = "copy the whole series again; if the slices were left out on purpose, resample them to even distances"
CONTOURS = "save the contours as a mask on the image's grid, for example with 3D Slicer or plastimatch, as .nii.gz"


class _Frame(NamedTuple):
    """A slice as it is stored, and where it lies, in mm on DICOM's axes; None where the file does not say."""

    values: np.ndarray  # (H, W) or (H, W, 3), the modality's numbers
    position: np.ndarray | None  # of the first pixel's centre
    axes: np.ndarray | None  # (2, 3): the directions along a row and down a column
    steps: tuple[float, float] | None  # between rows, between columns
    thickness: float  # where a slice has no neighbour; 0 where the file does not say
    name: str


def is_dicom(path: Path) -> bool:
    """A file with DICOM's mark or suffix, or a folder that holds one at once."""
    if path.is_dir():
        return any(is_dicom(p) for p in _members(path))
    if path.name.lower().endswith(DICOM):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def series_files(folder: Path) -> list[Path]:
    """The files of a series in the order of its slices. Raises `DataError` as `read_dicom` does."""
    datasets = [(path, data) for path, data in _datasets(folder)]
    frames = [(frame, path) for path, data in datasets for frame in _frames(path, data, pixels=False)]
    order, _ = _ordered(folder, [frame for frame, _ in frames])
    return list(dict.fromkeys(frames[i][1] for i in order))


def is_segmentation(path: Path) -> bool:
    """Is the file a DICOM-SEG? Raises `DataError` for one that cannot be read."""
    return path.is_file() and any("SegmentSequence" in data for _, data in _opened(path, pixels=False))


def read_dicom(path: Path, mask: bool = False) -> Pixels:
    """A folder with one series, or a file: (D, H, W) in the modality's numbers (HU, ...), or (D, H, W, 3).

    Of a folder that holds a series and its segmentation the image is the one, the mask the other.

    Rescaled slice by slice; whole numbers stay whole. MONOCHROME1, in which the lowest value is white, is turned over.
    Raises `DataError` that names all that stands in the way of one volume, and how to install what is missing.
    """
    try:
        return _read(path, mask)
    except DataError:
        raise
    except Exception as error:  # a header whose numbers are none
        raise broken(path, [f"its header makes no sense ({error or type(error).__name__})"]) from None


def _read(path: Path, mask: bool) -> Pixels:
    datasets = _datasets(path, mask)
    first = datasets[0][1]
    if str(first.get("Modality", "")) == "RTSTRUCT":
        raise broken(path, ["it holds contours (RTSTRUCT), not voxels"], CONTOURS)
    if "SegmentSequence" in first:
        return _segmentation(path, first)
    frames = [frame for file, data in datasets for frame in _frames(file, data)]
    order, geometry = _ordered(path, frames)
    values = _one_type(np.stack([frames[i].values for i in order]))
    return checked(path, Pixels(values, *geometry), mask)


def series_of(folder: Path, mask: bool = False) -> dict[str, list[Path]]:
    """{a series' description: its files} of the DICOM files in a folder; two series never share a description.

    A segmentation beside images is none of them; with `mask`, they are none.
    """
    found: dict[str, list[Path]] = {}
    called: dict[str, str] = {}
    for path, data in _of_kind(_opened(folder, pixels=False), mask):
        uid = str(data.get("SeriesInstanceUID", ""))
        text = str(data.get("SeriesDescription", "") or data.get("SeriesNumber", "") or "series")
        if uid not in called:
            called[uid] = text if text not in called.values() else f"{text} {len(called) + 1}"
        found.setdefault(called[uid], []).append(path)
    return found


def _members(folder: Path) -> list[Path]:
    """The files that may be slices; an index of the disk is none."""
    return sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != "." and p.name.upper() != "DICOMDIR")


def _opened(path: Path, pixels: bool = True) -> Iterator[tuple[Path, Any]]:
    pydicom = library("pydicom", "dicom", path)
    for file in _members(path) if path.is_dir() else [path]:
        if path.is_dir() and file.suffix and not is_dicom(file) and not file.suffix[1:].isdigit():
            continue  # a note or a list beside the slices
        sniff(file)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd texts; what is wrong with pixels is an error
                yield file, pydicom.dcmread(file, stop_before_pixels=not pixels)
        except Exception as error:  # pydicom raises a dozen kinds
            raise broken(file, [f"pydicom cannot read it ({error or type(error).__name__})"]) from None


def _of_kind(files: Iterable[tuple[Path, Any]], mask: bool) -> list[tuple[Path, Any]]:
    """Those that are segmentations, or are none; all where there is one kind only."""
    found = list(files)
    return [(path, data) for path, data in found if ("SegmentSequence" in data) == mask] or found


def _datasets(path: Path, mask: bool = False) -> list[tuple[Path, Any]]:
    """All files of what is to be one series."""
    found = _of_kind(_opened(path), mask)
    if not found:
        raise broken(path, ["it is a folder without a DICOM file"])
    if len({str(data.get("SeriesInstanceUID", "")) for _, data in found}) > 1:
        told = ", ".join(f"'{text}' ({len(files)} files)" for text, files in series_of(path, mask).items())
        raise broken(path, [f"its files are of several series: {told}"], ONE_EACH)
    # What counts where the files say nothing of their positions.
    return sorted(found, key=lambda pair: int(pair[1].get("InstanceNumber", None) or 0))


def _frames(path: Path, data: Any, pixels: bool = True) -> Iterator[_Frame]:
    """The slices of a file. `pixels`: decode them, too."""
    count = int(data.get("NumberOfFrames", None) or 1)
    if "Rows" not in data:
        raise broken(path, [f"it holds no pixels ({data.get('Modality', 'no modality')})"], "give the images' files")
    values = _decoded(path, data, count) if pixels else np.zeros((count, 0, 0))
    shared = [s for s in data.get("SharedFunctionalGroupsSequence", [])]
    own = data.get("PerFrameFunctionalGroupsSequence", None)
    for i in range(count):
        groups = [*([own[i]] if own and i < len(own) else []), *shared]
        items = [data, *(item[0] for group in groups for item in (e.value for e in group if e.VR == "SQ") if item)]

        def say(name: str, items: Sequence[Any] = items) -> Any:
            return next((item[name].value for item in items if name in item and item[name].value is not None), None)

        position, axes = say("ImagePositionPatient"), say("ImageOrientationPatient")
        steps = say("PixelSpacing") or say("ImagerPixelSpacing") or say("NominalScannedPixelSpacing")
        yield _Frame(
            _rescaled(values[i], say("RescaleSlope"), say("RescaleIntercept")) if pixels else values[i],
            np.array(position, float) if position and (count == 1 or own) else None,
            np.array(axes, float).reshape(2, 3) if axes else None,
            (float(steps[0]), float(steps[1])) if steps else None,
            float(say("SpacingBetweenSlices") or say("SliceThickness") or 0),
            f"{path.name}" + (f" frame {i}" if count > 1 else ""),
        )


def _decoded(path: Path, data: Any, count: int) -> np.ndarray:
    """(frames, H, W) or (frames, H, W, 3), gray from dark to bright."""
    from pydicom.pixels import apply_color_lut

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of padding behind the pixels
            values = data.pixel_array
            kind = str(data.get("PhotometricInterpretation", ""))
            if kind == "PALETTE COLOR":
                values = apply_color_lut(values, data)
    except Exception as error:  # pydicom and its decoders raise a dozen kinds
        if "plugin" in str(error) or "decode" in str(error).lower():
            name = data.file_meta.TransferSyntaxUID.name
            told = f"its pixels are compressed ({name}), and nothing here can decode them ({error})"
            remedy = "pip install 'dgbench[dicom]', or decompress it, for example with gdcmconv --raw"
            raise broken(path, [told], remedy) from None
        raise broken(path, [f"pydicom cannot read its pixels ({error or type(error).__name__})"]) from None
    if kind == "MONOCHROME1":
        values = (0 if data.PixelRepresentation else (1 << int(data.BitsStored)) - 1) - values.astype(np.int32)
    return values if count > 1 else values[None]


def _rescaled(values: np.ndarray, slope: Any, intercept: Any) -> np.ndarray:
    slope, intercept = 1.0 if slope is None else float(slope), float(intercept or 0)
    if (slope, intercept) == (1, 0):
        return values
    scaled = values * slope + intercept
    return scaled.astype(np.int32) if slope.is_integer() and intercept.is_integer() else scaled.astype(np.float32)


def _one_type(values: np.ndarray) -> np.ndarray:
    """Half the memory for what fits 16 bits, as all HU do."""
    small = values.dtype.kind in "iu" and values.itemsize > 2 and values.min() >= -(1 << 15) and values.max() < 1 << 15
    return np.ascontiguousarray(values.astype(np.int16) if small else values)


def _ordered(path: Path, frames: Sequence[_Frame]) -> tuple[list[int], tuple[Spacing | None, np.ndarray | None]]:
    """The order of the slices, and (spacing, affine) of their volume; both None where the files know of no mm."""
    count, first = len(frames), frames[0]
    if len(sizes := {frame.values.shape for frame in frames}) > 1:
        told = " and ".join(sorted(" x ".join(map(str, size[:2])) for size in sizes))
        raise broken(path, [f"its slices differ in size: {told}"], ONE_EACH)
    if len({frame.steps for frame in frames}) > 1 and not np.allclose(*_extremes(frames), rtol=0.01):
        raise broken(path, ["the spacing of its pixels differs between slices"], ONE_EACH)
    if first.steps and not min(first.steps) > 0:
        raise broken(path, [f"the spacing of its pixels is {first.steps}"])
    if any(frame.position is None or frame.axes is None for frame in frames):
        depth = first.thickness or (1.0 if count == 1 else 0.0)
        steps = (depth, *first.steps) if first.steps and depth else None
        return list(range(count)), (steps, np.diag([*steps[::-1], 1.0]) if steps else None)
    axes = np.stack([frame.axes for frame in frames if frame.axes is not None])
    turned = np.abs(axes - axes[0]).max(axis=(1, 2)) > 0.01
    if turned.any():
        other = frames[int(np.argmax(turned))].name
        raise broken(path, [f"its slices are turned against each other: {first.name} and {other}"], ONE_EACH)
    normal = np.cross(*axes[0])
    places = np.stack([frame.position for frame in frames if frame.position is not None])
    along = places @ normal
    order = [int(i) for i in np.argsort(along, kind="stable")]
    problems, remedy = _uneven([frames[i].name for i in order], along[order])
    step = (places[order[-1]] - places[order[0]]) / (count - 1) if count > 1 else normal * (first.thickness or 1.0)
    rows, columns = first.steps or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([axes[0][0] * columns, axes[0][1] * rows, step], axis=1)
    affine[:3, 3] = places[order[0]]
    depth = float(np.linalg.norm(step))
    if not problems and (tilted := list(affine_problems(affine[:3, :3], (columns, rows, depth)))):
        problems, remedy = tilted, "a tilted gantry shifts each slice: resample the series to a straight grid"
    if problems:
        raise broken(path, problems, remedy)
    return order, ((depth, rows, columns), LPS_TO_RAS @ affine)


def _extremes(frames: Sequence[_Frame]) -> tuple[np.ndarray, np.ndarray]:
    steps = np.array([frame.steps or (0, 0) for frame in frames])
    return steps.min(axis=0), steps.max(axis=0)


def _uneven(names: Sequence[str], along: np.ndarray) -> tuple[list[str], str]:
    """What keeps slices in this order, at these places, from being a volume, and what to do."""
    steps = np.diff(along)
    same = [pair for pair, step in zip(pairwise(names), steps, strict=True) if step < APART]
    if same:
        return [f"{len(same)} of its {len(names)} slices lie where another one lies: {' and '.join(same[0])}"], REPEATS
    usual = float(np.median(steps)) if len(steps) else 0.0
    gaps = [(pair, s) for pair, s in zip(pairwise(names), steps, strict=True) if abs(s - usual) > UNEVEN * usual]
    if not gaps:
        return [], MEND
    (one, other), wide = gaps[0]
    told = f"{one} and {other} are {wide:.4g} mm apart and most are {usual:.4g} mm"
    more = f", and so at {len(gaps) - 1} more places" if gaps[1:] else ""
    return [f"its slices are not evenly spaced, or one is missing: {told}{more}"], COMPLETE


def _segmentation(path: Path, data: Any) -> Pixels:
    """A DICOM-SEG as an index mask of its segments' numbers, on the grid of the slices that it holds."""
    seg = library("highdicom", "dicom", path).seg
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            volume = seg.Segmentation.from_dataset(data).get_volume(combine_segments=True)
    except Exception as error:  # highdicom raises a dozen kinds
        raise DataError(
            f"{path} is no usable mask: highdicom cannot make one volume of its segments ({error})",
            "save one mask file for each structure: segments that overlap do not fit into one",
        ) from None
    affine = np.array(volume.affine)  # of (slice, row, column) indices
    swapped = LPS_TO_RAS @ affine[:, [2, 1, 0, 3]]
    depth, rows, columns = (float(s) for s in volume.spacing)
    return Pixels(np.ascontiguousarray(volume.array), (depth, rows, columns), swapped)
