"""Reading image files: what a broken file looks like, and that none of them gets through."""

import gzip
import struct
import tracemalloc
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile

from dgbench.errors import DataError
from dgbench.images import pixels
from dgbench.images.file_task import FileTask
from dgbench.images.formats import (
    Pixels,
    may_have_colours,
    read,
    read_case,
    read_image,
    read_volume,
    stem,
    to_unit,
    values_of,
)
from dgbench.metrics import measure
from dgbench.task import Case

RNG = np.random.default_rng(0)
VOXELS = RNG.integers(0, 900, (6, 5, 4)).astype(np.int16)  # (x, y, z)


def affine(x: float = 0.6, y: float = 0.5, z: float = 3.0) -> np.ndarray:
    return np.diag([x, y, z, 1.0])


def write(path: Path, voxels: np.ndarray = VOXELS, matrix: np.ndarray | None = None, **header: object) -> Path:
    """A NIfTI file; `header` overwrites single fields after nibabel has written what it thinks right."""
    image = nibabel.Nifti1Image(voxels, affine() if matrix is None else matrix)
    raw = bytearray(image.to_bytes())
    if header:
        edited = nibabel.Nifti1Header(bytes(raw[:348]), check=False)
        for key, value in header.items():
            edited[key] = value
        raw[:348] = edited.binaryblock
    path.write_bytes(gzip.compress(bytes(raw), mtime=0) if path.suffix == ".gz" else bytes(raw))
    return path


# --- NIfTI ----------------------------------------------------------------------------------------------------------


def test_x_y_z_become_slices_height_width(tmp_path):
    values, spacing, matrix = read_volume(write(tmp_path / "a.nii.gz"))
    assert values.shape == (4, 5, 6) and values[3, 2, 1] == VOXELS[1, 2, 3] and values.flags.c_contiguous
    assert spacing == pytest.approx((3.0, 0.5, 0.6))
    np.testing.assert_allclose(matrix, affine(), rtol=1e-6)


CUBES = hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=5)


@given(hnp.arrays(st.sampled_from([np.uint8, np.int16, np.float32]), CUBES, elements=st.integers(0, 200)))
@settings(max_examples=25, deadline=None)
def test_every_voxel_comes_back(tmp_path_factory, voxels):
    path = tmp_path_factory.mktemp("v") / "a.nii.gz"
    np.testing.assert_array_equal(read(write(path, voxels)).values, voxels.T)


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    whole = write(tmp_path / "whole.nii.gz").read_bytes()
    for length in [1, 2, 9, 10, 11, 40, len(whole) // 4, len(whole) // 2, *range(len(whole) - 10, len(whole))]:
        (path := tmp_path / "cut.nii.gz").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.nii\.gz"):
            read(path)


def test_an_uncompressed_file_cut_off_is_refused(tmp_path):
    whole = write(tmp_path / "whole.nii").read_bytes()
    for length in (3, 100, 347, 352, len(whole) // 2, len(whole) - 1):
        (path := tmp_path / "cut.nii").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.nii"):
            read(path)


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path):
    """Ten bytes of the gzip header (a time, an operating system) mean nothing; each bit behind them is checked."""
    whole = write(tmp_path / "whole.nii.gz").read_bytes()
    path = tmp_path / "flipped.nii.gz"
    for position in [*range(10), *range(10, len(whole), 5), *range(len(whole) - 8, len(whole))]:
        for bit in range(8) if position % 4 == 0 else (position % 8,):
            flipped = bytearray(whole)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            if position < 10:
                try:
                    np.testing.assert_array_equal(read(path).values, VOXELS.T)
                except DataError:
                    continue
            else:
                with pytest.raises(DataError, match=r"flipped\.nii\.gz"):
                    read(path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.png", "a.jpg", "a.tif"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n<!DOCTYPE html><html>404", "web page"),
        (b'{"error": "quota"}', "web page"),
        (b"\0" * 2000, "no usable image"),
        (bytes(RNG.integers(0, 256, 5000, dtype=np.uint8)), "no usable image"),
    ],
)
def test_what_a_failed_download_leaves_behind_is_named(tmp_path, name, content, said):
    (path := tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as failure:
        read(path)
    assert str(path) in failure.value.cause and failure.value.remedy


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    (tmp_path / "folder.nii.gz").mkdir()
    for name in ("missing.nii.gz", "missing.png", "folder.nii.gz"):
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


NAN = np.where(np.arange(120).reshape(6, 5, 4) == 7, np.nan, 1).astype(np.float32)
SHEARED = affine() + 0.3 * np.eye(4, k=1) * np.array([[1], [0], [0], [0]])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"pixdim": [1, 0.6, 0.5, 0, 0, 0, 0, 0]}, "spacing"),
        ({"pixdim": [1, 0.6, -0.5, 3, 0, 0, 0, 0]}, "spacing"),
        ({"pixdim": [1, np.nan, 0.5, 3, 0, 0, 0, 0]}, "spacing"),
        ({"pixdim": [1, 1.0, 1.0, 1.0, 0, 0, 0, 0]}, "two spacings"),
        ({"matrix": SHEARED, "pixdim": [1, 0.6, np.hypot(0.5, 0.3), 3, 0, 0, 0, 0]}, "right angles"),
        ({"srow_x": [np.nan] * 4}, "two spacings"),
        ({"voxels": NAN}, "1 of its values"),
        ({"voxels": np.ones((4, 4, 3, 2), np.uint8)}, r"shape \(4, 4, 3, 2\)"),
        ({"voxels": np.ones((4, 4, 3), np.complex64)}, "complex64"),
        ({"voxels": np.ones((4, 4, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])}, r"colours \(R, G, B\)"),
        ({"dim": [3, 0, 5, 4, 1, 1, 1, 1]}, "shape"),
        ({"dim": [3, -6, 5, 4, 1, 1, 1, 1]}, "shape"),
        ({"datatype": 77}, "no usable image"),
        ({"vox_offset": np.inf}, "no usable image"),
        ({"vox_offset": 0.0}, "no usable image"),
        ({"magic": b"ni1"}, "another file"),
        ({"scl_slope": 2.0, "scl_inter": np.nan}, "no usable image"),
    ],
)
def test_a_header_or_voxel_that_cannot_be_true_is_refused(tmp_path, wrong, said):
    with pytest.raises(DataError, match=said) as failure:
        read(write(tmp_path / "a.nii.gz", **wrong))
    assert str(tmp_path / "a.nii.gz") in failure.value.cause


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    with pytest.raises(DataError, match=r"spacing in its header.* and 1 of its values"):
        read(write(tmp_path / "a.nii.gz", NAN, pixdim=[1, 0.6, 0.5, 0, 0, 0, 0, 0]))


