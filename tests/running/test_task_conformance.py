"""`dgbench check --task`: ours pass, and each thing that a task may do wrong is told with what to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dgbench import cli
from dgbench.errors import DataError, require
from dgbench.images.file_task import FileTask
from dgbench.images.formats import read_case
from dgbench.images.mock import Sketch, write_png
from dgbench.registry import TASKS
from dgbench.running.task_conformance import check_task
from dgbench.task import Case

PLUGIN = '''"""Blobs: bright discs, two sites."""

from dgbench.images.file_task import FileTask
from tests.running.test_task_conformance import Blobs as _Blobs


class Blobs(_Blobs):
    """For the command line."""
'''


@pytest.mark.parametrize("name", [name for name in TASKS.names() if name != "phantom"])
def test_every_task_of_ours_conforms(name):
    assert check_task(TASKS.get(name)) == []


class Blobs(FileTask):
    """Right in all: what follows is wrong in one thing each."""

    domains = ("one", "two")
    structures = ("blob",)
    image_size = 32
    unit = "px"
    intensity = "8-bit divided by 255"
    citation = "none"
    licence = "CC0"
    download = "nowhere"

    def case_ids(self, domain):
        require(domain, self.domains, "domain")
        return [f"case{n}" for n in range(3)]

    def files(self, domain, case_id):
        require(case_id, self.case_ids(domain), "case")
        return [self.folder / domain / f"{case_id}{part}.png" for part in ("", "_mask")]

    def load(self, domain, case_id):
        image, mask = self.files(domain, case_id)
        pixels, (values,) = read_case(image, [mask])
        return Case(case_id, self.intensities(pixels), values[:, None] > 0, (1.0, 1.0, 1.0))

    def mock(self, folder, sketch):
        for k, domain in enumerate(self.domains):
            for case_id in self.case_ids(domain):
                labels = sketch.labels(24, 24)
                write_png(folder / domain / f"{case_id}.png", sketch.gray(labels, k))
                write_png(folder / domain / f"{case_id}_mask.png", labels)


def test_a_task_that_is_right_has_no_finding():
    assert check_task(Blobs) == []


def wrong(**changed) -> str:
    """What is said of the task with some attributes or methods changed."""
    return "\n".join(check_task(type("Wrong", (Blobs,), {"__module__": __name__, **changed})))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"citation": ""}, "`citation` is empty"),
        ({"domains": ("one",)}, "at least two"),
        ({"domains": ("one", "mean")}, "'mean' cannot name a domain"),
        ({"sources": ("three",)}, "`sources` names three"),
        ({"unit": "cm"}, "`unit` is 'cm'"),
        ({"image_size": 0}, "image_size"),
        ({"access": "account"}, "say how to get them in `steps_to_get`"),
        ({"mock": FileTask.mock}, "has no mock, by which the checks are made"),
        ({"case_ids": lambda self, domain: ["case1", "case0", "case2"]}, "must be sorted"),
        ({"case_ids": lambda self, domain: ["case0"]}, "domain one has 1 cases: it needs at least 2"),
        ({"files": lambda self, domain, i: []}, "not enough values"),
        ({"split": lambda self, source: (["case0", "case1"], ["case1"])}, "case1 both to train and to validate"),
        ({"split": lambda self, source: (["case0", "case1"], [])}, "no case to validate on"),
        (
            {"group": lambda self, domain, i: "Ann", "split": lambda self, source: (["case0"], ["case1"])},
            "cases of Ann on both sides",
        ),
        ({"targets": lambda self, source: ("one", "two")}, "targets('one') must not hold the source"),
        ({"verify": lambda self: []}, "case1.png has the same image as case0.png"),
        ({"verify": lambda self: ["it is Monday"]}, "on its own mock verify says: it is Monday"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_what_to_change(changed, said):
    assert said in wrong(**changed)


def test_a_loader_that_takes_anything_is_told(tmp_path):
    def tolerant(self, domain, case_id):
        try:
            return Blobs.load(self, domain, case_id)
        except DataError:
            return Blobs.load(self, domain, "case2")

    found = wrong(load=tolerant)
    assert "where case0.png is missing, load must raise DataError; it gives a case" in found
    assert "where case0.png is cut off" in found
    assert "load('one', 'case0') gives a case named" not in found

    def nameless(self, domain, case_id):
        try:
            return Blobs.load(self, domain, case_id)
        except DataError:
            raise DataError("some file is bad") from None

    assert "the error must name it; it says: some file is bad" in wrong(load=nameless)


def test_an_error_of_its_own_is_told_with_its_line():
    assert "ZeroDivisionError: division by zero (test_task_conformance.py, line" in wrong(load=lambda *_: 1 / 0)


def test_the_command_checks_a_plug_in_drawn_or_on_real_files_and_ends_in_4(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("blobs.py").write_text(PLUGIN)
    run = CliRunner().invoke
    done = run(cli.app, ["check", "--task", "blobs"])
    assert done.exit_code == 0 and "ok   finds an image that stands for two cases" in done.output, done.output
    Blobs().mock(tmp_path / "real", Sketch())
    before = sorted((p, p.read_bytes()) for p in (tmp_path / "real").rglob("*.png"))
    done = run(cli.app, ["check", "--task", "blobs", "--data", "real"])
    assert done.exit_code == 0 and "stands for two" not in done.output
    assert before == sorted((p, p.read_bytes()) for p in (tmp_path / "real").rglob("*.png"))
    shutil.rmtree(tmp_path / "real" / "two")
    done = run(cli.app, ["check", "--task", "blobs", "--data", "real"])
    assert done.exit_code == 4 and "FAIL" in done.output and "case0.png" in done.output
    assert run(cli.app, ["check"]).exit_code == run(cli.app, ["check", "erm", "--task", "blobs"]).exit_code == 1
