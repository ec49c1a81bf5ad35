"""What all tests share: one thread per process, and a registry without plug-ins left over from the test before."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts: two tests beside each other must not fight

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dgbench.registry import METHODS, TASKS

torch.set_num_threads(1)

# What `make test-fast` leaves out, by the beginning of a test's name: whole runs in processes of their own, every check
# of every method, real weights, a package that is built. tests/methods/test_one_step.py stands in for the checks.
SLOW = (
    "tests/test_cli.py",
    "tests/test_face.py",
    "tests/test_notebooks.py",
    "tests/test_readme.py::test_the_method_in_20_lines",
    "tests/test_wheel.py",
    "tests/failures/test_disk.py",
    "tests/failures/test_killed.py",
    "tests/failures/test_misbehaving.py",
    "tests/failures/test_shared_folder.py::test_runs",
    "tests/datasets/test_fundus.py::test_the_whole_matrix",
    "tests/images/test_fetch.py::test_a_disk_without_room",
    "tests/methods/test_conformance.py",
    "tests/methods/test_desam.py::test_with_points_it_passes_the_checks_too",
    "tests/methods/test_sam_decoder.py::test_two_processes",
    "tests/methods/test_sam_family.py",
    "tests/methods/test_sam_on_tiny_vit.py",
    "tests/methods/test_sam_prompted.py",
    "tests/networks/test_imagenet.py",
    "tests/networks/test_tiny_vit.py::test_with_lite_medsams_weights",
    "tests/running/test_predict.py",
    "tests/running/test_runs.py",
    "tests/running/test_task_conformance.py::test_every_task_of_ours",
    "tests/running/test_selection.py::test_a_run_killed",
    "tests/running/test_slurm.py",
    "tests/running/test_status.py::test_two_hosts",
    "tests/scores/test_importing.py::test_what_comes_in",
    "tests/scores/test_reproduce.py",
    "tests/scores/test_verify.py",
    "tests/test_fingerprint.py",
)

# What only `make test-all` runs: a property again on a further backbone, protocol or way to import, and long trainings.
FAMILY = "tests/methods/test_sam_family.py::test_on_a_pretrained_backbone_it_passes_the_checks"
THOROUGH = (
    *(f"{FAMILY}[{name}-tiny]" for name in ("autosam", "cosam", "desam", "med_persam", "sam_decoder", "sam_full")),
    *(f"{FAMILY}[{name}-tiny]" for name in ("sam_lora", "sam_med2d", "sam_rein")),
    *(f"{FAMILY}[{name}-vit]" for name in ("sam_auto", "sam_point")),
    "tests/methods/test_desam.py::test_with_points_it_passes_the_checks_too",
    "tests/methods/test_sam_on_tiny_vit.py::test_ma_sam_learns_from_lite_medsams_weights",
    "tests/methods/test_sam_prompted.py::test_the_warping_network_learns_to_find_a_disc",
    "tests/pages/test_report.py::test_every_protocol_and_a_method_that_finds_nothing_have_a_page[audit-all]",
    "tests/pages/test_report.py::test_every_protocol_and_a_method_that_finds_nothing_have_a_page[sdg-compute]",
    "tests/running/test_runs.py::test_a_run_killed_again_and_again_gives_the_same_bytes",
    "tests/running/test_runs.py::test_ctrl_c_writes_a_checkpoint_and_says_which_command_continues[options1",
    "tests/running/test_runs.py::test_the_folder_for_temporary_files_may_have_a_long_name",
    "tests/test_benchmarks.py::test_a_board_is_made_seed_after_seed_and_packed",
    "tests/test_face.py::test_methods_are_listed_and_imported_from_one_name_in_any_order[from",
    "tests/test_face.py::test_methods_are_listed_and_imported_from_one_name_in_any_order[import",
    "tests/test_wheel.py::test_the_installed_package_of_methods_also_lists_them[import",
)
FIRST = "tests/test_notebooks.py"  # one test of minutes: begun last it would leave the other processes idle


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker("slow")
        if item.nodeid.startswith(THOROUGH):
            item.add_marker("thorough")
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))


@pytest.fixture(autouse=True)
def no_plugins_left_over() -> Iterator[None]:
    yield
    METHODS.extra.clear()
    TASKS.extra.clear()


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parent.parent
