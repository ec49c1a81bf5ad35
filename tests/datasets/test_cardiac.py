"""Heart in bSSFP and LGE on drawn patients in the layout that SLAug passes on: one patient, two domains."""

from pathlib import Path

import pytest

from dgbench.datasets.cardiac import Cardiac
from dgbench.errors import DataError
from dgbench.images.mock import Sketch


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "cardiac"
    folder.mkdir()
    (folder / "MOCK").touch()
    Cardiac(folder).mock(folder, Sketch())
    return folder


def patients(*numbers: int) -> list[str]:
    return [f"patient{n:02d}" for n in numbers]


def test_the_lists_are_slaug_s_and_no_patient_is_trained_on_and_tested():
    task = Cardiac()
    assert task.split("bSSFP") == (patients(*range(1, 36)), patients(*range(36, 46)))
    assert task.split("LGE") == (patients(*range(6, 46)), patients(*range(1, 6)))
    assert task.tested("bSSFP", "LGE") == patients(*range(36, 46)) and task.excluded("bSSFP") == {"LGE": 35}
    assert task.tested("LGE", "bSSFP") == patients(*range(1, 6)) and task.excluded("LGE") == {"bSSFP": 40}


def test_drawn_patients_have_no_problem_wherever_the_package_was_unpacked(drawn, tmp_path):
    assert Cardiac(drawn).verify() == [] and Cardiac(drawn).layout == "processed (SLAug)"
    (tmp_path / "cardiac").symlink_to(drawn / "data/cardiac/processed")
    case = Cardiac(tmp_path).load("LGE", "patient36")
    assert case.mask.shape == (3, 3, 48, 48) and case.mask.any(axis=(0, 2, 3)).all() and not case.mask[0].any()
    assert case.spacing == pytest.approx((10.0, 1.2, 1.2))


def test_the_challenge_s_own_files_are_known_and_refused(tmp_path):
    (tmp_path / "patient1_C0.nii.gz").touch()
    with pytest.raises(DataError, match="holds the challenge's own files, of which slices are still to be made"):
        Cardiac(tmp_path).load("LGE", "patient01")