def test_an_oblique_volume_is_read_as_it_is_stored(tmp_path):
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]]
    pixels = read(write(tmp_path / "a.nii.gz", matrix=turn @ affine()))
    assert pixels.spacing == pytest.approx((3.0, 0.5, 0.6))
    np.testing.assert_array_equal(pixels.values, VOXELS.T)


def test_axes_of_length_one_behind_the_third_are_dropped_and_a_plane_is_one_slice(tmp_path):
    assert read(write(tmp_path / "a.nii.gz", VOXELS[..., None, None])).values.shape == (4, 5, 6)
    plane = read(write(tmp_path / "b.nii.gz", VOXELS[..., 0]))
    assert plane.values.shape == (1, 5, 6) and plane.spacing == pytest.approx((1.0, 0.5, 0.6))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_one_slice_is_one_slice_along_whichever_axis_it_was_stored(tmp_path, axis):
    """Read as volumes of slices one pixel wide, every voxel of a mask is a border, and a surface distance is 0."""
    plane = np.arange(30).reshape(5, 6).astype(np.uint8)
    stored = write(tmp_path / "a.nii.gz", np.expand_dims(plane, axis), affine(2.0, 3.0, 4.0))
    values, spacing, matrix = read_volume(stored)
    np.testing.assert_array_equal(values, plane.T[None])
    step = [2.0, 3.0, 4.0]
    through = step.pop(axis)
    assert spacing == pytest.approx((through, step[1], step[0]))
    index = np.insert([1, 2], axis, 0)  # in the file; in `values` it is [0, 2, 1], in its affine (1, 2, 0)
    assert plane[1, 2] == values[0, 2, 1]
    np.testing.assert_allclose(matrix @ [1, 2, 0, 1], affine(2.0, 3.0, 4.0) @ [*index, 1])


