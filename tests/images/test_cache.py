"""`dgbench cache`: what is there and how large, what nobody needs, and room that is made without harm."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dgbench import cli
from dgbench.errors import UsageError
from dgbench.files import lock
from dgbench.images.cache import clean, entries, read_size
from dgbench.images.find_task import get_task
from dgbench.images.preparation import code_fingerprint, prepare

DAY = 86400


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path))
    return tmp_path


def laid(cache: Path, name: str, size: int, days: float) -> Path:
    """A prepared domain that was last used so many days ago."""
    folder = cache / "prepared" / name
    folder.mkdir(parents=True)
    (folder / "images.npy").write_bytes(bytes(size))
    for path in (folder / "images.npy", folder):
        os.utime(path, (time.time() - days * DAY,) * 2)
    return folder


def of_today(domain: str) -> str:
    return f"task-16-{code_fingerprint()[:8]}-{domain}-0123456789abcdef"


def test_drawn_images_and_what_is_prepared_of_them_are_listed_and_a_use_makes_it_young(cache):
    task = get_task("mock-nuclei")
    folder = prepare(task, "fluo_256", 16).folder
    os.utime(folder, (0, 0))
    prepare(task, "fluo_256", 16)
    assert folder.stat().st_mtime > time.time() - 600, "it was used"
    found = {entry.kind: entry for entry in entries()}
    assert found["prepared"].path == folder and found["prepared"].old == "" and found["prepared"].is_in_use
    assert found["prepared"].size == sum(p.stat().st_size for p in folder.iterdir())
    assert found["mock"].path == task.data and found["mock"].size > 0
    assert clean(entries(), most=0) == [] and folder.is_dir(), "a run may be reading it"


def test_what_another_version_made_and_what_a_killed_process_left_is_old(cache):
    good, other = laid(cache, of_today("A"), 10, days=9), laid(cache, "task-16-0badc0de-A-0123456789abcdef", 10, days=9)
    left, building = laid(cache, ".building-1", 10, days=9), laid(cache, ".building-2", 10, days=9)
    with lock(building):
        os.utime(building / ".lock", (0, 0))
        assert {e.path.name: e.old for e in entries() if e.old} == {
            other.name: "made by another version of dgbench",
            left.name: "left by a process that was ended",
        }
        clean(entries())
        assert good.is_dir() and building.is_dir() and not other.exists() and not left.exists()


def test_what_another_version_uses_at_this_moment_stays(cache):
    """Two checkouts may share a cache."""
    used = laid(cache, "task-16-0badc0de-A-0123456789abcdef", 10, days=0)
    assert [e.old for e in entries()] == ["made by another version of dgbench"]
    assert clean(entries()) == [] and used.is_dir()


def test_room_is_made_by_what_was_used_longest_ago(cache):
    folders = [laid(cache, of_today(domain), 1000, days) for domain, days in (("A", 1), ("B", 3), ("C", 2))]
    assert [e.path.name for e in clean(entries(), most=2500)] == [folders[1].name]
    assert [f.is_dir() for f in folders] == [True, False, True]
    assert clean(entries(), most=2500) == []


@pytest.mark.parametrize(
    ("text", "size"), [("20GB", 20 * 10**9), ("1.5 g", 15 * 10**8), ("500MB", 5 * 10**8), ("7", 7)]
)
def test_a_size_is_read_as_people_write_it(text, size):
    assert read_size(text) == size
    with pytest.raises(UsageError, match="is no size"):
        read_size(f"about {text}")


def test_the_command_lists_and_cleans(cache):
    laid(cache, of_today("A"), 2_000_000, days=2)
    laid(cache, "task-16-0badc0de-A-0123456789abcdef", 1_000_000, days=9)
    listed = CliRunner().invoke(cli.app, ["cache"])
    assert listed.exit_code == 0 and "another version" in listed.output and "3.0 MB" in listed.output, listed.output
    cleaned = CliRunner().invoke(cli.app, ["cache", "--clean", "--max-size", "1MB"])
    assert "deleted 2" in cleaned.output and list((cache / "prepared").iterdir()) == []
