"""Selected weights are those of the best look at the source, whatever was killed; a look changes no training."""

import json
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dgbench import registry
from dgbench.errors import RunError
from dgbench.files import read_json, sha256
from dgbench.images.folder_task import FolderTask
from dgbench.images.preparation import prepare
from dgbench.method import resolve_hparams
from dgbench.protocol import AUDIT, PROTOCOLS
from dgbench.running import plan, train, worker
from dgbench.running.selection import BestOnSource
from dgbench.running.test import mean_dice
from tests.discs import write_discs
from tests.pixels import Pixels

STEPS, EVERY = 12, 3
PLUGIN = Path(__file__).parents[1] / "pixels.py"


class Spoiled(Pixels):
    """After the sixth step it finds nothing any more."""

    def update(self, batch):
        shown = super().update(batch)
        if self.seen > 6:
            torch.nn.init.constant_(self.net[-1].bias, -30.0)
        return shown


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The training slices of a source, and what its validation cases say of a method."""
    task = FolderTask(write_discs(tmp_path_factory.mktemp("discs"), steps=STEPS))
    domain = prepare(task, "bright", task.image_size, tmp_path_factory.mktemp("cache"))
    training, validation = task.split("bright")
    slices = train.TrainingSlices(domain, domain.slice_indices(training, foreground=True))
    return task, slices, lambda method: mean_dice(method, domain, validation, AUDIT, 0)


def build(task, kind=Pixels):
    return train.build(kind, task.info, resolve_hparams(kind, task.name), seed=0)[0]


def fit(method, slices, folder, **options):
    """With seed 0 in a folder that may be new."""
    folder.mkdir(exist_ok=True)
    return train.fit(method, slices, 0, folder, **options)


def state(method):
    return {n: t.clone() for n, t in method.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def told(*scores):
    """A look that is told what it sees."""
    left = iter(scores)
    return BestOnSource(EVERY, lambda method: next(left))


def after(source, steps, kind, folder):
    """The weights that a training has after so many steps, without any look."""
    task, slices, _ = source
    method, asked = build(task, kind), iter(range(1, STEPS + 1))
    with pytest.raises(train.Interrupted):
        fit(method, slices, folder, watch=train.Watch(should_stop=lambda: next(asked) == steps))
    return state(method)


def test_the_weights_of_the_best_look_are_taken_though_the_last_step_is_worse(source, tmp_path):
    task, slices, score = source
    method = build(task, Spoiled)
    progress = fit(method, slices, tmp_path / "a", selection=BestOnSource(EVERY, score))
    looks = {h["step"]: h["validation_dice"] for h in progress.history if "validation_dice" in h}
    assert list(looks) == [3, 6, 9, 12] and looks[9] == looks[12] == 0 < max(looks.values())
    assert progress.selected.step == max(looks, key=lambda step: looks[step])
    assert progress.selected.dice == looks[progress.selected.step] == score(method)
    assert same(state(method), after(source, progress.selected.step, Spoiled, tmp_path / "b"))


@pytest.mark.parametrize(("scores", "step"), [((0.5, 0.7, 0.7, 0.1), 6), ((0.0, 0.0, 0.0, 0.0), 3)])
def test_of_equal_looks_the_earliest_counts(source, tmp_path, scores, step):
    task, slices, _ = source
    method = build(task)
    progress = fit(method, slices, tmp_path / "a", selection=told(*scores))
    assert (progress.selected.step, progress.selected.dice) == (step, max(scores))
    assert same(state(method), after(source, step, Pixels, tmp_path / "b"))


def test_a_look_changes_nothing_of_the_training(source, tmp_path):
    task, slices, score = source
    plain, watched = build(task), build(task)
    fit(plain, slices, tmp_path / "plain")
    rising = iter(range(1, 5))
    selection = BestOnSource(EVERY, lambda method: score(method) + next(rising))
    progress = fit(watched, slices, tmp_path / "watched", selection=selection)
    assert progress.selected.step == STEPS and same(state(plain), state(watched))
    assert progress.selected.seconds > 0


@pytest.mark.parametrize("stop_at", [2, 3, 7, 11])
def test_a_training_stopped_anywhere_selects_the_same(source, tmp_path, stop_at):
    task, slices, score = source
    whole, stopped, selection = build(task, Spoiled), build(task, Spoiled), BestOnSource(EVERY, score)
    expected = fit(whole, slices, tmp_path / "whole", selection=selection)
    asked = iter(range(1, STEPS + 1))
    watch = train.Watch(should_stop=lambda: next(asked) == stop_at)
    with pytest.raises(train.Interrupted):
        fit(stopped, slices, tmp_path / "b", watch=watch, selection=selection)
    again = build(task, Spoiled)
    found = fit(again, slices, tmp_path / "b", selection=selection)
    assert same(state(whole), state(again))
    assert (found.selected.step, found.selected.dice) == (expected.selected.step, expected.selected.dice)
    drop = "seconds"
    lines = [[{n: v for n, v in h.items() if n != drop} for h in p.history] for p in (expected, found)]
    assert lines[0] == lines[1]


# --- a run of the protocol -------------------------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Orders for one run of the protocol, each with a folder of results of its own; it looks every third step."""
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PROTOCOLS, "audit", replace(AUDIT, every=EVERY))
    registry.add_plugin(PLUGIN)
    task = FolderTask(write_discs(tmp_path / "discs"))
    prepared = {d: prepare(task, d, task.image_size).folder for d in task.domains}

    def order(results):
        (run,) = plan.plan(
            task, ["pixels"], sources=["dim"], protocol="audit", settings={"steps": "12"}, results=tmp_path / results
        )
        Path(run.folder).mkdir(parents=True)
        return task, worker.Order(run, prepared, False, "cpu", 1, 0.0)

    return order


