"""What all tests share: one thread per process, and a registry without plug-ins left over from the test before."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts: two tests beside each other must not fight

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dgbench.registry import METHODS, TASKS

torch.set_num_threads(1)

SLOW = (  # how a test's id begins, below tests/: whole commands, killed processes, every check of every method
    "test_cli.py",
    "test_notebooks.py",
    "test_readme.py",
    "test_wheel.py",
    "methods/test_conformance.py::test_method[",
    "methods/test_sam_family.py::test_on_a_pretrained_backbone",
    "methods/test_desam.py::test_with_points_it_passes",
    "methods/test_sam_prompted.py::test_with_lite_medsams_weights",
    "networks/test_tiny_vit.py::test_with_lite_medsams_weights",
    "networks/test_imagenet.py::test_scratch_and_imagenet",
    "datasets/test_fundus.py::test_the_whole_matrix_runs",
    "running/test_runs.py::test_a_run_killed",
    "running/test_runs.py::test_ctrl_c",
    "running/test_runs.py::test_a_program_read_from_standard_input",
    "scores/test_reproduce.py",
    "scores/test_verify.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(SLOW):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def no_plugins_left_over() -> Iterator[None]:
    yield
    METHODS.extra.clear()
    TASKS.extra.clear()


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parent.parent
