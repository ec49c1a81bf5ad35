"""Files are whole or absent, and a locked folder belongs to one process."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from dgbench.errors import UsageError
from dgbench.files import Taken, lock, make_folder, read_json, sha256, write_atomic, write_json


def test_writing_replaces_the_old_content_and_leaves_nothing_else(tmp_path):
    write_atomic(tmp_path / "a.txt", "old")
    write_atomic(tmp_path / "a.txt", b"new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_that_fails_keeps_the_old_content(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a.txt", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_the_checksum_is_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_damaged_json_file_reads_as_none(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    whole = (tmp_path / "a.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": 1}
    (tmp_path / "a.json").write_bytes(whole[:-4])
    assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "missing.json") is None


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write to .*file/results"):
        make_folder(tmp_path / "file" / "results")


def test_a_folder_is_locked_by_one_and_given_back(tmp_path):
    with lock(tmp_path), pytest.raises(Taken), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


HOLDER = """
import sys, time
from pathlib import Path
from dgbench.files import Taken, lock
while not Path(sys.argv[2]).exists():
    pass
try:
    with lock(Path(sys.argv[1])):
        print("held", flush=True)
        time.sleep(60)
except Taken:
    print("taken", flush=True)
"""


def start_holder(folder, signal_to_go):
    command = [sys.executable, "-c", HOLDER, str(folder), str(signal_to_go)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_lock_is_kept_through_any_silence_and_free_as_soon_as_its_holder_is_killed(tmp_path):
    with start_holder(tmp_path, tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        os.utime(tmp_path / ".lock", (0, 0))  # whatever the dates of the file say: the holder is alive
        with pytest.raises(Taken), lock(tmp_path):
            pass
        holder.send_signal(signal.SIGKILL)
    with lock(tmp_path):
        pass


def test_of_two_that_start_at_the_same_time_on_what_a_killed_one_left_one_gets_the_folder(tmp_path):
    with start_holder(tmp_path, tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        first.kill()
    with start_holder(tmp_path, tmp_path / "go") as one, start_holder(tmp_path, tmp_path / "go") as other:
        (tmp_path / "go").touch()
        assert sorted(process.stdout.readline() for process in (one, other)) == ["held\n", "taken\n"]
        one.kill()
        other.kill()


def test_a_file_system_without_locks_is_refused_before_two_could_write_one_run(tmp_path, monkeypatch):
    def missing(descriptor, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    with (
        pytest.warns(UserWarning, match="flock not supported"),  # the library's own word on it
        pytest.raises(UsageError, match="cannot be locked: Function not implemented\nchoose a folder on another"),
        lock(tmp_path),
    ):
        pass


def _hold(folder, count):
    for _ in range(20):
        try:
            with lock(folder):
                (folder / "inside").touch(exist_ok=False)  # fails when two are inside at once
                count.value += 1
                (folder / "inside").unlink()
        except Taken:
            pass


def test_of_many_processes_only_one_is_inside_at_a_time(tmp_path):
    context = multiprocessing.get_context("fork")
    count = context.Value("i", 0)
    processes = [context.Process(target=_hold, args=(tmp_path, count)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0, 0]
    assert count.value >= 1
