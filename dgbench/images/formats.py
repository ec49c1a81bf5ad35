"""Reading image files: volumes, photographs and masks, each read whole and checked before it is believed.

Axes. NIfTI stores (x, y, z); everything here is (D, H, W) = (z, y, x), for images and masks alike. A volume is taken as
it is stored: its third axis holds the slices, and nothing is flipped or rotated into a standard orientation. Only where
all slices would be one pixel wide or high is the axis of length 1 that of the slices: the file holds one.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import math
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgbench.errors import DataError
from dgbench.files import gunzip
from dgbench.images.dicom import DICOM, is_dicom, read_dicom
from dgbench.images.pixels import (
    BOMB,
    CHANNELS,
    Pixels,
    affine_problems,
    bounded,
    broken,
    checked,
    sniff,
    value_problems,
)
from dgbench.images.volume_formats import ITK, NUMPY, files_of, read_itk, read_numpy
from dgbench.names import one_form
from dgbench.plausibility import READ

NIFTI = (".nii", ".nii.gz")
RASTER = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
SUFFIXES = (*NIFTI, *RASTER, *ITK, *NUMPY, *DICOM)
FRAMES = "; or name the frame to take: a column `frame` in a table of cases, numbers from 0"
KNOWN = "PNG, JPEG, TIFF, BMP, NIfTI, NRRD, MetaImage, DICOM or NumPy"
HEADER, PART = 540, 1 << 20  # bytes: of NIfTI's longer header, and of what is unpacked at once
WIDTHS = {"I": 4, "F": 4, "I;": 2}  # bytes of a number in Pillow's modes, by how they begin; else 1
FULL = np.uint16(65535)
DEPTHS = "save gray images as 16-bit gray, colours with 8 bits each"


def is_image(path: Path) -> bool:
    """Has the file the suffix of a format that is read here, or does a DICOM series lie in the folder?"""
    if path.is_dir() or not path.suffix:  # archives of hospitals write DICOM files without one
        return is_dicom(path)
    return path.name.lower().endswith(SUFFIXES)


def is_raster(path: Path) -> bool:
    """PNG, JPEG, TIFF or BMP by its suffix?"""
    return path.name.lower().endswith(RASTER)


def may_have_colours(path: Path) -> bool:
    """False for a PNG, JPEG, TIFF or BMP whose header says that it is gray; what is saved as colours may be gray."""
    from PIL import Image  # slow to import

    with contextlib.suppress(Exception), Image.open(path, formats=READ) as file:  # what is wrong with it `read` says
        return not (file.mode in ("1", "L", "LA", "La", "I", "F") or file.mode.startswith("I;16"))
    return True


def has_spacing(path: Path) -> bool:
    """Is it of a format that says how far voxels are apart?"""
    return not path.name.lower().endswith((*RASTER, *NUMPY))


def stem(path: Path) -> str:
    """The file's name without its suffix, in one form of Unicode; `.nii.gz` is one suffix, a folder has none."""
    if path.name.lower().endswith(".nii.gz"):
        return one_form(path.name[: -len(".nii.gz")])
    return one_form(path.stem if path.name.lower().endswith(SUFFIXES) or not path.is_dir() else path.name)


def parts(path: Path) -> list[Path]:
    """All files that an image is read from: a series has one for each slice, some headers their voxels beside them."""
    return sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else files_of(path)


def read(path: Path, mask: bool = False, frame: int | None = None) -> Pixels:
    """Any image file, or a folder with a DICOM series.

    mask: values become whole numbers, a palette's indices are kept, colours are refused.
    frame: of a NIfTI file with a fourth axis, which is then time or a channel: the one to take, from 0. Other files
        have one frame, as a mask that was drawn on one has, and are read whole.
    Raises `DataError` that names the file and all that is wrong with it.
    """
    suffix = path.suffix.lower()
    if path.name.lower().endswith(NIFTI):
        return read_volume(path, mask, frame)
    if suffix in ITK:
        return read_itk(path, mask)
    if suffix in NUMPY:
        return read_numpy(path, mask)
    if suffix in DICOM or (suffix not in RASTER and is_dicom(path)):
        return read_dicom(path, mask)
    return read_image(path, mask)


