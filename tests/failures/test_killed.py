"""SIGKILL between any two writes: the same command afterwards gives the same bytes, and nothing lies about.

In continuous integration every eighth write is tried; DGBENCH_KILL_EVERY=1 tries all.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.failures import scenes
from tests.failures.child import in_a_child
from tests.failures.conftest import Small

EVERY = int(os.environ.get("DGBENCH_KILL_EVERY", "8"))


def test_a_run_killed_at_any_write_gives_the_same_bytes_and_loses_nothing_of_the_run_before(
    small: Small, tmp_path: Path
):
    (run,) = small.runs(tmp_path)
    told, code = in_a_child(scenes.killed_in_a_run, small.order(run, again=True), small.whole, EVERY)
    assert code == 0
    total, wrong = told
    assert total > 100 and wrong == {}


def test_images_whose_preparation_was_killed_at_any_write_are_prepared_to_the_same_bytes(small: Small, tmp_path: Path):
    (run,) = small.runs(tmp_path)
    told, code = in_a_child(scenes.killed_in_preparation, small.order(run), tmp_path / "cache", EVERY)
    assert code == 0
    total, wrong = told
    assert total > 20 and wrong == {}
