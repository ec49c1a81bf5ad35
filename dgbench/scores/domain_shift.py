"""Domain shift: how far the intensities of two domains are apart, and what a method loses on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from dgbench.images.preparation import PreparedDomain
    from dgbench.scores.study import Matrix
    from dgbench.task import Task

BINS = 256  # equal parts of [0, 1]
CENTRES = (np.arange(BINS) + 0.5) / BINS
DEFINITION = (
    "Intensities are those the network sees: at its resolution, in [0, 1] by the task's rule, colour averaged to gray, "
    f"counted in {BINS} equal bins. The pixels of a case inside any reference structure and those outside make one "
    "histogram each; a domain's histogram is the mean of its cases', each case equal. The distance of two domains is "
    "the mean of two 1-Wasserstein distances, of their inside and of their outside histograms: 0 means equal, 0.1 that "
    "gray values move by a tenth of the range on average. All cases and their reference masks are used, so it "
    "describes the data; no method has seen it."
)


@dataclass(frozen=True, eq=False)
class Intensities:
    """A domain's gray values: shares of BINS bins, (BINS,) float64 with sum 1, inside its structures and outside.

    inside is NaN when no case has a structure. fingerprint: of the images and masks, as runs record it. prepared: the
    images that were counted.
    """

    domain: str
    fingerprint: str
    cases: int
    slices: int
    inside: np.ndarray
    outside: np.ndarray
    prepared: PreparedDomain | None = None


def intensities(task: Task, domain: str) -> Intensities:
    """Count a domain's prepared images. Raises `DataError` when they are not there or cannot be used."""
    from dgbench.images import preparation  # and torch: tables of scores need neither

    prepared = preparation.prepare(task, domain, task.image_size)
    inside: list[np.ndarray] = []
    outside: list[np.ndarray] = []
    for case in prepared.cases.values():
        h, w = preparation.network_box(*case.shape[1:], task.image_size)
        at = slice(case.first, case.first + case.shape[0])
        gray = prepared.images[at, :, :h, :w].mean(axis=1)
        bins = np.minimum(gray * (BINS / preparation.LEVELS), BINS - 1).astype(np.uint8)
        structure = prepared.masks[at, :, :h, :w].any(axis=1)
        for counts, pixels in ((inside, bins[structure]), (outside, bins[~structure])):
            if pixels.size:
                counts.append(np.bincount(pixels, minlength=BINS) / pixels.size)
    nothing = [np.full(BINS, np.nan)]
    return Intensities(
        domain,
        prepared.fingerprint,
        len(prepared.cases),
        len(prepared.images),
        np.mean(inside or nothing, axis=0),
        np.mean(outside or nothing, axis=0),
        prepared,
    )


def wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """1-Wasserstein distance of two histograms over [0, 1] (BINS,): the area between their cumulative sums."""
    return float(np.abs(np.cumsum(one - other)).sum() / BINS)


def distance(one: Intensities, other: Intensities) -> float:
    """Of two domains, in [0, 1], as DEFINITION says; NaN when one has no structure."""
    return (wasserstein(one.inside, other.inside) + wasserstein(one.outside, other.outside)) / 2


def statistics(histogram: np.ndarray) -> dict[str, float]:
    """Mean, standard deviation and percentiles of the intensities counted in a histogram (BINS,), each in [0, 1]."""
    mean = float(histogram @ CENTRES)
    found = {"mean": mean, "std": float(np.sqrt(histogram @ (CENTRES - mean) ** 2))}
    below = np.cumsum(histogram)
    for percent in (5, 50, 95):
        at = min(int(np.searchsorted(below, percent / 100 - 1e-9)), BINS - 1)
        found[f"p{percent}"] = float(CENTRES[at]) if np.isfinite(mean) else float("nan")
    return found


def losses(matrices: Iterable[Matrix], domains: Mapping[str, Intensities]) -> pd.DataFrame:
    """What each variant loses from each source to each target, and how far it is.

    Columns: variant, source, target, distance, loss (Dice on the source's validation cases minus Dice on the target).
    Pairs without one of the two numbers are left out.
    """
    rows = [
        (m.variant, source, target, distance(domains[source], domains[target]), m.validation[source] - value)
        for m in matrices
        for source in m.values.index[:-1]
        for target, value in m.values.loc[source].iloc[:-1].items()
        if source in domains and target in domains
    ]
    frame = pd.DataFrame(rows, columns=["variant", "source", "target", "distance", "loss"])
    return frame.dropna(ignore_index=True)


def rank_correlation(points: pd.DataFrame) -> pd.Series:
    """Spearman's correlation of distance and loss over source-target pairs, by variant; NaN below four pairs."""
    found = {}
    for variant, part in points.groupby("variant", sort=False):
        ranks = part[["distance", "loss"]].rank()
        found[variant] = float(ranks["distance"].corr(ranks["loss"])) if len(part) > 3 else float("nan")
    return pd.Series(found, dtype=float)
