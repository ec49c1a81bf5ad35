"""Rank map: the rank of every variant in every universe, so that one sees which choices change the order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dgbench.pages.captions import heading
from dgbench.pages.drawing import COLOURS, GRAY, Drawing, set_title, settled, styled, wrap
from dgbench.scores.multiverse import BOARD, Multiverse

WIDTH, HEIGHT, LETTER = 0.3, 0.19, 0.075  # inches of a cell, and of a letter
WORSE_TO_BETTER = LinearSegmentedColormap.from_list("shift", [COLOURS[1], "#ffffff", COLOURS[0]])
INK, PALE = "#101010", "#fefefe"  # on a cell: it keeps its colour when a page turns dark, and so must its number
NOTE = (
    "number: the rank; blue: better than on the leaderboard, orange: worse; blank: no mean, not ranked; in a row with "
    "blanks, against the leaderboard's order of those ranked in it"
)


@styled
def rank_map(found: Multiverse) -> Figure:
    """A column per variant in the leaderboard's order, a row per universe under its kind of choice, ranks as numbers.

    A cell is white where the rank is the leaderboard's, and stronger blue (better) or orange (worse) the further it is
    from it. Where some variants have no rank, the others are compared with the leaderboard's order of them alone.
    """
    variants, labels = [wrap(v, 2.4) for v in found.variants], _labels(found)
    side = LETTER * max(len(label) for label, _ in labels) + 0.2
    top = LETTER * max((len(line) for v in variants for line in v.split("\n")), default=0) + 0.7
    across = max(WIDTH * len(variants), 3.4)
    figure = Drawing(figsize=(side + across, top + HEIGHT * (len(labels) + 1)))
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shift = found.shifts
    most = max(2.0, np.nanmax(np.abs(shift), initial=0))
    colours = ScalarMappable(Normalize(-most, most), WORSE_TO_BETTER)
    for y, (_, universe) in enumerate(labels):
        if universe is not None:
            _draw_ranks(axes, y, found.ranks[universe], shift[universe], colours)
    axes.add_patch(Rectangle((-0.5, -0.5), len(variants), 1, fill=False, linewidth=1.4, zorder=3, clip_on=False))
    axes.set(xlim=(-0.5, across / WIDTH - 0.5), ylim=(len(labels) - 0.5, -0.5))
    axes.set_xticks(range(len(variants)), variants, rotation=90, va="bottom")
    axes.set_yticks(range(len(labels)), [label for label, _ in labels])
    axes.tick_params(length=0, labelbottom=False, labeltop=True)
    axes.spines[:].set_visible(False)
    for text, (_, universe) in zip(axes.get_yticklabels(), labels, strict=True):
        text.set_color(GRAY if universe is None else "black")
    study = found.board.study
    title = f"Ranks by {heading(study, found.board.metric.name)} under other choices"
    set_title(figure, title, f"{study.task}, protocol {study.protocol.name}; {NOTE}")
    return settled(figure)


def _labels(found: Multiverse) -> list[tuple[str, int | None]]:
    """What stands beside each row, and the number of its universe: none for a kind of choice, which heads its own."""
    rows: list[tuple[str, int | None]] = [(BOARD, 0)]
    for kind, universes in found.kinds.items():
        rows += [(kind, None), *((f"{found.universes[u].name}", u) for u in universes)]
    return rows


def _draw_ranks(axes: Axes, y: int, ranks: np.ndarray, shift: np.ndarray, colours: ScalarMappable) -> None:
    for x, (rank, moved) in enumerate(zip(ranks, shift, strict=True)):
        if math.isnan(rank):
            continue
        face = colours.to_rgba(np.array(moved)) if moved else (1.0, 1.0, 1.0, 1.0)
        ink = "black" if not moved else PALE if np.dot(face[:3], (0.299, 0.587, 0.114)) < 0.5 else INK
        look: dict[str, Any] = {"facecolor": face, "edgecolor": "#cccccc", "linewidth": 0.5}
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, **look))
        axes.text(x, y, f"{rank:.0f}", fontsize=8, color=ink, ha="center", va="center")
