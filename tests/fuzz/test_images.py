"""Image files of every kind, whole and broken: the pixels that were written, or a refusal that names the file."""

import math
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dgbench.images.formats import Pixels, read, read_case, to_unit
from tests.fuzz.pictures import DAMAGE, Damage, Raster, Volume, rasters, volumes
from tests.fuzz.right_or_refused import Refusal, answer, folder, inputs

CHECKED = ("png", "nii.gz")  # formats with a checksum: there no flipped bit may change a voxel


def told(found: Any, path: Path) -> bool:
    """Was the file refused? Then its name was told."""
    if isinstance(found, Refusal):
        assert str(path) in found.cause and found.code == 3, found
        return True
    return False


@inputs(30)
@given(rasters())
def test_a_picture_is_read_as_it_was_written(picture: Raster):
    with folder() as box:
        path = box.path / f"a.{picture.suffix}"
        path.write_bytes(picture.content())
        found, expected = answer(lambda: read(path), box), picture.values()
        assert isinstance(found, Pixels) and found.spacing is None
        assert found.values.shape[:3] == expected.shape[:3]
        exact = 0 if picture.suffix != "jpg" else 3  # of 255, at quality 100
        np.testing.assert_allclose(found.values, expected, rtol=0, atol=exact)


@inputs(30)
@given(volumes())
def test_a_volume_is_read_as_nibabel_reads_it(volume: Volume):
    with folder() as box:
        path = box.path / f"a.{volume.suffix}"
        path.write_bytes(volume.content())
        found, oracle = answer(lambda: read(path), box), nibabel.load(path)
        assert isinstance(found, Pixels)
        np.testing.assert_allclose(found.values, volume.values(), rtol=1e-6)
        np.testing.assert_array_equal(found.values, np.asanyarray(oracle.dataobj).reshape(volume.shape[:3]).T)
        mm = {"meter": 1000, "micron": 0.001}.get(volume.units, 1)
        np.testing.assert_allclose(found.spacing, np.multiply(volume.spacing[::-1], mm), rtol=1e-5)
        np.testing.assert_allclose(found.affine, np.diag([mm, mm, mm, 1]) @ oracle.affine)


@inputs(35)
@given(rasters(), DAMAGE)
def test_a_broken_picture_is_refused_or_was_not_hurt(picture: Raster, damage: Damage):
    """JPEG and TIFF have no checksum: what Pillow reads of them without a word is believed."""
    with folder() as box:
        path = box.path / f"a.{picture.suffix}"
        path.write_bytes(damage.of(picture.content()))
        found = answer(lambda: read(path), box)
        if not told(found, path):
            assert found.values.ndim in (3, 4) and np.isfinite(found.values).all()
            if picture.suffix in CHECKED:
                np.testing.assert_array_equal(found.values, picture.values())


@inputs(35)
@given(volumes(), DAMAGE)
def test_a_broken_volume_is_refused_or_is_what_nibabel_reads(volume: Volume, damage: Damage):
    with folder() as box:
        path = box.path / f"a.{volume.suffix}"
        path.write_bytes(damage.of(volume.content()))
        found = answer(lambda: read(path), box)
        if not told(found, path):
            if volume.suffix in CHECKED:
                np.testing.assert_allclose(found.values, volume.values(), rtol=1e-6)
            else:
                oracle = np.asanyarray(nibabel.load(path).dataobj)
                np.testing.assert_array_equal(found.values.ravel(), oracle.T.ravel())
            assert all(0 < s < math.inf for s in found.spacing)


@inputs(10)
@given(st.sampled_from(["png", "jpg", "tif", "nii", "nii.gz"]), st.binary(max_size=600), st.booleans())
def test_any_bytes_by_any_name_are_refused(suffix: str, content: bytes, mask: bool):
    with folder() as box:
        path = box.path / f"a.{suffix}"
        path.write_bytes(content)
        assert told(answer(lambda: read(path, mask), box), path)


