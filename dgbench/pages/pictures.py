"""Pictures: slices of cases with the contours of their masks, as a figure and as images for a page."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from PIL import Image

from dgbench.images import preparation
from dgbench.pages.drawing import contours, data_uri, panels, settled, styled, wrap
from dgbench.protocol import get_protocol
from dgbench.running.records import RunRecord
from dgbench.scores.study import run_costs, run_scores
from dgbench.task import Task

REFERENCE, PREDICTION = "#56B4E9", "#F0E442"  # of the same palette; both stand out from gray and from a fundus


# --- which cases -----------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """A target case as a run predicted it. dice: the mean over structures, in [0, 1]; NaN where there are none."""

    run: RunRecord
    domain: str
    case: str
    dice: float

    @property
    def where(self) -> str:
        """Which run tested which case."""
        return f"{self.run.source} → {self.domain}, {self.case}, seed {self.run.seed}"


def examples(runs: Iterable[RunRecord]) -> list[Example]:
    """All target cases of some runs whose Dice is known."""
    return [
        Example(run, str(domain), str(case), float(dice))
        for run in runs
        for (domain, case), dice in run_scores(run).dropna().items()
    ]


def notable(runs: Iterable[RunRecord]) -> dict[str, Example]:
    """The best, the median and the worst target case of some runs by Dice; one case is shown once."""
    ordered = sorted(examples(runs), key=lambda e: -e.dice)
    picked = {0: "best", len(ordered) // 2: "median", len(ordered) - 1: "worst"} if ordered else {}
    return {word: ordered[i] for i, word in sorted(picked.items())}


def worst(runs: Iterable[RunRecord], most: int, domains: Collection[str]) -> list[Example]:
    """The target cases of some domains that lose most Dice, worst first, each once, by the run that did worst.

    What is there and not found is lost, and so is what falsely found structures cost, also where none is there.
    """
    found: dict[tuple[str, str], Example] = {}
    of_domains = [(loss, e) for loss, e in _losses(runs) if e.domain in domains]
    for _, example in sorted(of_domains, key=lambda of: (-of[0], of[1].domain, of[1].case)):
        found.setdefault((example.domain, example.case), example)
    return list(found.values())[:most]


def _losses(runs: Iterable[RunRecord]) -> Iterator[tuple[float, Example]]:
    for run in runs:
        dice = run_scores(run)
        for (domain, case), cost in run_costs(run).items():
            score = float(dice.get((domain, case), math.nan))
            if cost or not math.isnan(score):
                yield cost + (0.0 if math.isnan(score) else 1 - score), Example(run, str(domain), str(case), score)


# --- which slice -----------------------------------------------------------------------------------------------------


class Slice(NamedTuple):
    """A slice of a case, number `number` (from 1) of `of`, where its structures are and where they were predicted.

    image: (H, W) or (H, W, 3) float in [0, 1]; reference and prediction: bool (K, H, W).
    """

    image: np.ndarray
    reference: np.ndarray
    prediction: np.ndarray
    number: int = 1
    of: int = 1


def telling(image: np.ndarray, reference: np.ndarray, prediction: np.ndarray) -> Slice:
    """The slice of a case that shows most of its structures, by the reference (by the prediction if that is empty).

    image: float (D, C, H, W) with C 1 or 3; reference and prediction: bool (D, K, H, W).
    """
    d = int((reference if reference.any() else prediction).sum(axis=(1, 2, 3)).argmax())
    flat = image[d, 0] if image.shape[1] == 1 else np.moveaxis(image[d], 0, -1)
    return Slice(flat, reference[d], prediction[d], d + 1, len(image))


def seen(task: Task, example: Example) -> Slice:
    """The telling slice on the grid that the run's protocol compared masks on, the image read from the task's files."""
    case, protocol = task.load(example.domain, example.case), get_protocol(example.run.protocol)
    kept = case.mask.any(axis=(1, 2, 3)) if protocol.slices == "foreground" else slice(None)
    image, reference = case.image[kept], case.mask[kept]
    if protocol.resolution == "network":
        told = example.run.record
        size = told["hparams"]["image_size"] or told["image_size"]
        image = preparation.to_network(image, size)
        reference = preparation.mask_to_network(reference, size).astype(bool)
    return telling(image, reference, example.run.predictions(example.domain, example.case))


# --- how it is shown -------------------------------------------------------------------------------------------------


@styled
def overlays(slices: Mapping[str, Slice]) -> Figure:
    """Slices in gray or colour, each under its title, with the contours of both masks; three pictures a row."""
    width = 2.7
    tallest = max(s.image.shape[0] / s.image.shape[1] for s in slices.values())
    lines = max(wrap(title, width).count("\n") + 1 for title in slices)
    height = width * min(tallest, 2.0) + 0.16 * lines + 0.1
    figure, grid, _ = panels(len(slices), (width, height), (0.1, 0.4), limit=3 * width)
    for axes, (title, shown) in zip(grid, slices.items(), strict=True):
        axes.imshow(shown.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        _draw_contours(axes, shown.reference, REFERENCE, "solid", 1.8)
        _draw_contours(axes, shown.prediction, PREDICTION, "dashed", 1.4)
        axes.set(xlim=(-0.5, shown.image.shape[1] - 0.5), ylim=(shown.image.shape[0] - 0.5, -0.5), xticks=[], yticks=[])
        axes.set_title(wrap(title, width))
        axes.spines[:].set_visible(False)
        axes.set_anchor("N")
    outline = [withStroke(linewidth=3.2, foreground="black")]
    handles = [
        Line2D([], [], color=REFERENCE, linewidth=2, label="reference", path_effects=outline),
        Line2D([], [], color=PREDICTION, linewidth=2, linestyle="dashed", label="prediction", path_effects=outline),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return settled(figure)


def _draw_contours(axes: Axes, masks: np.ndarray, colour: str, dash: str, thickness: float) -> None:
    lines = [line - 0.5 for line in contours(masks)]  # a pixel's centre is drawn at its number
    if lines:
        drawn = LineCollection(lines, colors=colour, linewidths=thickness, linestyles=dash)
        drawn.set_path_effects([withStroke(linewidth=thickness + 1.2, foreground="black")])
        axes.add_collection(drawn)


class Picture(NamedTuple):
    """A slice for a page: its image as a data URI, its size in pixels, and two contours as SVG paths over it."""

    uri: str
    width: int
    height: int
    reference: str
    prediction: str


def picture(shown: Slice, longest: int = 320) -> Picture:
    """At most `longest` pixels a side; the contours are in pixels of the slice."""
    height, width = shown.image.shape[:2]
    paths = svg_path(shown.reference), svg_path(shown.prediction)
    return Picture(thumbnail(shown.image, longest), width, height, *paths)


def thumbnail(image: np.ndarray, longest: int = 320) -> str:
    """An image, (H, W) or (H, W, 3) in [0, 1], as a data URI of at most `longest` pixels a side."""
    pixels = Image.fromarray((image.clip(0, 1) * 255).round().astype(np.uint8))
    pixels.thumbnail((longest, longest))
    content = io.BytesIO()
    pixels.save(content, "JPEG", quality=85)
    return data_uri("jpeg", content.getvalue())


def svg_path(masks: np.ndarray) -> str:
    """The contours of masks, bool (K, H, W), as one SVG path in pixels, (0, 0) the image's corner; "" when empty."""
    lines = contours(masks, max(1, max(masks.shape[1:]) // 512))
    points = ([f"{x:g} {y:g}" for x, y in np.round(line, 1)] for line in lines)
    return "".join(f"M{'L'.join(p[:-1])}Z" for p in points)
