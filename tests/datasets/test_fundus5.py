"""The five sets of fundus photographs of Zenodo 8009107: inverse masks, lists of both parts, ConStyX's split."""

import csv

import numpy as np
import pytest
from PIL import Image

from dgbench.datasets.fundus import Fundus
from dgbench.datasets.fundus5 import CASES, Fundus5
from dgbench.errors import DataError
from dgbench.images.mock import MARK, Sketch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("fundus5")
    Fundus5().mock(place, Sketch())
    (place / MARK).touch()
    return place


def values_of(path) -> np.ndarray:
    with Image.open(path) as file:
        return np.array(file)


def test_every_domain_may_be_the_source_and_is_the_target_of_all_others():
    task = Fundus5()
    assert task.source_domains == tuple(CASES) and sum(CASES.values()) == 1441
    assert task.targets("ORIGA") == ("BinRushed", "Magrabia", "REFUGE", "Drishti_GS")


def test_black_is_the_cup_here_and_white_the_background(folder):
    for domain, case_id, mask in (
        ("REFUGE", "g0003", "REFUGE/train/mask/g0003.png"),
        ("BinRushed", "BinRushed1-image19", "RIGA-mask/BinRushed/BinRushed1/image19-1.tif"),
    ):
        disc, cup = Fundus5(folder).load(domain, case_id).mask[0]
        values = values_of(folder / mask)
        np.testing.assert_array_equal(disc, values < 255)
        np.testing.assert_array_equal(cup, values == 0)
        assert values[0, 0] == 255 and 0 < cup.sum() < disc.sum() < cup.size / 2


def test_the_masks_of_one_record_are_never_read_as_those_of_the_other(folder, tmp_path):
    """Both have RIGA/, RIGA-mask/ and lists of BinRushed and Magrabia under the same names: the corners tell."""
    with pytest.raises(DataError, match=r"corners of mask .* are not background, 0") as failure:
        Fundus(folder).load("BinRushed", "BinRushed1-image1")
    assert "--task fundus5" in failure.value.remedy
    Fundus().mock(tmp_path, Sketch())
    with pytest.raises(DataError, match=r"corners of mask .* are not background, 255") as failure:
        Fundus5(tmp_path).load("BinRushed", "BinRushed1-image1")
    assert "--task fundus`" in failure.value.remedy


def test_a_mask_whose_corners_differ_is_guessed_by_nobody(folder, tmp_path):
    for task, other in ((Fundus5, 0), (Fundus, 255)):
        place = tmp_path / task.__name__
        task().mock(place, Sketch())
        path = task(place).files("Magrabia", "MagrabiFemale-image1")[1]
        values = values_of(path)
        values[0, -1] = other
        Image.fromarray(values).save(path)
        with pytest.raises(DataError, match="corners"):
            task(place).load("Magrabia", "MagrabiFemale-image1")


def test_the_committed_split_holds_out_a_tenth_as_constyx_does():
    with open(Fundus5.__module__.replace("dgbench.", "").replace(".", "/") + ".csv", newline="") as file:
        held_out = {row["domain"]: row["validation"].split() for row in csv.DictReader(file)}
    counts = {"BinRushed": 19, "Magrabia": 10, "REFUGE": 40, "ORIGA": 65, "Drishti_GS": 10}
    assert {domain: len(set(names)) for domain, names in held_out.items()} == counts


def test_the_split_parts_both_lists_anew(folder):
    assert Fundus5(folder).split("BinRushed") == (
        ["BinRushed1-image1", "BinRushed2-image10"],
        ["BinRushed1-image19", "BinRushed2-image1"],
    )
    assert Fundus5(folder).split("ORIGA") == (["001", "002"], ["501"])


def test_without_the_folder_of_masks_the_message_says_what_to_unpack(tmp_path):
    for task in (Fundus5, Fundus):
        task().mock(tmp_path / task.__name__, Sketch())
        (tmp_path / task.__name__ / "RIGA-mask").rename(tmp_path / f"{task.__name__}-elsewhere")
        with pytest.raises(DataError, match=r"no masks: no folder .*RIGA-mask") as failure:
            task(tmp_path / task.__name__).load("Magrabia", "MagrabiFemale-image1")
        assert "unpack all of it" in failure.value.remedy and "RIGA-mask/" in failure.value.remedy
        assert sum("no masks" in p for p in task(tmp_path / task.__name__).verify()) == 1, "said once"
