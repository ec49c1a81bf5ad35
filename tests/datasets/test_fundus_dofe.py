"""DoFE's four sets of fundus photographs: the lists, the gray values, a stereo pair."""

import numpy as np
import pytest
from PIL import Image

from dgbench.datasets.fundus_dofe import CASES, FundusDofe
from dgbench.errors import DataError
from dgbench.images.mock import MARK, Sketch, write_png


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("fundus_dofe")
    FundusDofe().mock(place, Sketch())
    (place / MARK).touch()
    return place


def test_the_lists_name_1060_photographs_and_no_one_twice():
    lists = FundusDofe().lists
    assert {d: len({*lists[d, "train"], *lists[d, "test"]}) for d in CASES} == CASES
    assert [len(lists[d, "train"]) for d in CASES] == [50, 99, 320, 320]
    assert lists["Drishti-GS", "test"][0] == "gdrishtiGS_001" and lists["RIM-ONE", "train"][-1] == "S-28-R"


def test_a_source_is_trained_on_its_train_list_and_all_of_a_target_is_tested(folder):
    task = FundusDofe(folder)
    train, validation = task.split("REFUGE")
    assert train == ["g0003", "g0005", "g0006", "g0007"] and validation[0] == "g0001"
    assert task.case_ids("REFUGE") == sorted(train + validation)


def test_rim_and_cup_are_told_by_the_gray_values_at_which_dofe_parts_them(folder):
    task = FundusDofe(folder)
    gray = np.full((48, 48), 255, np.uint8)
    gray[10:30, 10:30] = [51, 200] * 10  # rim, both ends of it
    gray[15:20, 15:20] = 50  # cup
    gray[32, 32] = 201  # background
    planes, _ = task.structure_planes("REFUGE", [gray], [folder])
    assert planes[0].sum() == 400 and planes[1].sum() == 25


def test_a_mask_with_black_corners_is_of_another_record(folder):
    task = FundusDofe(folder)
    path = task.files("REFUGE-val", "V0001")[1]
    with Image.open(path) as file:
        kept = np.array(file)
    write_png(path, 255 - kept)
    with pytest.raises(DataError, match=r"corners of mask .* are not white") as failure:
        task.load("REFUGE-val", "V0001")
    assert "`--task fundus`" in failure.value.remedy
    write_png(path, kept)


def test_a_stereo_pair_is_told_by_its_width(folder):
    task = FundusDofe(folder)
    image, mask = task.files("RIM-ONE", "G-1-L")
    for path in (image, mask):
        with Image.open(path) as file:
            values = np.array(file)
        write_png(path, np.concatenate([values, values], axis=1))
    with pytest.raises(DataError, match=r"is 48 x 96 .*: a stereo pair") as failure:
        task.load("RIM-ONE", "G-1-L")
    assert "cut it in two" in failure.value.remedy
