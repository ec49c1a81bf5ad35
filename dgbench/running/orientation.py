"""Orientation: would given masks fit their references far better if they lay another way round, or stood for the rest?

Axes that two programs count in another order, a slice stored from the other end, a background saved as 1: on images
with equal sides nothing refuses such masks, and their scores look like those of a poor method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

GAIN = 0.2  # in mean Dice, from which on a user is asked
# Axes of a mask: slice, structure, height, width.
WAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "with height and width exchanged": lambda mask: mask.swapaxes(2, 3),
    "upside down": lambda mask: mask[:, :, ::-1],
    "with left and right exchanged": lambda mask: mask[..., ::-1],
    "turned by half": lambda mask: mask[:, :, ::-1, ::-1],
    "turned by a quarter": lambda mask: np.rot90(mask, 1, (2, 3)),
    "turned by a quarter the other way": lambda mask: np.rot90(mask, -1, (2, 3)),
    "with the slices in reverse": lambda mask: mask[::-1],
    "with inside and outside exchanged": lambda mask: ~mask,
}


def doubt(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> str:
    """A sentence on the way in which masks would fit by `GAIN` better, the best one; "" where there is none.

    pairs: mask and reference of each case, bool (D, K, H, W) both. A way that a case's sides do not allow is none.
    """
    sums, count = dict.fromkeys(["", *WAYS], 0.0), 0
    for mask, reference in pairs:
        there = reference.any(axis=(0, 2, 3))
        count += int(there.sum())
        sums[""] += _dice(mask, reference)[there].sum()
        for name in [n for n in sums if n]:
            other = WAYS[name](mask)
            if other.shape != mask.shape:
                del sums[name]
            else:
                sums[name] += _dice(other, reference)[there].sum()
    best = max(sums, key=lambda name: sums[name])
    if not count or sums[best] - sums[""] < GAIN * count:
        return ""
    given, found = (f"{100 * sums[name] / count:.1f}" for name in ("", best))
    return (
        f"{best}, these masks would have a mean Dice of {found} % in place of {given} %: do they lie as the images do?"
    )


def _dice(mask: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Of each structure, (K,); 0 where neither holds anything."""
    axes = (0, 2, 3)
    both = np.count_nonzero(mask & reference, axis=axes)
    return 2 * both / np.maximum(1, np.count_nonzero(mask, axis=axes) + np.count_nonzero(reference, axis=axes))
