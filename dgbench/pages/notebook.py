"""Notebook: how results of the face look in one, as tables with their captions, and a bar while runs are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pandas as pd

from dgbench.errors import UsageError
from dgbench.metrics import FURTHER
from dgbench.pages.table import Cell, Table, fill

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dgbench.scores.comparison import Comparison
    from dgbench.scores.multiverse import Multiverse
    from dgbench.scores.ranking import Ranking
    from dgbench.scores.study import Study


def html(tables: Iterable[Table], said: Iterable[str] = ()) -> str:
    """Tables as on a page, and sentences under them."""
    return fill("notebook.html.jinja", tables=list(tables), said=[text for text in said if text])


class Board(pd.DataFrame):
    """A leaderboard as a frame, which a notebook shows as the tables of `dgbench leaderboard`.

    What is selected or computed of it is a plain frame. ranking: what it is made of.
    """

    _metadata = ["ranking"]  # noqa: RUF012  # pandas reads a list
    ranking: Ranking

    @classmethod
    def of(cls, ranking: Ranking) -> Board:
        """The frame of a ranking."""
        board = cls(ranking.frame())
        board.ranking = ranking
        return board

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    def _repr_html_(self) -> str:
        from dgbench.pages import leaderboard
        from dgbench.scores import published

        beside = published.beside(published.load(self.ranking.study.task), self.ranking.study)
        return html(leaderboard.board_tables(self.ranking, beside), [leaderboard.conclusion(self.ranking)])

    @property
    def figures(self) -> dict[str, Figure]:
        """What `--picture` and `--cost` draw: forest and, where FLOPs were counted, cost."""
        from dgbench.pages import figures

        drawn = {"forest": figures.forest(self.ranking)}
        try:
            return drawn | {"cost": figures.cost(self.ranking)}
        except UsageError:
            return drawn


def of_runs(study: Study | None, ended: pd.DataFrame) -> str:
    """Matrices and, of several variants, a row for each; and the runs that are not done."""
    from dgbench.pages import score_tables
    from dgbench.pages.captions import context, heading

    tables, said = [], []
    if study:
        metrics = ("dice", "asd", *(m for m in study.metrics if m in FURTHER))
        tables = [
            score_tables.matrix_table(study.matrix(v, metric), f"{v}-{metric}", f"{v}: {heading(study, metric)}")
            for v in study.variants
            for metric in metrics
        ]
        if len(study.variants) > 1:
            tables += score_tables.summary_tables(study, metrics, caption="All variants")
        said = [f"{score_tables.NOTES}{context(study)}"]
    left = ended[ended["status"] != "done"].drop(columns="folder")
    if len(left):
        rows = [[Cell(str(value)) for value in row] for row in left.itertuples(index=False)]
        tables.append(Table("runs", "Runs that are not done", list(left.columns), [("", rows)]))
    return html(tables, said)


def of_comparisons(found: Iterable[Comparison], notes: Iterable[str]) -> str:
    """Each comparison's table and sentence."""
    from dgbench.pages.verdict import comparison_table, sentence

    return "".join(html([comparison_table(c)], [sentence(c)]) for c in found) + html((), notes)


def of_universes(found: Multiverse) -> str:
    """Ranks under other choices, the pairs that change, and the sentence."""
    from dgbench.pages import multiverse

    return html(multiverse.tables(found), [multiverse.sentence(found)])


class Bars:
    """Bars of what is being done, in one output of a notebook's cell that is drawn anew and empty in the end."""

    PAUSE = 0.5  # seconds at least between two drawings

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self.last, self.html = -self.PAUSE, HTML
        self.shown: Any = display(HTML(""), display_id=True)

    def draw(self, bars: Iterable[Any]) -> None:
        """bars: tasks of `rich.progress`."""
        if time.monotonic() - self.last > self.PAUSE:
            self.last = time.monotonic()
            self.shown.update(self.html(fill("progress.html.jinja", bars=list(bars))))

    def close(self) -> None:
        """Nothing is left to see."""
        self.shown.update(self.html(""))
