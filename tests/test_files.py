"""Files are whole or absent, and one folder belongs to one process."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from dgbench.errors import UsageError
from dgbench.files import Taken, lease, make_folder, read_json, sha256, write_atomic, write_json


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


def test_a_lease_is_held_by_one_and_given_back(tmp_path):
    with lease(tmp_path), pytest.raises(Taken), lease(tmp_path):
        pass
    with lease(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lease_of_a_killed_process_is_taken_over(tmp_path):
    script = "import sys, time; from pathlib import Path; from dgbench.files import lease\n"
    script += "with lease(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(Taken), lease(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with lease(tmp_path):
        assert json.loads((tmp_path / "lease.json").read_text())["pid"] == os.getpid()


def test_a_lease_of_another_host_is_stale_only_after_a_silence(tmp_path):
    path = tmp_path / "lease.json"
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": "1"}))
    with pytest.raises(Taken), lease(tmp_path):
        pass
    os.utime(path, (time.time() - 1000, time.time() - 1000))
    with lease(tmp_path):
        pass


def _hold(folder, count):
    for _ in range(20):
        try:
            with lease(folder):
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
    assert list(tmp_path.iterdir()) == []
