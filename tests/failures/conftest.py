"""The run that everything here is done to: `pixels`, three steps on discs, and what it leaves when all goes well."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dgbench import registry
from dgbench.images.folder_task import FolderTask
from dgbench.images.preparation import prepare
from dgbench.running import plan
from dgbench.running.plan import Run
from dgbench.running.worker import Order
from tests.discs import write_discs
from tests.failures import scenes
from tests.failures.child import in_a_child

PLUGIN = Path(__file__).parents[1] / "pixels.py"


@dataclass(frozen=True)
class Small:
    """A task in `home/discs`, its domains prepared in `home/cache`, and its undisturbed run in `home/whole`."""

    home: Path
    prepared: dict[str, Path]

    def runs(self, results: Path, method: str = "pixels", plugin: Path = PLUGIN, **options: object) -> list[Run]:
        """Planned runs of a method from source `dim`."""
        registry.add_plugin(plugin)
        task = FolderTask(self.home / "discs")
        return plan.plan(task, [method], results=results, sources=["dim"], **options)  # type: ignore[arg-type]

    def order(self, run: Run, again: bool = False) -> Order:
        """What the run's process is told: a checkpoint after each step."""
        return Order(run, self.prepared, again, "cpu", 1, 0.0)

    @property
    def whole(self) -> Path:
        return self.home / "whole" / "discs" / "sdg" / "pixels" / "dim-seed0"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    home = tmp_path_factory.mktemp("failures")
    task = FolderTask(write_discs(home / "discs", cases=2, steps=3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGBENCH_CACHE", str(home / "cache"))
        small = Small(home, {d: prepare(task, d, 48).folder for d in task.domains})
        registry.METHODS.extra.clear()
        assert in_a_child(scenes.launched, small.runs(home / "whole"))[0] == [("done", "", "")]
    return small


@pytest.fixture
def small(made: Small, monkeypatch: pytest.MonkeyPatch) -> Iterator[Small]:
    monkeypatch.setenv("DGBENCH_CACHE", str(made.home / "cache"))
    assert os.environ["DGBENCH_CACHE"]
    yield made
