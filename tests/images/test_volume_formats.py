"""NRRD, MetaImage, NumPy, BMP and frames of NIfTI: written by one library, read back by ours."""

from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK
from PIL import Image

from dgbench.errors import DataError
from dgbench.images.formats import is_image, parts, read, read_case, stem

VOXELS = np.random.default_rng(0).integers(-1000, 2000, (4, 5, 6)).astype(np.int16)  # (slices, rows, columns)
TURN = np.array([[0.0, 0, 1], [1, 0, 0], [0, -1, 0]])  # columns of voxel axes on axes that point left, back and up


def itk(path: Path, voxels: np.ndarray = VOXELS, compress: bool = True, vector: bool = False) -> Path:
    image = SimpleITK.GetImageFromArray(voxels, isVector=vector)
    if image.GetDimension() == 3:
        image.SetSpacing((0.5, 0.75, 3.0))
        image.SetOrigin((10, -20, 30))
        image.SetDirection(TURN.ravel().tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=compress)
    return path


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("compress", [True, False])
def test_a_volume_comes_back_at_its_place(tmp_path, name, compress):
    pixels = read(path := itk(tmp_path / name, compress=compress))
    np.testing.assert_array_equal(pixels.values, VOXELS)
    assert pixels.spacing == pytest.approx((3.0, 0.75, 0.5)) and stem(path) == "a" and is_image(path)
    left_back_up = SimpleITK.ReadImage(str(path)).TransformIndexToPhysicalPoint((1, 2, 3))
    np.testing.assert_allclose(pixels.affine @ [1, 2, 3, 1], [-left_back_up[0], -left_back_up[1], left_back_up[2], 1])
    assert len(parts(path)) == (2 if name in ("a.nhdr", "a.mhd") else 1), "where voxels lie beside a header, they count"


def test_an_nrrd_file_of_pynrrd_lies_where_its_header_says(tmp_path):
    matrix, origin = np.diag([0.5, 0.75, 3]), [1, 2, 3]
    header = {"space": "right-anterior-superior", "space directions": matrix, "space origin": origin}
    nrrd.write(str(tmp_path / "a.nrrd"), VOXELS.T, header)
    pixels = read(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(pixels.values, VOXELS)
    np.testing.assert_allclose(pixels.affine, [[0.5, 0, 0, 1], [0, 0.75, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]])


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
@pytest.mark.parametrize("compress", [True, False])
def test_a_volume_cut_off_is_refused(tmp_path, name, compress):
    whole = itk(tmp_path / name, compress=compress).read_bytes()
    for length in (20, len(whole) // 2, len(whole) - 9):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
def test_compressed_voxels_are_refused_where_their_checksum_is_wrong(tmp_path, name):
    """ITK gives what it finds in memory for a damaged MetaImage, and what follows a damaged byte for some of NRRD."""
    voxels = parts(itk(tmp_path / name))[-1]
    content = voxels.read_bytes()
    for at in range(len(content) - 200, len(content), 3):
        voxels.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


def test_colours_are_colours_and_what_is_no_volume_is_told(tmp_path):
    colours = np.arange(2 * 8 * 9 * 3).reshape(2, 8, 9, 3).astype(np.uint8)
    np.testing.assert_array_equal(read(itk(tmp_path / "c.nrrd", colours, vector=True)).values, colours)
    for name, voxels, vector in (("t.nrrd", np.zeros((2, 3, 4, 5), np.uint8), False),
                                 ("v.mha", np.zeros((3, 4, 5, 6), np.uint8), True)):  # fmt: skip
        with pytest.raises(DataError, match="not that of one volume"):
            read(itk(tmp_path / name, voxels, vector=vector))
    assert read(itk(tmp_path / "plane.mha", VOXELS[0])).values.shape == (1, 5, 6)


def test_a_mask_of_another_format_lies_on_the_grid_of_its_image(tmp_path):
    """The same place in a NIfTI header and in an NRRD header: the axes of the two point in opposite directions."""
    image = itk(tmp_path / "image.nrrd")
    nibabel.save(nibabel.Nifti1Image((VOXELS > 500).astype(np.uint8).T, read(image).affine), tmp_path / "mask.nii.gz")
    _, (mask,) = read_case(image, [tmp_path / "mask.nii.gz"])
    np.testing.assert_array_equal(mask, VOXELS > 500)


def test_without_simpleitk_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = itk(tmp_path / "a.nrrd")
    monkeypatch.setitem(__import__("sys").modules, "SimpleITK", None)
    with pytest.raises(DataError, match=r"a\.nrrd can only be read with SimpleITK") as failure:
        read(path)
    assert failure.value.remedy == "pip install 'dgbench[formats]'"


# --- NumPy -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "kind", "read_as"),
    [((5, 6), "<f4", (1, 5, 6)), ((4, 5, 6), ">i2", (4, 5, 6)), ((5, 6, 3), "u1", (1, 5, 6, 3)),
     ((4, 5, 6, 3), "u1", (4, 5, 6, 3)), ((4, 5, 6), "?", (4, 5, 6))],
)  # fmt: skip
def test_an_array_is_an_image(tmp_path, shape, kind, read_as):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(kind)
    np.save(tmp_path / "a.npy", array)
    found = read(tmp_path / "a.npy")
    np.testing.assert_array_equal(found.values, array.reshape(read_as))
    assert found.spacing is None and found.values.dtype.isnative


def test_of_several_arrays_the_one_with_the_right_name_is_taken(tmp_path):
    np.savez(tmp_path / "both.npz", image=VOXELS, label=VOXELS > 0)
    pixels, (mask,) = read_case(tmp_path / "both.npz", [])[0], [read(tmp_path / "both.npz", mask=True).values]
    np.testing.assert_array_equal(pixels.values, VOXELS)
    np.testing.assert_array_equal(mask, VOXELS > 0)
    np.savez(tmp_path / "others.npz", a=VOXELS, b=VOXELS)
    with pytest.raises(DataError, match="it holds the arrays a, b"):
        read(tmp_path / "others.npz")


def test_an_array_is_compared_with_its_checksum_though_its_header_says_that_it_is_shorter(tmp_path):
    np.savez(tmp_path / "a.npz", np.zeros((20, 40, 40)))
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content.replace(b"(20, 40, 40)", b"(10, 40, 40)"))
    with pytest.raises(DataError, match="CRC"):
        read(tmp_path / "a.npz")


