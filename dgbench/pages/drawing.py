"""Drawing: what all figures share: style, panels, contours, and how a figure gets into a file or a page.

Without pyplot, so that nothing depends on a display or on global state.
"""

from __future__ import annotations

import base64
import functools
import io
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dgbench.files import write_atomic

# Okabe and Ito's colours, which colour-blind readers tell apart; yellow is left out: too light for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GRAY, LINE = "#666666", "#e5e5e5"
# Where there are more names than colours, the next ones have the same colours in another line and marker.
LINES, MARKERS = ("solid", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5))), "oX^s"
# What a page may turn, so that one drawing serves light and dark: its ink, quiet ink, thin lines, ground and accent.
THEMED = {
    "#000000": "currentColor",
    GRAY: "var(--quiet)",
    LINE: "var(--line)",
    "#ffffff": "var(--card)",
    COLOURS[0].lower(): "var(--blue)",
}
styled = style.context(
    [
        "default",  # whatever a user's matplotlibrc says
        {
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "grid.color": LINE,
            "grid.linewidth": 0.6,
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.h_pad": 0.08,
            "hatch.linewidth": 0.6,
            "pdf.fonttype": 42,  # letters stay letters
            "svg.fonttype": "none",
            "svg.hashsalt": "dgbench",  # the same figure has the same ids
            "text.parse_math": False,  # a name may hold dollars
        },
    ]
)


class Drawing(Figure):
    """A figure that a notebook shows, whether or not pyplot was ever imported there."""

    def _repr_png_(self) -> bytes:
        return _png(self)


# --- panels ----------------------------------------------------------------------------------------------------------


def panels(
    n: int, size: tuple[float, float], margin: tuple[float, float], limit: float = 12.0
) -> tuple[Figure, list[Axes], int]:
    """A figure of n axes of a size in inches, in even rows of at most `limit` inches; and how many stand in a row."""
    rows = math.ceil(n / max(1, min(n, int(min(limit / size[0], n)))))
    across = math.ceil(n / rows)
    figure = Drawing(figsize=(across * size[0] + margin[0], rows * size[1] + margin[1]))
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(rows, across, squeeze=False).ravel())
    for axes in grid[n:]:
        axes.remove()
    return figure, grid[:n], across


def row_per_name(names: list[str], n: int, width: float, margin: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure of n axes side by side, each with a row for every name, named at the left one, the first at the top.

    Row i lies at y = i and is as high as its name has lines.

    width: of one of them at most; margin: beside the names; all in inches.
    """
    rows = [wrap(name, 2.4) for name in names]
    side = 0.075 * max(len(line) for row in rows for line in row.split("\n"))
    edges = np.cumsum([0, *(max(1.4, row.count("\n") + 1) for row in rows)])  # of the rows, in lines
    between = np.arange(len(edges)) - 0.5  # the same, in rows
    width = min(width, max(1.15, (11.5 - side) / n))
    figure, grid, _ = panels(n, (width, 0.19 * edges[-1] + 0.35), (side + margin[0], margin[1]), limit=math.inf)
    for axes in grid:
        axes.set_yscale(
            "function", functions=(lambda y: np.interp(y, between, edges), lambda y: np.interp(y, edges, between))
        )
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), rows)
        axes.tick_params(axis="y", length=0, labelleft=axes is grid[0])
        axes.grid(axis="x")
    return figure, grid


def set_title(figure: Figure, title: str, note: str) -> None:
    """What is shown, and under it, in lines that fit, what a reader must know."""
    lines = wrap(note, figure.get_figwidth() - 0.3)
    figure.suptitle(f"{title}\n{lines}", x=0.01, ha="left", fontsize=9, linespacing=1.4)


class Look(NamedTuple):
    """How the lines and points of a name are drawn."""

    colour: str
    line: Any
    marker: str


def looks(names: Sequence[str]) -> dict[str, Look]:
    """By name, a look of its own, of up to 28 names; the first seven differ in colour alone."""
    turns = [divmod(i, len(COLOURS)) for i in range(len(names))]
    kinds = [(n, turn % len(LINES)) for turn, n in turns]
    return {name: Look(COLOURS[n], LINES[k], MARKERS[k]) for name, (n, k) in zip(names, kinds, strict=True)}


def settled(figure: Figure) -> Figure:
    """The figure with its layout found once and kept, whatever number of files it is written to."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    with rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)  # beside "none" every file would be drawn once more, to lay it out
    return figure


def wrap(text: str, inches: float) -> str:
    """`text` in lines that fit; a variant's settings are parted after a semicolon."""
    lines = (textwrap.wrap(re.sub(r";(?=\S)", "; ", line), max(8, int(inches / 0.075))) for line in text.split("\n"))
    return "\n".join(part for line in lines for part in line)


def contours(masks: np.ndarray, step: int = 1) -> list[np.ndarray]:
    """Closed lines around masks, bool (K, H, W): each (points, 2) as x, y in pixels, (0, 0) the image's corner.

    step: pixels that are skipped, where a finer line than is shown would only fill the page.
    """
    axes, lines = _no_axes(), []
    for mask in masks[:, ::step, ::step]:
        if mask.any():  # a frame of background closes the contour of a mask that reaches the image's edge
            drawn = axes.contour(np.pad(mask.astype(float), 1), levels=[0.5])
            lines += [(line - 0.5) * step for line in drawn.allsegs[0]]
            drawn.remove()
    return lines


@functools.cache
def _no_axes() -> Axes:
    """Axes that are never shown, to find contours with: making them takes longer than finding one."""
    return Figure().add_subplot()


# --- files and pages -------------------------------------------------------------------------------------------------


@styled
def save(figure: Figure, path: Path) -> Path:
    """Write a figure as .png (150 dpi) or .pdf, by the path's suffix; the same figure gives the same bytes."""
    nothing = {"png": ["Software"], "pdf": ["Creator", "Producer", "CreationDate"]}[path.suffix[1:]]
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=150, metadata=dict.fromkeys(nothing))
    write_atomic(path, content.getvalue())
    return path


@styled
def svg(figure: Figure, prefix: str) -> str:
    """An <svg> to stand inside a page, in the page's font and colours; `prefix` keeps its ids apart from others'."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    content = text.getvalue()
    content = content[content.index("<svg") :]
    content = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", content, flags=re.DOTALL)
    size = 'width="{:.0f}" height="{:.0f}"'.format(*(96 * figure.get_size_inches()))

    def themed(tag: re.Match[str]) -> str:  # what is written between tags stays as it is
        text = re.sub(r"(\.\d\d)\d+", r"\1", tag[0])
        text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", text).replace("xlink:href", "href")
        text = re.sub(r"#[0-9a-f]{6}\b", lambda colour: THEMED.get(colour[0], colour[0]), text)
        text = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)
        return re.sub(r'<svg .*?(viewBox="[^"]*").*', rf"<svg {size} \1>", text, flags=re.DOTALL)

    return re.sub(r"<[^>]*>", themed, content)


def png(figure: Figure) -> str:
    """A figure as a data URI, white behind it, for drawings with more marks than a page should hold."""
    return data_uri("png", _png(figure))


@styled
def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=144, metadata={"Software": None})
    return content.getvalue()


def data_uri(kind: str, content: bytes) -> str:
    """An image inside a page; kind: "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
