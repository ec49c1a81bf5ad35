"""Reading image files: volumes, photographs and masks, each read whole and checked before it is believed.

Axes. NIfTI stores (x, y, z); everything here is (D, H, W) = (z, y, x), for images and masks alike. A volume is taken as
it is stored: its third axis holds the slices, and nothing is flipped or rotated into a standard orientation. Only where
all slices would be one pixel wide or high is the axis of length 1 that of the slices: the file holds one.
"""

from __future__ import annotations

import gzip
import io
import math
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dgbench.errors import DataError
from dgbench.names import one_form

NIFTI = (".nii", ".nii.gz")
RASTER = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
READ = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM")  # Pillow's names; the last three lie in public releases
WHOLE = 0.001  # a mask's value this near to a whole number is that number: scaled headers round, resampling does more
MEND = "copy or download it again, or mend it"
CHANNELS = (
    "save one channel, or one point in time, as a volume with its slices on the third axis; colours as PNG or TIFF"
)

Spacing = tuple[float, float, float]


class Pixels(NamedTuple):
    """What an image file holds, in the file's own numbers.

    values: (D, H, W), or (D, H, W, 3) when the file has colours; D = 1 for a photograph.
    spacing: mm between voxel centres along (D, H, W); None for PNG, JPEG and TIFF, whose dots per inch mean nothing.
    affine: (4, 4) from (x, y, z) indices to mm; None where spacing is.
    """

    values: np.ndarray
    spacing: Spacing | None = None
    affine: np.ndarray | None = None


def is_image(path: Path) -> bool:
    """Has the file a suffix of PNG, JPEG, TIFF or NIfTI?"""
    return path.name.lower().endswith((*NIFTI, *RASTER))


def stem(path: Path) -> str:
    """The file's name without its suffix, in one form of Unicode; `.nii.gz` is one suffix."""
    return one_form(path.name[: -len(".nii.gz")] if path.name.lower().endswith(".nii.gz") else path.stem)


def read(path: Path, mask: bool = False) -> Pixels:
    """Any image file. `mask`: values become whole numbers, a palette's indices are kept, colours are refused.

    Raises `DataError` that names the file and all that is wrong with it.
    """
    reader = read_volume if path.name.lower().endswith(NIFTI) else read_image
    return reader(path, mask)


def read_volume(path: Path, mask: bool = False) -> Pixels:
    """A NIfTI file: the whole gzip stream with its checksum first, then header and voxels.

    nibabel alone returns most bit-flipped .nii.gz files without a word. Uncompressed .nii has no checksum to look at.
    Refused: shear, a spacing that is not positive or that the affine contradicts, NaN, more than three axes, colours,
    headers that promise more than the file can hold. A 2-D file is a volume of one slice; axes of length 1 behind the
    third are dropped.
    """
    import nibabel  # slow to import

    _sniff(path)
    raw, kind = _stream(path)
    header = kind.header_class(raw[: kind.header_class.sizeof_hdr], check=False)
    units = {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) % 8, 1.0)  # metres, micrometres; else mm
    shape = [int(n) for n in header.get_data_shape()]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    problems = []
    if not 2 <= len(shape) <= 3:
        raise _broken(path, [f"it has the shape {tuple(shape)}, not that of one volume"], CHANNELS)
    steps = [float(s) * units for s in header["pixdim"][1:4]]
    axes = len(shape)
    if axes == 2:
        shape, steps[2] = [*shape, 1], 1.0
    if not all(math.isfinite(s) and s > 0 for s in steps):
        problems.append(f"the spacing in its header is {tuple(steps)}")
    with nibabel.imageglobals.LoggingOutputSuppressor():  # what nibabel would mend and log is refused here
        try:
            image: Any = kind.from_bytes(raw)
            values = np.asanyarray(image.dataobj)
        except Exception as error:  # nibabel raises a dozen kinds for a broken header
            raise _broken(path, [*problems, f"nibabel cannot read it ({error})"]) from None
    affine = np.diag([units, units, units, 1.0]) @ image.affine
    if not problems:
        problems += _affine_problems(affine[:3, :axes], steps[:axes])
        values = values.reshape(shape)
    problems += _value_problems(values, mask)
    if problems:
        raise _broken(path, problems)
    spacing = (steps[2], steps[1], steps[0])
    return _one_slice(path, Pixels(_whole(values.T, mask), spacing, affine))