@pytest.mark.parametrize("shape", [(1, 24, 20), (24, 1, 20), (24, 20, 1), (24, 20), (24, 20, 1, 1)])
def test_a_prediction_two_pixels_too_small_is_two_pixels_away_however_its_slice_was_stored(tmp_path, shape):
    reference, prediction = np.zeros((2, 24, 20), np.uint8)
    reference[4:18, 3:17] = prediction[6:16, 5:15] = 1  # every border pixel of the inner square has one 2 px outwards
    image = write(tmp_path / "image.nii.gz", RNG.integers(0, 99, (24, 20)).astype(np.int16).reshape(shape), np.eye(4))
    masks = [
        write(tmp_path / f"{n}.nii.gz", m.reshape(shape), np.eye(4)) for n, m in enumerate((prediction, reference))
    ]
    pixels, (found, truth) = read_case(image, masks)
    assert pixels.values.shape == found.shape == (1, 20, 24) and pixels.spacing is not None
    assert measure(found > 0, truth > 0, pixels.spacing).asd == 2.0


def test_a_mask_of_another_rank_lies_on_its_images_grid_or_is_told_how_to(tmp_path):
    plane = RNG.integers(0, 2, (24, 20)).astype(np.uint8)
    flat = write(tmp_path / "flat.nii.gz", plane, np.eye(4))
    behind, before = (write(tmp_path / f"{i}.nii.gz", np.expand_dims(plane, i), np.eye(4)) for i in (2, 0))
    np.testing.assert_array_equal(read_case(flat, [behind])[1][0], plane.T[None])
    with pytest.raises(DataError, match="two affines") as failure:  # their headers put the planes at right angles
        read_case(flat, [before])
    assert "save it with the image's axes and header" in failure.value.remedy


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((24, 20, 1, 3), "shape (24, 20, 1, 3), not that of one volume"),
        ((24, 20, 1, 1, 3), "shape (24, 20, 1, 1, 3), not that of one volume"),
        ((1, 24, 20, 18), "shape (1, 24, 20, 18), not that of one volume"),
        ((3, 24, 20), "slices are 24 x 3 pixels"),
        ((24, 4, 20), "slices are 4 x 24 pixels"),
    ],
)
def test_channels_are_not_taken_for_slices(tmp_path, shape, said):
    with pytest.raises(DataError) as failure:
        read(write(tmp_path / "a.nii.gz", np.ones(shape, np.uint8)))
    assert said in failure.value.cause and "save one channel" in failure.value.remedy


def test_colours_taken_for_three_slices_are_told_beside_a_mask_of_one(tmp_path):
    image = write(tmp_path / "image.nii.gz", np.ones((24, 20, 3), np.uint8))
    with pytest.raises(DataError, match="image and mask differ in size") as failure:
        read_case(image, [write(tmp_path / "mask.nii.gz", np.ones((24, 20), np.uint8))])
    assert failure.value.remedy.startswith("if the three slices are colours, save")


def test_scaling_byte_order_units_and_nifti_2_are_understood(tmp_path):
    scaled = read(write(tmp_path / "a.nii.gz", scl_slope=2.0, scl_inter=-1.0))
    np.testing.assert_allclose(scaled.values, 2.0 * VOXELS.T - 1)
    assert read(write(tmp_path / "b.nii.gz", xyzt_units=1)).spacing == pytest.approx((3000.0, 500.0, 600.0))
    big = nibabel.Nifti1Image(VOXELS, affine(), nibabel.Nifti1Header(endianness=">"))
    (tmp_path / "c.nii").write_bytes(big.to_bytes())
    (tmp_path / "d.nii.gz").write_bytes(gzip.compress(nibabel.Nifti2Image(VOXELS, affine()).to_bytes()))
    for name in ("c.nii", "d.nii.gz"):
        np.testing.assert_array_equal(read(tmp_path / name).values, VOXELS.T)


def test_a_forged_header_is_refused_before_memory_is_taken(tmp_path):
    forged = [3, 32767, 32767, 32767, 1, 1, 1, 1]
    refused_in_little_memory(write(tmp_path / "huge.nii.gz", dim=forged), "would become 70362.3 GB")
    refused_in_little_memory(write(tmp_path / "huge.nii", dim=forged), "it ends after")


def test_a_mask_stored_as_floats_becomes_whole_numbers_and_half_a_structure_is_refused(tmp_path):
    labels = (VOXELS % 3).astype(np.float64)
    mask = read(write(tmp_path / "a.nii.gz", labels), mask=True).values
    assert mask.dtype.kind == "i" and values_of(mask) == [1, 2]
    with pytest.raises(DataError, match=r"within 0\.001, and 0\.5 is one of 120 that are not"):
        read(write(tmp_path / "b.nii.gz", labels + 0.5), mask=True)


