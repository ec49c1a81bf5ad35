"""Lungs in chest radiographs: two files for two lungs, masks of a third party, a value among others."""

import numpy as np
import pytest
from PIL import Image

from dgbench.datasets.chest_xray import ChestXray
from dgbench.errors import DataError
from dgbench.images.mock import MARK, Sketch, write_png


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("chest_xray")
    ChestXray().mock(place, Sketch())
    (place / MARK).touch()
    return place


def values_of(path) -> np.ndarray:
    with Image.open(path) as file:
        return np.array(file)


def test_montgomerys_left_and_right_lung_are_one_structure(folder):
    task = ChestXray(folder)
    left, right = (values_of(path) == 255 for path in task.files("Montgomery", "MCUCXR_0001_0")[1:])
    assert left.any() and right.any() and not (left & right).any()
    np.testing.assert_array_equal(task.load("Montgomery", "MCUCXR_0001_0").mask[0, 0], left | right)


def test_a_radiograph_of_shenzhen_that_nobody_outlined_is_no_case(folder):
    assert len(list((folder / "ChinaSet_AllFiles/CXR_png").iterdir())) == 3
    assert ChestXray(folder).case_ids("Shenzhen") == ["CHNCXR_0002_0", "CHNCXR_0003_0"]


def test_the_heart_in_jsrts_masks_is_no_lung(folder):
    task = ChestXray(folder)
    values = values_of(task.files("JSRT", "case003")[1])
    assert set(np.unique(values)) == {0, 85, 170, 255}
    np.testing.assert_array_equal(task.load("JSRT", "case003").mask[0, 0], values == 255)
    assert task.case_ids("JSRT") == ["case001", "case002", "case003"], "of both parts"


def test_radiographs_have_one_channel_even_where_they_are_saved_in_colour(folder):
    task = ChestXray(folder)
    assert values_of(task.files("Shenzhen", "CHNCXR_0002_0")[0]).ndim == 3
    assert {task.load(d, task.case_ids(d)[0]).image.shape[1] for d in task.domains} == {1}


def test_the_other_archive_of_jsrt_is_told_by_the_values_of_its_masks(folder):
    path = ChestXray(folder).files("JSRT", "case001")[1]
    kept = values_of(path)
    write_png(path, np.where(kept == 255, 128, 0).astype(np.uint8))
    with pytest.raises(DataError, match=r"holds the values \[128\]"):
        ChestXray(folder).load("JSRT", "case001")
    write_png(path, kept)
