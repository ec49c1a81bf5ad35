"""Plots: what tables cannot show. Figures without pyplot, so that nothing depends on a display or on global state."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from dgbench import tables
from dgbench.files import make_folder, write_atomic

if TYPE_CHECKING:
    from dgbench.protocol import Protocol
    from dgbench.runs import RunRecord

# Okabe and Ito's colours, which colour-blind readers tell apart; yellow is left out: too light for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
REFERENCE, PREDICTION = "#56B4E9", "#E69F00"
GRAY = "#666666"
styled = style.context(
    [
        "default",  # whatever a user's matplotlibrc says
        {
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "figure.constrained_layout.use": True,
            "hatch.linewidth": 0.6,
            "pdf.fonttype": 42,  # letters stay letters
        },
    ]
)


class Panel(NamedTuple):
    """One picture of an overlay: a slice, where its structures are, and where they were predicted.

    image: (H, W) or (H, W, 3) float in [0, 1]; reference and prediction: bool (K, H, W).
    """

    title: str
    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray


@styled
def heat_map(
    records: Sequence[RunRecord], protocol: Protocol, metric: str = "dice", structure: str | None = None
) -> Figure:
    """The source x target matrix of every variant, as numbers on colour; a source's own validation cases are hatched."""
    cells = tables.cells(records, protocol)
    variants = list(tables.summary(cells, records, protocol)["variant"])
    matrices = [tables.matrix(cells, protocol, v, metric, structure) for v in variants]
    rows, columns = list(matrices[0].values.index), list(matrices[0].values.columns)
    width, height = 0.55 * len(columns) + 0.3, 0.32 * len(rows) + 0.5
    figure, grid = _grid(len(matrices), width, height, limit=13.0, left=0.09 * max(map(len, map(str, rows))) + 0.2, right=0.9)
    shown = np.concatenate([m.values.to_numpy().ravel() for m in matrices]) * (100 if metric == "dice" else 1)
    shown = shown[np.isfinite(shown)] if np.isfinite(shown).any() else np.array([0.0, 1.0])
    low, high = (math.floor(shown.min() / 10) * 10, 100) if metric == "dice" else (0, math.ceil(shown.max()))
    colours = ScalarMappable(Normalize(low, high), "Blues" if metric == "dice" else "Oranges")
    for i, (axes, m) in enumerate(zip(grid, matrices, strict=True)):
        _heat_panel(axes, m, colours)
        axes.set_title(_wrap(m.variant, width))
        axes.set_xticks(_positions(len(columns)), columns if i + _columns(figure) >= len(grid) else [], rotation=45, ha="right")
        axes.set_yticks(_positions(len(rows)), rows if i % _columns(figure) == 0 else [])
    label = tables.heading(cells, records, protocol, metric, structure)
    figure.colorbar(colours, ax=grid, label=label, shrink=0.8, aspect=25, pad=0.02)
    figure.supxlabel("target", fontsize=9)
    figure.supylabel("source", fontsize=9)
    _note(figure, f"task {records[0].task}, protocol {protocol.name}; hatched: the source's own validation cases, in no mean")
    return figure
