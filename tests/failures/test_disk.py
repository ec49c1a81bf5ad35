"""Disks that are full or can only be read: a cause, a remedy, an exit code, and nothing lost or half written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.failures import scenes
from tests.failures.child import in_a_child, small_disk
from tests.failures.conftest import PLUGIN, Small


def scene(function: Callable[..., Any], *arguments: object) -> Any:
    """What a scene saw."""
    told, code = in_a_child(function, *arguments)
    assert code == 0
    return told


@pytest.fixture(scope="module", autouse=True)
def may_mount(tmp_path_factory: pytest.TempPathFactory) -> None:
    if in_a_child(small_disk, tmp_path_factory.mktemp("disk"), "1m")[1]:
        pytest.skip("no process may mount a small disk here, not even in a namespace of its own")


def command(small: Small, results: Path) -> list[object]:
    return ["run", "-m", "pixels", "--plugin", PLUGIN, "-t", small.home / "discs", "--source", "dim",
            "--results", results, "--device", "cpu"]  # fmt: skip


def test_a_disk_that_is_full_at_any_stage_of_a_run_leaves_whole_files_and_the_run_continues(
    small: Small, tmp_path: Path
):
    (run,) = small.runs(tmp_path / "results")
    rooms = (0, 12, 28, 44, 60)  # kB: nothing, run.json, and so on to the last files; 76 are enough
    seen = scene(scenes.full_disk, small.order(run), small.whole, rooms)
    for room, left in zip(rooms, seen, strict=True):
        status, message, remedy = left["told"]
        assert status == "failed" and "No space left on device" in message and "make room" in remedy, room
        assert str(run.folder) in message, "it says where"
        assert not {"RESULT.json", "FAILED.json"} & set(left["files"]), "the same command tries again"
        assert not [name for name in left["files"] if name.endswith(".tmp")]
        assert all(left["checkpoints"]), "those before are whole"
        assert left["again"] == "done" and left["differs"] == [], room
    assert {len(left["checkpoints"]) for left in seen} >= {0, 1, 2}


def test_tables_that_find_no_room_are_two_lines_and_the_runs_stay_done(small: Small, tmp_path: Path):
    results = tmp_path / "results"
    code, text, tables = scene(scenes.full_disk_of_tables, small.whole, results, command(small, results))
    cause, remedy = text.splitlines()[-2:]
    assert code == 3 and "No space left on device" in cause and "make room" in remedy
    assert tables == []


def test_a_cache_without_room_is_two_lines_and_keeps_nothing_half_made(small: Small, tmp_path: Path):
    code, text, held = scene(scenes.full_cache, tmp_path / "cache", command(small, tmp_path / "results"))
    cause, remedy = text.splitlines()
    assert code == 3 and f"{tmp_path / 'cache'}" in cause and "No space left on device" in cause
    assert "make room" in remedy
    assert not [name for name in held if name.startswith(".")], held


def test_results_that_can_only_be_read_are_read_and_a_run_into_them_says_what_to_do(small: Small, tmp_path: Path):
    results = tmp_path / "results"
    verify, status, listed, again, another = scene(
        scenes.read_only, results, small.whole.parents[3], ["verify", results], ["status", "--results", results],
        ["list", "runs", "--results", results], command(small, results), [*command(small, results), "--seed", "1"],
    )  # fmt: skip
    assert [code for code, _ in (verify, status, listed)] == [0] * 3
    assert "all is well: 1 runs" in verify[1] and "1 done" in status[1] and "dim-seed0" in listed[1]
    assert "inverted" in again[1], "its table is printed"
    for code, text in (again, another):
        cause, remedy = text.splitlines()[-2:]
        assert code == 2 and str(results) in cause and "Read-only file system" in cause
        assert remedy.endswith("choose another folder, or mend its permissions")


def test_a_cache_that_can_only_be_read_says_how_to_choose_another(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    ((code, text),) = scene(scenes.read_only, tmp_path / "cache", None, command(small, tmp_path / "results"))
    cause, remedy = text.splitlines()
    assert code == 2 and "Read-only file system" in cause and "DGBENCH_CACHE" in remedy
    assert not (tmp_path / "results").exists()
