"""How many runs are made at the same time, and where."""

import io
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from dgbench import registry
from dgbench.images.folder_task import FolderTask
from dgbench.pages.after_run import failures
from dgbench.running import launchers, plan
from dgbench.running.launchers import Options
from tests.discs import write_discs
from tests.networks.test_weights import command

PIXELS = Path(__file__).parents[1] / "pixels.py"


@pytest.mark.parametrize(
    ("options", "runs", "places"),
    [
        (Options(), 9, ["cpu"] * 3),  # as many as there are free cores
        (Options(), 2, ["cpu"] * 2),
        (Options(jobs=5), 9, ["cpu"] * 5),  # the user knows better
    ],
)
def test_on_a_cpu_there_is_a_place_for_a_run_on_each_free_core(monkeypatch, options, runs, places):
    monkeypatch.setattr(launchers, "free_cores", lambda: 3)
    assert launchers._places(["cpu"], options, runs) == places


@pytest.mark.parametrize(
    ("options", "places"),
    [
        (Options(), ["cuda:0", "cuda:1"]),
        (Options(per_device=2), ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        (Options(per_device=2, jobs=3), ["cuda:0", "cuda:1", "cuda:0"]),
    ],
)
def test_gpus_are_filled_in_turn(options, places):
    assert launchers._places(["cuda:0", "cuda:1"], options, 9) == places


LIGHT, HUNGRY = SimpleNamespace(variant="light"), SimpleNamespace(variant="hungry")
US = SimpleNamespace(pid=os.getpid())  # a process that can be looked at


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(launchers, "free_memory_mb", lambda: 15_000.0)
    return launchers._Memory(bounded=True)


def test_alone_a_run_starts_whatever_it_needs(memory):
    memory.seen["hungry"] = 1e9
    assert memory.allows(HUNGRY, [])


def test_the_second_run_waits_until_it_is_seen_what_the_first_one_needs(memory):
    assert not memory.allows(LIGHT, [(LIGHT, US)])
    assert memory.look(LIGHT, os.getpid()) > 0
    assert memory.allows(LIGHT, [(LIGHT, US)])


def test_a_run_starts_beside_others_when_a_tenth_more_than_its_variant_s_need_is_free(memory):
    memory.look(LIGHT, os.getpid())
    memory.seen["hungry"] = 13_000.0
    assert memory.allows(HUNGRY, [(LIGHT, US)])
    memory.seen["hungry"] = 14_000.0
    assert not memory.allows(HUNGRY, [(LIGHT, US)])


def test_memory_that_a_running_one_has_yet_to_take_is_not_free(memory):
    memory.seen |= {"light": 1000.0, "hungry": 20_000.0}
    assert not memory.allows(LIGHT, [(HUNGRY, US)])


def test_a_number_of_jobs_that_the_user_gave_is_kept(memory):
    memory.bounded = False
    memory.seen["hungry"] = 1e9
    assert memory.allows(HUNGRY, [(HUNGRY, US)])


# --- what is known to be missing before the start --------------------------------------------------------------------


@pytest.fixture
def discs(tmp_path, monkeypatch):
    """A task; no process is started, the runs that would be made are in `started`."""
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DGBENCH_WEIGHTS", str(tmp_path / "weights"))
    return FolderTask(write_discs(tmp_path / "discs", cases=2))


@pytest.fixture
def started(monkeypatch):
    runs = []
    monkeypatch.setattr(launchers, "_work_off", lambda waiting, *_: runs.extend(order.run for order in waiting))
    return runs


LACKING = {
    "no file": ("erm", {"initialisation": "gone.pth"}, "no such weights file: gone.pth"),
    "weights not fetched": ("sam_decoder", {"backbone": "vit_b"}, "the weights sam_vit_b_01ec64.pth are missing"),
    "no such network": ("erm", {"encoder": "resnet43"}, "unknown encoder 'resnet43'"),
    "a size that does not fit": ("sam_decoder", {"image_size": "100"}, "no multiple of the patch size"),
    "no package": ("imports", {}, "ModuleNotFoundError: No module named 'not_installed'"),
}


@pytest.mark.parametrize("what", LACKING)
def test_what_a_variant_lacks_is_found_before_any_run_told_once_and_stops_no_other(discs, started, tmp_path, what):
    method, settings, cause = LACKING[what]
    (tmp_path / "imports.py").write_text(PIXELS.read_text().replace("self.net =", "import not_installed; self.net ="))
    registry.add_plugin(tmp_path / "imports.py")
    planned = plan.plan(discs, [method], settings=settings, results=tmp_path / "r")
    planned += plan.plan(discs, ["constant"], results=tmp_path / "r")
    said, told = [], io.StringIO()
    outcomes = launchers.launch(discs, planned, options=Options(device="cpu", jobs=1), report=said.append)
    assert [run.method for run in started] == ["constant"] * 3
    assert [(o.run.method, o.status) for o in outcomes] == [(method, "failed")] * 3
    assert {folder.name for folder in (tmp_path / "r" / "discs" / "sdg").iterdir()} == {"constant"}
    assert cause in said[0] and said[1:] == ["3 runs to make, 1 at a time"]
    assert failures(outcomes, Console(file=told, width=1000))
    lines = told.getvalue().splitlines()
    assert len(lines) == 3 and cause in lines[0] and "(3 runs): " in lines[0] and lines[1].startswith("try: ")
    assert lines[2] == "3 of 3 runs are not finished"


def test_what_all_variants_lack_is_told_once(discs, started, tmp_path):
    planned = plan.plan(discs, ["dapsam", "sam_decoder"], settings={"backbone": "vit_b"}, results=tmp_path / "r")
    said, told = [], io.StringIO()
    outcomes = launchers.launch(discs, planned, options=Options(device="cpu"), report=said.append)
    assert failures(outcomes, Console(file=told, width=1000)) and not said and not started
    assert not (tmp_path / "r").exists()
    first, second, last = told.getvalue().splitlines()
    variants = [f"discs/sdg/{name}[backbone=vit_b] (3 runs)" for name in ("dapsam", "sam_decoder")]
    weights = f"the weights sam_vit_b_01ec64.pth are missing in {tmp_path / 'weights'}"
    assert first == f"failed: {', '.join(variants)}: {weights}"
    assert second.startswith("try:    dgbench weights fetch sam_vit_b; or ") and last == "6 of 6 runs are not finished"


def test_a_finished_run_needs_nothing_any_more(discs, started, tmp_path, monkeypatch):
    settings = {"backbone": "vit_b"}
    planned = plan.plan(discs, ["sam_decoder"], settings=settings, results=tmp_path / "r")
    monkeypatch.setattr(plan.Run, "status", "done")
    assert {o.status for o in launchers.launch(discs, planned, options=Options(device="cpu"))} == {"kept"}


def test_a_plugin_that_cannot_be_imported_stops_no_other(discs, tmp_path, capsys):
    (tmp_path / "torn.py").write_text(PIXELS.read_text() + "\nraise OSError('no such table')\n")
    registry.add_plugin(tmp_path / "torn.py")
    broken, told = {}, io.StringIO()
    planned = plan.plan(discs, ["torn", "constant"], results=tmp_path / "r", broken=broken)
    assert {run.method for run in planned} == {"constant"} and list(broken) == ["torn"]
    assert failures([], Console(file=told, width=1000), broken)
    assert told.getvalue() == "failed: torn: OSError: no such table\ntry:    `dgbench check torn` shows where\n"
    with pytest.raises(OSError, match="no such table"):
        plan.plan(discs, ["torn", "constant"], results=tmp_path / "r")
    asked = ["run", "--plugin", str(tmp_path / "torn.py"), "--task", str(discs.root), "--dry-run"]
    assert command(*asked, "--method", "torn,constant", "--results", str(tmp_path / "r")) == 4
    shown = capsys.readouterr()
    assert shown.out.count("discs/sdg/constant") == 3 and "failed: torn: OSError: no such table" in shown.err
    with pytest.raises(OSError, match="no such table"):  # alone, with its own traceback
        command(*asked, "--method", "torn")


def test_a_task_whose_data_are_broken_stops_no_other_and_decides_the_exit_code(discs, tmp_path, capsys):
    torn = write_discs(tmp_path / "torn", cases=2)
    (torn / "task.toml").write_text('name = "torn"\nstructures = ["disc"]\n')
    (torn / "dim" / "images" / "case1.png").write_bytes(b"no image")
    tasks = ["--task", f"{torn},{discs.root}"]
    assert command("run", "--method", "constant", *tasks, "--dry-run", "--results", str(tmp_path / "r")) == 3
    shown = capsys.readouterr()
    assert shown.out.count("discs/sdg/constant") == 3
    assert shown.err.count("case1.png") == 1
    assert command("data", "prepare", str(torn)) == 3
    shown = capsys.readouterr()
    assert shown.out.count(": 2 cases") == 2 and shown.err.count("case1.png") == 1
