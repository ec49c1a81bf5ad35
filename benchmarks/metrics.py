"""Surface metrics against MedPy: the same numbers, and how much faster. Run: python benchmarks/metrics.py

Times are medians of interleaved repeats: MedPy's three calls (asd, assd, hd95), then one `measure`, which gives the
Dice too.
"""

import os
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from dgbench import metrics

SHAPE, SPACING = (24, 384, 384), (3.0, 0.6, 0.6)
REPEATS = 5
PAIRS = 500


def ellipsoid(centre: tuple[float, ...], radius: tuple[float, ...], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Bool mask of `shape`; centre and radius in voxels."""
    axes = np.ogrid[tuple(map(slice, shape))]
    return np.asarray(sum(((x - c) / r) ** 2 for x, c, r in zip(axes, centre, radius, strict=True)) <= 1)


def blob(rng: np.random.Generator, radius: tuple[float, ...], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Bool mask of `shape`: an ellipsoid in the middle, its surface bent by smooth noise, islands around it."""
    noise = gaussian_filter(rng.standard_normal(shape), [max(n / 25, 1) for n in shape])
    axes = np.ogrid[tuple(map(slice, shape))]
    distance = sum(((x - n / 2) / r) ** 2 for x, n, r in zip(axes, shape, radius, strict=True))
    return np.asarray(1 + 0.6 * noise / noise.std() > distance)


def random_mask(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Bool mask of `shape` with at least one voxel: an ellipsoid, a blob, noise of any density, or a single voxel."""
    kind = rng.integers(4)
    if kind == 0:
        mask = ellipsoid(tuple(rng.uniform(0, shape)), tuple(rng.uniform(0.5, 1 + np.array(shape) / 2)), shape)
    elif kind == 1:
        mask = blob(rng, tuple(1 + np.array(shape) / 6), shape)
    else:
        mask = rng.random(shape) < (rng.random() if kind == 2 else 0)
    mask[tuple(rng.integers(shape))] = True
    return mask


def random_pair(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """(prediction, reference, spacing) by seed alone: two non-empty masks, 2-D for even seeds and 3-D for odd ones."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in (rng.integers(2, 64, 2) if seed % 2 == 0 else rng.integers(2, 24, 3)))
    spacing = tuple(float(s) for s in np.exp(rng.uniform(np.log(0.2), np.log(6), len(shape))))
    return random_mask(rng, shape), random_mask(rng, shape), spacing


def medpy_distances(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> list[float]:
    """[ASD, ASSD, HD95] by MedPy's three calls."""
    from medpy.metric import binary

    return [float(f(prediction, reference, spacing)) for f in (binary.asd, binary.assd, binary.hd95)]


def difference(seed: int) -> float:
    """The largest absolute difference from MedPy in Dice, ASD, ASSD and HD95 on a random pair."""
    from medpy.metric import binary

    prediction, reference, spacing = random_pair(seed)
    theirs = [binary.dc(prediction, reference), *medpy_distances(prediction, reference, spacing)]
    return float(np.abs(np.subtract(metrics.measure(prediction, reference, spacing)[:4], theirs)).max())


def seconds(measure: Callable[..., object], prediction: np.ndarray, reference: np.ndarray) -> float:
    start = time.perf_counter()
    measure(prediction, reference, SPACING)
    return time.perf_counter() - start


def main() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)
    a, b = np.random.default_rng(0), np.random.default_rng(1)
    pairs = {
        "ellipsoids, placed apart": (ellipsoid((11, 195, 200), (8, 42, 50)), ellipsoid((12, 188, 192), (8.5, 45, 46))),
        "ellipsoids, one voxel apart": (ellipsoid((12, 192, 192), (8, 45, 45)), ellipsoid((12, 193, 192), (8, 45, 45))),
        "ellipsoids, far apart": (ellipsoid((6, 60, 60), (4, 30, 30)), ellipsoid((16, 300, 310), (5, 40, 40))),
        "ellipsoids, small in large": (ellipsoid((12, 192, 192), (3, 15, 15)), ellipsoid((12, 192, 192), (11, 90, 90))),
        "irregular blobs": (blob(a, (8, 45, 45)), blob(b, (8, 45, 45))),
        "irregular blobs, large": (blob(a, (8, 65, 65)), blob(b, (8, 65, 65))),
        "noise, every second voxel": (a.random(SHAPE) < 0.5, b.random(SHAPE) < 0.5),
    }
    print(f"{SHAPE} at spacing {SPACING}, {os.cpu_count()} cores, medians of {REPEATS}")
    print(f"{'pair':30}{'Dice':>6}{'MedPy ms':>10}{'dgbench ms':>12}{'ratio':>8}")
    for name, pair in pairs.items():
        times = [(seconds(medpy_distances, *pair), seconds(metrics.measure, *pair)) for _ in range(REPEATS)]
        theirs, ours = map(statistics.median, zip(*times, strict=True))
        print(f"{name:30}{metrics.dice(*pair):6.2f}{1e3 * theirs:10.0f}{1e3 * ours:12.1f}{theirs / ours:8.1f}")
    print(f"largest difference over {PAIRS} random pairs: {max(map(difference, range(PAIRS))):.1e}")


if __name__ == "__main__":
    main()
