"""A run is made again from its record: the same bytes, or what changed and whether it matters."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from dgbench import launch, registry, runs
from dgbench.errors import RunError, UsageError
from dgbench.files import read_json
from dgbench.folder import FolderTask
from dgbench.records import find_runs, read_run
from dgbench.reproduce import _interval, compare, differences, reproduce
from tests.discs import write_discs

PLUGIN = Path(__file__).parent / "pixels.py"


@pytest.fixture
def discs(tmp_path, monkeypatch):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    registry.add_plugin(PLUGIN)
    return FolderTask(write_discs(tmp_path / "discs", cases=4, steps=4))


@pytest.fixture
def finished(discs, tmp_path):
    options = {"task_reference": str(discs.root), "results": tmp_path / "results", "sources": ["dim"], "seeds": [3]}
    (run,) = runs.plan(discs, ["pixels"], settings={"learning_rate": "0.02"}, **options)
    (outcome,) = launch.launch(discs, [run], options=launch.Options(device="cpu", threads=1))
    assert outcome.status == "done"
    return Path(run.folder)


def test_the_same_code_and_images_give_the_same_bytes(discs, finished):
    found = reproduce(finished, task=str(discs.root))
    assert (found.verdict, found.difference, found.changed) == ("identical", 0, [])
    assert found.cases == 8  # four of each of two targets
    assert found.now.record["settings"] == {"learning_rate": "0.02"}
    assert found.now.seed == 3
    assert found.sentence().startswith("identical: the same bytes for 8 target cases")
    assert find_runs(finished.parents[3], "discs", "sdg") == [finished]  # no table sees the repetition


def test_changed_images_are_named_and_the_numbers_compared(discs, finished, tmp_path):
    for case in range(4):  # the source is trained on upside down: another network
        for kind in ("images", "masks"):
            shutil.copy(
                discs.root / "inverted" / kind / f"case{case}.png", discs.root / "dim" / kind / f"case{case}.png"
            )
    runs._domain_fingerprint.cache_clear()
    found = reproduce(finished, tmp_path / "again", task=str(discs.root))
    assert found.verdict == "different"
    (what, then, now), *others = found.changed
    assert what == "images of domain dim" and then != now and not others
    assert found.low <= found.difference <= found.high
    assert "different: Dice changed by" in found.sentence()
    assert found.now.path.is_relative_to(tmp_path / "again")


def test_what_a_record_does_not_hold_is_asked_for(discs, finished, tmp_path):
    with pytest.raises(UsageError, match="folder of images, name it with --task PATH"):
        reproduce(finished)
    other = tmp_path / "other"
    shutil.copytree(discs.root, other)
    (other / "task.toml").write_text('name = "other"\nstructures = ["disc"]\nimage_size = 48\nsteps = 4\n')
    with pytest.raises(UsageError, match="is discs/pixels.*; with what is given it would be other/pixels"):
        reproduce(finished, task=str(other))
    with pytest.raises(UsageError, match="would replace"):
        reproduce(finished, finished.parents[3], task=str(discs.root))
    registry.METHODS.extra.clear()
    with pytest.raises(UsageError, match="method 'pixels' of .* is not known\ngive its file with --plugin"):
        reproduce(finished, task=str(discs.root))


def test_a_repetition_that_fails_is_an_error_with_its_cause(discs, finished):
    for path in (discs.root / "dim" / "images").iterdir():
        path.write_bytes(b"no image")
    runs._domain_fingerprint.cache_clear()
    with pytest.raises(Exception, match=r"case0\.png"):
        reproduce(finished, task=str(discs.root))
    registry.METHODS.extra.clear()


def test_a_run_that_ends_without_numbers_is_an_error(discs, finished, monkeypatch):
    monkeypatch.setattr(launch, "launch", lambda task, planned, *rest: [launch.Outcome(planned[0], "failed", "NaN")])
    with pytest.raises(RunError, match="the repetition failed: NaN"):
        reproduce(finished, task=str(discs.root))


# --- the rule --------------------------------------------------------------------------------------------------------


def altered(folder, tmp_path, change):
    """A copy of a run whose target cases' Dice went through `change(number of the case, dice)`."""
    copied = tmp_path / "altered"
    shutil.copytree(folder, copied)
    cases = pd.read_csv(copied / "cases.csv")
    targets = cases["role"] == "target"
    cases.loc[targets, "dice"] = [change(i, d) for i, d in enumerate(cases.loc[targets, "dice"])]
    cases.to_csv(copied / "cases.csv", index=False)
    result = read_json(copied / "RESULT.json")
    result["files"]["cases.csv"] = runs.sha256(copied / "cases.csv")
    (copied / "RESULT.json").write_text(json.dumps(result))
    return read_run(copied)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda i, d: d + 1e-9 * (-1) ** i, "within interval"),  # rounding
        (lambda i, d: d + 0.3 * (-1) ** i, "within interval"),  # the cases changed a lot, their mean did not
        (lambda i, d: d - 0.001, "different"),  # small, but every case lost the same
        (lambda i, d: d - 0.2 * (i < 3), "different"),  # 7.5 points lost, though the interval contains 0
    ],
)
def test_the_mean_must_be_near_and_its_interval_must_contain_zero(finished, tmp_path, change, verdict):
    found = compare(read_run(finished), altered(finished, tmp_path, change))
    assert found.verdict == verdict, found.sentence()


def test_other_cases_are_never_averaged_into_a_verdict(finished, tmp_path):
    other = altered(finished, tmp_path, lambda i, d: d)
    other.cases.drop(other.cases.index[-1], inplace=True)
    found = compare(read_run(finished), other)
    assert found.verdict == "different" and found.sentence() == "different: the two runs were tested on different cases"


def test_the_interval_is_students():
    mean, low, high = _interval(pd.Series([0.0, 0.1, 0.2]).to_numpy())
    assert (mean, high - mean) == pytest.approx((0.1, 4.302653 * 0.1 / 3**0.5))  # t(0.975, 2)
    assert low + high == pytest.approx(0.2)


# --- records ---------------------------------------------------------------------------------------------------------


def test_differences_are_named_in_words_and_what_follows_from_them_is_not():
    then = {
        "seed": 0,
        "fingerprint": "a",
        "started": "monday",
        "costs": {"train_seconds": 1},
        "hparams": {"steps": None},
        "data": {"A": "0", "B": "1"},
        "domains": ["A", "B"],
        "code": {"method": "x", "commit": "y"},
        "environment": {"threads": 1, "packages": {"torch": "2.6"}},
    }
    now = {
        **then,
        "fingerprint": "b",
        "started": "tuesday",
        "costs": {"train_seconds": 9},
        "hparams": {"steps": 5},
        "data": {"A": "0", "B": "2"},
        "code": {"method": "z"},
        "environment": {"threads": 2, "packages": {"torch": "2.7", "scipy": "1.17"}},
    }
    assert sorted(differences(then, now)) == [
        ("code commit", "y", "none"),
        ("code method", "x", "z"),
        ("images of domain B", "1", "2"),
        ("package scipy", "none", "1.17"),
        ("package torch", "2.6", "2.7"),
        ("setting steps", "None", "5"),
        ("threads", "1", "2"),
    ]
    assert differences(then, then) == []
