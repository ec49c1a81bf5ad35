"""Glossary: what the words of a table mean, the definitions that circulate, and what each gives on one pair of masks.

The words are in glossary.txt.jinja; the masks are drawn and measured here when a page is made. No result is typed in.
"""

from __future__ import annotations

import math
from typing import Any, SupportsFloat

import numpy as np
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dgbench import metrics
from dgbench.errors import require
from dgbench.metrics import Mask
from dgbench.pages.table import fill

TOPICS = ("asd", "assd", "hd95", "dice", "mean", "missed", "oracle", "gap", "in_domain")
SPACING = (3.0, 0.5, 0.5)  # mm between slices, rows and columns: thick slices, as most MRI
VOXELS = (1.0, 1.0, 1.0)
TARGETS = {"A": (30, 0.9), "B": (13, 0.9), "C": (43, 0.6)}  # cases and the Dice of each


def masks() -> tuple[Mask, Mask]:
    """(prediction, reference), bool (6, 16, 16): the prediction lacks a side and has one slice too many."""
    prediction, reference = np.zeros((2, 6, 16, 16), dtype=bool)
    reference[1:4, 4:12, 4:12] = True
    prediction[1:5, 4:12, 6:12] = True
    return prediction, reference


def explain(topic: str) -> Group:
    """A page for `rich.console.Console.print`: it fits 80 columns, and is plain text where there is no terminal.

    Raises `UsageError` for a topic that there is no page on.
    """
    title, *parts = _page(require(topic, TOPICS, "topic"))
    return Group(Text(title, "bold"), *(piece for part in parts for piece in (Text(), _shown(part))))


def pages() -> str:
    """docs/glossary.md: the words of the field, and every page of `explain`."""
    explained = [(topic, title, map(_markdown, parts)) for topic in TOPICS for title, *parts in [_page(topic)]]
    return fill("glossary.md.jinja", explained=explained)


def _page(topic: str) -> list[str]:
    """Its title and its parts."""
    page = fill("glossary.txt.jinja", topic=topic, **_measured())
    return [part.strip() for part in page.strip().split("\n\n")]


def _markdown(part: str) -> str:
    if part.startswith("."):
        return f"```text\n{part}\n```"
    return f"| definition | gives | who |\n|---|---:|---|\n{part}" if part.startswith("|") else " ".join(part.split())


def _shown(part: str) -> Text | Table:
    """A paragraph, a drawing (which keeps its lines), or rows of | cells | as a table."""
    if not part.startswith("|"):
        return Text(part if part.startswith(".") else " ".join(part.split()))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0))
    table.add_column("definition", no_wrap=True)
    table.add_column("gives", justify="right", no_wrap=True)
    table.add_column("who")
    for line in part.split("\n"):
        table.add_row(*(Text(cell.strip()) for cell in line.split("|")[1:-1]))
    return table


def _measured() -> dict[str, Any]:
    """What the words need: the masks, what each definition gives on them, and how a number is written."""
    prediction, reference = masks()
    speck = np.zeros_like(reference)
    speck[2, 4, 4] = True
    middle = [np.where(reference[s] & prediction[s], 3, reference[s] + 2 * prediction[s]) for s in (2, 4)]
    rows = ["   ".join("".join(".rp#"[v] for v in line) for line in both) for both in zip(*middle, strict=True)]
    counts, dices = np.array(list(TARGETS.values())).T
    return {
        "shape": reference.shape,
        "spacing": SPACING,
        "drawing": "\n".join(rows[3:13]),
        "asd": _distances(prediction, reference),
        "hd95": _percentiles(prediction, reference),
        "dice": _overlaps(prediction, reference),
        "speck": metrics.measure(speck, reference, SPACING),
        "missed": metrics.measure(np.zeros_like(reference), reference, SPACING),
        "diagonal": metrics.image_diagonal(reference.shape, SPACING),
        "targets": TARGETS,
        "mean": {"equal": dices.mean(), "pooled": np.average(dices, weights=counts), "worst": dices.min()},
        "nan": math.nan,
        "mm": lambda value: f"{value:.3f} mm" if math.isfinite(value) else str(float(value)),
        "voxels": "{:.3f} voxels".format,
        "percent": lambda fraction: f"{100 * fraction:.2f} %",
    }


def _distances(prediction: Mask, reference: Mask) -> dict[str, SupportsFloat]:
    kept = reference.any(axis=(1, 2))
    sliced = [metrics.asd(p, r, SPACING[1:]) for p, r in zip(prediction, reference, strict=True) if (p | r).any()]
    return {
        "there": metrics.asd(prediction, reference, SPACING),
        "back": metrics.asd(reference, prediction, SPACING),
        "pooled": metrics.assd(prediction, reference, SPACING),
        "voxels": metrics.asd(prediction, reference, VOXELS),
        "kept": metrics.asd(prediction[kept], reference[kept], VOXELS),
        "slices": np.mean([d for d in sliced if math.isfinite(d)]),
        "penalised": np.minimum(sliced, metrics.image_diagonal(prediction.shape[1:], SPACING[1:])).mean(),
    }


def _percentiles(prediction: Mask, reference: Mask) -> dict[str, SupportsFloat]:
    there, back = metrics.surface_distances(prediction, reference, SPACING)
    pooled = np.r_[there, back]
    found = {name: np.percentile(of, 95) for name, of in (("there", there), ("back", back), ("pooled", pooled))}
    return {**found, "largest": pooled.max(), "voxels": metrics.hd95(prediction, reference, VOXELS)}


def _overlaps(prediction: Mask, reference: Mask) -> dict[str, SupportsFloat]:
    kept = reference.any(axis=(1, 2))
    slices = [metrics.dice(p, r) for p, r in zip(prediction, reference, strict=True)]
    return {
        "whole": metrics.dice(prediction, reference),
        "kept": metrics.dice(prediction[kept], reference[kept]),
        "slices": np.nanmean(slices),
        "generous": np.nan_to_num(slices, nan=1.0).mean(),
    }