@pytest.mark.parametrize(("stored", "intercept"), [((0, 3, 6), 0.0), ((1, 4, 7), -1 / 3)])
def test_a_mask_whose_header_scales_its_values_is_rounded(tmp_path, stored, intercept):
    """A slope of 1/3 is 0.33333334 in the header's 32 bits, so that 6 becomes 2.00000006."""
    labels = VOXELS % 3
    scaled = np.array(stored, np.uint8)[labels]
    mask = read(write(tmp_path / "a.nii.gz", scaled, scl_slope=1 / 3, scl_inter=intercept), mask=True).values
    np.testing.assert_array_equal(mask, labels.T)
    assert mask.dtype.kind == "i"


@pytest.mark.parametrize(("slope", "value"), [(0.3337, "1.0011"), (0.2997, "0.8991")])
def test_a_mask_further_from_whole_numbers_than_rounding_goes_is_refused_with_a_value(tmp_path, slope, value):
    with pytest.raises(DataError, match=rf"to within 0\.001, and {value}\d* is one of"):
        read(write(tmp_path / "a.nii.gz", 3 * (VOXELS % 2).astype(np.uint8), scl_slope=slope), mask=True)


# --- PNG, JPEG, TIFF ------------------------------------------------------------------------------------------------

GRAY = RNG.integers(0, 256, (7, 9), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (7, 9, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (7, 9), dtype=np.uint16)
CLEAR = np.full((7, 9, 1), 80, np.uint8)


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("gray.png", Image.fromarray(GRAY), GRAY),
        ("gray.tif", Image.fromarray(GRAY), GRAY),
        ("colour.png", Image.fromarray(COLOUR), COLOUR),
        ("colour.tiff", Image.fromarray(COLOUR), COLOUR),
        ("deep.png", Image.fromarray(DEEP), DEEP),
        ("deep.tif", Image.fromarray(DEEP), DEEP),
        ("float.tif", Image.fromarray(GRAY.astype(np.float32) / 7), GRAY.astype(np.float32) / 7),
        ("alpha.png", Image.fromarray(np.dstack([COLOUR, CLEAR])), COLOUR),
        ("gray_alpha.png", Image.fromarray(np.dstack([GRAY, CLEAR])), GRAY),
        ("bits.png", Image.fromarray(GRAY > 99), np.where(GRAY > 99, 255, 0).astype(np.uint8)),
    ],
)
def test_every_kind_of_pixel_is_read_as_it_was_written(tmp_path, name, image, expected):
    image.save(tmp_path / name)
    pixels = read(tmp_path / name)
    assert pixels.spacing is None and pixels.values.dtype == expected.dtype
    np.testing.assert_array_equal(pixels.values[0], expected)


def png_of_16_bits(path: Path, values: np.ndarray, kind: int) -> None:
    """uint16 (H, W, C) as PNG; kind: 2 colours, 4 gray and alpha, 6 colours and alpha, which Pillow does not write."""
    height, width = values.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0),
        b"IDAT": zlib.compress(lines),
        b"IEND": b"",
    }
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts.items())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_are_refused_where_only_their_high_bytes_can_be_read(tmp_path, kind, channels):
    """Else numbers up to 4095 would become 16 shades of black, and a mask of 0, 1 and 2 would be empty."""
    png_of_16_bits(tmp_path / "deep.png", np.full((4, 5, channels), 4095, np.uint16), kind)
    with pytest.raises(DataError, match="it has 16 bits for each colour, of which only 8 can be read"):
        read(tmp_path / "deep.png")


def test_a_tiff_of_signed_bytes_is_refused_and_one_whose_zero_is_white_is_turned_round(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "signed.tif", tiffinfo={339: 2})
    with pytest.raises(DataError, match="it holds signed numbers of 8 bits"):
        read(tmp_path / "signed.tif")
    Image.fromarray(DEEP).save(tmp_path / "white.tif")
    stored, entry = (tmp_path / "white.tif").read_bytes(), struct.pack("<HHI", 262, 3, 1)  # photometric, one short
    assert stored.count(entry + b"\1") == 1, "written as: 0 is black"
    (tmp_path / "white.tif").write_bytes(stored.replace(entry + b"\1", entry + b"\0"))
    np.testing.assert_array_equal(read(tmp_path / "white.tif").values[0], 65535 - DEEP)


