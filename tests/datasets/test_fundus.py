"""The fundus task on small photographs in RIGA+'s layout: lists, raters, the cup inside the disc."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dgbench.datasets.fundus import Fundus
from dgbench.errors import DataError, UsageError
from dgbench.images.find_task import get_task
from dgbench.images.mock import Sketch
from dgbench.images.preparation import prepare

BASES = ("MESSIDOR_Base1", "MESSIDOR_Base2", "MESSIDOR_Base3")


def write_list(folder: Path, name: str, photographs: list[str], end: str = "\n") -> None:
    rows = [f"RIGA/{p}.tif,RIGA-mask/{p}.tif" for p in photographs]
    (folder / f"{name}.csv").write_text("\n".join(["image,mask", *rows]) + end)


@pytest.fixture
def riga(tmp_path: Path) -> Path:
    Fundus().mock(tmp_path / "fundus", Sketch())
    return tmp_path / "fundus"


def problems_but_counts(task: Fundus) -> list[str]:
    return [p for p in task.verify() if "the release" not in p]


def test_binrushed_and_magrabia_are_sources_and_the_messidor_bases_are_targets_only(riga):
    task = get_task("fundus", riga)
    assert task.source_domains == ("BinRushed", "Magrabia")
    assert task.targets("BinRushed") == task.targets("Magrabia") == BASES


def test_the_small_copy_has_no_problem_but_its_size(riga):
    task = get_task("fundus", riga)
    assert problems_but_counts(task) == []
    assert len(task.verify()) == 5 and "domain 'BinRushed' has 4 case(s), the release 195" in task.verify()


def test_a_case_is_named_by_its_path_because_names_repeat(riga):
    task = Fundus(riga)
    assert task.case_ids("Magrabia") == ["MagrabiFemale-image1", "MagrabiaMale-image1", "MagrabiaMale-image2"]
    assert task.case_ids("MESSIDOR_Base2") == ["Labeled-image1", "Labeled-image2"]  # the test list alone
    female, male = (task.load("Magrabia", f"{s}-image1").image for s in ("MagrabiFemale", "MagrabiaMale"))
    assert (female != male).any()


def test_a_source_is_trained_on_its_train_list_and_validated_on_its_test_list(riga):
    train, validation = Fundus(riga).split("BinRushed")
    assert train == ["BinRushed1-image1", "BinRushed2-image1", "BinRushed2-image10"]
    assert validation == ["BinRushed4-image1"]
    with pytest.raises(UsageError, match="source domain 'MESSIDOR_Base1'"):
        Fundus(riga).split("MESSIDOR_Base1")


def test_the_disc_is_rim_and_cup_together(riga):
    case = Fundus(riga).load("BinRushed", "BinRushed1-image1")
    assert case.image.shape == (1, 3, 40, 40) and case.spacing == (1.0, 1.0, 1.0)
    disc, cup = case.mask[0]
    values = np.array(Image.open(riga / "RIGA-mask/BinRushed/BinRushed1/image1-1.tif"))
    np.testing.assert_array_equal(disc, values > 0)
    np.testing.assert_array_equal(cup, values == 128)
    assert 0 < cup.sum() < disc.sum()


def test_masks_are_those_of_rater_1_and_another_rater_is_a_subclass(riga):
    class ThirdRater(Fundus):
        rater = 3

    name = ("MESSIDOR_Base1", "Labeled-image1")
    assert Fundus(riga).files(*name)[1].name == "image1-1.tif"
    assert ThirdRater(riga).files(*name)[1].name == "image1-3.tif"
    one, three = (task(riga).load(*name).mask[0] for task in (Fundus, ThirdRater))
    assert (one[0] == three[0]).all() and (one[1] != three[1]).any()  # they differ on the cup


def test_the_engine_can_prepare_a_domain(riga, tmp_path):
    domain = prepare(get_task("fundus", riga), "Magrabia", 32, tmp_path / "cache")
    assert domain.images.shape == (3, 3, 32, 32) and domain.masks.shape == (3, 2, 32, 32)


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_the_last_line_of_a_list_counts_however_it_ends(riga, end):
    write_list(riga, "Magrabia_train", ["Magrabia/MagrabiFemale/image1", "Magrabia/MagrabiaMale/image1"], end)
    assert len(Fundus(riga).case_ids("Magrabia")) == 3


def test_a_photograph_in_both_lists_would_be_validated_on_what_it_was_trained_on(riga):
    write_list(riga, "Magrabia_test", ["Magrabia/MagrabiFemale/image1"])
    with pytest.raises(DataError, match="both list 'MagrabiFemale-image1'"):
        Fundus(riga).split("Magrabia")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,mask\nRIGA/a/b.tif,RIGA-mask/a/b.tif\nRIGA/a/b.tif,RIGA-mask/a/b.tif\n", "line 3: .*listed twice"),
        ("image\nRIGA/a/b.tif\n", "line 2: no image and mask"),
        ("image,mask\nRIGA/a/b.tif\n", "line 2: no image and mask"),
        ("image,mask\n../b.tif,RIGA-mask/a/b.tif\n", "line 2: no image and mask"),
        ("image,mask\nRIGA/a/b.tif,/etc/passwd\n", "line 2: no image and mask"),
        ("image,mask\n", "names no photograph"),
        ("", "names no photograph"),
    ],
)
def test_a_list_that_cannot_be_right_is_told_with_its_line(riga, text, said):
    (riga / "Magrabia_train.csv").write_text(text)
    with pytest.raises(DataError, match=rf"Magrabia_train\.csv.*{said}"):
        Fundus(riga).case_ids("Magrabia")


def test_verify_finds_everything_at_once(riga):
    (riga / "MESSIDOR_Base3_test.csv").unlink()
    (riga / "RIGA-mask/MESSIDOR_Base1/Labeled/image1-1.tif").unlink()
    path = riga / "RIGA-mask/MESSIDOR_Base1/Labeled/image2-1.tif"
    Image.fromarray(np.full((40, 40), 77, np.uint8)).save(path)
    broken = riga / "RIGA/BinRushed/BinRushed1/image1.tif"
    broken.write_bytes(broken.read_bytes()[:900])
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(riga / "RIGA-mask/Magrabia/MagrabiFemale/image1-1.tif")
    problems = problems_but_counts(Fundus(riga))
    for said in (
        "MESSIDOR_Base3_test.csv cannot be read",
        "image1-1.tif cannot be read: No such file",
        f"mask {path} holds the values [77]",
        f"{broken} is no usable image",
        "differ in size",
    ):
        assert sum(said in p for p in problems) == 1, said
    assert len(problems) == 5


def test_without_data_the_message_says_what_from_where_into_which_folder(tmp_path):
    task = get_task("fundus", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no folder .*nowhere") as failure:
        task.case_ids("BinRushed")
    for needed in ("RIGAPlus.zip", "https://zenodo.org/records/6325549", "RIGA-mask/", "_train.csv", "--data"):
        assert needed in failure.value.remedy
    assert len(task.verify()) == 1


def test_the_whole_matrix_runs_from_the_command_line_on_drawn_images(tmp_path):
    command = [sys.executable, "-m", "dgbench", "run", "--method", "constant", "--task", "fundus", "--mock"]
    environment = {**os.environ, "DGBENCH_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([*command, "--jobs", "2"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (tmp_path / "results" / "fundus").exists(), "where results of real images lie"
    table = (tmp_path / "results" / "mock-fundus" / "sdg" / "tables" / "dice.md").read_text()
    assert "MOCK" in table.partition("|")[0], "the caption says that these numbers mean nothing"
    score = r"\d+\.\d\d"  # no source is tested on the other
    assert re.search(rf"\| BinRushed \| \[{score}\] \| +\| {score} \| {score} \| {score} \| {score} \|", table), table