def test_an_array_that_would_run_code_or_is_no_image_is_refused(tmp_path):
    np.save(tmp_path / "pickle.npy", np.array([{}], object), allow_pickle=True)
    np.save(tmp_path / "complex.npy", np.zeros((5, 6), complex))
    np.save(tmp_path / "series.npy", np.zeros((2, 3, 4, 5, 6)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "series.npy").read_bytes()[:-9])
    for name in ("pickle", "complex", "series", "cut"):
        with pytest.raises(DataError, match=rf"{name}\.npy"):
            read(tmp_path / f"{name}.npy")


# --- BMP, and frames of NIfTI ----------------------------------------------------------------------------------------


def test_a_bmp_is_a_photograph(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.bmp")
    np.testing.assert_array_equal(read(tmp_path / "a.bmp").values, colours[None])


def test_a_frame_of_a_file_of_many_is_named_by_its_number(tmp_path):
    cine = np.stack([VOXELS.T, VOXELS.T + 1], axis=-1)
    nibabel.save(nibabel.Nifti1Image(cine, np.eye(4)), tmp_path / "cine.nii.gz")
    nibabel.save(nibabel.Nifti1Image((VOXELS.T > 0).astype(np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    pixels, (mask,) = read_case(tmp_path / "cine.nii.gz", [tmp_path / "mask.nii.gz"], frame=1)
    np.testing.assert_array_equal(pixels.values, VOXELS + 1)
    np.testing.assert_array_equal(mask, VOXELS > 0)
    with pytest.raises(DataError, match="frames 0 to 1, and 2 is asked for"):
        read(tmp_path / "cine.nii.gz", frame=2)
    with pytest.raises(DataError, match="not that of one volume") as failure:
        read(tmp_path / "cine.nii.gz")
    assert "a column `frame` in a table of cases" in failure.value.remedy


def test_all_that_is_wrong_with_all_masks_is_told_with_what_to_do(tmp_path):
    """A mask of four axes, one of another size and one in colours."""
    for name, voxels in (("image", VOXELS), ("four", np.stack([VOXELS] * 2)), ("small", abs(VOXELS[:3]))):
        nibabel.save(nibabel.Nifti1Image(voxels.T, np.eye(4)), tmp_path / f"{name}.nii.gz")
    Image.fromarray(np.arange(5 * 6 * 3, dtype=np.uint8).reshape(5, 6, 3)).save(tmp_path / "colours.png")
    masks = [tmp_path / name for name in ("four.nii.gz", "small.nii.gz", "colours.png")]
    with pytest.raises(DataError) as failure:
        read_case(tmp_path / "image.nii.gz", masks)
    for said in ("four.nii.gz is no usable image: it has the shape (6, 5, 4, 2)", "small.nii.gz is 3 x 5 x 6",
                 "colours.png is no usable image: a mask must hold numbers, not colours"):  # fmt: skip
        assert said in failure.value.cause
    for said in ("a column `frame`", "save the mask on the grid of its image"):
        assert said in failure.value.remedy
