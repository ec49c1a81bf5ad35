"""The committed tables are what the committed scores say: unpacked, they give the same leaderboard again."""

import io
import itertools
import json
import os
import re
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from dgbench.images.find_task import get_task
from dgbench.images.folder_task import FolderTask
from dgbench.images.preparation import content_fingerprint
from dgbench.pages import table
from dgbench.scores.ranking import rank
from dgbench.scores.study import Study
from dgbench.task import Task

RESULTS = Path(__file__).resolve().parent.parent / "results"
BOARDS = ("phantom", "breast_us", "breast_us-128", "nuclei", "sarcoma")
BESIDE = {
    "phantom": ("phantom-second",),
    "breast_us": ("breast_us-second",),
}  # archives that a board's table holds, too
ARCHIVES = sorted([*BOARDS, *itertools.chain(*BESIDE.values())])
IMAGES = {"breast_us": "breast_us", "nuclei": "nuclei_dsb2018", "sarcoma": "sts_sarcoma"}  # by task: their folder
SETTINGS = {
    **dict.fromkeys(("breast_us", "breast_us-second"), "image_size = 64\nsteps = 200\n"),
    "breast_us-128": "image_size = 128\nsteps = 100\n",
}


def task_of(board: str) -> str:
    return board.partition("-")[0]


@pytest.mark.parametrize("board", BOARDS)
def test_the_scores_give_the_table_again(tmp_path: Path, board: str):
    for name in (board, *BESIDE.get(board, ())):
        with tarfile.open(RESULTS / f"scores-{name}.tar.xz") as archive:
            archive.extractall(tmp_path / name, filter="data")
    beside = [tmp_path / name for name in BESIDE.get(board, ())]
    study = Study.load(tmp_path / board, task_of(board), "sdg", beside=beside)
    assert not study.left_out
    ranking = rank(study, baseline="erm")
    made = pd.read_csv(io.StringIO(table.csv_text(ranking.frame())))
    committed = pd.read_csv(RESULTS / f"leaderboard-{board}-scores.csv")
    pd.testing.assert_frame_equal(made, committed, rtol=1e-6)
    page = (RESULTS / f"leaderboard-{board}.md").read_text(encoding="utf-8").replace("**", "").replace(" †", "")
    for of in ranking.every:
        shown = (of.rank_text, ranking.metric.number(of.row.mean))
        assert " | ".join((of.variant, *shown)) in page, of.variant


@pytest.mark.parametrize("board", ARCHIVES)
def test_the_scores_are_of_the_images_as_they_are_known_today(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, board: str
):
    """Else nobody's runs would stand beside them."""
    name = task_of(board)
    if name in IMAGES:
        called = IMAGES[name]
        images = Path(os.environ.get(f"DGBENCH_{called.upper()}") or root / "../shared/data" / called)
        if not images.is_dir():
            pytest.skip(f"the images of {name} are not here")
        (tmp_path / name).mkdir()
        for domain in images.iterdir():
            if domain.is_dir():
                (tmp_path / name / domain.name).symlink_to(domain.resolve())
        monkeypatch.setenv("DGBENCH_DATA", str(tmp_path))
    if board in SETTINGS:
        (tmp_path / name / "task.toml").write_text(SETTINGS[board])
    task: Task = FolderTask(tmp_path / name) if board in SETTINGS else get_task(name)
    with tarfile.open(RESULTS / f"scores-{board}.tar.xz") as archive:
        records = [json.load(archive.extractfile(m)) for m in archive if m.name.endswith("run.json")]  # type: ignore[arg-type]
    today = {d: content_fingerprint(task, d, task.image_size, tmp_path / "cache")[:16] for d in task.domains}
    assert records and all(record["data"] and record["data"].items() <= today.items() for record in records)


@pytest.mark.parametrize("board", ARCHIVES)
def test_scores_hold_no_image_no_weights_and_no_path(board: str):
    with tarfile.open(RESULTS / f"scores-{board}.tar.xz") as archive:
        members = archive.getmembers()
        assert {Path(m.name).name for m in members} == {"run.json", "cases.csv", "RESULT.json"}
        assert all(m.isfile() and not m.name.startswith(("/", "..")) for m in members)
        for member in members:
            text = archive.extractfile(member).read().decode()  # type: ignore[union-attr]
            assert not re.search(r'"(/|[A-Z]:)', text), member.name  # an absolute path


def test_every_archive_is_part_of_a_board():
    assert {p.name for p in RESULTS.glob("scores-*.tar.xz")} == {f"scores-{name}.tar.xz" for name in ARCHIVES}
