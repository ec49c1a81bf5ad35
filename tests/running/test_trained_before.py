"""What only predicts otherwise begins with the weights of a finished run, and gives what training anew would give."""

from dataclasses import replace
from pathlib import Path

import pytest

from dgbench import registry
from dgbench.files import read_json, sha256, write_json
from dgbench.images.folder_task import FolderTask
from dgbench.images.preparation import prepare
from dgbench.method import trained_as
from dgbench.running import plan, train, trained_before, worker
from dgbench.running.description import environment
from dgbench.running.records import read_run
from tests.discs import write_discs

TEST_TIME = ("adabn", "tent", "sar", "intent", "vptta", "grata")
SMALL = {"steps": "3", "image_size": "32"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the task and its prepared domains, and the finished run of `erm` in `results`."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGBENCH_CACHE", str(home / "cache"))
        write_discs(home / "discs", cases=3)
        assert made(order(home, "erm")).status == "done"
        yield home


def order(home: Path, method: str, results: str = "results", again: bool = False, **options):
    task = FolderTask(home / "discs")
    prepared = {d: prepare(task, d, 32).folder for d in task.domains}
    settings = SMALL | options.pop("settings", {})
    (run,) = plan.plan(task, [method], sources=["dim"], settings=settings, results=home / results, **options)
    return worker.Order(run, prepared, again, "cpu", 1, 60.0)


def made(of: worker.Order) -> worker.Outcome:
    return worker.attempt(of, lambda news: None, lambda: False)


def find(of: worker.Order, threads: int = 1) -> Path | None:
    how = environment("cpu") | {"threads": threads, "compiled": of.compile}
    return trained_before.find(of.run, how)


def bytes_of(of: worker.Order) -> list[str]:
    return [sha256(Path(of.run.folder) / name) for name in ("weights.safetensors", "predictions.npz", "cases.csv")]


def refuse(*_: object) -> None:
    raise AssertionError("it was trained anew")


@pytest.mark.parametrize("method", [*TEST_TIME, "erm+tent"])
def test_no_step_is_trained_and_every_byte_is_that_of_training_anew(home, monkeypatch, method):
    anew = order(home, method, "elsewhere")
    assert made(anew).status == "done"
    assert "trained_by" not in read_run(Path(anew.run.folder)).record
    monkeypatch.setattr(train, "step", refuse)
    taken = order(home, method)
    assert made(taken).status == "done"
    assert bytes_of(taken) == bytes_of(anew)
    record, base = read_run(Path(taken.run.folder)), Path(order(home, "erm").run.folder)
    assert record.record["trained_by"] == f"erm[image_size=32;steps=3]/{base.name}"
    assert record.record["weights"] == sha256(base / "weights.safetensors")
    costs = [r.record["costs"] for r in (record, read_run(base))]
    assert costs[0]["train_seconds"] == costs[1]["train_seconds"]
    assert list(record.history["loss"]) == list(read_run(base).history["loss"])
    assert not list(Path(taken.run.folder).glob("checkpoint*"))


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"learning_rate": "0.01"}},
        {"settings": {"width": "4"}},
        {"seeds": [1]},
        {"protocol": "audit"},
    ],
    ids=str,
)
def test_another_setting_seed_or_protocol_is_another_training(home, change):
    assert find(order(home, "tent")) is not None
    assert find(order(home, "tent", **change)) is None


def test_a_setting_of_the_idea_alone_leaves_the_training_as_it_is(home):
    assert find(order(home, "tent", settings={"adaptation": "online"})) is not None


def test_an_idea_that_trains_is_not_passed_over(home):
    """`mixup+tent` is trained as `mixup+erm` would be, never as `erm`."""
    assert trained_as(registry.get_method("erm+mixup+tent")).name == "erm+mixup"
    assert find(order(home, "erm+mixup+tent")) is None
    assert find(order(home, "mixup")) is None


def test_another_number_of_threads_or_a_compiled_network_would_round_otherwise(home):
    of = order(home, "tent")
    assert find(of) is not None
    assert find(of, threads=2) is None
    assert find(replace(of, compile=True)) is None


def test_a_run_of_other_hardware_or_with_damaged_weights_is_not_begun_with(home, tmp_path):
    made(order(home, "erm", "other"))
    folder, of = Path(order(home, "erm", "other").run.folder), order(home, "sar", "other")
    assert find(of) == folder
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    assert find(of) is None
    (folder / "weights.safetensors").write_bytes(weights)
    record, result = read_json(folder / "run.json"), read_json(folder / "RESULT.json")
    record["environment"]["hardware"] = "another processor"
    write_json(folder / "run.json", record)
    result["files"]["run.json"] = sha256(folder / "run.json")
    write_json(folder / "RESULT.json", result)
    assert order(home, "erm", "other").run.status == "done"
    assert find(of) is None


def test_asked_to_make_it_again_it_is_trained(home, monkeypatch):
    monkeypatch.setattr(trained_before, "borrow", refuse)
    assert made(order(home, "intent", "results", again=True)).status == "done"
    assert "trained_by" not in read_run(Path(order(home, "intent").run.folder)).record


def test_a_run_stopped_before_its_first_record_leaves_nothing_that_the_next_one_believes(home):
    """It may have been planned with other code: what lies there without run.json is nobody's."""
    of = order(home, "grata", "stopped")
    folder = Path(of.run.folder)
    folder.mkdir(parents=True)
    train.write_checkpoint(folder, train.Progress(step=3), {}, {})
    assert made(of).status == "done"
    assert list(read_run(folder).history["step"]) == [1, 2, 3]
