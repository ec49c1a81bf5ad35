"""BraTS on drawn patients in the layout of its release: what paired domains mean for a split, a run and its record."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from dgbench.datasets.brats import Brats
from dgbench.errors import DataError
from dgbench.images.mock import Sketch, write_nifti
from dgbench.registry import TASKS
from dgbench.running import launchers, plan
from dgbench.running.records import read_run


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "brats"
    folder.mkdir()
    (folder / "MOCK").touch()
    Brats(folder).mock(folder, Sketch())
    return folder


def test_the_lists_are_228_and_57_patients_the_same_for_every_sequence():
    task = Brats()
    training, validation = task.split("t1")
    assert (len(training), len(validation)) == (228, 57) and not set(training) & set(validation)
    assert task.case_ids("flair") == sorted([*training, *validation]) and len(task.case_ids("t2")) == 285
    assert task.tested("t1", "t2") == validation and task.excluded("t1") == {"flair": 228, "t1ce": 228, "t2": 228}


def test_drawn_patients_have_no_problem(drawn):
    assert Brats(drawn).verify() == [] and Brats(drawn).layout == "by grade, HGG and LGG"


def test_a_patient_who_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"patient Brats18_2013_0_1 lacks Brats18_2013_0_1_t1\.nii\.gz"):
        Brats(tmp_path).load("t1", "Brats18_2013_0_1")


def test_the_three_labels_are_one_tumour_and_a_volume_runs_from_its_minimum_to_its_maximum(drawn):
    task = Brats(drawn)
    case = task.load("t2", task.case_ids("t2")[0])
    image, mask = task.files("t2", case.id)
    labels = np.asarray(nibabel.load(mask).dataobj).T
    assert sorted(np.unique(labels)) == [0, 1, 2, 4]
    np.testing.assert_array_equal(case.mask[:, 0], labels > 0)
    assert case.image.min() == 0 and case.image.max() == 1 and task.files("t1", case.id)[1] == mask
    values = np.asarray(nibabel.load(image).dataobj).T
    np.testing.assert_allclose(case.image[:, 0], (values - values.min()) / np.ptp(values), atol=1e-6)


def test_a_mask_of_a_release_from_2023_on_is_refused(drawn, tmp_path):
    task, ids = Brats(tmp_path), Brats(drawn).case_ids("t1")
    labels = np.arange(48, dtype=np.int16).reshape(3, 4, 4) % 4
    for what in ("t1", "seg"):
        write_nifti(tmp_path / ids[0] / f"{ids[0]}_{what}.nii", labels, (1.0, 1.0, 1.0))
    assert task.layout == "patients side by side"
    with pytest.raises(DataError, match=r"_seg\.nii holds the labels 3, the release has 1, 2, 4 only"):
        task.load("t1", ids[0])


def test_a_run_tests_no_patient_that_it_trained_on_and_its_record_says_so(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    task = TASKS.get("brats")(drawn)
    (run,) = plan.plan(task, ["constant"], results=tmp_path, sources=["t1"], settings={"image_size": "32"})
    launchers.launch(task, [run], options=launchers.Options(device="cpu"))
    record = read_run(Path(run.folder))
    told = {key: record.record[key] for key in ("paired", "layout", "excluded")}
    left_out = {"flair": 2, "t1ce": 2, "t2": 2}
    assert told == {"paired": True, "layout": "by grade, HGG and LGG", "excluded": left_out}
    training, validation = task.split("t1")
    rows, tested = record.cases, set(record.cases["case"])
    assert len(rows) == 4 * len(validation) and tested == set(validation) and not set(training) & tested
    assert "group" not in rows  # a patient is the case
