"""PolypGen: JPEG masks, frames without a polyp, one name with a character too many."""

import numpy as np
import pytest

from dgbench.datasets.polypgen import FRAMES, PolypGen
from dgbench.images.mock import MARK, Sketch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("polypgen")
    PolypGen().mock(place, Sketch())
    (place / MARK).touch()
    return place


def test_the_release_has_1537_single_frames():
    assert sum(FRAMES.values()) == 1537 and PolypGen.domains == ("C1", "C2", "C3", "C4", "C5", "C6")


@pytest.mark.parametrize("stray", ["_", "]"])
def test_the_one_image_with_a_stray_character_meets_its_mask(folder, stray):
    place = folder / "data_C3" / "images_C3"
    (path,) = place.glob("*00489*")
    path.rename(place / f"C3_EndoCV2021_00489{stray}.jpg")
    image, mask = PolypGen(folder).files("C3", "C3_EndoCV2021_00489")
    assert image.name == f"C3_EndoCV2021_00489{stray}.jpg" and mask.name == "C3_EndoCV2021_00489_mask.jpg"
    assert PolypGen(folder).load("C3", "C3_EndoCV2021_00489").mask.any()


def test_a_frame_without_a_polyp_is_a_case_and_no_error(folder):
    case = PolypGen(folder).load("C1", "C1_00003")
    assert not case.mask.any() and PolypGen(folder).verify() == []


def test_soft_borders_of_jpeg_masks_do_not_move_the_outline(folder):
    drawn = Sketch().labels(48, 64)  # the first labels that `mock` draws, those of C1_00000
    np.testing.assert_array_equal(PolypGen(folder).load("C1", "C1_00000").mask[0, 0], drawn > 0)
