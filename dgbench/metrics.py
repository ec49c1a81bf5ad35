"""Dice and surface distances between two masks, exact, in float64; and how each of them is read and shown.

A mask is a bool array (D, H, W), or (H, W); a (1, H, W) mask is measured as the 2-D image it is, since as a volume each
of its voxels would be a border. Nothing is binarised here: any other type is a TypeError.

A border voxel belongs to the mask while one of its face neighbours (6 in 3-D, 4 in 2-D) does not; outside the image
there is no mask. With P and R the border voxels of prediction and reference, spacing s and voxel indices i, j:

    d(i, j)   = ||s (i - j)||                    between voxel centres
    d(P -> R) = {min_j in R d(i, j) : i in P}    one distance for each border voxel
    ASD       = mean of d(P -> R)                directed
    ASSD      = mean of d(P -> R) and d(R -> P) pooled
    HD95      = 95th percentile of d(P -> R) and d(R -> P) pooled, linear interpolation

These are MedPy 0.5.2's `asd`, `assd` and `hd95` at connectivity 1; other libraries call other numbers by these names.

    prediction   reference    Dice        ASD, ASSD, HD95    flag
    empty        empty        NaN         NaN                both_empty        not applicable
    empty        not empty    0           inf                missed
    not empty    empty        0           inf                false_positive
    not empty    not empty    in [0, 1]   in [0, inf)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from dgbench.errors import require

VERSION = 1  # stands in every record; raise it whenever a number could change
SWEEP = 24  # with fewer voxels than this to each question, one transform of the box beats a tree; both are exact

Mask = NDArray[np.bool_]
Distances = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """How a metric is read and shown; its values are kept as fractions (Dice) or in the unit of the spacing.

    limits: the lowest and the highest value there can be. margin: two results that differ by less are equivalent.
    scale: what a value is multiplied by where it is shown; Dice is shown in percent.
    """

    name: str
    title: str
    higher_is_better: bool
    limits: tuple[float, float]
    margin: float
    scale: int = 1

    def unit(self, of_distances: str) -> str:
        """Of shown values: "%" for Dice, else that of the distances."""
        return "%" if self.scale == 100 else of_distances

    def points(self, of_distances: str) -> str:
        """What a difference is counted in."""
        return "points" if self.scale == 100 else of_distances

    def number(self, value: float, std: float = math.nan) -> str:
        """As tables show it, with two decimals; "" for NaN. std: behind ±, where it is known."""
        if math.isnan(value):
            return ""
        text = f"{round(value * self.scale, 2) + 0.0:.2f}"
        return text if math.isnan(std) else f"{text} ± {std * self.scale:.2f}"

    def signed(self, value: float) -> str:
        """A difference as tables show it, with its sign."""
        text = self.number(value)
        return text if not text or text.startswith("-") else f"+{text}"

    def best(self, values: Sequence[float]) -> set[int]:
        """Which values show the best number, ties among them; none when there is nothing to compare."""
        shown = {i: round(v * self.scale, 2) for i, v in enumerate(values) if not math.isnan(v)}
        if len(shown) < 2:
            return set()
        top = (max if self.higher_is_better else min)(shown.values())
        return {i for i, v in shown.items() if v == top}

    def cost(self, value: float) -> float:
        """A number that is smaller the better the value is."""
        return -value if self.higher_is_better else value

    def worse(self, value: Any, by: Any) -> Any:
        """A value, or each of an array, that is worse by so much, `by` being no less than 0."""
        return value - by if self.higher_is_better else value + by

    def order(self, value: float) -> float:
        """Sorts the best value first and NaN last."""
        return math.inf if math.isnan(value) else self.cost(value)

    def possible(self, low: float, high: float) -> tuple[float, float]:
        """An interval, cut to the values there can be."""
        least, most = self.limits
        return (float(np.clip(low, least, most)), float(np.clip(high, least, most)))


METRICS = {
    m.name: m
    for m in (
        Metric("dice", "Dice", True, (0.0, 1.0), 0.005, 100),
        *(Metric(n, n.upper(), False, (0.0, math.inf), 0.1) for n in ("asd", "assd", "hd95")),
        Metric("cldice", "clDice", True, (0.0, 1.0), 0.005, 100),
    )
}
MEASURED = ("dice", "asd", "assd", "hd95")  # in every run; the others where a task asks: `Task.further_metrics`


def get_metric(name: str, known: Sequence[str] = tuple(METRICS)) -> Metric:
    """The metric of that name. Raises `UsageError` for one that is not `known`, such as those of a protocol."""
    return METRICS[require(name, list(known), "metric")]


class Scores(NamedTuple):
    """What is measured of one prediction; the table above says what empty masks give.

    Attributes
    ----------
    dice: in [0, 1], 1 is best.
    asd, assd, hd95: in [0, inf], 0 is best, in the unit of the spacing.
    flag: "" when both masks hold a voxel.
    n_prediction, n_reference: voxels in each mask.
    """

    dice: float
    asd: float
    assd: float
    hd95: float
    flag: Literal["", "both_empty", "missed", "false_positive"]
    n_prediction: int
    n_reference: int


def measure(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> Scores:
    """All scores of a prediction, with the surfaces found once.

    Parameters
    ----------
    prediction, reference: bool (D, H, W) or (H, W), of one shape.
    spacing: between voxel centres along each axis of the masks, positive; its unit is that of the distances.

    Raises
    ------
    TypeError: a mask is no bool array.
    ValueError: the shapes differ, are neither 2-D nor 3-D, or do not fit the spacing.
    """
    to_reference, to_prediction = surface_distances(prediction, reference, spacing)
    n_prediction, n_reference = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    overlap = dice(prediction, reference)
    if not n_prediction and not n_reference:
        return Scores(overlap, math.nan, math.nan, math.nan, "both_empty", 0, 0)
    if not n_prediction:
        return Scores(overlap, math.inf, math.inf, math.inf, "missed", 0, n_reference)
    if not n_reference:
        return Scores(overlap, math.inf, math.inf, math.inf, "false_positive", n_prediction, 0)
    pooled = np.concatenate([to_reference, to_prediction])
    hausdorff = float(np.percentile(pooled, 95))
    return Scores(overlap, float(to_reference.mean()), float(pooled.mean()), hausdorff, "", n_prediction, n_reference)


def dice(prediction: Mask, reference: Mask) -> float:
    """2 |P and R| / (|P| + |R|) over the voxels of two masks (Dice, Ecology 1945).

    Bool (D, H, W) or (H, W), of one shape. No unit, in [0, 1]; both empty: NaN; one empty: 0. Raises as `measure`.
    """
    _check(prediction, reference)
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return float(2 * np.count_nonzero(prediction & reference) / total) if total else math.nan


def asd(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> float:
    """Average surface distance, directed: the mean of d(P -> R), blind to what the prediction leaves out.

    Shapes and errors as `measure`. In the unit of the spacing, in [0, inf]; both empty: NaN; one empty: inf.
    Source: MedPy 0.5.2, `asd(result, reference)`.
    """
    return measure(prediction, reference, spacing).asd


def assd(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> float:
    """Average symmetric surface distance: the mean of d(P -> R) and d(R -> P) pooled (Heimann et al., TMI 2009).

    Shapes and errors as `measure`. In the unit of the spacing, in [0, inf]; both empty: NaN; one empty: inf.
    The larger surface weighs more: this is not the mean of the two directed means. As MedPy 0.5.2's `assd`.
    """
    return measure(prediction, reference, spacing).assd


def hd95(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> float:
    """Hausdorff distance at the 95th percentile of d(P -> R) and d(R -> P) pooled.

    Shapes and errors as `measure`. In the unit of the spacing, in [0, inf]; both empty: NaN; one empty: inf.
    This is not the larger of two directed percentiles. As MedPy 0.5.2's `hd95`.
    """
    return measure(prediction, reference, spacing).hd95


def cldice(prediction: Mask, reference: Mask) -> float:
    """How much of a tube's centre line is found, and not invented (centerlineDice; Shit et al., CVPR 2021).

    2 a b / (a + b), a = |S_P and R| / |S_P|, b = |S_R and P| / |S_R|, S being the `skeleton` of a mask: blind to how
    thick a tube is, while it is there.

    Bool (H, W) or (1, H, W), of one shape. No unit, in [0, 1], 1 is best; both empty: NaN; one empty: 0. Raises as
    `measure`, and ValueError for a volume.
    """
    _check(prediction, reference)
    if not prediction.any() or not reference.any():
        return 0.0 if prediction.any() or reference.any() else math.nan
    of_prediction, of_reference = skeleton(prediction), skeleton(reference)
    precision = np.count_nonzero(of_prediction & reference) / np.count_nonzero(of_prediction)
    sensitivity = np.count_nonzero(of_reference & prediction) / np.count_nonzero(of_reference)
    return float(2 * precision * sensitivity / (precision + sensitivity)) if precision + sensitivity else 0.0


FURTHER: dict[str, Callable[[Mask, Mask], float]] = {"cldice": cldice}  # how those are measured


def skeleton(mask: Mask) -> Mask:
    """The centre lines of a mask, one pixel wide, thinned from both sides in turn (Guo, Hall, CACM 1989, A1).

    Bool (H, W) or (1, H, W) -> bool of the same shape; something is left of whatever there is. Beyond the image's rim
    there is no mask. Equal to scikit-image 0.26's `thin`; by its `skeletonize`, which the authors of clDice call,
    clDice is another by a few thousandths. Raises ValueError for a volume.
    """
    if mask.ndim == 3 and len(mask) > 1:
        raise ValueError(f"the skeleton of a volume {mask.shape} is not defined here: measure its slices")
    plane = np.pad(mask.reshape(mask.shape[-2:]), 1).astype(np.uint8)
    flat, width = plane.ravel(), plane.shape[1]
    around = (-width, 1 - width, 1, width + 1, width, width - 1, -1, -width - 1)  # clockwise from above
    left = np.flatnonzero(flat)
    worn = True
    while worn:
        worn = False
        for table in _THINNING:
            code = np.zeros(len(left), np.uint8)
            for bit, step in enumerate(around):
                code |= flat[left + step] << bit
            gone = table[code]
            flat[left[gone]] = 0
            left = left[~gone]
            worn |= bool(gone.any())
    return plane[1:-1, 1:-1].astype(bool).reshape(mask.shape)


def _thinning() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """For each of the 256 neighbourhoods, may its middle go? In the first sweep, and in the second.

    With p2 to p9 the neighbours clockwise from above, as in the paper: C = 1 (the rest stays connected), N is 2 or 3
    (it is no end), and (p2 or p3 or not p5) and p4 = 0, in the second sweep turned by half a circle.
    """
    p2, p3, p4, p5, p6, p7, p8, p9 = ((np.arange(256) >> bit & 1).astype(bool) for bit in range(8))
    turned = (p2, p3, p4), (p4, p5, p6), (p6, p7, p8), (p8, p9, p2)
    c = np.sum([~one & (two | three) for one, two, three in turned], axis=0)
    one = np.sum([p9 | p2, p3 | p4, p5 | p6, p7 | p8], axis=0)
    other = np.sum([p2 | p3, p4 | p5, p6 | p7, p8 | p9], axis=0)
    n = np.minimum(one, other)
    border = (c == 1) & (n >= 2) & (n <= 3)
    return border & ~((p2 | p3 | ~p5) & p4), border & ~((p6 | p7 | ~p9) & p8)


_THINNING = _thinning()


def surface_distances(prediction: Mask, reference: Mask, spacing: Sequence[float]) -> tuple[Distances, Distances]:
    """(d(P -> R), d(R -> P)): how far each border voxel lies from the other mask's nearest border voxel.

    Two float64 vectors, one number for each border voxel in C order, in the unit of the spacing, in [0, inf]. An empty
    mask has no border, so its vector has no element, and all distances to it are inf. Shapes and errors as `measure`.
    """
    _check(prediction, reference)
    step = _checked_spacing(prediction.shape, spacing)
    if prediction.ndim == 3 and len(prediction) == 1:
        prediction, reference, step = prediction[0], reference[0], step[1:]
    box = _box(prediction | reference)
    p, r = _border(prediction[box]), _border(reference[box])
    return _directed(p, r, step), _directed(r, p, step)


def image_diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """sqrt(sum_a (n_a s_a)^2): the penalty for a missed or falsely found structure, in the unit of the spacing.

    The diagonal from an outer corner of the image to the opposite one, n_a voxels of size s_a along axis a: longer than
    the distance between any two voxel centres, so that a miss is worse than whatever is found. `shape` is (D, H, W) or
    (H, W); D and its spacing do not count when D = 1, as that image is measured in 2-D.
    """
    step = _checked_spacing(shape, spacing)
    flat = len(shape) == 3 and shape[0] == 1
    return math.hypot(*(np.asarray(shape) * step)[1 if flat else 0 :])


def _check(prediction: Mask, reference: Mask) -> None:
    for name, mask in (("prediction", prediction), ("reference", reference)):
        if not isinstance(mask, np.ndarray) or mask.dtype != bool:
            got = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
            raise TypeError(f"{name} must be a bool array, got {got}; threshold it where the threshold is known")
        if mask.ndim not in (2, 3):
            raise ValueError(f"{name} must be (D, H, W) or (H, W), got shape {mask.shape}")
    if prediction.shape != reference.shape:
        raise ValueError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")


def _checked_spacing(shape: Sequence[int], spacing: Sequence[float]) -> NDArray[np.float64]:
    step = np.asarray(spacing, dtype=np.float64)
    if step.shape != (len(shape),) or not (np.isfinite(step) & (step > 0)).all():
        raise ValueError(f"spacing of a {tuple(shape)} image must be {len(shape)} positive numbers, got {spacing}")
    return step


def _box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box that holds a mask; cropping to it moves no border, since outside of it there is no mask."""
    box: tuple[slice, ...] = ()
    for axis in range(mask.ndim):
        inside = mask[box]  # what earlier axes cut off need not be read again
        found = np.flatnonzero(inside.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box += (slice(found[0], found[-1] + 1) if len(found) else slice(0),)
    return box


def _border(mask: Mask) -> Mask:
    core = mask.copy()
    for axis in range(mask.ndim):
        inner, whole = core.swapaxes(0, axis), mask.swapaxes(0, axis)  # views, with this axis first
        inner[1:] &= whole[:-1]
        inner[:-1] &= whole[1:]
        inner[:1] = inner[-1:] = False
    return mask & ~core


def _directed(border: Mask, other: Mask, step: Distances) -> Distances:
    """The distance of each voxel of `border` to the nearest voxel of `other`, in C order."""
    if not other.any():
        return np.full(np.count_nonzero(border), math.inf)
    distances = np.zeros(np.count_nonzero(border))
    apart = border & ~other  # a voxel of both has its 0 already
    asked = np.argwhere(apart)
    if not len(asked):
        return distances
    if border.size < SWEEP * len(asked):
        nearest = distance_transform_edt(~other, sampling=step, return_distances=False, return_indices=True)[:, apart]
        distances[apart[border]] = np.sqrt((((asked - nearest.T) * step) ** 2).sum(axis=1))
    else:
        # Large leaves and loose nodes: a surface is dense, so many voxels are nearly as near as the nearest.
        tree = cKDTree(np.argwhere(other) * step, leafsize=48, compact_nodes=False)
        distances[apart[border]] = tree.query(asked * step, workers=2)[0]
    return distances