@inputs(10)
@given(rasters(), st.sampled_from(["png", "jpg", "tif", "nii", "nii.gz"]))
def test_a_file_with_the_suffix_of_another_format_is_read_right_or_refused(picture: Raster, suffix: str):
    with folder() as box:
        path = box.path / f"a.{suffix}"
        path.write_bytes(picture.content())
        found = answer(lambda: read(path), box)
        if not told(found, path):
            np.testing.assert_allclose(found.values, picture.values(), rtol=0, atol=3 * (picture.suffix == "jpg"))


# Masks. How a mask with transparency, of one bit or with a scaled header is meant, tests/images/test_formats.py says.
PLAIN = st.one_of(rasters(("png", "tif")).filter(lambda p: p.mode in ("L", "P", "I;16", "F")), volumes(scaled=False))


@inputs(15)
@given(PLAIN)
def test_the_numbers_of_a_mask_are_kept(mask: Raster | Volume):
    with folder() as box:
        path = box.path / f"a.{mask.suffix}"
        path.write_bytes(mask.content())
        found = answer(lambda: read(path, mask=True), box)
        expected = mask.indices() if isinstance(mask, Raster) and mask.mode == "P" else mask.values()
        if not (expected == np.rint(expected)).all():
            assert told(found, path)
            return
        if expected.min() < 0 and told(found, path):
            return
        assert found.values.dtype.kind in "iu"
        np.testing.assert_array_equal(found.values, expected)


@inputs(10)
@given(rasters(("png", "tif")), PLAIN)
def test_an_image_and_a_mask_are_of_one_size_or_refused(image: Raster, mask: Raster | Volume):
    with folder() as box:
        one, other = box.path / f"image.{image.suffix}", box.path / f"mask.{mask.suffix}"
        one.write_bytes(image.content())
        other.write_bytes(mask.content())
        found = answer(lambda: read_case(one, [other]), box)
        if image.values().shape[:3] != mask.values().shape[:3]:
            assert told(found, other)
        elif not told(found, other):
            assert found[1][0].shape == found[0].values.shape[:3]


# Intensities.


def by_hand(values: np.ndarray) -> np.ndarray:
    """The 0.5th and the 99.5th percentile become 0 and 1, in Python's own numbers."""
    ordered = sorted(float(v) for v in values.ravel())

    def percentile(q: float) -> float:
        at = q / 100 * (len(ordered) - 1)
        low = math.floor(at)
        above = ordered[min(low + 1, len(ordered) - 1)]
        return ordered[low] + (above - ordered[low]) * (at - low)

    low, high = percentile(0.5), percentile(99.5)
    if not high > low:
        return np.zeros(values.shape)
    return np.array([min(1.0, max(0.0, (float(v) - low) / (high - low))) for v in values.ravel()]).reshape(values.shape)


def numbers(kind: str) -> st.SearchStrategy[np.ndarray]:
    most = 2.0**126
    each = hnp.from_dtype(np.dtype(kind), **({"min_value": -most, "max_value": most} if kind[0] == "f" else {}))
    return hnp.arrays(kind, hnp.array_shapes(min_dims=3, max_dims=3, max_side=4), elements=each)


@inputs(15)
@given(st.sampled_from(["u1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"]).flatmap(numbers))
@example(np.array([[[0, 3e38, -3e38]]], np.float32))
@example(np.array([[[-1, 2**31 - 1]]], np.int32))
@example(np.array([[[2**30, 2**30 + 1, 2**30 + 2, 2**30 + 3]]], np.int32))
def test_whatever_a_volume_counts_in_its_intensities_reach_from_0_to_1(values: np.ndarray):
    found = answer(lambda: to_unit(Pixels(values, (1.0, 1.0, 1.0))))
    assert found.dtype == np.float32 and found.shape == (len(values), 1, *values.shape[1:])
    np.testing.assert_allclose(found[:, 0], by_hand(values), atol=1e-3)
