"""Runs that several hosts make in one folder, and what whoever looks at it is told: by locks, never by a clock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from dgbench import face, registry
from dgbench.files import is_locked, lock
from dgbench.images.folder_task import FolderTask
from dgbench.running import plan
from dgbench.running.notice import Notice
from dgbench.running.status import look
from tests.discs import write_discs
from tests.patient import patient, until

HOST = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"']  # a process that believes to be on that host


def folder(results: Path, name: str, **files: str) -> Path:
    made = results / "toy" / "sdg" / "erm" / name
    made.mkdir(parents=True)
    for file, text in files.items():
        (made / file.replace("_", ".")).write_text(text)
    return made


def test_a_folder_tells_where_its_run_stands(tmp_path):
    folder(tmp_path, "A-seed0", RESULT_json="{}")
    folder(tmp_path, "B-seed0", FAILED_json='{"cause": "the loss is nan"}', run_json="{}")
    stopped = folder(tmp_path, "C-seed0", run_json="{}")
    (stopped / "checkpoint-00000040.safetensors").touch()
    folder(tmp_path, "D-seed0")
    folder(tmp_path, ".A-seed0.old1", RESULT_json="{}")  # was moved aside
    with lock(folder(tmp_path, "E-seed0", run_json="{}")):
        told = [(s.run.rpartition("/")[2], s.state, s.detail) for s in look(tmp_path)]
        assert list(face.status(results=tmp_path)["state"]) == [state for _, state, _ in told]
    assert told == [
        ("E-seed0", "running", "begins"),
        ("B-seed0", "failed", "the loss is nan"),
        ("C-seed0", "interrupted", "checkpoint at step 40"),
        ("D-seed0", "not begun", ""),
        ("A-seed0", "done", ""),
    ]
    assert look(tmp_path, "other") == []


@pytest.mark.parametrize(
    "files",
    [{"FAILED_json": '["no cause"]', "run_json": "{}"}, {"FAILED_json": "{}"}, {"run_json": "{", "status_json": "[]"}],
)
def test_a_folder_of_whatever_content_hides_no_other(tmp_path, files):
    made = folder(tmp_path, "A-seed0", **files)
    (made / "checkpoint-last.safetensors").touch()
    folder(tmp_path, "B-seed0", RESULT_json="{}")
    told = {s.run.rpartition("/")[2]: s.state for s in look(tmp_path)}
    assert set(told) == {"A-seed0", "B-seed0"} and told["B-seed0"] == "done"


def test_a_queue_that_does_not_answer_hides_no_run(tmp_path, monkeypatch):
    for name in "ABC":
        folder(tmp_path, f"{name}-seed0", **{"RESULT_json": "{}"} if name == "A" else {})
    (tmp_path / ".slurm" / "7f").mkdir(parents=True)
    submitted = {f"7_{n}": f"toy/sdg/erm/{name}-seed0" for n, name in enumerate("AB")}
    (tmp_path / ".slurm" / "7f" / "runs.json").write_text(json.dumps(submitted))
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\necho 'squeue: error: Unable to contact slurm controller' >&2\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    assert [(s.run[-7], s.state, s.detail) for s in look(tmp_path)] == [
        ("B", "not begun", "may wait as job 7_1: squeue: Unable to contact slurm controller"),
        ("C", "not begun", ""),
        ("A", "done", ""),
    ]


def test_looking_whether_a_folder_is_locked_neither_takes_nor_loses_it(tmp_path):
    assert not is_locked(tmp_path) and not (tmp_path / ".lock").exists()
    with lock(tmp_path):
        assert is_locked(tmp_path)
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    with lock(tmp_path):
        pass


def test_a_notice_holds_rate_and_time_left_and_is_written_now_and_then(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("dgbench.running.notice.time.monotonic", lambda: now[0])
    notice = Notice(tmp_path)

    def told():
        return json.loads((tmp_path / "status.json").read_text())

    notice.write("train", 10, 100, "loss 1")
    assert told()["done"] == 10 and "rate" not in told()
    now[0] += 2
    notice.write("train", 20, 100, "loss 1")
    assert told()["done"] == 10, "two seconds later the first one stands"
    now[0] += 8
    notice.write("train", 30, 100, "loss 1")  # 20 steps in 10 s, 70 to go
    assert (told()["done"], told()["rate"], told()["left"]) == (30, 2.0, 35)
    notice.write("test", 1, 4, "B")
    assert told()["phase"] == "test" and "left" not in told()
    notice.remove()
    assert not list(tmp_path.iterdir())


def test_two_hosts_with_one_folder_share_the_runs(tmp_path, monkeypatch):
    """The same command on both, as by ssh: each run is made once, and one host says what the other does."""
    if subprocess.run([*HOST, "host-a", "true"], capture_output=True).returncode:
        pytest.skip("no process may have a host name of its own here (unshare --uts)")
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    registry.add_plugin(patient(tmp_path))
    task = FolderTask(write_discs(tmp_path / "discs"))
    runs = plan.plan(task, ["patient"], results=tmp_path / "results")
    notices = [Path(run.folder) / "status.json" for run in runs]
    dgbench = [sys.executable, "-m", "dgbench"]
    command = [*dgbench, "run", "--method", "patient", "--plugin", "patient.py", "--task", "discs"]
    command += ["--device", "cpu", "--jobs", "1"]  # with two, a host of two free cores holds both of the first runs
    options = {"cwd": tmp_path, "text": True, "stdout": subprocess.PIPE}
    (tmp_path / "hold").touch()
    with ExitStack() as ended:
        first = ended.enter_context(subprocess.Popen([*HOST, "host-a", *command], **options))
        ended.callback((tmp_path / "hold").unlink, missing_ok=True)  # or a fault below would wait for both
        until(notices[0].exists)
        second = ended.enter_context(subprocess.Popen([*HOST, "host-b", *command], **options))
        ended.callback((tmp_path / "hold").unlink, missing_ok=True)
        until(notices[1].exists)
        standings = look(tmp_path / "results")
        (tmp_path / "hold").unlink()
        told = [process.communicate(timeout=300)[0] for process in (first, second)]
    assert [(s.state, s.where) for s in standings[:2]] == [("running", "host-a"), ("running", "host-b")]
    assert told[1].count("skipped patient bright") == 1 and sum(text.count("done patient") for text in told) == 3
    assert [run.status for run in runs] == ["done"] * 3
    assert not list((tmp_path / "results").glob("*/*/*/.*.old*")), "nothing was made twice"
