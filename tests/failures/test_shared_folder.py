"""Results that several machines and several versions of dgbench share: file servers that are none, and newer runs."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from dgbench import files
from dgbench.errors import DataError, UsageError, of_system
from dgbench.files import lock, read_json, sha256, write_json
from dgbench.running import records
from tests.failures import scenes
from tests.failures.child import in_a_child
from tests.failures.conftest import Small


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_server_that_cannot_lock_is_refused_and_not_taken_for_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    def refused(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(UsageError, match=r"cannot be locked: .*\nchoose a folder on another"), lock(tmp_path):
        pass


def stale(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """A file server that says so often, of each file that is opened, that it was replaced by another host."""
    left = [times]

    def opened(self: Any, *arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))
        return open(self, *arguments, **options)

    monkeypatch.setattr(files, "open", opened, raising=False)
    monkeypatch.setattr(Path, "open", opened)


def test_a_file_that_another_host_has_just_replaced_is_read_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A lost RESULT.json would mean a lost run: it would be made again."""
    write_json(tmp_path / "a.json", {"a": 1})
    checksum = sha256(tmp_path / "a.json")
    stale(monkeypatch, 1)
    assert read_json(tmp_path / "a.json") == {"a": 1}
    stale(monkeypatch, 1)
    assert sha256(tmp_path / "a.json") == checksum
    stale(monkeypatch, 2)
    with pytest.raises(OSError) as caught:
        sha256(tmp_path / "a.json")
    told = of_system(caught.value)
    assert isinstance(told, DataError) and "a.json: Stale file handle" in told.cause and "same command" in told.remedy


def test_who_reads_a_file_while_it_is_replaced_reads_the_old_one_to_its_end(tmp_path: Path):
    path = tmp_path / "status.json"
    write_json(path, {"done": 1, "rest": "x" * 100_000})
    with path.open() as file:
        begin = file.read(10)
        write_json(path, {"done": 2})
        assert '"done": 1' in begin + file.read(10) and file.read().endswith('x"\n}\n')
    assert read_json(path) == {"done": 2}


def test_runs_of_other_versions_stand_in_one_folder_and_a_newer_one_is_named_and_left_alone(
    small: Small, tmp_path: Path
):
    """Three seeds: made by an older dgbench, by one whose files this one cannot know, and by this one."""
    runs = small.runs(tmp_path, seeds=[0, 1, 2])
    older, newer, ours = (Path(run.folder) for run in runs)
    ours_or_not = "of older code", "of newer code", runs[2].fingerprint
    for seed, folder in enumerate((older, newer, ours)):
        shutil.copytree(small.whole, folder)
        seal(folder, seed=seed, fingerprint=ours_or_not[seed])
    seal(newer, schema=records.SCHEMA + 1)
    read, left_out = records.read_runs(tmp_path, "discs", "sdg")
    assert [record.path for record in read] == [older, ours]
    assert left_out == [f"Left out: {newer} was written by a newer dgbench (schema {records.SCHEMA + 1})."]
    before = scenes.content(newer)
    told, code = in_a_child(scenes.attempted, small.order(runs[1]))
    assert code == 0 and told[0] == "failed"
    assert told[1:] == (left_out[0].removeprefix("Left out: ")[:-1], "update dgbench, or choose other --results")
    assert scenes.content(newer) == before
    assert [run.status for run in runs] == ["stale", "stale", "done"]


def seal(folder: Path, **values: Any) -> None:
    """Write values into the records of a finished run, as its own version would have."""
    record, result = read_json(folder / "run.json"), read_json(folder / "RESULT.json")
    assert record and result
    write_json(folder / "run.json", record | values)
    checksums = result["files"] | {"run.json": sha256(folder / "run.json")}
    write_json(folder / "RESULT.json", result | {n: v for n, v in values.items() if n in result} | {"files": checksums})
