"""M&Ms on drawn subjects in the layout of its release: two frames of a 4-D file, one subject."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dgbench.datasets.mnms import TABLE, UNLABELLED, Mnms
from dgbench.errors import DataError
from dgbench.images.mock import Sketch
from dgbench.pages.cards import card
from dgbench.protocol import get_protocol
from dgbench.registry import TASKS
from dgbench.running import launchers, plan
from dgbench.running.records import read_run
from dgbench.scores.statistics import Resampling
from dgbench.scores.study import Study
from dgbench.scores.verify import verify


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "mnms"
    folder.mkdir()
    (folder / "MOCK").touch()
    Mnms(folder).mock(folder, Sketch())
    return folder


@pytest.fixture
def drawn(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "mnms"))


def test_drawn_subjects_have_no_problem_and_those_of_the_release_are_320(whole, drawn):
    assert Mnms(whole).verify() == []
    assert sum(Mnms.cases_expected.values()) == 2 * 320
    (drawn / "MOCK").unlink()
    assert "domain 'B' has 6 case(s), the release 250" in Mnms(drawn).verify()


def test_a_subject_s_two_frames_are_two_cases_of_one_group(whole):
    task = Mnms(whole)
    assert task.case_ids("A") == [f"A{n}S0V9-{frame}" for n in range(3) for frame in ("ED", "ES")]
    assert task.group("A", "A1S0V9-ES") == "A1S0V9" and card(task)["groups"].startswith("A 3; B 3; C 3; D 3")
    training, validation = task.split("A")
    assert len(validation) == 2 and {task.group("A", i) for i in validation}.isdisjoint(i[:-3] for i in training)


def test_the_frame_of_the_table_is_read_counted_from_0(whole):
    task = Mnms(whole)
    for which, frame in (("ED", 1), ("ES", 2)):
        case = task.load("B", f"B1S1V9-{which}")
        image, mask, table = task.files("B", case.id)
        labels = np.asarray(nibabel.load(mask).dataobj)[..., frame].T
        for k in range(3):
            np.testing.assert_array_equal(case.mask[:, k], labels == k + 1)
        assert case.image.shape == (3, 1, 32, 36) and case.spacing == pytest.approx((10.0, 1.2, 1.2))
        assert nibabel.load(image).shape == (36, 32, 3, 5) and table.name == TABLE


def test_a_subject_without_outlines_is_no_case_by_the_table_or_by_its_place(drawn):
    """In the first table its frames are 0 and 0; a later one may give some: then it is the folder that tells."""
    table = drawn / "OpenDataset" / TABLE
    without = next((drawn / "OpenDataset" / UNLABELLED).iterdir()).name
    assert f",{without},Make 2,C,3,3,3" in table.read_text()
    assert without not in {i[:-3] for i in Mnms(drawn).case_ids("C")} and len(Mnms(drawn).case_ids("C")) == 6
    (drawn / "OpenDataset" / UNLABELLED / without).rename(drawn / "OpenDataset/Testing" / without)
    table.write_text(table.read_text().replace(f"{without},Make 2,C,3,3,3", f"{without},Make 2,C,3,0,0"))
    assert len(Mnms(drawn).case_ids("C")) == 6
    table.write_text(table.read_text().replace(f"{without},Make 2,C,3,0,0", f"{without},Make 2,C,3,1,2"))
    with pytest.raises(DataError, match=rf"{without}_sa_gt\.nii\.gz is empty at frame 1, which .* gives as ED of"):
        Mnms(drawn).load("C", f"{without}-ED")


def test_a_table_that_is_missing_or_cannot_be_read_is_told_once_for_each_vendor(drawn):
    table = drawn / "OpenDataset" / TABLE
    table.write_text(table.read_text().replace("External code", "Code"))
    with pytest.raises(DataError, match="cannot be read: 'External code'"):
        Mnms(drawn).case_ids("A")
    table.unlink()
    assert Mnms(drawn).verify() == [f"{drawn}/OpenDataset holds no table of subjects"]


def test_a_run_writes_whose_frames_these_are_and_a_ranking_draws_subjects(whole, tmp_path, monkeypatch):
    """Subjects of B, C and D: nine of 18 target cases; each score stands by itself, each interval is of nine."""
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    task = TASKS.get("mnms")(whole)
    (run,) = plan.plan(task, ["constant"], results=tmp_path, sources=["A"], settings={"image_size": "32"})
    launchers.launch(task, [run], options=launchers.Options(device="cpu"))
    record = read_run(Path(run.folder))
    assert (Path(run.folder) / "cases.csv").read_text().startswith("role,domain,case,group,structure,dice,")
    assert (record.cases["group"] == record.cases["case"].str[:-3]).all()
    assert verify(tmp_path) == (1, [])
    found = Study([record], get_protocol("sdg")).target_cases()
    assert found.group is not None and found.group.tolist() == np.repeat(range(9), 2).tolist()
    assert Resampling(found.domain, 10, group=found.group).counts.shape == (10, 9)
    assert found.counting_groups == ["B"] * 3 + ["C"] * 3 + ["D"] * 3
