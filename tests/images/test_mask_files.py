"""A mask that is written lies where its image lies: another library opens both and finds the same places."""

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from dgbench.images.formats import read, read_case
from dgbench.images.mask_files import write_mask
from tests.images.test_dicom import slice_file
from tests.images.test_volume_formats import VOXELS, itk

MASK = VOXELS > 500
OBLIQUE = np.array([[0.4, -0.3, 0, 5], [0.3, 0.4, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1.0]])
SARCOMA = Path(os.environ.get("DGBENCH_STS_SARCOMA") or Path(__file__).parents[3] / "shared/data/sts_sarcoma")


def written(image: Path, mask: np.ndarray = MASK) -> Path:
    return write_mask(mask, read(image), image.parent / "out", image)


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd", "a.nii.gz", "a.nii"])
def test_a_volume_s_mask_has_its_spacing_origin_and_directions(tmp_path, name):
    if ".nii" in name:
        nibabel.save(nibabel.Nifti1Image(VOXELS.T, OBLIQUE), image := tmp_path / name)
    else:
        image = itk(tmp_path / name)
    path = written(image)
    of, own = SimpleITK.ReadImage(str(path)), SimpleITK.ReadImage(str(image))
    for what in ("Size", "Spacing", "Origin", "Direction"):
        np.testing.assert_allclose(getattr(of, f"Get{what}")(), getattr(own, f"Get{what}")(), atol=1e-5)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(of), MASK)
    np.testing.assert_array_equal(read_case(image, [path])[1][0], MASK)


def test_a_plane_stays_a_plane_and_slices_along_another_axis_stay_at_their_place(tmp_path):
    plane = written(itk(tmp_path / "plane.mha", VOXELS[0]), MASK[:1])
    assert SimpleITK.ReadImage(str(plane)).GetSize() == (6, 5)
    lying = itk(tmp_path / "lying.nrrd", VOXELS[:, :1])  # one row in each slice: the file holds one slice
    mask = read(lying).values > 500
    path = written(lying, mask)
    np.testing.assert_allclose(read(path).affine, read(lying).affine, atol=1e-6)
    np.testing.assert_array_equal(read(path).values, mask)


def test_a_series_mask_is_a_nifti_file_at_the_place_of_the_series(tmp_path):
    for i in range(4):
        slice_file(tmp_path / "ct" / f"{i}.dcm", i)
    mask = read(tmp_path / "ct").values > 0
    path = written(tmp_path / "ct", mask)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "ct")))
    series, of = reader.Execute(), SimpleITK.ReadImage(str(path))
    for what in ("Size", "Spacing", "Origin", "Direction"):
        np.testing.assert_allclose(getattr(of, f"Get{what}")(), getattr(series, f"Get{what}")(), atol=1e-5)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(of), mask)


def test_pages_and_arrays_keep_their_number(tmp_path):
    gray = (VOXELS > 0).astype(np.uint8)
    pages = [Image.fromarray(page) for page in gray]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert len(read(written(tmp_path / "a.tif")).values) == 4
    np.save(tmp_path / "a.npy", VOXELS)
    np.testing.assert_array_equal(np.load(written(tmp_path / "a.npy")), MASK)
    np.save(tmp_path / "plane.npy", VOXELS[0])
    assert np.load(written(tmp_path / "plane.npy", MASK[:1])).shape == (5, 6)
    pages[0].save(tmp_path / "a.bmp")
    path = written(tmp_path / "a.bmp", MASK[:1])
    assert path.name == "out.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), MASK[0] * np.uint8(255))


@pytest.mark.skipif(not SARCOMA.is_dir(), reason="no real volumes here")
@pytest.mark.parametrize("domain", ["ct", "mr_t1", "pet"])
def test_a_real_volume_s_mask_opens_at_the_same_place(tmp_path, domain):
    image = min((SARCOMA / domain / "images").iterdir(), key=lambda p: p.stat().st_size)
    pixels = read(image)
    path = write_mask(pixels.values > np.median(pixels.values), pixels, tmp_path / "out", image)
    of, own = SimpleITK.ReadImage(str(path)), SimpleITK.ReadImage(str(image))
    for what in ("Size", "Spacing", "Origin", "Direction"):
        np.testing.assert_allclose(getattr(of, f"Get{what}")(), getattr(own, f"Get{what}")(), atol=1e-3)
