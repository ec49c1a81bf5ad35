"""What all tests share: one thread per process, and a registry without plug-ins left over from the test before."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts: two tests beside each other must not fight

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dgbench.registry import METHODS, TASKS

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_plugins_left_over() -> Iterator[None]:
    yield
    METHODS.extra.clear()
    TASKS.extra.clear()


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parent.parent
