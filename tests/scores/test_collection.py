"""Which boards some results hold, what they are called, and what is in each: on archives and on folders."""

import shutil
import tarfile
from pathlib import Path

import pytest

from dgbench.errors import DataError, UsageError
from dgbench.files import read_json, sha256, write_json
from dgbench.scores import collection
from dgbench.scores.archives import archive as pack
from dgbench.scores.collection import collect
from dgbench.scores.ranking import rank

ERM = "phantom/sdg/erm"


@pytest.fixture(autouse=True)
def no_published_and_few_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("dgbench.scores.boards.published_folder", lambda: tmp_path / "none")
    monkeypatch.setattr(collection, "rank", lambda study, baseline=None: rank(study, baseline=baseline, draws=50))


@pytest.fixture
def results(root: Path, tmp_path: Path) -> Path:
    """A folder as somebody has it: the archive that comes with dgbench, of one protocol, and a row of it unpacked."""
    folder, chosen = tmp_path / "results", dict[str, bytes]()
    with tarfile.open(root / "results/scores-phantom.tar.xz") as archive:
        for member in (m for m in archive if m.isfile() and m.name.startswith("phantom/sdg/")):
            chosen[member.name] = archive.extractfile(member).read()  # type: ignore[union-attr]
        archive.extractall(folder, [m for m in archive if m.name.startswith(f"{ERM}/")], filter="data")
    (folder / "scores-phantom.tar.xz").write_bytes(pack(chosen))
    return folder


def archived(results: Path) -> set[str]:
    """The variants in the archive."""
    with tarfile.open(results / "scores-phantom.tar.xz") as archive:
        return {name.split("/")[2] for name in archive.getnames()}


def alter(folder: Path, **record: object) -> None:
    """Change runs, with the checksums of what lies there then."""
    for path in folder.rglob("run.json"):
        told, result = read_json(path), read_json(path.with_name("RESULT.json"))
        assert told and result
        write_json(path, told | record)
        result["files"]["run.json"] = sha256(path)
        write_json(path.with_name("RESULT.json"), result)


def test_an_archive_and_the_folder_that_it_lies_in_are_one_board(results: Path):
    found = collect([results])
    assert list(found.boards) == ["phantom-sdg"] and not found.broken
    board = found.boards["phantom-sdg"]
    assert {of.variant for of in board.ranking.every} == archived(results)
    assert board.ranking.baseline == "erm"
    assert set(board.archives.values()) == {"scores-phantom.tar.xz"}


def test_a_row_of_ones_own_stands_beside_those_of_the_archive(results: Path):
    shutil.move(results / ERM, results / "phantom/sdg/mine")
    alter(results / "phantom", variant="mine", method="mine")
    board = collect([results]).boards["phantom-sdg"]
    assert {of.variant for of in board.ranking.every} == archived(results) | {"mine"}
    assert ("mine", "A", 0) not in board.archives and ("erm", "A", 0) in board.archives


def test_runs_on_other_images_are_a_board_of_their_own_under_the_name_of_their_results(results: Path, tmp_path: Path):
    """Whatever else is collected, what is passed on under the task's name alone keeps it: links to it stay."""
    shutil.move(results / "phantom", tmp_path / "scans/phantom")
    alter(tmp_path / "scans", data={d: "other" for d in "ABCD"}, started="2099-01-01T00:00:00+00:00")
    found = collect([tmp_path / "scans", results]).boards
    assert list(found) == ["phantom-sdg", "phantom-sdg-scans"]
    assert {of.variant for of in found["phantom-sdg"].ranking.every} == archived(results)
    assert {of.variant for of in found["phantom-sdg-scans"].ranking.every} == {"erm"}
    assert not any("Left out" in sentence for of in found.values() for sentence in of.ranking.study.left_out)


def test_what_is_left_out_is_told_without_the_place_where_it_lies(results: Path):
    (results / ERM / "A-seed0/cases.csv").write_text("broken")
    shutil.move(results / ERM, results / "phantom/sdg/mine")
    alter(results / "phantom/sdg/mine/B-seed0", variant="mine", method="mine")
    (sentence,) = (s for s in collect([results]).boards["phantom-sdg"].ranking.study.left_out if "A-seed0" in s)
    assert "results/phantom/sdg/mine/A-seed0: cases.csv" in sentence and str(results.parent) not in sentence


def test_a_board_that_cannot_be_made_stops_no_other(results: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(results / "phantom", results / "other")
    alter(results / "other", task="other")

    def load(folder, task, *rest, whole=collection.Study.load):
        if task == "other":
            raise DataError(f"{folder}/other is broken", "mend it")
        return whole(folder, task, *rest)

    monkeypatch.setattr(collection.Study, "load", load)
    found = collect([results])
    assert list(found.boards) == ["phantom-sdg"]
    assert [str(e.cause) for e in found.broken] == ["task other, protocol sdg: results/other is broken"]


def test_nothing_at_all_is_a_mistake(tmp_path: Path):
    with pytest.raises(UsageError, match="no finished run"):
        collect([tmp_path])
    with pytest.raises(UsageError, match="nothing is at"):
        collect([tmp_path / "gone"])