KILLED = """
import os, pickle, signal, sys
from dataclasses import replace
from pathlib import Path
from dgbench.protocol import AUDIT, PROTOCOLS
from dgbench.running import train, worker
PROTOCOLS["audit"] = replace(AUDIT, every=3)
steps = iter(range(1, 13))
stop = lambda: next(steps) == 7 and os.kill(os.getpid(), signal.SIGKILL)
worker.make(pickle.loads(Path(sys.argv[1]).read_bytes()), train.Watch(should_stop=stop, save_every=0.0))
"""


def test_a_run_killed_between_two_looks_ends_with_the_same_bytes(runs, tmp_path):
    (_, whole), (_, killed) = runs("whole"), runs("killed")
    worker.make(whole, train.Watch())
    (tmp_path / "order").write_bytes(pickle.dumps(killed))
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "order")], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = Path(killed.run.folder)
    assert sorted(p.stem for p in folder.glob("checkpoint-*.safetensors"))[-1] == "checkpoint-00000006"
    worker.make(killed, train.Watch())
    for name in ("weights.safetensors", "cases.csv", "predictions.npz"):
        assert sha256(Path(whole.run.folder) / name) == sha256(folder / name), name
    record = read_json(folder / "run.json")
    assert record["selected"] == read_json(Path(whole.run.folder) / "run.json")["selected"]
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    looks = {line["step"]: line["validation_dice"] for line in lines if "validation_dice" in line}
    assert list(looks) == [3, 6, 9, 12]
    assert record["selected"] == {"step": max(looks, key=lambda s: looks[s]), "validation_dice": max(looks.values())}


def test_only_the_sources_validation_cases_are_looked_at(runs, monkeypatch):
    task, order = runs("r")
    seen = []

    def look(method, domain, ids, protocol, seed):
        seen.append((domain.name, ids))
        return 0.5

    monkeypatch.setattr(worker, "mean_dice", look)
    worker.make(order, train.Watch())
    assert seen == [("dim", task.split("dim")[1])] * 4


def test_the_images_of_the_targets_cannot_be_opened_when_a_checkpoint_is_chosen(runs, monkeypatch):
    task, order = runs("r")
    image = order.prepared[task.targets("dim")[0]] / "images.npy"
    monkeypatch.setattr(worker, "mean_dice", lambda *_, **__: float(len(image.read_bytes())))
    with pytest.raises(RunError, match="while it was being trained"):
        worker.make(order, train.Watch())


def test_the_protocol_gives_the_budget_and_another_one_is_a_variant(tmp_path):
    registry.add_plugin(PLUGIN)
    task = FolderTask(write_discs(tmp_path / "discs", steps=12))
    (run,) = plan.plan(task, ["pixels"], sources=["dim"], protocol="audit", results=tmp_path)
    hparams = run.load_method()[1]
    assert (run.variant, hparams.steps, hparams.batch_size) == ("pixels", 8000, 8)
    settings = {"steps": "9", "batch_size": "8"}
    (run,) = plan.plan(task, ["pixels"], sources=["dim"], protocol="audit", settings=settings, results=tmp_path)
    assert (run.variant, run.load_method()[1].steps) == ("pixels[steps=9]", 9)
    (run,) = plan.plan(task, ["pixels"], sources=["dim"], results=tmp_path)
    assert (run.load_method()[1].steps, run.load_method()[1].batch_size) == (None, 4)
