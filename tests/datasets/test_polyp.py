"""Polyps of five sets: which frames are whose in a package that mixes them, sequences, the sets as released."""

import pytest

from dgbench.datasets.polyp import FRAMES, PACKAGED, SEQUENCES, SINGLE, Polyp
from dgbench.errors import DataError
from dgbench.images.mock import MARK, Sketch


@pytest.fixture
def folder(tmp_path):
    Polyp().mock(tmp_path, Sketch())
    (tmp_path / MARK).touch()
    return tmp_path


def test_names_that_begin_with_a_c_are_kvasirs_and_numbers_are_clinicdbs(folder):
    task = Polyp(folder)
    assert task.layout == "package"
    assert task.case_ids("Kvasir") == ["cju0", "cju1", "cju2", "cju3"]
    assert task.case_ids("CVC-ClinicDB") == ["1", "2", "51", "52", "601"]
    assert {task.files("CVC-ClinicDB", i)[0].parts[-3] for i in ("1", "2")} == {"CVC-ClinicDB", "TrainDataset"}


def test_both_spellings_of_the_training_folders_are_read(folder):
    for singular in ("image", "mask"):
        (folder / "TrainDataset" / singular).rename(folder / "TrainDataset" / f"{singular}s")
    assert len(Polyp(folder).case_ids("CVC-ClinicDB")) == 5 and Polyp(folder).verify() == []


def test_clinicdbs_612_frames_are_29_sequences_and_a_sequence_is_on_one_side(folder):
    assert len(SEQUENCES) == 30 and SEQUENCES[-1] == FRAMES["CVC-ClinicDB"] + 1
    task = Polyp(folder)
    assert [task.group("CVC-ClinicDB", i) for i in ("1", "25", "26", "612")] == [
        *("sequence01", "sequence01", "sequence02", "sequence29")
    ]
    train, validation = task.split("CVC-ClinicDB")
    assert ("1" in train) == ("2" in train) and ("51" in train) == ("52" in train) and validation
    for name in ("613", "0", "x"):
        with pytest.raises(DataError, match=f"frame '{name}' of CVC-ClinicDB is none of 1 to 612"):
            task.group("CVC-ClinicDB", name)


def test_cvc_300_is_a_part_of_colondb_and_so_neither_its_target_nor_a_source():
    task = Polyp()
    assert "CVC-300" not in task.source_domains and "CVC-300" not in task.targets("CVC-ColonDB")
    assert "CVC-300" in task.targets("Kvasir")


def test_the_single_sets_give_the_same_cases_as_the_package(folder, tmp_path):
    """As their makers release them: other folders, ClinicDB in TIFF or PNG under names with a blank."""
    package = Polyp(folder)
    ids = {domain: package.case_ids(domain) for domain in FRAMES}
    before = {domain: package.load(domain, ids[domain][0]) for domain in FRAMES}
    files = {(domain, i): package.files(domain, i) for domain in FRAMES for i in ids[domain]}
    for (domain, _), (image, mask) in files.items():
        place, images, masks = SINGLE[domain]
        for path, part in ((image, images), (mask, masks)):
            target = folder / place / part / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    (folder / "TestDataset").rename(folder / "packed")
    single = Polyp(folder)
    assert single.layout == "single sets" and single.verify() == []
    for domain in FRAMES:
        assert single.case_ids(domain) == ids[domain]
        case = single.load(domain, ids[domain][0])
        assert (case.image == before[domain].image).all() and (case.mask == before[domain].mask).all()
    assert PACKAGED["ETIS"] == SINGLE["ETIS"][0]
