"""Figures of a study: source x target as colour, cases as boxes, learning curves, intervals, domain shift."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from scipy.optimize import isotonic_regression

from dgbench import registry
from dgbench.errors import UsageError
from dgbench.files import make_folder
from dgbench.metrics import METRICS
from dgbench.pages.captions import counted, heading, measured
from dgbench.pages.drawing import (
    COLOURS,
    GRAY,
    LINE,
    looks,
    panels,
    row_per_name,
    save,
    set_title,
    settled,
    styled,
    wrap,
)
from dgbench.pages.score_tables import Scale, places
from dgbench.scores.ranking import Ranked, Ranking
from dgbench.scores.statistics import Resampling, estimate
from dgbench.scores.study import Matrix, Study

RHO = "\N{GREEK SMALL LETTER RHO}"


# --- source x target -------------------------------------------------------------------------------------------------


@styled
def heat_map(study: Study, metric: str = "dice", structure: str | None = None) -> Figure:
    """Source x target matrix of every variant, numbers on colour; a source's own validation cases are hatched."""
    matrices = [study.matrix(v, metric, structure) for v in study.variants]
    scale = Scale.of(matrices)
    names = "Blues" if METRICS[metric].higher_is_better else "Oranges"
    colours = ScalarMappable(Normalize(scale.low, scale.high), names)
    rows, columns = list(matrices[0].values.index), list(matrices[0].values.columns)
    side = 0.075 * max(len(str(name)) for name in columns)  # inches that the longest name takes
    width, height = 0.55 * len(columns) + 0.3, 0.3 * len(rows) + 0.5
    figure, grid, across = panels(len(matrices), (width, height), (side + 1.2, side + 0.9), limit=13.0)
    # The last row and column, which hold means, stand a little apart.
    x, y = (np.array([*range(len(of) - 1), len(of) - 0.75]) for of in (columns, rows))
    for i, (axes, m) in enumerate(zip(grid, matrices, strict=True)):
        _draw_places(axes, m, (x, y), colours)
        axes.set(xlim=(-0.5, x[-1] + 0.5), ylim=(y[-1] + 0.5, -0.5), title=wrap(m.variant, width))
        axes.set_xticks(x, columns, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(y, rows)
        axes.tick_params(length=0, labelbottom=i + across >= len(grid), labelleft=i % across == 0)
        axes.spines[:].set_visible(False)
    figure.colorbar(colours, ax=grid, shrink=min(1.0, 3 / figure.get_figheight()), aspect=20)
    figure.supylabel("source", fontsize=9)
    figure.supxlabel("target", fontsize=9)
    note = "hatched: the source's own validation cases, in no mean"
    set_title(figure, heading(study, metric, structure), f"{study.task}, protocol {study.protocol.name}; {note}")
    return settled(figure)


def _draw_places(axes: Axes, m: Matrix, at: tuple[np.ndarray, np.ndarray], colours: ScalarMappable) -> None:
    factor = METRICS[m.metric].scale
    for y, row in zip(at[1], places(m), strict=True):
        for x, (value, home) in zip(at[0], row, strict=True):
            blank = home or math.isnan(value)
            face = (1.0, 1.0, 1.0, 1.0) if blank else colours.to_rgba(np.array(value * factor))
            dark = not blank and np.dot(face[:3], (0.299, 0.587, 0.114)) < 0.5
            look: dict[str, Any] = {"facecolor": face, "edgecolor": "#cccccc", "hatch": "////" if home else None}
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, clip_on=False, linewidth=0.5, **look))
            number = "" if math.isnan(value) else f"{value * factor:.1f}"
            look = {"color": GRAY if home else "white" if dark else "black", "ha": "center", "va": "center"}
            ground = {"facecolor": "white", "edgecolor": "none", "pad": 0.8} if home else None
            axes.text(x, y, number, fontsize=8, bbox=ground, **look)


# --- cases -----------------------------------------------------------------------------------------------------------


