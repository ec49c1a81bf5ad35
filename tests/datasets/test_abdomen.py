"""Abdominal CT and MRI in both layouts: as BTCV and CHAOS release them, and the slices that SLAug passes on."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from dgbench.datasets.abdomen import Abdomen
from dgbench.errors import DataError
from dgbench.images.mock import Sketch, write_png
from dgbench.pages.cards import card
from tests.images.test_dicom import slice_file

AXIAL = np.array([[1.0, 0, 0], [0, 1, 0]])  # rows run to the patient's left, columns to the back: as CHAOS has them
SHAPE = (4, 8, 8)
GRAY = {1: 63, 2: 126, 3: 189, 4: 252}


def organs() -> np.ndarray:
    """(4, 8, 8), as one looks at it: liver 1 on the left, which is the patient's right, spleen 4, kidneys 2 and 3."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 1:4, 1:4], labels[2:, 1:3, 6] = 1, 4
    labels[1, 5:7, 2], labels[2, 5:7, 5] = 2, 3
    return labels


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """One patient each. The files of the MR lie in the order of names from head to feet, against positions."""
    folder = tmp_path_factory.mktemp("released") / "abdomen"
    labels = organs()
    voxels = (100 + 50 * labels).astype(np.uint16)
    for z in range(SHAPE[0]):
        number = SHAPE[0] - z
        place = folder / "Train_Sets/MR/7/T2SPIR"
        slice_file(place / f"DICOM_anon/IMG-0004-{number:05d}.dcm", z, voxels, AXIAL, Modality="MR", RescaleIntercept=0)
        drawn = np.select([labels[z] == k for k in GRAY], list(GRAY.values())).astype(np.uint8)
        write_png(place / f"Ground/IMG-0004-{number:05d}.png", drawn)
    btcv = np.select([labels == k for k in (1, 2, 3, 4)], [6, 2, 3, 1]).astype(np.uint8)
    btcv[0, 0, 0] = 7  # the stomach
    hounsfield = (-1000 + 600 * (labels > 0) + 400 * (labels == 1)).astype(np.int16)
    front_first = np.diag([-0.75, 0.75, 3.0, 1.0])  # the second axis runs to the front: mirrored against CHAOS
    for name, array in (("img/img0021", hounsfield), ("label/label0021", btcv)):
        path = folder / "RawData/Training" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array[:, ::-1].T, front_first), path)
    return folder


def test_released_ct_and_mr_are_seen_from_the_same_side_and_their_labels_name_the_same_organs(released):
    task = Abdomen(released)
    assert (task.case_ids("ct"), task.case_ids("mr")) == (["0021"], ["0007"])
    assert task.layout == card(task)["layout"] == "BTCV and CHAOS as released"
    for domain, case_id in (("ct", "0021"), ("mr", "0007")):
        case = task.load(domain, case_id)
        for k in range(4):
            np.testing.assert_array_equal(case.mask[:, k], organs() == k + 1, err_msg=f"{domain} {task.structures[k]}")
    assert case.spacing == pytest.approx((3.0, 0.5, 0.75))


def test_masks_of_chaos_belong_to_slices_by_the_order_of_names_which_is_not_that_of_positions(released):
    case = Abdomen(released).load("mr", "0007")
    assert case.mask[:, 0].any(axis=(1, 2)).tolist() == [False, True, True, False]
    bright = [case.image[:, 0][case.mask[:, k]] for k in range(4)]
    assert all(np.ptp(of) == 0 for of in bright), "each organ lies on its own brightness"


def test_ct_is_seen_through_a_window_of_soft_tissue_and_mr_from_its_minimum(released):
    task = Abdomen(released)
    ct, mr = task.load("ct", "0021"), task.load("mr", "0007")
    assert set(np.unique(ct.image)) == {np.float32(0), np.float32(125 / 400)}  # -1000 and -400 HU; the liver at 0 HU
    assert ct.image[ct.mask[:, [0]]].min() == np.float32(125 / 400)
    assert mr.image.min() == 0 and mr.image.max() == 1


def test_a_gray_value_of_no_organ_and_a_mask_too_few_are_told(released, tmp_path):
    place = tmp_path / "Train_Sets/MR/7/T2SPIR"
    place.mkdir(parents=True)
    (place / "DICOM_anon").symlink_to(released / "Train_Sets/MR/7/T2SPIR/DICOM_anon")
    for n in (1, 2, 3):
        write_png(place / f"Ground/IMG-0004-0000{n}.png", np.full((8, 8), 90, np.uint8))
    with pytest.raises(DataError, match="T2SPIR holds 4 slices and 3 masks"):
        Abdomen(tmp_path).load("mr", "0007")
    write_png(place / "Ground/IMG-0004-00004.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match=r"00003\.png holds the labels 90, the release has 55 to 70, 110 to 135"):
        Abdomen(tmp_path).load("mr", "0007")


def test_slaug_s_slices_are_read_as_they_are_and_named(tmp_path):
    (tmp_path / "MOCK").touch()
    task = Abdomen(tmp_path)
    task.mock(tmp_path, Sketch())
    assert task.verify() == [] and task.layout == "processed (SLAug)"
    case = task.load("ct", "0002")
    assert case.mask.any(axis=(0, 2, 3)).all() and case.image.min() == 0 and case.image.max() == 1
    (tmp_path / "MOCK").unlink()
    assert "domain 'mr' has 4 case(s), the release 20" in task.verify()


def test_the_split_is_csdg_s_20_10_and_70_percent_in_the_order_of_numbers(monkeypatch):
    numbers = {"ct": [f"{n:04d}" for n in (*range(1, 11), *range(21, 41))], "mr": [f"{n:04d}" for n in range(20)]}
    monkeypatch.setattr(Abdomen, "case_ids", lambda self, domain: numbers[domain])
    for domain, held_out in (("ct", 9), ("mr", 6)):
        assert Abdomen().split(domain) == (numbers[domain][held_out:], numbers[domain][:held_out])