def read_volume(path: Path, mask: bool = False, frame: int | None = None) -> Pixels:
    """A NIfTI file: the whole gzip stream with its checksum first, then header and voxels.

    nibabel alone returns most bit-flipped .nii.gz files without a word. Uncompressed .nii has no checksum to look at.
    Refused: shear, a spacing that is not positive or that the affine contradicts, NaN, more than three axes without
    `frame`, colours, headers that promise more than the file can hold. A 2-D file is a volume of one slice; axes of
    length 1 behind the third are dropped.
    """
    import nibabel  # slow to import

    sniff(path)
    raw, kind = _stream(path)
    header = kind.header_class(raw[: kind.header_class.sizeof_hdr], check=False)
    units = {1: 1000.0, 3: 0.001}.get(int(header["xyzt_units"]) % 8, 1.0)  # metres, micrometres; else mm
    shape = [int(n) for n in header.get_data_shape()]
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    problems = []
    frames = shape.pop() if len(shape) == 4 and frame is not None else None
    if not 2 <= len(shape) <= 3:
        remedy = CHANNELS + (FRAMES if len(shape) == 4 else "")
        raise broken(path, [f"it has the shape {tuple(shape)}, not that of one volume"], remedy)
    if frames is not None and not 0 <= (frame or 0) < frames:
        raise broken(path, [f"it has the frames 0 to {frames - 1}, and {frame} is asked for"], "correct the frame")
    steps = [float(s) * units for s in header["pixdim"][1:4]]
    axes = len(shape)
    if axes == 2:
        shape, steps[2] = [*shape, 1], 1.0
    if not all(math.isfinite(s) and s > 0 for s in steps):
        problems.append(f"the spacing in its header is {tuple(steps)}")
    with nibabel.imageglobals.LoggingOutputSuppressor():  # what nibabel would mend and log is refused here
        try:
            image: Any = kind.from_bytes(raw)
            values = np.asanyarray(image.dataobj if frames is None else image.dataobj[:, :, :, frame])
        except Exception as error:  # nibabel raises a dozen kinds for a broken header
            raise broken(path, [*problems, f"nibabel cannot read it ({error})"]) from None
    affine = np.diag([units, units, units, 1.0]) @ image.affine
    if not problems:
        problems += affine_problems(affine[:3, :axes], steps[:axes])
        values = values.reshape(shape)
    if problems:
        raise broken(path, [*problems, *value_problems(values, mask)])
    return checked(path, Pixels(values.T, (steps[2], steps[1], steps[0]), affine), mask)


