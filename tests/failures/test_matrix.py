"""What can go wrong, row by row, and the tests that do it: each of them is there, and none is only a name here."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

HERE, RUNS, TRAIN = "failures/", "running/test_runs.py", "running/test_train.py"
FORMATS, FOLDERS, PREPARED = "images/test_formats.py", "images/test_folder_task.py", "images/test_preparation.py"

# What goes wrong: {file below tests/: the tests of it, by their names without "test_" or by the beginning of these}.
ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "SIGKILL between any two writes, of a run or of its preparation": {
        HERE + "test_killed.py": ("a_run_killed_at_any_write", "images_whose_preparation_was_killed"),
        RUNS: ("a_run_killed_again_and_again",),
        "running/test_selection.py": ("a_run_killed_between_two_looks",),
        "running/test_slurm.py": ("neither_a_dead_node_nor_a_time_limit_changes_a_byte",),
    },
    "Ctrl-C, SIGTERM, a cancelled job": {
        RUNS: ("ctrl_c_writes_a_checkpoint",),
        "test_cli.py": ("what_is_interrupted_says_how_to_go_on",),
        "running/test_slurm.py": ("cancelled_runs_can_be_continued_anywhere",),
        TRAIN: ("a_training_stopped_anywhere_ends_with_the_same_weights",),
    },
    "a full disk: checkpoint, result, tables, prepared images": {
        HERE + "test_disk.py": (
            "a_disk_that_is_full_at_any_stage",
            "tables_that_find_no_room",
            "a_cache_without_room",
        ),
        "test_files.py": ("a_write_that_fails_keeps_the_old_content",),
    },
    "folders that can only be read, or not be made": {
        HERE + "test_disk.py": ("results_that_can_only_be_read", "a_cache_that_can_only_be_read"),
        "test_files.py": ("a_folder_that_cannot_be_made_is_named",),
    },
    "a damaged checkpoint: cut off, one bit flipped, empty": {
        TRAIN: ("a_damaged_checkpoint_is_passed_over", "weights_that_are_not_finite_are_never_saved"),
    },
    "a damaged image or mask: cut off, one bit flipped, empty, a web page": {
        FORMATS: (
            "a_file_cut_off_anywhere_is_refused", "a_flipped_bit_is_found", "a_flipped_bit_in_a_png_is_found",
            "what_a_failed_download_leaves_behind_is_named", "a_photograph_cut_off_is_refused",
        ),
        PREPARED: ("a_case_that_cannot_be_used_is_named_and_nothing_is_left", "damaged_arrays_are_noticed"),
    },
    "a forged header, a small file that would fill the memory": {
        FORMATS: (
            "a_forged_header_is_refused_before_memory", "a_png_that_would_fill_the_memory_is_refused",
            "a_stream_of_gigabytes_behind_a_small_header", "pages_of_a_tiff_that_share_their_pixels",
        ),
    },
    "image and mask that do not fit, or of which square slices cannot tell; NaN, spacing 0, unknown values": {
        FORMATS: (
            "a_header_or_voxel_that_cannot_be_true_is_refused", "a_mask_of_another_size_is_refused",
            "a_mask_that_lies_elsewhere_is_refused", "a_square_mask_without_a_header",
        ),
        FOLDERS: ("verify_says_all_at_once", "values_outside_the_map_are_named"),
        "test_cli.py": ("verify_lists_every_problem_at_once",),
    },
    "empty masks, in the reference or the prediction": {
        "test_metrics.py": ("empty_masks", "a_miss_costs_more_than_the_worst"),
        "scores/test_study.py": ("a_missed_structure_costs_the_diagonal", "a_case_empty_in_both_masks_is_left_out"),
    },
    "a loss or a weight that is not finite": {
        TRAIN: ("a_loss_that_is_nan_stops_with_the_step", "weights_that_are_not_finite", "a_loss_that_is_read_late"),
        RUNS: ("a_run_that_fails_leaves_its_traceback_and_the_others_go_on",),
    },
    "a missing domain, one domain only, a source without cases": {
        RUNS: ("one_domain_is_not_enough", "a_wrong_name_or_value"),
        FOLDERS: ("one_domain_is_not_enough", "an_unknown_domain_or_case_is_told"),
        "scores/test_study.py": ("a_target_that_was_not_tested_is_blank",),
    },
    "images that changed, a case or a run that stands twice": {
        RUNS: ("changed_images_make_a_run_stale",),
        "scores/test_study.py": ("a_case_counts_once", "a_run_counts_once", "runs_on_older_images_are_left_out"),
        "scores/test_verify.py": ("a_structure_twice_in_one_case_is_noticed",),
        "datasets/test_prostate.py": ("verify_finds_everything_at_once",),
    },
    "a method that opens the targets while it trains": {
        RUNS: ("a_method_that_opens_a_target_while_it_trains_fails",),
        "test_security.py": ("what_python_opens_of_a_target_is_refused",),
    },
    "an oracle among what is ranked": {
        "scores/test_ranking.py": ("an_oracle_is_never_ranked", "a_method_that_adapts_to_the_test_images_stands_apart"),
        "running/test_selection.py": ("only_the_sources_validation_cases_are_looked_at",),
    },
    "two processes or hosts that want one run": {
        "test_files.py": ("of_many_processes_only_one_is_inside", "of_two_that_start_at_the_same_time"),
        "running/test_status.py": ("two_hosts_with_one_folder_share_the_runs",),
        "running/test_slurm.py": ("two_people_who_submit_one_run_make_it_once",),
    },
    "file servers: no locks, stale files, a file replaced while it is read": {
        HERE + "test_shared_folder.py": (
            "a_file_server_that_cannot_lock", "a_file_that_another_host_has_just_replaced",
            "who_reads_a_file_while_it_is_replaced",
        ),
        "test_files.py": ("a_file_system_without_locks_is_refused",),
    },
    "weights with code in them, or not those that were published": {
        "networks/test_weights.py": (
            "pickled_code_is_never_executed", "a_flipped_bit_is_found", "another_file_at_the_address",
            "a_file_that_was_changed_after_it_was_found", "a_download_that_was_cut",
        ),
    },
    "weights that fit in part": {
        "networks/test_weights.py": ("everything_that_does_not_fit_is_told_at_once", "keys_may_be_missing"),
        TRAIN: ("weights_of_another_method_are_refused",),
    },
    "a plug-in that cannot be imported, prints, draws random numbers, or changes what all share": {
        "test_registry.py": ("a_file_that_is_no_python", "a_file_that_needs_what_is_not_installed"),
        "running/test_conformance.py": ("a_process_wide_setting_is_found", "drawing_from_a_generator"),
        TRAIN: ("the_same_step_draws_the_same_augmentation",),
    },
    "a method that hangs, dies, or forks without end": {
        HERE + "test_misbehaving.py": ("a_run_that_hangs", "a_method_that_forks_without_end", "a_killed_process"),
        RUNS: ("a_process_that_dies_is_reported_and_stops_no_other",),
    },
    "no memory left, on the processor or a GPU": {
        HERE + "test_misbehaving.py": ("a_run_without_memory",),
        TRAIN: ("running_out_of_memory_says_what_to_lower",),
        "running/test_launchers.py": ("a_run_starts_beside_others_when",),
    },
    "clocks that jump, locales, odd paths, no home, no terminal": {
        HERE + "test_misbehaving.py": ("a_clock_that_jumps_by_years",),
        "test_files.py": ("a_lock_is_kept_through_any_silence",),
        RUNS: ("what_is_written_in_one_locale", "the_folder_for_temporary_files", "a_name_that_a_file_system"),
        "test_cli.py": ("a_user_without_a_name_and_a_home", "a_domain_whose_name_holds_a_comma"),
    },
    "results of an older and of a newer dgbench": {
        HERE + "test_shared_folder.py": ("runs_of_other_versions_stand_in_one_folder",),
        RUNS: ("a_changed_method_makes_its_runs_stale", "a_record_of_an_earlier_version"),
        "scores/test_verify.py": ("a_schema_from_the_future_is_told", "two_versions_of_the_metrics"),
        "scores/test_study.py": ("two_tasks_protocols_or_metric_versions",),
    },
    "numbers that drift with the versions of libraries": {
        "test_metrics.py": ("scores_equal_those_of_medpy", "distances_to_a_bar", "a_cube_moved_by_two_slices"),
        "scores/test_reproduce.py": ("the_same_code_and_images_give_the_same_bytes",),
    },
    "a result that was changed by hand, a broken folder among good ones": {
        RUNS: ("a_file_changed_after_the_run_ended_is_noticed",),
        "scores/test_verify.py": ("a_changed_and_a_missing_file", "no_garbage_in_one_folder", "a_row_that_contradicts"),
        "test_cli.py": ("a_broken_folder_of_another_method", "verify_ends_with_3_when_a_file_was_changed"),
    },
}  # fmt: skip


@functools.cache
def names_of_tests(path: Path) -> tuple[str, ...]:
    """Names of the tests of a file, by its text: nothing is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return tuple(f.name.removeprefix("test_") for f in tree.body if isinstance(f, ast.FunctionDef))


def test_there_are_25_rows():
    assert len(ROWS) == 25


@pytest.mark.parametrize("row", ROWS)
def test_what_can_go_wrong_is_tried_by_tests_that_are_there(root: Path, row: str):
    for file, names in ROWS[row].items():
        there = names_of_tests(root / "tests" / file)
        assert names and [name for name in names if not any(t.startswith(name) for t in there)] == [], file


def test_no_archive_is_unpacked_and_no_process_loads_images(root: Path):
    """What a hostile archive or a dead worker of a loader would do has no row, and needs one as soon as this fails."""
    paths = (p for folder in ("dgbench", "methods", "datasets") for p in (root / folder).rglob("*.py"))
    texts = (path.read_text(encoding="utf-8") for path in paths)
    assert not any(word in text for text in texts for word in ("extractall", "unpack_archive", "DataLoader("))


def test_the_page_for_users_names_each_row(root: Path):
    page = (root / "docs" / "failures.md").read_text(encoding="utf-8")
    told = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][1:]
    assert told == list(ROWS)
