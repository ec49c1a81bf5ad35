"""Scores that come with dgbench, or in an archive, are shown without unpacking anything by hand."""

import shutil
import tarfile
from pathlib import Path

import pytest

from dgbench.errors import DataError, UsageError
from dgbench.images import cache
from dgbench.registry import results_folder
from dgbench.scores import archives, submission
from dgbench.scores.ranking import rank
from dgbench.scores.study import Study

PHANTOM = "scores-phantom.tar.xz"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))


def test_where_no_run_was_made_those_that_come_with_dgbench_are_shown_and_said_to_be_so(tmp_path: Path):
    study = Study.load(tmp_path / "results", "phantom")
    assert {"erm", "maxstyle"} <= set(study.variants)
    (told,) = study.left_out
    assert told.startswith("No finished run of task phantom under protocol sdg in ")
    assert told.endswith(": these come with dgbench.")
    assert not (tmp_path / "results").exists(), "showing them writes nothing beside one's own"


def test_all_that_comes_with_dgbench_of_a_task_is_one_table(tmp_path: Path):
    """`erm` is of the first archive; that the second has it again, too, tells whether its rows may be ranked there."""
    study = Study.load(tmp_path / "results", "phantom")
    assert {"maxstyle", "freesdg"} <= set(study.variants), "one of each archive"
    assert {r.variant for r in study.again} >= {"erm"}
    ranking = rank(study, baseline="erm")
    (agreement,) = (a for of in ranking.machines.others.values() for a in of if a.variant == "erm")
    assert agreement.holds and {"erm", "maxstyle", "freesdg"} <= {of.variant for of in ranking.ranked}


def test_what_was_trained_inside_the_targets_comes_with_the_others(tmp_path: Path):
    assert Study.load(tmp_path / "results", "sarcoma").row("erm (in_domain)").bound == "in_domain"
    beside = Study.load(tmp_path / "results", "sarcoma", beside=[Path("scores-sarcoma.tar.xz")])
    assert beside.row("erm (in_domain)").mean > 0


def test_an_archive_of_images_of_another_size_is_left_out_and_named(tmp_path: Path):
    study = Study.load(tmp_path / "results", "breast_us")
    assert {r.record["image_size"] for r in study.records} == {64}
    assert any("Left out: 72 runs on other images" in told and "lite_medsam" in told for told in study.left_out)


def test_they_never_stand_unasked_beside_runs_of_ones_own(tmp_path: Path):
    with tarfile.open(results_folder() / PHANTOM) as archive:
        mine = [m for m in archive if m.name.startswith("phantom/sdg/maxstyle/")]
        archive.extractall(tmp_path, mine, filter="data")
    assert Study.load(tmp_path, "phantom").variants == ("maxstyle",)
    beside = Study.load(tmp_path, "phantom", beside=[Path(PHANTOM)])
    assert {"erm", "maxstyle"} <= set(beside.variants) and beside.again, "asked for by name, wherever dgbench lies"


def test_a_board_of_another_protocol_is_none_of_this_one(tmp_path: Path):
    with pytest.raises(UsageError, match="no finished run of task phantom under protocol dapsam"):
        Study.load(tmp_path, "phantom", "dapsam")


def test_an_archive_is_unpacked_once_and_its_folder_is_part_of_the_cache(tmp_path: Path):
    mine = shutil.copy(results_folder() / PHANTOM, tmp_path / "scores-phantom-doe.tar.xz")
    folder = archives.folder_of(Path(mine))
    made = folder.stat().st_mtime_ns
    assert archives.folder_of(Path(mine)) == folder and folder.stat().st_mtime_ns == made
    assert len(list(folder.glob("phantom/sdg/*/*/RESULT.json"))) >= 24
    (entry,) = cache.entries()
    assert (entry.path, entry.kind, entry.old) == (folder, "scores", "")
    Path(mine).write_bytes(archives.archive({"../run.json": b"{}"}))
    with pytest.raises(DataError, match="is no submission"):
        archives.folder_of(Path(mine))
    assert len(cache.entries()) == 1, "another content is another folder, and a refused one leaves nothing"


def test_what_is_nowhere_is_named_with_what_there_is(tmp_path: Path):
    wrong = [Path("scores-fantom.tar.xz")]
    with pytest.raises(UsageError, match=r"nothing is at scores-fantom\.tar\.xz") as told:
        Study.load(tmp_path, "phantom", beside=wrong)
    assert PHANTOM in told.value.remedy
    with pytest.raises(UsageError, match=r"nothing is at scores-fantom\.tar\.xz"):
        submission.merge(wrong, tmp_path / "all")
    assert len(submission.merge([Path(PHANTOM)], tmp_path / "all")) >= 24