def test_a_palette_is_colours_in_an_image_and_numbers_in_a_mask(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8), "L").convert("P")
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0])
    image.save(tmp_path / "p.png")
    assert read(tmp_path / "p.png").values[0, 0, 1].tolist() == [200, 0, 0]
    assert read(tmp_path / "p.png", mask=True).values.tolist() == [[[0, 1], [2, 2]]]


def test_a_mask_saved_as_gray_rgb_is_read_and_a_coloured_one_is_refused(tmp_path):
    Image.fromarray(np.repeat(GRAY[..., None], 3, axis=2)).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read(tmp_path / "gray.png", mask=True).values[0], GRAY)
    Image.fromarray(COLOUR).save(tmp_path / "colour.png")
    with pytest.raises(DataError, match="not colours"):
        read(tmp_path / "colour.png", mask=True)


@pytest.mark.parametrize("name", ["turned.png", "turned.tif", "turned.jpg"])
def test_an_image_is_turned_as_its_exif_says(tmp_path, name):
    """An uncompressed TIFF that Pillow opens by its path comes out scrambled here (seen with 13.0.0)."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn clockwise
    Image.fromarray(np.array([[250, 10, 10]], np.uint8).repeat(8, 0).repeat(8, 1)).save(tmp_path / name, exif=exif)
    shown = read(tmp_path / name).values[0]
    assert shown.shape == (24, 8) and (shown[:8] > 200).all() and (shown[8:] < 60).all()


def test_pages_of_a_tiff_that_are_lines_are_one_slice_and_pages_of_channels_are_refused(tmp_path):
    def save(pages: np.ndarray) -> Path:
        first, *rest = map(Image.fromarray, pages)
        first.save(tmp_path / "a.tif", save_all=True, append_images=rest)
        return tmp_path / "a.tif"

    for one in (GRAY[None], GRAY[:, None], GRAY[:, :, None]):
        np.testing.assert_array_equal(read(save(one)).values, GRAY[None])
    with pytest.raises(DataError, match="slices are 20 x 3 pixels") as failure:
        read(save(np.ones((30, 20, 3), np.uint8)))
    assert "one channel" in failure.value.remedy


def test_pages_of_a_tiff_are_slices(tmp_path):
    pages = [Image.fromarray(GRAY + i) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    values = read(tmp_path / "a.tif").values
    assert values.shape == (3, 7, 9) and (values[2] == GRAY + 2).all()
    pages[0].save(tmp_path / "b.tif", save_all=True, append_images=[Image.fromarray(GRAY[:5])])
    with pytest.raises(DataError, match=r"b\.tif"):
        read(tmp_path / "b.tif")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_photograph_cut_off_is_refused(tmp_path, name):
    big = RNG.integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(big).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for length in (5, 30, len(whole) // 2, len(whole) * 9 // 10):
        (path := tmp_path / f"cut{name}").write_bytes(whole[:length])
        with pytest.raises(DataError, match="cut"):
            read(path)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_flipped_bit_in_a_png_is_found(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        (tmp_path / "a.png").write_bytes(flipped)
        try:
            np.testing.assert_array_equal(read_image(tmp_path / "a.png").values[0], GRAY)
            assert position >= whole.index(b"IEND") - 4  # the last chunk is empty: a flip in it changes no pixel
        except DataError as error:
            assert "a.png" in error.cause


def test_a_png_that_would_fill_the_memory_is_refused(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    rest = chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + rest)
    with pytest.raises(DataError, match=r"bomb\.png.*decompression bomb"):
        read(tmp_path / "bomb.png")


# --- small files that would become large ------------------------------------------------------------------------------


def refused_in_little_memory(path: Path, said: str, most: int = 24 << 20) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=said) as failure:
            read(path)
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
    assert failure.value.remedy


def bomb(path: Path, shape: tuple[int, int, int], unpacked: int) -> Path:
    """A volume of zeros whose gzip stream really becomes `unpacked` bytes, a thousandth on the disk."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    member = gzip.compress(bytes(16 << 20), 9, mtime=0)
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4), mtime=0) + member * (unpacked // (16 << 20)))
    return path


def test_a_stream_of_gigabytes_behind_a_small_header_is_left_at_once(tmp_path):
    path = bomb(tmp_path / "a.nii.gz", (20, 20, 10), 16 << 30)
    assert path.stat().st_size < 20 << 20
    refused_in_little_memory(path, "it goes on after the 8352 bytes that its header tells of")


def test_a_header_that_honestly_tells_of_gigabytes_of_nothing_is_refused_unread(tmp_path):
    refused_in_little_memory(bomb(tmp_path / "a.nii.gz", (2000, 2000, 2600), 20 << 30), "would become 20.8 GB")


def test_a_few_bytes_behind_the_voxels_are_no_bomb(tmp_path):
    path = write(tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(1000)))
    np.testing.assert_array_equal(read(path).values, VOXELS.T)