def read_image(path: Path, mask: bool = False) -> Pixels:
    """A PNG, JPEG, TIFF, BMP, GIF or PPM file, turned as its EXIF orientation says. The pages of a TIFF are slices.

    8 and 16 bits, float TIFF, palettes (expanded to colours, kept as indices in a mask); transparency is dropped. PNG
    checksums are verified; truncated files are refused.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError  # slow to import

    sniff(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tags; what is wrong with pixels is an error
            # From memory: given a path, Pillow 13.0 maps an uncompressed TIFF and scrambles it when it is to be turned.
            packed = path.name.lower().endswith(".gz")
            content = io.BytesIO(gunzip(path.read_bytes()) if packed else path.read_bytes())
            with Image.open(content, formats=READ) as file:
                file.verify()
            with Image.open(content, formats=READ) as file:
                count = getattr(file, "n_frames", 1) if file.format == "TIFF" else 1
                pages, taken = [], 0
                for page in range(count):  # of all pages before the first is decoded: many may share their pixels
                    file.seek(page)
                    taken += file.width * file.height * len(file.getbands()) * WIDTHS.get(file.mode[:2], 1)
                bounded(path, taken)
                for page in range(count):
                    file.seek(page)
                    if told := _beyond(file, content):
                        raise broken(path, [told], DEPTHS)
                    array = _array(ImageOps.exif_transpose(file), mask)
                    pages.append(FULL - array if _is_inverted(file) else array)
            values = np.stack(pages)
    except UnidentifiedImageError:
        raise broken(path, ["it is no PNG, JPEG, TIFF, BMP, GIF or PPM file"]) from None
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise broken(path, [str(error).rstrip(".")], BOMB) from None
    except MemoryError:
        raise broken(path, ["its header tells of more than memory can hold"], BOMB) from None
    except Exception as error:  # Pillow's decoders raise a dozen kinds
        raise broken(path, [f"Pillow cannot read it ({error or type(error).__name__})"]) from None
    return checked(path, Pixels(values), mask)


def read_case(
    image: Path, masks: Sequence[Path], same_grid: bool = True, frame: int | None = None
) -> tuple[Pixels, list[np.ndarray]]:
    """An image and its masks, the masks as whole numbers (D, H, W) on the image's grid.

    All files are read even when the first is broken, so that one `DataError` tells all. `same_grid`: the affines of
    image and mask must agree, to a tenth of a voxel; else only the shapes. Beside a DICOM image, a mask that holds the
    same voxels in other directions, or some of the slices only, is laid onto the image's grid by its affine: converters
    turn the axes, and a DICOM-SEG leaves out empty slices. `frame`: as of `read`.
    """
    found: list[Pixels | None] = []
    told: list[DataError] = []
    for i, path in enumerate((image, *masks)):
        try:
            found.append(read(path, i > 0, frame))
        except DataError as error:
            found.append(None)
            told.append(error)
    first, rest = found[0], found[1:]
    for i, (path, mask) in enumerate(zip(masks, rest, strict=True)):
        if first is None or mask is None:
            continue
        if same_grid and is_dicom(image) and (placed := _placed(first, mask)) is not None:
            rest[i] = mask._replace(values=placed)
        elif problem := _grid_problem(image, path, first, mask, same_grid):
            told.append(problem)
    if told or first is None:
        remedies = dict.fromkeys(error.remedy for error in told)
        raise DataError("; ".join(error.cause for error in told), "; ".join(remedies))
    return first, [mask.values for mask in rest if mask]


def _grid_problem(image: Path, path: Path, first: Pixels, mask: Pixels, same_grid: bool) -> DataError | None:
    """Why a mask's voxels are not those of its image; None when they are."""
    its, grid = mask.values.shape, first.values.shape[:3]
    if its != grid:
        remedy = "save the mask on the grid of its image"
        if its == (grid[0], grid[2], grid[1]):
            remedy += ": its height and width seem to be exchanged"
        elif grid == (3, *its[1:]) and its[0] == 1:
            remedy = f"if the three slices are colours, save {image} as PNG or TIFF; else {remedy}"
        sizes = [" x ".join(map(str, shape)) for shape in (its, grid)]
        return DataError(
            f"image and mask differ in size: {path} is {sizes[0]}, {image} is {sizes[1]} (slices x height x width)",
            remedy,
        )
    one_of_each = (first.affine is None) != (mask.affine is None)
    if same_grid and one_of_each and grid[1] == grid[2] and (mask.values != mask.values.swapaxes(1, 2)).any():
        return DataError(
            f"{path} may be exchanged in height and width against {image}, and square slices do not tell: one of the "
            "two has a header that says where its axes lead, the other has none",
            "save both in one format that has such a header, as NIfTI, or both as PNG",
        )
    if same_grid and not _same_grid(first, mask):
        return DataError(
            f"image and mask lie differently in space: the headers of {path} and {image} give two affines",
            "resample the mask to its image; if the voxels do correspond, save it with the image's axes and header",
        )
    return None


def _placed(image: Pixels, mask: Pixels) -> np.ndarray | None:
    """A mask (D, H, W) on the image's grid, by the affines; None unless each of its voxels is one of the image's."""
    if image.affine is None or mask.affine is None:
        return None
    to_image = np.linalg.inv(image.affine) @ mask.affine  # from (x, y, z) indices to such indices
    whole = np.rint(to_image).astype(int)
    far = np.array([*(n - 1 for n in mask.values.shape[::-1]), 1])
    turn = whole[:3, :3]
    exchanges = all((np.abs(turn).sum(axis=axis) == 1).all() for axis in (0, 1))
    if not exchanges or np.abs((to_image - whole) @ far).max() > 0.1:
        return None
    ends = np.stack([whole[:3, 3], (whole @ far)[:3]])
    low, high = ends.min(axis=0), ends.max(axis=0) + 1
    if (low < 0).any() or (high > image.values.shape[2::-1]).any():
        return None
    axes = np.argmax(np.abs(turn), axis=1)  # of the mask, for each of the image's
    turned = mask.values.T.transpose(axes)[tuple(slice(None, None, int(turn[i, a])) for i, a in enumerate(axes))]
    placed = np.zeros(image.values.shape[2::-1], mask.values.dtype)
    placed[tuple(map(slice, low, high))] = turned
    return np.ascontiguousarray(placed.T)


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