@styled
def target_boxes(study: Study, metric: str = "dice", structure: str | None = None) -> Figure:
    """One panel per target, one box per variant, one point per case, as `Study.case_means`; none where it is NaN."""
    rule, variants = METRICS[metric], list(study.variants)
    every = study.case_means(metric, structure) * rule.scale
    points = every.dropna()
    known = set(points.index.droplevel("case"))
    cells = study.cells
    tested = set(cells.loc[(cells["role"] == "target") & (cells["n_cases"] > 0), "target"])
    targets = [d for d in study.targets if d in tested]
    figure, grid = row_per_name(variants, len(targets), 1.7, (0.0, 0.9))
    jitter = np.random.default_rng(0)
    for axes, target in zip(grid, targets, strict=True):
        for i, variant in enumerate(variants):
            if (target, variant) not in known:
                continue
            of_case, colour = points[target, variant].to_numpy(), COLOURS[i % len(COLOURS)]
            spread = i + jitter.uniform(-0.22, 0.22, len(of_case))
            axes.plot(of_case, spread, "o", markersize=2.8, markeredgewidth=0, color=colour, alpha=0.6, zorder=2)
            quiet = {part: {"color": GRAY} for part in ("boxprops", "whiskerprops", "capprops")}
            look: dict[str, Any] = {**quiet, "medianprops": {"color": "black", "linewidth": 1.6}}
            look |= {"orientation": "horizontal", "widths": 0.62, "showfliers": False, "manage_ticks": False}
            axes.boxplot(of_case, positions=[i], **look)
        axes.set_title(target)
    low, high = min(a.get_xlim()[0] for a in grid), max(a.get_xlim()[1] for a in grid)
    most = rule.scale * rule.limits[1]
    for axes in grid:
        axes.set_xlim((low, high) if math.isinf(most) else (-0.03 * most, 1.03 * most))
    note = f"{study.task}, protocol {study.protocol.name}; a point: one case, mean over sources and seeds"
    note += "; a case with NaN has none" if len(points) < len(every) else ""
    set_title(figure, heading(study, metric, structure), note)
    return settled(figure)


# --- training --------------------------------------------------------------------------------------------------------


