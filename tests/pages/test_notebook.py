"""What a notebook shows of a result says what was held fixed, and holds nothing that a name could bring in."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console

import dgbench
from dgbench.pages import notebook
from dgbench.pages.notebook import Board
from dgbench.pages.progress import Preparation
from dgbench.pages.table import Cell, Table


@pytest.fixture(scope="module")
def board(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Board:
    folder = tmp_path_factory.mktemp("scores")
    with tarfile.open(root / "results/scores-phantom.tar.xz") as archive:
        two = ("phantom/sdg/erm/", "phantom/sdg/maxstyle/")
        archive.extractall(folder, [m for m in archive if m.name.startswith(two)], filter="data")
    return dgbench.leaderboard("phantom", against="erm", results=folder)


def test_a_board_is_shown_as_the_command_shows_it(board: Board):
    html = board._repr_html_()
    for text in (">rank</th>", ">1</td>", "41.92 to 50.16", "-4.17 not resolved", "all slices, masks compared at"):
        assert text in html
    assert html.count("<table") == 2 and "erm has the best mean, 46.59 %" in html


def test_what_is_selected_of_a_board_is_a_plain_frame(board: Board):
    """Which a notebook shows as pandas does: the board's captions would be wrong for it."""
    assert isinstance(board, pd.DataFrame) and "rank_low" in repr(board)
    for part in (board[["variant", "mean"]], board.head(1), board.round(2), board.sort_values("mean")):
        assert type(part) is pd.DataFrame
    assert type(board["mean"]) is pd.Series


def test_a_plot_is_a_figure_that_a_notebook_shows_without_pyplot(board: Board):
    assert list(board.figures) == ["forest"], "these runs counted no FLOPs"
    assert board.figures["forest"]._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_names_are_text():
    cell = "<script>alert(1)</script>"
    html = notebook.html([Table(cell, cell, (cell,), [(cell, [[Cell(cell)]])], foot=cell)], [cell])
    assert "<script" not in html and html.count("&lt;script&gt;") >= 5


def test_bars_are_drawn_in_one_place_of_a_notebook_and_leave_it_empty(monkeypatch: pytest.MonkeyPatch):
    shown: list[str] = []
    handle = SimpleNamespace(update=shown.append)
    display = ModuleType("IPython.display")
    display.__dict__.update(HTML=str, display=lambda html, display_id: handle)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(notebook.Bars, "PAUSE", 0.0)
    with Preparation(Console(force_jupyter=True)) as progress:
        told = progress.of("<A>")
        told(1, 4)
        told(3, 4)
    assert [html.count("<progress") for html in shown] == [1, 1, 0] and shown[-1] == ""
    assert 'value="3" max="4"' in shown[1] and "preparing &lt;A&gt;" in shown[1] and "3 of 4" in shown[1]
    with Preparation(Console(force_jupyter=True, quiet=True)) as progress:
        progress.of("A")(1, 4)
    assert len(shown) == 3, "nothing of what is quiet"
