"""Retinal vessels: the field of view, pairs by number, both eyes of a child, the sets as AADG passes them on."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dgbench.datasets.vessels import EYES, Vessels, field_of_view
from dgbench.errors import DataError
from dgbench.images.mock import MARK, Sketch, write_png
from dgbench.images.preparation import prepare
from dgbench.metrics import cldice
from dgbench.protocol import get_protocol
from dgbench.running.records import read_cases
from dgbench.running.test import cases_csv, measure_domain, predict_case


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("vessels")
    Vessels().mock(place, Sketch())
    (place / MARK).touch()
    return place


def test_what_is_outlined_outside_the_field_of_view_does_not_count_either(folder):
    task = Vessels(folder)
    path = task.files("DRIVE", "23")[1]
    with Image.open(path) as file:
        values = np.array(file.convert("L"))
    values[:2, :2] = 255
    write_png(path, values)
    case = task.load("DRIVE", "23")
    assert not case.mask[:, :, ~case.scored[0]].any()
    np.testing.assert_array_equal(case.mask[0, 0], (values > 0) & case.scored[0])
    for domain in task.domains:
        assert 0.1 < task.load(domain, task.case_ids(domain)[0]).scored.mean() < 0.5


def test_a_field_of_view_is_the_largest_bright_region_with_its_dark_spots_filled():
    image = np.zeros((3, 20, 20), np.float32)
    image[0, 4:16, 4:16] = 0.4  # a fundus is red
    image[0, 9:11, 9:11] = 0.02  # the fovea
    image[1, 0, 0:3] = 0.9  # a date that the camera wrote
    field = field_of_view(image)
    assert field[4:16, 4:16].all() and field.sum() == 144


class Everywhere(torch.nn.Module):
    """It finds vessels in every pixel."""

    uses_target_masks, whole_case, neighbours, precision = False, False, 0, "float32"
    task = Vessels().info
    hparams = SimpleNamespace(batch_size=1, precision="float32")

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def predict(self, image):
        return torch.ones_like(image[:, :1])

    def forget(self):
        """There is nothing."""


@pytest.fixture(scope="module")
def drive(folder, tmp_path_factory):
    return prepare(Vessels(folder), "DRIVE", 56, tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("protocol", ["sdg", "dapsam"])
def test_what_is_predicted_outside_the_field_of_view_does_not_count(folder, drive, protocol):
    case = Vessels(folder).load("DRIVE", "21")
    np.testing.assert_array_equal(drive.scored("21")[:, 0], case.scored)
    np.testing.assert_array_equal(drive.reference("21"), case.mask)
    prediction, reference = predict_case(Everywhere(), drive, drive.cases["21"], get_protocol(protocol), 0)
    assert prediction.sum() == case.scored.sum() and (reference <= prediction).all()


def test_cldice_stands_beside_the_other_scores_of_a_case_and_is_read_again(drive, tmp_path):
    cases, further = {"21": "21"}, Vessels.further_metrics
    (tested,) = measure_domain(Everywhere(), drive, cases, "target", get_protocol("sdg"), 0, further)
    (tmp_path / "cases.csv").write_text(cases_csv([tested]))
    (rows,) = read_cases([tmp_path])
    prediction, reference = predict_case(Everywhere(), drive, drive.cases["21"], get_protocol("sdg"), 0)
    score = rows.frame["cldice"].item()
    assert score == cldice(prediction[:, 0], reference[:, 0]) and 0 < score < 1


def test_both_eyes_of_a_child_stay_together(folder):
    task = Vessels(folder)
    assert [task.group("CHASE_DB1", i) for i in ("01L", "01R", "02L")] == ["01", "01", "02"]
    assert task.group("HRF", "01_h") == "01_h"


def test_the_second_observers_outlines_are_not_mixed_with_the_firsts(folder):
    assert Vessels(folder).files("CHASE_DB1", "01R")[1].name == "Image_01R_1stHO.png"


def test_files_are_paired_by_number_and_not_by_their_order(folder, tmp_path):
    """AADG's package is read by its own code in sorted order: one file too few shifts all pairs behind it."""
    Vessels().mock(tmp_path, Sketch())
    (tmp_path / MARK).touch()
    (tmp_path / "CHASEDB1" / "Image_01L_1stHO.png").unlink()
    with pytest.raises(DataError, match="CHASE_DB1: no mask for the photograph 01L"):
        Vessels(tmp_path).case_ids("CHASE_DB1")


def test_aadgs_package_gives_the_same_cases_with_its_own_fields_of_view(folder, tmp_path):
    released = Vessels(folder)
    for domain in released.domains:
        for i in released.case_ids(domain):
            image, mask, *field = released.files(domain, i)
            place = tmp_path / "RVS" / domain.replace("_", "") / ("" if domain == "STARE" else "train")
            for kind, path in (("image", image), ("mask", mask), ("roi", (field or [mask])[0])):
                (place / kind).mkdir(parents=True, exist_ok=True)
                (place / kind / path.name).write_bytes(path.read_bytes())
    for name in ("CHASEDB1", "HRF"):
        for kind in ("image", "mask", "roi"):
            (tmp_path / "RVS" / name / "test" / kind).mkdir(parents=True)
    (tmp_path / MARK).touch()
    packed = Vessels(tmp_path)
    assert (released.layout, packed.layout) == ("releases", "RVS")
    for domain in released.domains:
        assert packed.case_ids(domain) == released.case_ids(domain)
    one, other = (task.load("DRIVE", "22") for task in (released, packed))
    assert (one.image == other.image).all() and (one.scored == other.scored).all()
    assert (packed.load("STARE", "im0001").scored == packed.load("STARE", "im0001").mask[:, 0]).all(), "its roi is read"
    assert len(EYES) == 3
