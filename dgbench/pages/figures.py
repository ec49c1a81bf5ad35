"""Figures of the report: intervals, ranks, domain shift, and what a page needs to hold any figure or picture."""

from __future__ import annotations

import base64
import functools
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from dgbench.pages.plots import COLOURS, GRAY, make_grid, settled, styled, wrap

LINE = "#e5e5e5"
RHO = "\N{GREEK SMALL LETTER RHO}"
# What a page may turn, so that one drawing serves light and dark: its ink, quiet ink, thin lines, ground and accent.
THEMED = {
    "#000000": "currentColor",
    GRAY: "var(--quiet)",
    LINE: "var(--line)",
    "#ffffff": "var(--card)",
    COLOURS[0].lower(): "var(--blue)",
}


class Interval(NamedTuple):
    """A mean and its interval, in the unit that is shown; NaN bounds when there is none."""

    mean: float
    low: float
    high: float


@styled
def forest(
    names: Sequence[str],
    panels: Mapping[str, Sequence[Interval]],
    label: str,
    ranked: int,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> Figure:
    """One row per variant, one panel per target (and one for the mean): a point with its interval.

    The first `ranked` variants are filled; the others stand apart, hollow, under a line. A band continues the interval
    of the first row, so that one sees which intervals it meets. limits: the axes end there at the latest.
    """
    rows = [wrap(name, 2.4) for name in names]
    side = 0.075 * max(len(line) for row in rows for line in row.split("\n"))
    lines = sum(max(1.35, row.count("\n") + 1) for row in rows)
    width = min(2.2, max(1.15, (11.5 - side) / len(panels)))
    figure, grid, _ = make_grid(len(panels), (width, 0.19 * lines + 0.4), (side + 0.1, 0.3), limit=math.inf)
    for axes, (title, intervals) in zip(grid, panels.items(), strict=True):
        if intervals and math.isfinite(intervals[0].low):
            axes.axvspan(intervals[0].low, intervals[0].high, color=LINE, linewidth=0, zorder=0)
        for i, (mean, low, high) in enumerate(intervals):
            look: dict[str, Any] = {"color": COLOURS[0] if i < ranked else GRAY, "zorder": 3}
            axes.plot([low, high], [i, i], linewidth=1.6, solid_capstyle="butt", **look)
            axes.plot([mean], [i], "o", markersize=4.5, markerfacecolor=None if i < ranked else "white", **look)
        if 0 < ranked < len(names):
            axes.axhline(ranked - 0.5, color=GRAY, linewidth=0.6, linestyle="dotted")
        axes.set(ylim=(len(names) - 0.5, -0.5), title=title, xlabel=label)
        axes.set_yticks(range(len(names)), rows)
        axes.tick_params(axis="y", length=0, labelleft=axes is grid[0])
        axes.grid(axis="x", color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
    low, high = min(a.get_xlim()[0] for a in grid), max(a.get_xlim()[1] for a in grid)
    for axes in grid:  # an interval may leave the range of its metric, and then says nothing there
        axes.set_xlim(max(low, limits[0]), min(high, limits[1]))
    return settled(figure)


@styled
def critical_difference(ranks: Mapping[str, float], difference: float) -> Figure:
    """Demsar's diagram: variants at their average rank, 1 is best; a bar joins those that are not told apart."""
    order = sorted(ranks, key=lambda v: (ranks[v], v))
    values = [ranks[v] for v in order]
    n, left = len(order), (len(order) + 1) // 2
    labels = [wrap(v, 2.4) for v in order]
    gap = 0.5  # inches from the axis' end to a name; the rank stands over the line there
    bars = cliques(values, difference)
    heights = [0.16 * (label.count("\n") + 1) + 0.06 for label in labels]
    top = 0.34 + 0.1 * len(bars)  # inches under the axis before the first name
    height = 0.75 + top + max(sum(heights[:left]), sum(heights[left:]))
    side = 0.08 * max(len(line) for label in labels for line in label.split("\n")) + gap + 0.1
    figure = Figure(figsize=(4.8 + 2 * side, height))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("none")
    axes = figure.add_axes((side / figure.get_figwidth(), 0, 4.8 / figure.get_figwidth(), 1))
    axes.set(xlim=(1, max(n, 2)), ylim=(-height + 0.75, 0.75))
    axes.set_axis_off()
    ink: dict[str, Any] = {"color": "black", "linewidth": 0.9, "clip_on": False}
    axes.plot([1, n], [0, 0], **ink)
    for tick in range(1, n + 1):
        axes.plot([tick, tick], [0, 0.07], **ink)
        if n <= 15 or tick in (1, n) or tick % 5 == 0:
            axes.text(tick, 0.11, str(tick), ha="center", va="bottom", fontsize=8)
    at = 1.0 if difference < n - 1 else (n + 1 - difference) / 2
    axes.plot([at, at + difference], [0.42, 0.42], color=COLOURS[1], linewidth=1.6, clip_on=False)
    axes.text(at + difference / 2, 0.47, f"critical difference {difference:.2f}", ha="center", va="bottom", fontsize=8)
    for i, (first, last) in enumerate(bars):
        y = -0.16 - 0.1 * i
        ends = [values[first] - 0.004 * n, values[last] + 0.004 * n]
        axes.plot(ends, [y, y], color=COLOURS[0], linewidth=3, solid_capstyle="round", clip_on=False)
    for side_names, outward in ((range(left), -1), (range(n - 1, left - 1, -1), 1)):
        y = -top
        edge = 1 - gap * (n - 1) / 4.8 if outward < 0 else n + gap * (n - 1) / 4.8
        for i in side_names:
            y -= heights[i] / 2
            axes.plot([values[i], values[i], edge], [0, y, y], color=GRAY, linewidth=0.7, clip_on=False)
            align, other = ("right", "left") if outward < 0 else ("left", "right")
            away = outward * 0.05 * (n - 1) / 4.8
            axes.text(edge + away, y, labels[i], ha=align, va="center")
            axes.text(edge - away, y + 0.02, f"{values[i]:.2f}", ha=other, va="bottom", fontsize=7, color=GRAY)
            y -= heights[i] / 2
    return figure


def cliques(ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Longest runs of sorted ranks that span less than the critical difference, as (first, last) with first < last."""
    found: list[tuple[int, int]] = []
    for first in range(len(ranks)):
        last = max(i for i in range(first, len(ranks)) if ranks[i] - ranks[first] < difference or i == first)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


@styled
def domain_shift(points: pd.DataFrame, correlation: Mapping[str, float], sources: Sequence[str]) -> Figure:
    """Loss of Dice in points against intensity distance: one panel per variant, one point per source and target.

    points: columns variant, source, target, distance, loss (fractions), as `shift.losses` gives them. Coloured by
    source; the points of all variants lie behind in gray.
    """
    variants = list(dict.fromkeys(points["variant"]))
    colour = {source: COLOURS[i % len(COLOURS)] for i, source in enumerate(sources)}
    figure, grid, across = make_grid(len(variants), (2.1, 1.75), (1.5, 0.3), limit=11.0)
    x, y = points["distance"].to_numpy(), 100 * points["loss"].to_numpy()
    pad_x, pad_y = 0.06 * (np.ptp(x) or 0.1), 0.06 * (np.ptp(y) or 10)
    for i, (axes, variant) in enumerate(zip(grid, variants, strict=True)):
        own = points[points["variant"] == variant]
        axes.plot(x, y, "o", markersize=2.2, markeredgewidth=0, color=GRAY, alpha=0.35, zorder=1)
        for source, part in own.groupby("source", sort=False, observed=True):
            axes.plot(part["distance"], 100 * part["loss"], "o", markersize=4.5, color=colour[source], zorder=2)
        axes.axhline(0, color=GRAY, linewidth=0.6, zorder=0)
        rho = correlation[variant]
        title = wrap(variant, 1.9) + ("" if math.isnan(rho) else f"\n{RHO} = {rho:.2f}".replace("-", "\N{MINUS SIGN}"))
        below = i + across >= len(grid)
        axes.set(xlim=(min(x.min(), 0) - pad_x, x.max() + pad_x), ylim=(y.min() - pad_y, y.max() + pad_y), title=title)
        axes.set(xlabel="intensity distance" if below else "", ylabel="Dice lost" if i % across == 0 else "")
        axes.tick_params(labelbottom=below, labelleft=i % across == 0)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(color=LINE, linewidth=0.6)
        axes.set_axisbelow(True)
    handles = [Line2D([], [], marker="o", linestyle="", color=colour[s], label=s) for s in sources]
    figure.legend(handles=handles, title="source", loc="outside right upper", frameon=False)
    return settled(figure)


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


@styled
def png(figure: Figure) -> str:
    """A figure as a data URI, white behind it, for drawings with more marks than a page should hold."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=144, metadata={"Software": None})
    return _uri("png", content.getvalue())


class Picture(NamedTuple):
    """A slice for a page: its image as a data URI, its size in pixels, and two contours as SVG paths over it."""

    uri: str
    width: int
    height: int
    reference: str
    prediction: str


def picture(image: np.ndarray, reference: np.ndarray, prediction: np.ndarray, longest: int = 320) -> Picture:
    """image: (H, W) or (H, W, 3) float in [0, 1]; reference and prediction: bool (K, H, W). Paths are in its pixels."""
    height, width = image.shape[:2]
    pixels = Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))
    pixels.thumbnail((longest, longest))
    content = io.BytesIO()
    pixels.save(content, "JPEG", quality=85)
    uri = _uri("jpeg", content.getvalue())
    return Picture(uri, width, height, outline(reference), outline(prediction))


def outline(masks: np.ndarray) -> str:
    """The contours of masks, bool (K, H, W), as one SVG path in pixels, (0, 0) the image's corner; "" when empty."""
    step = max(1, max(masks.shape[1:]) // 512)  # a finer contour than the page shows would only fill it
    axes = _no_axes()
    lines: list[np.ndarray] = []
    for mask in masks[:, ::step, ::step]:
        if mask.any():  # a frame of background closes the contour of a mask that reaches the image's edge
            drawn = axes.contour(np.pad(mask.astype(float), 1), levels=[0.5])
            lines += drawn.allsegs[0]
            drawn.remove()
    points = ([f"{x:g} {y:g}" for x, y in np.round((line - 0.5) * step, 1)] for line in lines)
    return "".join(f"M{'L'.join(p[:-1])}Z" for p in points)


@functools.cache
def _no_axes() -> Axes:
    """Axes that are never shown, to find contours with: making them takes longer than finding one."""
    return Figure().add_subplot()


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
