"""NRRD, MetaImage and NumPy files as images."""

from __future__ import annotations

import io
import math
import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from dgbench.errors import DataError
from dgbench.images.pixels import (
    BOMB,
    CHANNELS,
    LPS_TO_RAS,
    Pixels,
    affine_problems,
    bounded,
    broken,
    checked,
    library,
    sniff,
)

ITK = {".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
NUMPY = (".npy", ".npz")
ELSEWHERE = re.compile(rb"^(?:data ?file: *|ElementDataFile *= *)(\S.*?)\s*$", re.IGNORECASE | re.MULTILINE)
SAID = re.compile(r"\s*([^:=]+?)\s*[:=]\s*(.*?)\s*")  # a line of either header
PART = 1 << 20  # bytes that are unpacked at once
NAMES = {False: ("image", "img", "data", "x"), True: ("mask", "label", "labels", "seg", "gt", "y")}  # in an .npz


def read_itk(path: Path, mask: bool = False) -> Pixels:
    """An NRRD or MetaImage file, by SimpleITK: a volume as it is stored, or one slice, or colours."""
    sitk = library("SimpleITK", "formats", path)
    sniff(path)
    warned = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # what it would print and go on with is refused below
    try:
        reader = sitk.ImageFileReader()
        reader.SetImageIO(ITK[path.suffix.lower()])
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        size, channels = reader.GetSize(), reader.GetNumberOfComponents()
        if not 2 <= len(size) <= 3 or channels not in (1, 3):
            more = f" with {channels} numbers for each voxel" if channels > 1 else ""
            raise broken(path, [f"it has the shape {tuple(size)}{more}, not that of one volume"], CHANNELS)
        probe = sitk.Image([1] * len(size), reader.GetPixelID(), channels)
        voxel = sitk.GetArrayViewFromImage(probe).nbytes
        expected = math.prod(size) * voxel
        bounded(path, expected, sum(p.stat().st_size for p in files_of(path)))
        _check_packed(path, expected)
        image = reader.Execute()
    except DataError:
        raise
    except Exception as error:  # ITK raises RuntimeErrors of many lines
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise broken(path, [f"SimpleITK cannot read it ({why[-1].strip()})"]) from None
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warned)
    values = sitk.GetArrayFromImage(image)
    axes = np.reshape(image.GetDirection(), (len(size), len(size))) * image.GetSpacing()
    affine = np.eye(4)
    affine[: len(size), : len(size)], affine[: len(size), 3] = axes, image.GetOrigin()
    affine = LPS_TO_RAS @ affine
    columns, rows, depth = (*(float(s) for s in image.GetSpacing()), 1.0)[:3]
    if len(size) == 2:
        values = values[None]
    if problems := list(affine_problems(affine[:3, :3], (columns, rows, depth))):
        raise broken(path, problems)
    return checked(path, Pixels(values, (depth, rows, columns), affine), mask)


def _check_packed(path: Path, expected: int) -> None:
    """Raises `DataError` unless what is compressed can be unpacked, to so many bytes, and its checksum is right.

    ITK itself returns voxels of a damaged MetaImage file as it finds them in memory, and looks at no checksum of NRRD.
    """
    nrrd, told = path.suffix.lower() in (".nrrd", ".nhdr"), dict[str, str]()
    with open(path, "rb") as file:
        for line in iter(lambda: file.readline(PART), b""):
            if nrrd and not line.strip():
                break
            if found := SAID.fullmatch(line.decode("latin-1")):
                told[found[1].lower().replace(" ", "")] = found[2]
            if "elementdatafile" in told:
                break
        begin = file.tell()
    encoding = told.get("encoding", "") if nrrd else told.get("compresseddata", "")
    if not encoding.lower().startswith(("gz",) if nrrd else ("t", "1")):
        return
    voxels = files_of(path)[-1]
    if voxels == path and told.get("datafile", told.get("elementdatafile", "LOCAL")).upper() != "LOCAL":
        raise broken(path, ["its compressed voxels lie in several files, or in none"], "save it as one file")
    with open(voxels, "rb") as file:
        file.seek(begin if voxels == path else 0)
        for _ in range(int(told.get("lineskip", 0))):
            file.readline()
        size, rest = 0, b""
        while size < expected:  # gzip allows several streams behind each other
            unpacker = zlib.decompressobj(32 + zlib.MAX_WBITS)
            while not unpacker.eof:
                if not (part := rest or file.read(PART)):
                    raise broken(path, ["it is cut off"])
                try:
                    size += len(unpacker.decompress(part, PART))
                except zlib.error as error:
                    raise broken(path, [f"its voxels cannot be unpacked ({error})"]) from None
                rest = unpacker.unconsumed_tail
            rest = unpacker.unused_data


def files_of(path: Path) -> list[Path]:
    """A header and, where its voxels lie in another file, that file."""
    if path.suffix.lower() not in (".mhd", ".nhdr") or not path.is_file():
        return [path]
    with open(path, "rb") as file:
        found = ELSEWHERE.search(file.read(1 << 14))
    other = path.parent / found[1].decode("utf-8", "replace") if found else path
    return [path, *([other] if other != path and os.path.isfile(other) else [])]


def read_numpy(path: Path, mask: bool = False) -> Pixels:
    """An array (H, W), (D, H, W), (H, W, 3) of 8 bits, or (D, H, W, 3); of an .npz the only one, or the one so named.

    No pickle is opened. There is no spacing in such a file.
    """
    sniff(path)
    try:
        with open(path, "rb") as file:
            found = np.load(file, allow_pickle=False)
            if not isinstance(found, np.ndarray):
                names = [n for n in found.files if n.lower() in NAMES[mask]] if len(found.files) > 1 else found.files
                if len(names) != 1:
                    told = f"it holds the arrays {', '.join(found.files) or 'none'}"
                    what = "mask" if mask else "image"
                    raise broken(path, [told], f"one array, or one named {what!r} (or {', '.join(NAMES[mask][1:])})")
                bounded(path, found.zip.getinfo(f"{names[0]}.npy").file_size)
                found = member(found, names[0])
    except DataError:
        raise
    except MemoryError:
        raise broken(path, ["its header tells of more than memory can hold"], BOMB) from None
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds
        raise broken(path, [f"NumPy cannot read it ({error or type(error).__name__})"]) from None
    values = found.astype(np.uint8) if found.dtype.kind == "b" else found.astype(found.dtype.newbyteorder("="))
    if values.ndim == 2 or (values.ndim == 3 and values.shape[-1] == 3 and values.dtype == np.uint8):
        values = values[None]
    if values.dtype.kind not in "iuf" or not values.size:
        raise broken(path, [f"its numbers are of type {values.dtype}, its shape {values.shape}"])
    if values.ndim != 3 and not (values.ndim == 4 and values.shape[-1] == 3):
        raise broken(path, [f"it has the shape {values.shape}, not that of one volume"], CHANNELS)
    return checked(path, Pixels(values), mask)


def member(file: Any, name: str) -> np.ndarray:
    """An array of an open .npz file, its checksum looked at: NumPy reads as far as a header says, which may be hurt."""
    found: np.ndarray = np.load(io.BytesIO(file.zip.read(f"{name}.npy")), allow_pickle=False)
    return found
