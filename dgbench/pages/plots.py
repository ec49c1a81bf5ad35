"""Plots: what tables cannot show. Figures without pyplot, so that nothing depends on a display or on global state."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from dgbench.files import make_folder, write_atomic
from dgbench.pages import tables

if TYPE_CHECKING:
    from dgbench.protocol import Protocol
    from dgbench.running.records import RunRecord

# Okabe and Ito's colours, which colour-blind readers tell apart; yellow is left out: too light for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
REFERENCE, PREDICTION = "#56B4E9", "#F0E442"  # of the same palette; both stand out from gray and from a fundus
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
            "figure.constrained_layout.h_pad": 0.08,
            "hatch.linewidth": 0.6,
            "pdf.fonttype": 42,  # letters stay letters
            "svg.fonttype": "none",
            "svg.hashsalt": "dgbench",  # the same figure has the same ids
            "text.parse_math": False,  # a name may hold dollars
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
    records: Iterable[RunRecord], protocol: Protocol, metric: str = "dice", structure: str | None = None
) -> Figure:
    """Source x target matrix of every variant, numbers on colour; a source's own validation cases are hatched."""
    records = list(records)
    cells = tables.cells(records, protocol)
    variants = tables.summary(cells, records, protocol)["variant"]
    matrices = [tables.matrix(cells, protocol, v, metric, structure) for v in variants]
    scale = 100 if metric == "dice" else 1
    values = np.concatenate([m.values.to_numpy().ravel() for m in matrices]) * scale
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.array([0.0])
    low, high = (math.floor(values.min() / 10) * 10, 100) if metric == "dice" else (0, max(1, math.ceil(values.max())))
    colours = ScalarMappable(Normalize(low, high), "Blues" if metric == "dice" else "Oranges")

    rows, columns = list(matrices[0].values.index), list(matrices[0].values.columns)
    side = 0.075 * max(len(str(name)) for name in columns)  # inches that the longest name takes
    width, height = 0.55 * len(columns) + 0.3, 0.3 * len(rows) + 0.5
    figure, grid, across = make_grid(len(matrices), (width, height), (side + 1.2, side + 0.9), limit=13.0)
    x, y = _places(len(columns)), _places(len(rows))
    for i, (axes, m) in enumerate(zip(grid, matrices, strict=True)):
        for row, source in enumerate(rows):
            for column, target in enumerate(columns):
                home = row < len(rows) - 1 and column < len(columns) - 1 and source == target
                value = (m.validation.iloc[row] if home else m.values.iloc[row, column]) * scale
                blank = home or math.isnan(value)
                face = "white" if blank else colours.to_rgba(value)
                corner = (x[column] - 0.5, y[row] - 0.5)
                look: dict[str, Any] = {
                    "facecolor": face,
                    "edgecolor": "#cccccc",
                    "hatch": "////" if home else None,
                    "linewidth": 0.5,
                }
                axes.add_patch(Rectangle(corner, 1, 1, clip_on=False, **look))
                dark = not blank and np.dot(face[:3], (0.299, 0.587, 0.114)) < 0.5
                axes.text(
                    x[column],
                    y[row],
                    "" if math.isnan(value) else f"{value:.1f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color=GRAY if home else "white" if dark else "black",
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8} if home else None,
                )
        axes.set(xlim=(-0.5, x[-1] + 0.5), ylim=(y[-1] + 0.5, -0.5), title=wrap(m.variant, width))
        below = i + across >= len(grid)
        axes.set_xticks(x, columns, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(y, rows)
        axes.tick_params(length=0, labelbottom=below, labelleft=i % across == 0)
        axes.spines[:].set_visible(False)
    figure.colorbar(colours, ax=grid, shrink=min(1.0, 3 / figure.get_figheight()), aspect=20)
    figure.supylabel("source", fontsize=9)
    figure.supxlabel("target", fontsize=9)
    note = f"{records[0].task}, protocol {protocol.name}; hatched: the source's own validation cases, in no mean"
    set_title(figure, tables.heading(cells, records, protocol, metric, structure), note)
    return settled(figure)


def case_means(
    records: Iterable[RunRecord], protocol: Protocol, metric: str = "dice", structure: str | None = None
) -> pd.Series:
    """What each target case scores, indexed by domain, variant and case: the mean over structures, sources and seeds.

    A missed structure counts as in the protocol; NaN where one of the values is NaN by the protocol.
    """
    cases = tables.all_cases(records, protocol)
    cases = cases[(cases["role"] == "target") & ((cases["structure"] == structure) | (structure is None))]
    values = tables.scores(cases, metric, protocol)
    keys = ["domain", "variant", "case"]
    grouped = cases.loc[values.index, keys].assign(value=values).groupby(keys)["value"].agg(["mean", "count", "size"])
    return grouped["mean"].where(grouped["count"] == grouped["size"])


@styled
def target_boxes(
    records: Iterable[RunRecord], protocol: Protocol, metric: str = "dice", structure: str | None = None
) -> Figure:
    """One panel per target, one box per variant, one point per case, as `case_means` has it; none where it is NaN."""
    records = list(records)
    cells = tables.cells(records, protocol)
    variants = list(tables.summary(cells, records, protocol)["variant"])
    every = case_means(records, protocol, metric, structure) * (100 if metric == "dice" else 1)
    points = every.dropna()

    tested = set(cells.loc[(cells["role"] == "target") & (cells["n_cases"] > 0), "target"])
    targets = [d for d in cells["target"].cat.categories if d in tested]
    names = [wrap(v, 2.2) for v in variants]
    lines = sum(max(1.4, n.count("\n") + 1) for n in names)
    side = 0.075 * max(len(line) for n in names for line in n.split("\n"))
    figure, grid, _ = make_grid(len(targets), (1.7, 0.19 * lines + 0.3), (side, 0.9), limit=math.inf)
    jitter = np.random.default_rng(0)
    for axes, target in zip(grid, targets, strict=True):
        for i, variant in enumerate(variants):
            of_case = (
                points[target, variant].to_numpy() if (target, variant) in points.index.droplevel(2) else np.empty(0)
            )
            if not len(of_case):
                continue
            colour = COLOURS[i % len(COLOURS)]
            spread = i + jitter.uniform(-0.22, 0.22, len(of_case))
            axes.plot(of_case, spread, "o", markersize=2.8, markeredgewidth=0, color=colour, alpha=0.6, zorder=2)
            axes.boxplot(
                of_case,
                positions=[i],
                orientation="horizontal",
                widths=0.62,
                showfliers=False,
                boxprops={"color": GRAY},
                whiskerprops={"color": GRAY},
                capprops={"color": GRAY},
                medianprops={"color": "black", "linewidth": 1.6},
            )
        axes.set(ylim=(len(variants) - 0.5, -0.5), title=target)
        axes.set_yticks(range(len(variants)), names)
        axes.tick_params(axis="y", length=0, labelleft=axes is grid[0])
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
    low, high = min(a.get_xlim()[0] for a in grid), max(a.get_xlim()[1] for a in grid)
    for axes in grid:
        axes.set_xlim((-3, 103) if metric == "dice" else (low, high))
    note = f"{records[0].task}, protocol {protocol.name}; a point: one case, mean over sources and seeds"
    note += "; a case with NaN has none" if len(points) < len(every) else ""
    set_title(figure, tables.heading(cells, records, protocol, metric, structure), note)
    return settled(figure)


@styled
def learning_curves(records: Iterable[RunRecord], points: int | None = None) -> Figure:
    """Training loss against step: one panel per variant, one line per run, coloured by source.

    points: the most of a line; where there are more steps, a point is the mean of some beside each other.
    """
    records = sorted(records, key=lambda r: (r.variant, r.source, r.seed))
    variants = sorted({r.variant for r in records})
    sources = [d for d in records[0].record["domains"] if any(r.source == d for r in records)]
    colour = {source: COLOURS[i % len(COLOURS)] for i, source in enumerate(sources)}
    figure, grid, across = make_grid(len(variants), (2.6, 1.9), (1.4, 0.3))
    for i, (axes, variant) in enumerate(zip(grid, variants, strict=True)):
        for run in (r for r in records if r.variant == variant):
            if "loss" in run.history and len(run.history) > 1:
                line = run.history[["step", "loss"]]
                if points and len(line) > points:
                    line = line.groupby(np.arange(len(line)) * points // len(line)).mean()
                axes.plot(line["step"], line["loss"], color=colour[run.source], linewidth=0.9, alpha=0.8)
        if not axes.lines:
            axes.text(0.5, 0.5, "no curve", ha="center", va="center", color=GRAY, transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
        axes.set_title(wrap(variant, 2.4))
        axes.set(xlabel="step" if i + across >= len(grid) else "", ylabel="loss" if i % across == 0 else "")
    handles = [Line2D([], [], color=colour[s], label=s) for s in sources]
    figure.legend(handles=handles, title="source", loc="outside right upper", frameon=False)
    return settled(figure)


@styled
def overlays(panels: Iterable[Panel]) -> Figure:
    """Slices in gray or colour, with the contours of the reference and of the prediction; three pictures a row."""
    panels = list(panels)
    width = 2.7
    tallest = max(p.image.shape[0] / p.image.shape[1] for p in panels)
    lines = max(wrap(p.title, width).count("\n") + 1 for p in panels)
    height = width * min(tallest, 2.0) + 0.16 * lines + 0.1
    figure, grid, _ = make_grid(len(panels), (width, height), (0.1, 0.4), limit=3 * width)
    for axes, panel in zip(grid, panels, strict=True):
        axes.imshow(panel.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for masks, colour, dash, thickness in (
            (panel.reference, REFERENCE, "solid", 1.8),
            (panel.prediction, PREDICTION, "dashed", 1.4),
        ):
            for mask in masks:
                # A frame of background closes the contour of a mask that reaches the image's edge.
                padded = np.pad(mask.astype(float), 1)
                if mask.any():
                    at = np.arange(-1, padded.shape[1] - 1), np.arange(-1, padded.shape[0] - 1)
                    line = axes.contour(*at, padded, levels=[0.5], colors=colour, linewidths=thickness, linestyles=dash)
                    line.set_path_effects([withStroke(linewidth=thickness + 1.2, foreground="black")])
        axes.set(xlim=(-0.5, panel.image.shape[1] - 0.5), ylim=(panel.image.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
        axes.set_title(wrap(panel.title, width))
        axes.spines[:].set_visible(False)
        axes.set_anchor("N")
    outline = [withStroke(linewidth=3.2, foreground="black")]
    handles = [
        Line2D([], [], color=REFERENCE, linewidth=2, label="reference", path_effects=outline),
        Line2D([], [], color=PREDICTION, linewidth=2, linestyle="dashed", label="prediction", path_effects=outline),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return settled(figure)


def notable(records: Iterable[RunRecord]) -> list[tuple[str, RunRecord, str, str]]:
    """Best, median and worst target case of some runs by Dice (mean over structures), as (title, run, domain, case)."""
    ranked = []
    for run in records:
        targets = run.cases[run.cases["role"] == "target"]
        dice = targets.groupby(["domain", "case"])["dice"].mean().dropna()
        ranked += [(-value, run.source, run.seed, domain, case, run) for (domain, case), value in dice.items()]
    ranked.sort(key=lambda r: r[:5])
    picked = {0: "best", len(ranked) // 2: "median", len(ranked) - 1: "worst"} if ranked else {}
    chosen = []
    for i, word in sorted(picked.items()):
        value, source, seed, domain, case, run = ranked[i]
        chosen.append((f"{word}: Dice {-100 * value:.2f}\n{source} → {domain}, {case}, seed {seed}", run, domain, case))
    return chosen


def panel(title: str, image: np.ndarray, reference: np.ndarray, prediction: np.ndarray) -> Panel:
    """The slice of a case that shows most of its structures, by the reference (by the prediction if that is empty).

    image: float (D, C, H, W) with C 1 or 3; reference and prediction: bool (D, K, H, W).
    """
    d = telling(reference, prediction)
    flat = image[d, 0] if image.shape[1] == 1 else np.moveaxis(image[d], 0, -1)
    return Panel(title, flat, reference[d], prediction[d])


def telling(reference: np.ndarray, prediction: np.ndarray) -> int:
    """The slice that shows most of the structures: masks are bool (D, K, H, W)."""
    return int((reference if reference.any() else prediction).sum(axis=(1, 2, 3)).argmax())


@styled
def save(figure: Figure, path: Path) -> Path:
    """Write a figure as .png (150 dpi) or .pdf, by the path's suffix; the same figure gives the same bytes."""
    nothing = {"png": ["Software"], "pdf": ["Creator", "Producer", "CreationDate"]}[path.suffix[1:]]
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], dpi=150, metadata=dict.fromkeys(nothing))
    write_atomic(path, content.getvalue())
    return path


def write(
    records: Iterable[RunRecord],
    protocol: Protocol,
    folder: Path,
    panels: Mapping[str, Iterable[Panel]] | None = None,
    metrics: Sequence[str] = ("dice", "asd"),
) -> list[Path]:
    """Write all plots of some runs into a folder, each as .png and .pdf; returns the paths. `panels`: by variant."""
    records = list(records)
    make_folder(folder)
    figures = {f"matrix-{m}": heat_map(records, protocol, m) for m in metrics}
    figures |= {f"targets-{m}": target_boxes(records, protocol, m) for m in metrics}
    figures["learning-curves"] = learning_curves(records)
    figures |= {f"overlays-{variant}": overlays(p) for variant, p in (panels or {}).items()}
    return [save(figure, folder / f"{name}.{kind}") for name, figure in figures.items() for kind in ("png", "pdf")]


def make_grid(
    n: int, size: tuple[float, float], margin: tuple[float, float], limit: float = 12.0
) -> tuple[Figure, list[Axes], int]:
    """A figure of n axes of a size in inches, in even rows of at most `limit` inches; and how many stand in a row."""
    rows = math.ceil(n / max(1, min(n, int(min(limit / size[0], n)))))
    across = math.ceil(n / rows)
    figure = Figure(figsize=(across * size[0] + margin[0], rows * size[1] + margin[1]))
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(rows, across, squeeze=False).ravel())
    for axes in grid[n:]:
        axes.remove()
    return figure, grid[:n], across


def set_title(figure: Figure, title: str, note: str) -> None:
    """What is shown, and under it, in lines that fit, what a reader must know."""
    lines = wrap(note, figure.get_figwidth() - 0.3)
    figure.suptitle(f"{title}\n{lines}", x=0.01, ha="left", fontsize=9, linespacing=1.4)


def settled(figure: Figure) -> Figure:
    """The figure with its layout found once and kept, whatever number of files it is written to."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)
    figure.set_layout_engine("none")
    return figure


def _places(n: int) -> np.ndarray:
    """Where n cells stand, the last one, a mean, a little apart."""
    return np.array([*range(n - 1), n - 0.75])


def wrap(text: str, inches: float) -> str:
    """`text` in lines that fit; a variant's settings are parted after a semicolon."""
    lines = (textwrap.wrap(re.sub(r";(?=\S)", "; ", line), max(8, int(inches / 0.075))) for line in text.split("\n"))
    return "\n".join(part for line in lines for part in line)