@styled
def learning_curves(study: Study, points: int | None = None) -> Figure:
    """Training loss against step: one panel per variant, one line per run, coloured by source.

    points: the most of a line; where there are more steps, a point is the mean of some beside each other.
    """
    trained = {r.source for r in study.records}
    sources = [d for d in study.sources if d in trained]
    look = looks(sources)
    figure, grid, across = panels(len(study.runs), (2.6, 1.9), (1.4, 0.3))
    for i, (axes, (variant, runs)) in enumerate(zip(grid, study.runs.items(), strict=True)):
        for run in runs:
            if "loss" in run.history and len(run.history) > 1:
                line = run.history[["step", "loss"]]
                if points and len(line) > points:
                    line = line.groupby(np.arange(len(line)) * points // len(line)).mean()
                colour, style, _ = look[run.source]
                axes.plot(line["step"], line["loss"], color=colour, linestyle=style, linewidth=0.9, alpha=0.8)
        if not axes.lines:
            axes.text(0.5, 0.5, "no curve", ha="center", va="center", color=GRAY, transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
        axes.set_title(wrap(variant, 2.4))
        axes.set(xlabel="step" if i + across >= len(grid) else "", ylabel="loss" if i % across == 0 else "")
    _name_sources(figure, {source: {"color": of.colour, "linestyle": of.line} for source, of in look.items()})
    return settled(figure)


def _name_sources(figure: Figure, look: Mapping[str, Mapping[str, Any]]) -> None:
    handles = [Line2D([], [], label=source, **of) for source, of in look.items()]
    figure.legend(handles=handles, title="source", loc="outside right upper", frameon=False, handlelength=2.4)


# --- intervals -------------------------------------------------------------------------------------------------------


NET = "means alone: ranks also count what structures falsely found cost"


class Interval(NamedTuple):
    """A mean and its interval, in the metric's own unit; NaN bounds when there is none."""

    mean: float
    low: float
    high: float


def intervals(ranking: Ranking) -> dict[str, list[Interval]]:
    """Of every variant's mean, and of its mean on each target alone."""
    domains = np.array([domain for domain, _ in ranking.target_cases.cases])
    found = {"mean": [Interval(of.row.mean, of.low, of.high) for of in ranking.every]}
    for target in dict.fromkeys(map(str, domains)):
        at = domains == target
        group = ranking.target_cases.group
        drawn = Resampling(ranking.target_cases.domain[at], group=None if group is None else group[at])
        found[target] = []
        for of in ranking.every:
            interval = Interval(of.row.targets.get(target, math.nan), math.nan, math.nan)
            scores = ranking.scores.get(of.variant)
            if scores is not None and scores.weight[at].sum() > 0:
                mean = estimate(scores.part(at), resampling=drawn)[0]
                interval = Interval(mean.mean, *ranking.metric.possible(mean.low, mean.high))
            found[target].append(interval)
    return found


def frames(ranking: Ranking) -> dict[str, list[str]]:
    """The variants that bound the others, by the line they draw through all rows: dashed above, dotted below."""
    above = [of.variant for of in ranking.every if of.row.bound]
    floors = registry.floors()
    below = [of.variant for of in ranking.every if of.row.method in floors and not of.row.bound]
    return {line: names for line, names in (("dashed", above), ("dotted", below)) if names}


@styled
def forest(ranking: Ranking) -> Figure:
    """One row per variant, one panel for the mean and for each target: a point with its 95 % interval.

    Ranked variants are filled; the others stand apart, hollow, under a line. A band continues the interval of the
    first row, so that one sees which intervals it meets; dashed lines, the means of what was trained inside the
    targets, and dotted ones, those of what ignores the images, frame the others. The axes end at the latest a little
    beyond what is possible.
    """
    names, ranked, metric = [of.variant for of in ranking.every], len(ranking.ranked), ranking.metric
    columns = intervals(ranking)
    figure, grid = row_per_name(names, len(columns), 2.2, (0.1, 0.3))
    for axes, (title, of) in zip(grid, columns.items(), strict=True):
        if of and math.isfinite(of[0].low):
            axes.axvspan(*(metric.scale * v for v in of[0][1:]), color=LINE, linewidth=0, zorder=0)
        for i, (mean, low, high) in enumerate(np.multiply(of, metric.scale).tolist()):
            look: dict[str, Any] = {"color": COLOURS[0] if i < ranked else GRAY, "zorder": 3}
            axes.plot([low, high], [i, i], linewidth=1.6, solid_capstyle="butt", **look)
            axes.plot([mean], [i], "o", markersize=4.5, markerfacecolor=None if i < ranked else "white", **look)
        means = dict(zip(names, (metric.scale * interval.mean for interval in of), strict=True))
        for line, variants in frames(ranking).items():
            for variant in variants:
                axes.axvline(means[variant], color=GRAY, linewidth=0.8, linestyle=line, zorder=0)
        if 0 < ranked < len(names):
            axes.axhline(ranked - 0.5, color=GRAY, linewidth=0.6, linestyle="dotted")
        axes.set(title=title, xlabel=measured(ranking.study, metric.name))
    low, high = min(a.get_xlim()[0] for a in grid), max(a.get_xlim()[1] for a in grid)
    least, most = (metric.scale * v for v in metric.limits)
    room = 0.0 if math.isinf(most) else 0.02 * most
    for axes in grid:  # an interval may leave the range of its metric, and then says nothing there
        axes.set_xlim(max(low, least - room), min(high, most + room))
    if ranking.target_cases.costs:
        figure.supxlabel(NET, fontsize=8, color=GRAY)
    return settled(figure)


# --- costs -----------------------------------------------------------------------------------------------------------


def pareto(ranking: Ranking) -> list[Ranked]:
    """Of the ranked variants those than which no cheaper one, and no equally cheap one, has a better mean."""
    order, front = ranking.metric.order, list[Ranked]()
    known = [of for of in ranking.ranked if math.isfinite(of.row.train_flops)]
    for of in sorted(known, key=lambda of: (of.row.train_flops, order(of.row.mean))):
        if not front or order(of.row.mean) < order(front[-1].row.mean):
            front.append(of)
    return front


@styled
def cost(ranking: Ranking) -> Figure:
    """Mean and 95 % interval of every variant against the FLOPs of its training, and the ranked ones' Pareto front.

    Ranked variants are filled, the others hollow. Names stand at the right, each as high as its point as far as there
    is room. Without any training FLOPs a variant stands at the left end. Raises `UsageError` where none has both.
    """
    known = [of for of in ranking.every if math.isfinite(of.row.train_flops) and math.isfinite(of.row.mean)]
    if not known:
        remedy = "finish the runs of a variant; those of earlier versions count none: dgbench run --rerun all ..."
        raise UsageError("no variant has both a mean and counted FLOPs", remedy)
    spent = [of.row.train_flops for of in known if of.row.train_flops]
    least, most = (min(spent), max(spent)) if spent else (1e12, 1e12)
    ends = least / 2, most * 2
    names = [wrap(of.variant + (" (0)" if not of.row.train_flops else ""), 2.4) for of in known]
    lines = sum(name.count("\n") + 1.25 for name in names)
    side = 0.085 * max(len(line) for name in names for line in name.split("\n"))
    figure, (axes,), _ = panels(1, (4.6, max(2.8, 0.16 * lines)), (side + 1.0, 0.7))
    scale, front = ranking.metric.scale, pareto(ranking)
    # What computes nothing that is counted has no place on a logarithmic axis.
    at = {of.variant: ((of.row.train_flops or ends[0]) / 1e12, scale * of.row.mean) for of in known}
    if front:
        corners = [*(at[of.variant] for of in front), (ends[1] / 1e12, at[front[-1].variant][1])]
        axes.plot(*zip(*corners, strict=True), drawstyle="steps-post", color=GRAY, linewidth=0.9)
    for of in known:
        look: dict[str, Any] = {"color": COLOURS[0] if of.rank else GRAY, "zorder": 3}
        x, y = at[of.variant]
        axes.plot([x, x], [scale * of.low, scale * of.high], linewidth=1.2, alpha=0.45, **look)
        axes.plot([x], [y], "o", markersize=5, markerfacecolor=None if of.rank else "white", **look)
    axes.set(xscale="log", xlim=(ends[0] / 1.25e12, ends[1] / 1e12), xlabel="training, TFLOP (logarithmic)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if most < 50 * least else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tflop, _: f"{tflop:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel(measured(ranking.study, ranking.metric.name))
    axes.grid()
    _name_at_the_right(axes, list(at.values()), names, {i for i, of in enumerate(known) if of in front})
    note = f"{ranking.study.task}, protocol {ranking.study.protocol.name}; line and bold: no cheaper ranked variant is "
    note += f"better{' by its mean' if ranking.target_cases.costs else ''}; hollow: not ranked"
    note += f"; {NET}" if ranking.target_cases.costs else ""
    left_out = len(ranking.every) - len(known)
    note += f"; {counted(left_out, 'variant')} without counted FLOPs left out" if left_out else ""
    set_title(figure, heading(ranking.study, ranking.metric.name), note)
    return settled(figure)


def write_cost(ranking: Ranking, folder: Path) -> list[Path]:
    """Write `cost` into a folder, as .png and .pdf."""
    figure, name = cost(ranking), f"cost-{ranking.metric.name}"
    return [save(figure, make_folder(folder) / f"{name}.{kind}") for kind in ("png", "pdf")]


def _name_at_the_right(
    axes: Axes, points: Sequence[tuple[float, float]], names: Sequence[str], bold: Container[int]
) -> None:
    """Name points beside the axes, each as near to the height of its point as leaves every name its lines."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    line_to: dict[str, Any] = {"arrowstyle": "-", "shrinkB": 3, "relpos": (0, 0.5)}
    order = sorted(range(len(names)), key=lambda i: (points[i][1], points[i][0]))
    figure = axes.figure
    assert isinstance(figure, Figure)
    line = 0.155 / (figure.get_figheight() - 1.1)  # of the axes' height: title and ticks take the other inch
    room = np.array([line * (names[i].count("\n") + 1.1) for i in order])
    before = np.cumsum(room) - room / 2
    wanted = np.array([(points[i][1] - low) / (high - low) for i in order]) - before
    found = isotonic_regression(wanted).x.clip(0, max(0.0, 1 - room.sum())) + before
    for i, height in zip(order, found, strict=True):
        axes.annotate(
            names[i], points[i], (1.04, height), textcoords="axes fraction", va="center", fontsize=8,
            weight="bold" if i in bold else "normal", annotation_clip=False,
            arrowprops=line_to | {"color": GRAY, "linewidth": 0.4, "alpha": 0.6},
        )  # fmt: skip


# --- domain shift ----------------------------------------------------------------------------------------------------


@styled
def domain_shift(points: pd.DataFrame, correlation: Mapping[str, float], sources: Sequence[str]) -> Figure:
    """Loss of Dice in points against intensity distance: one panel per variant, one point per source and target.

    points: columns variant, source, target, distance, loss (fractions), as `domain_shift.losses` gives them. Coloured
    by source; the points of all variants lie behind in gray.
    """
    variants = list(dict.fromkeys(points["variant"]))
    look: dict[str, dict[str, Any]]
    look = {source: {"color": of.colour, "marker": of.marker} for source, of in looks(sources).items()}
    figure, grid, across = panels(len(variants), (2.1, 1.75), (1.5, 0.3), limit=11.0)
    x, y = points["distance"].to_numpy(), 100 * points["loss"].to_numpy()
    pad_x, pad_y = 0.06 * (np.ptp(x) or 0.1), 0.06 * (np.ptp(y) or 10)
    for i, (axes, variant) in enumerate(zip(grid, variants, strict=True)):
        own = points[points["variant"] == variant]
        axes.plot(x, y, "o", markersize=2.2, markeredgewidth=0, color=GRAY, alpha=0.35, zorder=1)
        for source, part in own.groupby("source", sort=False, observed=True):
            axes.plot(part["distance"], 100 * part["loss"], linestyle="", markersize=4.5, zorder=2, **look[source])
        axes.axhline(0, color=GRAY, linewidth=0.6, zorder=0)
        rho = correlation[variant]
        title = wrap(variant, 1.9) + ("" if math.isnan(rho) else f"\n{RHO} = {rho:.2f}".replace("-", "\N{MINUS SIGN}"))
        below = i + across >= len(grid)
        axes.set(xlim=(min(x.min(), 0) - pad_x, x.max() + pad_x), ylim=(y.min() - pad_y, y.max() + pad_y), title=title)
        axes.set(xlabel="intensity distance" if below else "", ylabel="Dice lost" if i % across == 0 else "")
        axes.tick_params(labelbottom=below, labelleft=i % across == 0)
        axes.locator_params(axis="x", nbins=4)
        axes.grid()
    _name_sources(figure, {source: {**of, "linestyle": ""} for source, of in look.items()})
    return settled(figure)