def read_image(path: Path, mask: bool = False) -> Pixels:
    """A PNG, JPEG, TIFF, BMP, GIF or PPM file, turned as its EXIF orientation says. The pages of a TIFF are slices.

    8 and 16 bits, float TIFF, palettes (expanded to colours, kept as indices in a mask); transparency is dropped. PNG
    checksums are verified; truncated files are refused.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError  # slow to import

    _sniff(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tags; what is wrong with pixels is an error
            # From memory: given a path, Pillow 13.0 maps an uncompressed TIFF and scrambles it when it is to be turned.
            packed = path.name.lower().endswith(".gz")
            content = io.BytesIO(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
            with Image.open(content, formats=READ) as file:
                file.verify()
            with Image.open(content, formats=READ) as file:
                count = getattr(file, "n_frames", 1) if file.format == "TIFF" else 1
                pages = []
                for page in range(count):
                    file.seek(page)
                    pages.append(_array(ImageOps.exif_transpose(file), mask))
            values = np.stack(pages)
    except UnidentifiedImageError:
        raise _broken(path, ["it is no PNG, JPEG, TIFF, BMP, GIF or PPM file"]) from None
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        raise _broken(path, [f"Pillow cannot read it ({error or type(error).__name__})"]) from None
    if problems := list(_value_problems(values, mask)):
        raise _broken(path, problems)
    return _one_slice(path, Pixels(_whole(values[..., 0] if mask and values.ndim == 4 else values, mask)))


def read_case(image: Path, masks: Sequence[Path], same_grid: bool = True) -> tuple[Pixels, list[np.ndarray]]:
    """An image and its masks, the masks as whole numbers (D, H, W) on the image's grid.

    All files are read even when the first is broken, so that one `DataError` tells all. `same_grid`: the affines of
    NIfTI image and mask must agree, to a tenth of a voxel; else only the shapes.
    """
    found: list[Pixels] = []
    causes: list[str] = []
    for path in (image, *masks):
        try:
            found.append(read(path, mask=path != image))
        except DataError as error:
            causes.append(error.cause)
            remedy = error.remedy
    if causes:
        raise DataError("; ".join(causes), remedy)
    first, *rest = found
    for path, mask in zip(masks, rest, strict=True):
        its, grid = mask.values.shape, first.values.shape[:3]
        if its != grid:
            remedy = "save the mask on the grid of its image"
            if its == (grid[0], grid[2], grid[1]):
                remedy += ": its height and width seem to be exchanged"
            elif grid == (3, *its[1:]) and its[0] == 1:
                remedy = f"if the three slices are colours, save {image} as PNG or TIFF; else {remedy}"
            sizes = [" x ".join(map(str, shape)) for shape in (its, grid)]
            raise DataError(
                f"image and mask differ in size: {path} is {sizes[0]}, {image} is {sizes[1]} (slices x height x width)",
                remedy,
            )
        if same_grid and not _same_grid(first, mask):
            raise DataError(
                f"image and mask lie differently in space: the headers of {path} and {image} give two affines",
                "resample the mask to its image; if the voxels do correspond, save it with the image's axes and header",
            )
    return first, [mask.values for mask in rest]


def to_unit(pixels: Pixels) -> np.ndarray:
    """float32 (D, 1 or 3, H, W) in [0, 1]; three channels that are all equal become one.

    8-bit PNG, JPEG and TIFF: divided by 255. All others: from the 0.5th to the 99.5th percentile of the file, clipped.
    """
    if pixels.spacing is None and pixels.values.dtype == np.uint8:
        return channels_first(np.divide(pixels.values, 255, dtype=np.float32))
    values = pixels.values
    if values.dtype.kind == "i" and int(values.max()) - int(values.min()) > np.iinfo(values.dtype).max:
        values = values.astype(np.float64)  # np.percentile subtracts voxels in their own type, which would wrap around
    low, high = np.percentile(values, (0.5, 99.5))
    return channels_first(window(values, low, high))


def by_range(pixels: Pixels, limits: Sequence[float] | None) -> np.ndarray:
    """float32 (D, 1 or 3, H, W): `limits`, (low, high), become 0 and 1, clipped; None: `to_unit`."""
    return channels_first(window(pixels.values, *limits)) if limits else to_unit(pixels)


def window(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """[low, high] -> [0, 1] as float32, clipped; zeros when the window is empty."""
    low, high = float(low), float(high)
    if not high > low:
        return np.zeros(values.shape, np.float32)
    # Whole numbers of 32 bits and more are not exact in float32, and a background of -3.4e38 is at its end.
    wide = np.result_type(values, np.float32) != np.float32 or max(-low, high) > 1e30
    with np.errstate(over="ignore"):  # far outside the window
        unit = np.subtract(values, low, dtype=np.float64 if wide else np.float32)
        unit /= high - low
    return np.clip(unit, 0, 1, dtype=np.float32, casting="same_kind")


def channels_first(values: np.ndarray) -> np.ndarray:
    """(D, H, W) or (D, H, W, 3) -> (D, C, H, W): gray that was saved as colour has one channel."""
    if values.ndim == 4 and not (values == values[..., :1]).all():
        return np.ascontiguousarray(np.moveaxis(values, -1, 1))
    return np.ascontiguousarray(values[..., 0] if values.ndim == 4 else values)[:, None]


def values_of(mask: np.ndarray) -> list[int]:
    """The values other than 0 in a mask of whole numbers, sorted."""
    small = mask.min(initial=0) >= 0 and mask.max(initial=0) < 1 << 16
    found = np.flatnonzero(np.bincount(mask.ravel().astype(np.intp))) if small else np.unique(mask)
    return [int(v) for v in found if v]


def _sniff(path: Path) -> None:
    """Refuse what no decoder should be asked about: nothing there, nothing in it, a saved web page."""
    try:
        with open(path, "rb") as file:
            head = file.read(64).lstrip().lower()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "copy or download it again") from None
    if not head:
        raise _broken(path, ["it is empty"])
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"{")):
        raise _broken(path, ["it is a web page that was saved in place of the file"])


def _broken(path: Path, problems: Iterable[str], remedy: str = MEND) -> DataError:
    return DataError(f"{path} is no usable image: {', and '.join(problems)}", remedy)


def _stream(path: Path) -> tuple[bytes, Any]:
    """The whole file, decompressed and with its checksum verified, and nibabel's class for it."""
    import nibabel

    try:
        # Reading to the end is what compares gzip's checksum.
        with gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb") as file:
            raw = file.read()
        size = {int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")}
        kind = nibabel.Nifti1Image if 348 in size else nibabel.Nifti2Image
        header_class = kind.header_class
        if not {348, 540} & size or len(raw) < header_class.sizeof_hdr:
            raise ValueError("it does not begin with a NIfTI header")
        header = header_class(raw[: header_class.sizeof_hdr], check=False)
        if not bytes(header["magic"].item()).startswith(b"n+"):
            raise ValueError("its voxels are in another file: save it as one .nii.gz")
        expected = int(header["vox_offset"]) + _voxel_bytes(path, header)
        if not header_class.sizeof_hdr < expected <= len(raw):
            raise ValueError(f"it ends after {len(raw)} of {expected} bytes")
    except EOFError:
        raise _broken(path, ["it is cut off"]) from None
    except (OSError, ValueError, OverflowError, zlib.error) as error:
        raise _broken(path, [str(error)]) from None
    return raw[:expected], kind


def _voxel_bytes(path: Path, header: Any) -> int:
    """Bytes that the header says the voxels take, in Python's own integers, which do not overflow."""
    try:
        shape = [int(n) for n in header.get_data_shape()]
        dtype = header.get_data_dtype()
    except Exception as error:  # a header of random bytes
        raise ValueError(f"its header makes no sense ({error})") from None
    if not shape or min(shape) < 1:
        raise ValueError(f"its header gives the shape {tuple(shape)}")
    if dtype.fields:
        raise _broken(path, [f"its voxels are colours ({', '.join(dtype.fields)}), not one number each"], CHANNELS)
    if dtype.kind not in "iuf":
        raise ValueError(f"its voxels are of type {dtype}, not one number each")
    return math.prod(shape) * dtype.itemsize


def _affine_problems(axes: np.ndarray, steps: Sequence[float]) -> Iterator[str]:
    """`axes`: a column for each voxel axis, in mm."""
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(axes).all() or not np.allclose(lengths, steps, rtol=0.01):
        yield f"its header gives two spacings: {np.round(lengths, 4).tolist()} and {np.round(steps, 4).tolist()}"
    elif np.abs((axes / lengths).T @ (axes / lengths) - np.eye(len(steps))).max() > 0.01:
        yield "its axes are not at right angles"


def _value_problems(values: np.ndarray, mask: bool) -> Iterator[str]:
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
        raise _broken(path, [f"its slices are {height} x {width} pixels: that looks like channels"], CHANNELS)
    return pixels


def _same_grid(image: Pixels, mask: Pixels) -> bool:
    """Do the corners of both grids meet within a tenth of the smallest voxel side? True where one has no affine."""
    if image.affine is None or mask.affine is None or image.spacing is None:
        return True
    far = np.array(image.values.shape[2::-1]) - 1
    corners = np.array([[x, y, z, 1] for x in (0, far[0]) for y in (0, far[1]) for z in (0, far[2])], dtype=float)
    distance = np.linalg.norm((corners @ (image.affine - mask.affine).T)[:, :3], axis=1)
    return float(distance.max()) <= 0.1 * min(image.spacing)


def _array(page: Any, mask: bool) -> np.ndarray:
    """A Pillow image as (H, W) or (H, W, 3), in native byte order."""
    if page.mode == "1":
        page = page.convert("L")
    elif page.mode in ("LA", "La"):
        page = page.getchannel("L")
    elif (page.mode == "P" and not mask) or page.mode in ("PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"):
        page = page.convert("RGB")
    elif page.mode not in ("L", "P", "RGB", "I", "F") and not page.mode.startswith("I;16"):
        raise ValueError(f"its colour mode is {page.mode}")
    array = np.asarray(page)
    return array.astype(array.dtype.newbyteorder("="))
