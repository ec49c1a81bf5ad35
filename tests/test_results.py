"""The committed tables are what the committed scores say: unpacked, they give the same leaderboard again."""

import io
import re
import tarfile
from pathlib import Path

import pandas as pd
import pytest

from dgbench.protocol import get_protocol
from dgbench.running import records
from dgbench.scores import ranking

RESULTS = Path(__file__).resolve().parent.parent / "results"
TASKS = ("phantom", "breast_us")


@pytest.mark.parametrize("task", TASKS)
def test_the_scores_give_the_table_again(tmp_path: Path, task: str):
    with tarfile.open(RESULTS / f"scores-{task}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    found, left_out = records.load(tmp_path, task, "sdg")
    assert not left_out
    board = ranking.build(found, get_protocol("sdg"), reference="erm")
    made = pd.read_csv(io.StringIO(ranking.render(board, "csv")))
    committed = pd.read_csv(RESULTS / f"leaderboard-{task}-scores.csv")
    pd.testing.assert_frame_equal(made, committed, rtol=1e-6)
    page = (RESULTS / f"leaderboard-{task}.md").read_text(encoding="utf-8")
    table, _ = ranking.board_tables(board)
    for row in table.rows:
        if len(row) > 1:
            assert " | ".join(e.text for e in row[1:4]) in page.replace("**", ""), row[0].text


@pytest.mark.parametrize("task", TASKS)
def test_scores_hold_no_image_no_weights_and_no_path(task: str):
    with tarfile.open(RESULTS / f"scores-{task}.tar.xz") as archive:
        members = archive.getmembers()
        assert {Path(m.name).name for m in members} == {"run.json", "cases.csv", "RESULT.json"}
        assert all(m.isfile() and not m.name.startswith(("/", "..")) for m in members)
        for member in members:
            text = archive.extractfile(member).read().decode()  # type: ignore[union-attr]
            assert not re.search(r'"(/|[A-Z]:)', text), member.name  # an absolute path