def test_pages_of_a_tiff_that_share_their_pixels_are_counted_before_one_is_decoded(tmp_path):
    """100 pages of 8000 x 8000 zeros, all in one strip of 64 kB: 6.4 GB from 75 kB."""
    strip = zlib.compress(bytes(8000 * 8000), 9)
    tags = {256: 8000, 257: 8000, 258: 8, 259: 8, 262: 1, 273: 8, 277: 1, 278: 8000, 279: len(strip)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    size, first, pages = 2 + len(entries) + 4, 8 + len(strip), 100
    chain = [first + i * size for i in range(pages)]
    folders = b"".join(struct.pack("<H", len(tags)) + entries + struct.pack("<I", after) for after in (*chain[1:], 0))
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", first) + strip + folders)
    refused_in_little_memory(tmp_path / "a.tif", "would become 6.4 GB")


def test_an_array_in_an_npz_is_measured_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "MOST", 1 << 20)
    np.savez_compressed(tmp_path / "a.npz", image=np.zeros((64, 1024, 1024), np.uint8))
    refused_in_little_memory(tmp_path / "a.npz", "65.* bytes would become 0.1 GB")


def test_what_is_large_and_no_smaller_on_the_disk_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "MOST", 1 << 10)
    np.savez(tmp_path / "a.npz", image=np.ones((4, 32, 32), np.uint8))
    assert read(tmp_path / "a.npz").values.sum() == 4 * 32 * 32


def test_a_case_is_named_by_its_file_without_the_suffix():
    assert [stem(Path(n)) for n in ("a.b.nii.gz", "a.NII.GZ", "a.nii", "a.b.JPG")] == ["a.b", "a", "a", "a.b"]


# --- intensities ----------------------------------------------------------------------------------------------------


def test_a_photograph_of_8_bits_is_divided_by_255():
    unit = to_unit(Pixels(np.array([[[0, 51, 255]]], np.uint8)))
    assert unit.dtype == np.float32 and unit.shape == (1, 1, 1, 3)
    np.testing.assert_allclose(unit.ravel(), [0, 0.2, 1])


