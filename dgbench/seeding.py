"""Randomness as a function of its key: the same (seed, step) draws the same numbers, whatever happened before."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def key(*parts: object) -> int:
    """63 bits that depend on all parts and on their order; parts are told apart by their text."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: object) -> torch.Generator:
    """A generator on the CPU, whatever the device of the run: drawing from it never waits for a GPU."""
    return torch.Generator().manual_seed(key(*parts))


def batch_indices(seed: int, step: int, batch_size: int, n: int) -> np.ndarray:
    """Which of `n` slices make up the batch of a step: one endless row of shuffled passes, cut into batches.

    A batch may reach from one pass into the next, so none is short and none is dropped, even when n < batch_size.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    passes = positions // n
    orders = {p: np.random.default_rng(key(seed, "order", p)).permutation(n) for p in np.unique(passes)}
    return np.array([orders[p][i] for p, i in zip(passes, positions % n, strict=True)])
