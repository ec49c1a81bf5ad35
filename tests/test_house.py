"""benchmarks/house.py sees what it is for, on a drawn checkout, and finds nothing to mend in this one."""

import runpy
from pathlib import Path

import pytest

HOUSE = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks/house.py"))
NOT_YET = {"dgbench.registry (contract) -> dgbench.images.folder_task (images)"}  # to be emptied


def checkout(folder: Path, **texts: str) -> Path:
    """Files by module name, `scores__study` being dgbench/scores/study.py; a running room is always there."""
    for name, text in {"running__train": "", **texts}.items():
        path = folder / "dgbench" / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def test_nothing_here_imports_in_a_circle_or_from_a_room_above(root: Path):
    assert set(HOUSE["climbs"](root)) <= NOT_YET
    assert [c for c in HOUSE["circles"](HOUSE["import_graph"](root)) if c.count("<->") > 1 or not NOT_YET] == []


def test_a_circle_is_found_though_it_is_closed_inside_a_function(tmp_path: Path):
    late = "def f():\n    from dgbench import task\n"
    folder = checkout(tmp_path, task="import dgbench.files", files="from dgbench.errors import Any", errors=late)
    assert HOUSE["circles"](HOUSE["import_graph"](folder)) == ["dgbench.errors <-> dgbench.files <-> dgbench.task"]


def test_a_climb_is_an_import_of_a_room_that_is_not_below(tmp_path: Path):
    folder = checkout(tmp_path, task="", images__formats="import dgbench.networks.sam", networks__sam="import torch",
                      scores__study="from dgbench.task import Case\nfrom dgbench.running.train import fit")  # fmt: skip
    assert HOUSE["climbs"](folder) == ["dgbench.images.formats (images) -> dgbench.networks.sam (networks)"]


def test_a_function_is_large_by_its_lines_or_by_what_it_asks_for(tmp_path: Path):
    long = "def long():\n" + "    pass\n" * 50
    method = "class A:\n    def six(self, a, b, c, *, d, e, f): ...\n    def seven(self, a, b, c, *, d, e, f, g): ...\n"
    found = HOUSE["large_functions"](checkout(tmp_path, task=long + method))
    assert [f.partition(" ")[2] for f in found] == ["long: 51 lines, 0 parameters", "seven: 1 lines, 7 parameters"]


@pytest.mark.parametrize("name, room", [("dgbench/task.py", "contract"), ("dgbench/cli.py", "cli"),
                                        ("dgbench/pages/site.py", "pages"), ("methods/erm.py", "methods")])  # fmt: skip
def test_every_line_belongs_to_one_room(name: str, room: str, tmp_path: Path):
    path = checkout(tmp_path) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n" * 7)
    assert +HOUSE["lines_by_room"](tmp_path) == {room: 7}
