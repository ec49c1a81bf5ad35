"""Methods that hang, fork, eat the memory or die, and clocks that jump: the run fails with its cause, others go on."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil

from dgbench.files import read_json, sha256
from dgbench.running.plan import Run
from tests.failures import scenes
from tests.failures.child import in_a_child
from tests.failures.conftest import PLUGIN, Small

# What stands in place of a line of `pixels`, from its second step on; `marker` is a file in the test's folder.
HANGS = """
            child = os.fork()
            while child == 0 or not marker.exists():
                if child:
                    marker.write_text(str(child))
                time.sleep(0.05)
            while first:
                time.sleep(0.05)"""
FORKS = """
            for _ in range(500):
                if os.fork() == 0:
                    time.sleep(600)
            raise ValueError("nothing bounds the number of processes")"""
EATS = """
            torch.ones(1 << 36)"""
DIES = """
            child = os.fork()
            while child == 0:
                time.sleep(0.05)
            marker.write_text(str(child))
            os.kill(os.getpid(), 9)"""


def misbehaving(small: Small, folder: Path, name: str, line: str, deed: str) -> Run:
    """The run of `pixels` under another name, with a deed before a line of it."""
    source = f"import os, time, pathlib, numpy as np\nmarker = pathlib.Path({str(folder / name)!r})\n"
    indented = f"first = not marker.exists()\n        if self.seen >= 2:{deed}\n        {line}"
    plugin = folder / f"{name}.py"
    text = PLUGIN.read_text()
    plugin.write_text(text.replace("import torch\n", f"import torch\n{source}", 1)
                      .replace(line, indented, 1))  # fmt: skip
    (run,) = small.runs(folder / "results", name, plugin)
    return run


def made_as_ever(run: Run, small: Small) -> bool:
    """Are its numbers those of the undisturbed run?"""
    return all(sha256(Path(run.folder) / n) == sha256(small.whole / n) for n in ("cases.csv", "weights.safetensors"))


def is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


LOSS, PREDICT = "loss = dice_bce", "return self.net(image)"


def test_a_run_that_hangs_is_stopped_at_its_limit_and_continues_from_its_checkpoint(small: Small, tmp_path: Path):
    hanging = misbehaving(small, tmp_path, "hangs", LOSS, HANGS)
    (good,) = small.runs(tmp_path / "results")
    (told, files, again), code = in_a_child(scenes.stopped_by_a_limit, [hanging, good], tmp_path / "hangs")
    assert code == 0
    (status, cause, remedy), (other, _, _) = told
    assert (status, cause, other) == ("failed", "stopped after its time limit of 1000 s", "done")
    assert "--rerun failed" in remedy and "--time-limit" in remedy
    assert {"FAILED.json", "checkpoint-00000001.safetensors"} <= set(files)
    assert not is_alive(int((tmp_path / "hangs").read_text())), "what it had started ended with it"
    assert again == [("done", "", "")] and made_as_ever(hanging, small)


def test_a_method_that_forks_without_end_fails_and_leaves_no_process_behind(small: Small, tmp_path: Path):
    forking = misbehaving(small, tmp_path, "forks", LOSS, FORKS)
    (good,) = small.runs(tmp_path / "results")
    told, code = in_a_child(scenes.without_processes, [forking, good], 40)
    assert code == 0
    (status, cause, remedy), (other, _, _) = told
    assert (status, other) == ("failed", "done") and "Resource temporarily unavailable" in cause
    assert "traceback.txt" in remedy and "os.fork()" in (Path(forking.folder) / "traceback.txt").read_text()


def test_a_run_without_memory_says_so_whether_it_trains_or_tests_and_the_others_go_on(small: Small, tmp_path: Path):
    trains = misbehaving(small, tmp_path, "eats_training", LOSS, EATS)
    tests = misbehaving(small, tmp_path, "eats_testing", PREDICT, "\n            np.ones(1 << 40)")
    (good,) = small.runs(tmp_path / "results")
    told, code = in_a_child(scenes.without_memory, [trains, tests, good], 1 << 31)
    assert code == 0
    assert [status for status, _, _ in told] == ["failed", "failed", "done"]
    assert told[0][1] == "out of memory at batch_size 4, image_size 48" and "lower one of them" in told[0][2]
    assert told[1][1] == "out of memory" and "--jobs" in told[1][2]
    assert (read_json(Path(tests.folder) / "FAILED.json") or {})["cause"] == "out of memory"


def test_a_killed_process_is_told_though_what_it_started_lives_on(small: Small, tmp_path: Path):
    """The system's killer of processes takes one, and a child of it still holds the line to who waits for news."""
    dying = misbehaving(small, tmp_path, "dies", LOSS, DIES)
    (good,) = small.runs(tmp_path / "results")
    try:
        told, code = in_a_child(scenes.launched, [dying, good])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((tmp_path / "dies").read_text()), signal.SIGKILL)
    assert code == 0
    (status, cause, _), (other, _, _) = told
    assert (status, other) == ("failed", "done") and cause.endswith("killed by SIGKILL (often: out of memory)")


def test_a_clock_that_jumps_by_years_and_a_slow_disk_change_nothing(small: Small, tmp_path: Path):
    (run,) = small.runs(tmp_path)
    (first, second, status), code = in_a_child(scenes.with_a_wild_clock, small.order(run), 0.01)
    assert code == 0
    assert (first[0][0], second[0][0], status) == ("done", "kept", "done")
    assert scenes.differing(Path(run.folder), small.whole) == []
