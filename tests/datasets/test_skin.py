"""Skin lesions: ISIC 2018's three parts, PH2's folders."""

import pytest

from dgbench.datasets.skin import PARTS, SHA256, Skin
from dgbench.errors import DataError
from dgbench.images.mock import MARK, Sketch


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("skin")
    Skin().mock(place, Sketch())
    (place / MARK).touch()
    return place


def test_isic_is_trained_on_its_training_part_and_validated_on_the_other_two(folder):
    train, validation = Skin(folder).split("ISIC")
    assert train == ["ISIC_0000000", "ISIC_0000001", "ISIC_0000002"]
    assert validation == ["ISIC_1000000", "ISIC_1000001", "ISIC_2000000"]
    assert sum(PARTS.values()) == 3694 and len(SHA256) == 6


def test_ph2_is_read_from_the_two_folders_of_each_image(folder):
    task = Skin(folder)
    image, mask = task.files("PH2", "IMD003")
    assert (image.parent.name, mask.name) == ("IMD003_Dermoscopic_Image", "IMD003_lesion.bmp")
    assert task.load("PH2", "IMD003").mask.any()


def test_a_part_that_was_not_unpacked_is_named(folder, tmp_path):
    (tmp_path / "ISIC2018_Task1-2_Training_Input").mkdir()
    with pytest.raises(DataError, match=r"lacks the folder .*ISIC2018_Task1-2_Validation_Input"):
        Skin(tmp_path).case_ids("ISIC")