def _stream(path: Path) -> tuple[bytes, Any]:
    """The whole file, decompressed and with its checksum verified, and nibabel's class for it.

    A stream that goes on far beyond what its header tells, or whose header tells of far more than such a file can be
    meant to hold, is left before it fills the memory.
    """
    packed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            whole = io.BytesIO()
            whole.write(file.read(HEADER))
            kind, expected = _promised(path, whole.getvalue())
            if packed:
                bounded(path, expected)
            while part := file.read(PART):  # to the end, which is what compares gzip's checksum
                if whole.tell() > expected + PART:
                    raise ValueError(f"it goes on after the {expected} bytes that its header tells of")
                whole.write(part)
        if not kind.header_class.sizeof_hdr < expected <= whole.tell():
            raise ValueError(f"it ends after {whole.tell()} of {expected} bytes")
    except EOFError:
        raise broken(path, ["it is cut off"]) from None
    except (OSError, ValueError, OverflowError, zlib.error) as error:
        raise broken(path, [str(error)]) from None
    whole.truncate(expected)
    return whole.getvalue(), kind


def _promised(path: Path, raw: bytes) -> tuple[Any, int]:
    """nibabel's class for a file that begins so, and how many bytes its header says it has."""
    import nibabel

    size = {int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")}
    kind = nibabel.Nifti1Image if 348 in size else nibabel.Nifti2Image
    header_class = kind.header_class
    if not {348, 540} & size or len(raw) < header_class.sizeof_hdr:
        raise ValueError("it does not begin with a NIfTI header")
    header = header_class(raw[: header_class.sizeof_hdr], check=False)
    if not bytes(header["magic"].item()).startswith(b"n+"):
        raise ValueError("its voxels are in another file: save it as one .nii.gz")
    return kind, int(header["vox_offset"]) + _voxel_bytes(path, header)


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
        raise broken(path, [f"its voxels are colours ({', '.join(dtype.fields)}), not one number each"], CHANNELS)
    if dtype.kind not in "iuf":
        raise ValueError(f"its voxels are of type {dtype}, not one number each")
    return math.prod(shape) * dtype.itemsize


def _same_grid(image: Pixels, mask: Pixels) -> bool:
    """Do the corners of both grids meet within a tenth of the smallest voxel side? True where one has no affine."""
    if image.affine is None or mask.affine is None or image.spacing is None:
        return True
    far = np.array(image.values.shape[2::-1]) - 1
    corners = np.array([[x, y, z, 1] for x in (0, far[0]) for y in (0, far[1]) for z in (0, far[2])], dtype=float)
    distance = np.linalg.norm((corners @ (image.affine - mask.affine).T)[:, :3], axis=1)
    return float(distance.max()) <= 0.1 * min(image.spacing)


def _beyond(page: Any, content: io.BytesIO) -> str:
    """Why Pillow would read other numbers than the file holds; "" where it reads them."""
    bits, signed = page.tag_v2.get(258, (8,)) if page.format == "TIFF" else (8,), False
    if page.format == "PNG":
        bits = (content.getbuffer()[24],)  # of its header
    elif page.format == "TIFF":
        signed = 2 in page.tag_v2.get(339, (1,))
    if max(bits) > 8 and page.mode not in ("I", "F") and not page.mode.startswith("I;"):
        return f"it has {max(bits)} bits for each colour, of which only 8 can be read"
    return "it holds signed numbers of 8 bits" if signed and max(bits) == 8 else ""


def _is_inverted(page: Any) -> bool:
    """A TIFF whose 0 is white, of 16 bits, which Pillow leaves as it is; of 8 bits it turns them round."""
    return page.format == "TIFF" and page.mode.startswith("I;16") and page.tag_v2.get(262) == 0


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
