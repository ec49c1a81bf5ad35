"""Writing a mask beside the image that it is of: in the image's geometry, and its format where that can hold a mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dgbench.errors import DataError
from dgbench.images.pixels import LPS_TO_RAS, Pixels, library
from dgbench.images.volume_formats import ITK, NUMPY


def write_mask(mask: np.ndarray, pixels: Pixels, path: Path, origin: Path) -> Path:
    """Writes bool (D, H, W), which lies on the grid of `pixels`, read from `origin`; returns `path` with its suffix.

    NIfTI and DICOM give .nii.gz with the image's affine, 0 or 1. NRRD and MetaImage give their own format with spacing,
    origin and directions of the image. NumPy gives .npy. PNG, JPEG and BMP give PNG of 0 and 255, several pages a TIFF
    of as many. Raises `DataError` when it cannot be written.
    """
    suffix = origin.suffix.lower()
    try:
        if suffix in ITK and not origin.is_dir():
            return _write_itk(mask, pixels, path, origin)
        if pixels.affine is not None:
            return _write_nifti(mask, pixels.affine, path.with_name(path.name + ".nii.gz"))
        if suffix in NUMPY:
            path = path.with_name(path.name + ".npy")
            np.save(path, mask[0].astype(np.uint8) if len(mask) == 1 else mask.astype(np.uint8))
            return path
        return _write_pages(mask, path)
    except OSError as error:
        raise DataError(f"cannot write the mask of {origin}: {error}", "choose another folder with --out") from None


def _write_nifti(mask: np.ndarray, affine: np.ndarray, path: Path) -> Path:
    import nibabel  # slow to import

    image = nibabel.Nifti1Image(mask.astype(np.uint8).T, affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def _write_itk(mask: np.ndarray, pixels: Pixels, path: Path, origin: Path) -> Path:
    sitk = library("SimpleITK", "formats", origin)
    path = path.with_name(path.name + (".nrrd" if ITK[origin.suffix.lower()].startswith("Nrrd") else ".mha"))
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(origin))
    reader.ReadImageInformation()
    size = tuple(reader.GetSize())
    if size == mask.shape[1:][::-1] and len(mask) == 1:
        mask = mask[0]  # a plane stays a plane
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    if size == tuple(image.GetSize()):
        image.SetSpacing(reader.GetSpacing())
        image.SetOrigin(reader.GetOrigin())
        image.SetDirection(reader.GetDirection())
    elif pixels.affine is not None and pixels.spacing is not None:  # its slices lay along another axis
        affine = LPS_TO_RAS @ pixels.affine
        image.SetSpacing(pixels.spacing[::-1])
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetDirection((affine[:3, :3] / pixels.spacing[::-1]).ravel().tolist())
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:  # ITK's word for a full or read-only disk
        raise OSError(str(error).strip().splitlines()[-1].strip()) from None
    return path


def _write_pages(mask: np.ndarray, path: Path) -> Path:
    from PIL import Image  # slow to import

    pages = [Image.fromarray(page.astype(np.uint8) * 255) for page in mask]
    path = path.with_name(path.name + (".png" if len(pages) == 1 else ".tif"))
    if len(pages) == 1:
        pages[0].save(path)
    else:
        pages[0].save(path, save_all=True, append_images=pages[1:])
    return path
