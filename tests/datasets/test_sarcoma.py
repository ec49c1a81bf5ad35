"""The sarcoma task on small volumes in both layouts: as released, and sorted by domain."""

import csv
import os
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dgbench.datasets.sarcoma import NAMES, Sarcoma
from dgbench.errors import DataError
from dgbench.images.find_task import get_task
from dgbench.images.preparation import prepare

COUNTS = {"ct": 8, "mr_t1": 10, "pet": 20}
GRID = np.diag([0.98, 0.98, 3.27, 1.0])
VALUES = {"ct": (-1000, 400), "mr_t1": (0, 1200), "pet": (0, 12)}


def listed() -> list[dict[str, str]]:
    with open(Sarcoma.listed, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    mask = np.zeros((8, 10, 3), np.uint8)
    mask[2:5, 3:7, 1] = 1
    for number, row in enumerate(listed()):
        case = folder / "ibsi_validation" / "nifti" / row["case"]
        case.mkdir(parents=True)
        low, high = VALUES[row["domain"]]
        image = np.random.default_rng(number).uniform(low, high, mask.shape).astype(np.float32)
        for part, voxels in (("image", image), ("mask", mask)):
            nibabel.save(nibabel.Nifti1Image(voxels, GRID), case / f"{NAMES[row['domain']]}_{part}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def sorted_copy(released, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sorted")
    for row in listed():
        for part in ("images", "masks"):
            to = folder / row["domain"] / part / f"{row['case']}.nii.gz"
            to.parent.mkdir(parents=True, exist_ok=True)
            name = f"{NAMES[row['domain']]}_{part[:-1]}.nii.gz"
            shutil.copy(released / "ibsi_validation" / "nifti" / row["case"] / name, to)
    return folder


def test_the_list_names_38_patients_and_none_is_in_two_domains():
    task = get_task("sarcoma")
    assert {d: len(task.case_ids(d)) for d in task.domains} == COUNTS
    assert len({row["case"] for row in listed()}) == 38
    assert task.source_domains == task.domains and task.structures == ("gtv",) and task.unit == "mm"


def test_both_layouts_give_the_same_cases_with_the_spacing_of_the_header(released, sorted_copy):
    for domain in NAMES:
        case_id = Sarcoma().case_ids(domain)[0]
        one, other = (get_task("sarcoma", folder).load(domain, case_id) for folder in (released, sorted_copy))
        assert one.image.shape == (3, 1, 10, 8) and one.spacing == pytest.approx((3.27, 0.98, 0.98))
        np.testing.assert_array_equal(one.image, other.image)
        assert one.mask.sum() == 12 and one.mask[1, 0, 3:7, 2:5].all()


def test_ct_has_a_window_of_soft_tissue_and_the_others_their_percentiles(released):
    task = get_task("sarcoma", released)
    for domain in NAMES:
        case_id = task.case_ids(domain)[0]
        path = task.files(domain, case_id)[0]
        voxels = nibabel.load(path).get_fdata().T[:, None]
        low, high = (-160, 240) if domain == "ct" else np.percentile(voxels, (0.5, 99.5))
        expected = np.clip((voxels - low) / (high - low), 0, 1)
        np.testing.assert_allclose(task.load(domain, case_id).image, expected, atol=1e-5)


def test_a_changed_file_is_told_by_its_name_and_column(released, monkeypatch):
    """The list of the small volumes themselves has no problem; one byte more in a mask is one."""
    task = get_task("sarcoma", released)
    rows = {key: {**row, **task.contents(*key)} for key, row in task.rows.items()}
    monkeypatch.setitem(vars(task), "rows", rows)
    assert task.verify() == []
    mask = task.files("pet", task.case_ids("pet")[3])[1]
    original = mask.read_bytes()
    mask.write_bytes(original + b"\0")
    try:
        (problem,) = [p for p in task.verify() if "list" in p]
    finally:
        mask.write_bytes(original)
    assert problem.startswith(f"pet/{task.case_ids('pet')[3]}: the masks of") and str(mask) in problem


def test_a_missing_volume_is_told_and_the_remedy_says_where_it_is_had_from(sorted_copy, tmp_path):
    with pytest.raises(DataError, match=r"STS_001\.nii\.gz cannot be read: No such file"):
        Sarcoma(tmp_path).load("pet", "STS_001")
    with pytest.raises(DataError, match="no folder") as failure:
        Sarcoma(tmp_path / "nowhere").load("pet", "STS_001")
    for needed in ("https://github.com/theibsi/data_sets", "6da96021", "ibsi_validation/nifti", "--data"):
        assert needed in failure.value.remedy


def test_the_engine_can_prepare_a_domain(released, tmp_path):
    domain = prepare(get_task("sarcoma", released), "ct", 16, tmp_path)
    assert domain.images.shape == (8 * 3, 1, 16, 16) and domain.masks.shape == (8 * 3, 1, 16, 16)


def test_the_real_volumes_are_the_listed_ones():
    """Where they lie is told by $DGBENCH_DATA, or they lie in ./data."""
    if not (Path(os.environ.get("DGBENCH_DATA") or "data") / "sarcoma").is_dir():
        pytest.skip("the images are not here")
    task = get_task("sarcoma")
    assert task.verify() == [] and task.doubts == []
    assert {d: sum(len(task.load(d, i).image) for i in task.case_ids(d)) for d in task.domains} == SLICES


SLICES = {"ct": 413, "mr_t1": 479, "pet": 1484}  # of the headers, added up