@given(hnp.arrays(st.sampled_from([np.int16, np.uint16, np.float32]), (2, 4, 5), elements=st.integers(0, 30000)))
def test_all_others_reach_from_0_to_1_whatever_their_numbers(values):
    unit = to_unit(Pixels(values, (1.0, 1.0, 1.0)))
    assert unit.dtype == np.float32 and unit.min() >= 0 and unit.max() <= 1
    low, high = np.percentile(values, (0.5, 99.5))
    if high > low:
        expected = ((values - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(unit[:, 0], expected, atol=1e-3)
    else:
        assert not unit.any()


def test_gray_saved_as_colour_has_one_channel_and_colour_has_three():
    assert to_unit(Pixels(np.repeat(GRAY[None, ..., None], 3, axis=3))).shape == (1, 1, 7, 9)
    unit = to_unit(Pixels(COLOUR[None]))
    assert unit.shape == (1, 3, 7, 9) and unit[0, 2, 4, 5] == np.float32(COLOUR[4, 5, 2] / 255)


@pytest.mark.parametrize(
    ("mode", "may"), [("1", False), ("L", False), ("LA", False), ("I;16", False), ("P", True), ("RGB", True)]
)
def test_a_header_that_says_gray_is_enough_and_one_that_says_colours_is_not(tmp_path, mode, may):
    """The last pixels are cut off: nothing was decoded."""
    path = tmp_path / "a.png"
    Image.fromarray(COLOUR if mode == "RGB" else GRAY).convert(mode).save(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert may_have_colours(path) is may
    (tmp_path / "b.png").write_bytes(b"no picture")
    assert may_have_colours(tmp_path / "b.png"), "`read` says what is wrong with it"


# --- an image with its masks ----------------------------------------------------------------------------------------


def test_a_mask_of_another_size_is_refused_with_both_sizes(tmp_path):
    Image.fromarray(GRAY).save(tmp_path / "image.png")
    Image.fromarray(GRAY[:5]).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png is 1 x 5 x 9, .*image\.png is 1 x 7 x 9"):
        read_case(tmp_path / "image.png", [tmp_path / "mask.png"])


def test_a_mask_that_lies_elsewhere_is_refused_unless_only_shapes_count(tmp_path):
    image = write(tmp_path / "image.nii.gz")
    moved = affine()
    moved[0, 3] = 0.3  # mm: half a voxel
    for name, matrix in [("flipped", affine(x=-0.6)), ("moved", moved), ("coarser", affine(z=4.0))]:
        mask = write(tmp_path / f"{name}.nii.gz", VOXELS % 2, matrix)
        with pytest.raises(DataError, match=rf"differently in space.*{name}"):
            read_case(image, [mask])
        assert read_case(image, [mask], same_grid=False)[1][0].shape == (4, 5, 6)
    moved[0, 3] = 0.001
    assert len(read_case(image, [write(tmp_path / "same.nii.gz", VOXELS % 2, moved)])[1]) == 1


def test_a_square_mask_without_a_header_that_says_where_its_axes_lead_is_refused_beside_one_with_it(tmp_path):
    """Saved as PNG from nibabel's (x, y) array, a mask lies on its side, and no size shows it."""
    square = np.zeros((12, 12), np.uint8)
    square[2:4, 5:11] = 1
    image = write(tmp_path / "image.nii.gz", RNG.integers(0, 99, (12, 12)).astype(np.int16), np.eye(4))
    Image.fromarray(square).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png may be exchanged in height and width against .*image") as failure:
        read_case(image, [tmp_path / "mask.png"])
    assert "save both in one format" in failure.value.remedy
    assert read_case(image, [tmp_path / "mask.png"], same_grid=False)[1][0].sum() == 12  # a task that knows its release
    Image.fromarray(square | square.T).save(tmp_path / "mask.png")  # the same either way
    assert read_case(image, [tmp_path / "mask.png"])[1][0].sum() == 12 + 12


def test_a_broken_image_does_not_hide_its_broken_mask(tmp_path):
    (tmp_path / "image.png").write_bytes(b"")
    (tmp_path / "mask.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"image\.png is no usable image: it is empty; .*mask\.png .*web page"):
        read_case(tmp_path / "image.png", [tmp_path / "mask.png"])


@given(hnp.arrays(st.sampled_from([np.uint8, np.int16, np.int64, np.uint64, bool]), (3, 4), elements=st.integers(0, 1)))
def test_values_of_a_mask_are_its_values_but_0(mask):
    assert values_of(mask) == ([1] if mask.any() else [])


def test_values_of_a_mask_may_be_negative_or_large():
    assert values_of(np.array([[-1, 0], [1 << 20, 5]])) == [-1, 5, 1 << 20]


# --- where a task's files lie ---------------------------------------------------------------------------------------


class Empty(FileTask):
    name, domains, structures, image_size = "empty", ("a", "b"), ("s",), 32
    download = "download it from nowhere"

    def case_ids(self, domain: str) -> list[str]:
        return ["x"]

    def load(self, domain: str, case_id: str) -> Case:
        raise DataError(f"domain {domain} is not there", "")


def test_data_lie_in_the_given_folder_or_below_it_or_where_the_environment_or_the_habit_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DGBENCH_DATA", raising=False)
    for folder in ("given", "above/empty", "environment/empty", "data/empty"):
        (tmp_path / folder).mkdir(parents=True)
    assert Empty(tmp_path / "given").folder == tmp_path / "given"
    assert Empty(tmp_path / "above").folder == tmp_path / "above/empty"
    assert Empty().folder.resolve() == tmp_path / "data/empty"
    monkeypatch.setenv("DGBENCH_DATA", str(tmp_path / "environment"))
    assert Empty().folder == tmp_path / "environment/empty"


def test_without_data_one_sentence_says_what_to_download_into_which_folder(tmp_path):
    task = Empty(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere") as failure:
        _ = task.folder
    assert failure.value.remedy.startswith("download it from nowhere")
    assert len(task.verify()) == 1 and "download it from nowhere" in task.verify()[0]


def test_a_sentence_is_not_said_once_for_each_case(tmp_path):
    assert Empty(tmp_path).verify() == ["domain a is not there", "domain b is not there"]
