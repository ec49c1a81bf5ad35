"""A run is made again from its record: the same bytes, or what changed and whether it matters."""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest

from dgbench import registry
from dgbench.errors import DataError, RunError, UsageError
from dgbench.files import read_json
from dgbench.images.folder_task import FolderTask
from dgbench.running import launchers, plan
from dgbench.running.records import find_runs, read_run
from dgbench.scores.reproduce import _net_scores, by_group, compare, differences, interval, reproduce
from dgbench.scores.study import run_scores
from tests.discs import write_discs
from tests.toy_runs import run

PLUGIN = Path(__file__).parents[1] / "pixels.py"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of images and the results of a run on it, made once."""
    folder = tmp_path_factory.mktemp("reproduce")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGBENCH_CACHE", str(folder / "cache"))
        registry.add_plugin(PLUGIN)
        task = FolderTask(write_discs(folder / "discs", cases=4, steps=4))
        options = {"results": folder / "results", "sources": ["dim"], "seeds": [3]}
        (run,) = plan.plan(task, ["pixels"], settings={"learning_rate": "0.02"}, **options)
        (outcome,) = launchers.launch(task, [run], options=launchers.Options(device="cpu"))
        assert outcome.status == "done"
    return folder


@pytest.fixture
def images(made, tmp_path, monkeypatch):
    """The folder of images, a copy that a test may change."""
    monkeypatch.setenv("DGBENCH_CACHE", str(made / "cache"))
    registry.add_plugin(PLUGIN)
    shutil.copytree(made / "discs", tmp_path / "discs")
    return tmp_path / "discs"


@pytest.fixture
def finished(made, tmp_path):
    """The folder of the run, a copy too."""
    shutil.copytree(made / "results", tmp_path / "results")
    return tmp_path / "results" / "discs" / "sdg" / "pixels[learning_rate=0.02]" / "dim-seed3"


def test_the_same_code_and_images_give_the_same_bytes(images, finished):
    found = reproduce(finished, task=str(images))
    assert (found.verdict, found.difference, found.changed) == ("identical", 0, [])
    assert found.cases == 8  # four of each of two targets
    assert found.now.record["settings"] == {"learning_rate": "0.02"}
    assert found.now.seed == 3
    assert found.sentence().startswith("identical: the same bytes for 8 target cases")
    assert find_runs(finished.parents[3], "discs", "sdg") == [finished]  # no table sees the repetition


def test_changed_images_are_named_and_the_numbers_compared(images, finished, tmp_path):
    for kind in ("images", "masks"):  # it learns from another domain: another network
        for path in (images / "inverted" / kind).iterdir():
            shutil.copy(path, images / "dim" / kind)
    found = reproduce(finished, tmp_path / "again", task=str(images))
    assert found.verdict == "different"
    (what, then, now), *others = found.changed
    assert what == "images of domain dim" and then != now and not others
    assert found.low <= found.difference <= found.high
    assert "different: Dice changed by" in found.sentence()
    assert found.now.path.is_relative_to(tmp_path / "again")


def test_what_a_record_does_not_hold_is_asked_for(images, finished):
    with pytest.raises(UsageError, match=r"task 'discs' of .* is not known\ngive its folder of images with --task"):
        reproduce(finished)
    with pytest.raises(UsageError, match="would replace"):
        reproduce(finished, finished.parents[3], task=str(images))
    (images / "task.toml").write_text('name = "other"\nstructures = ["disc"]\nimage_size = 48\nsteps = 4\n')
    with pytest.raises(UsageError, match=r"is discs/pixels.*; with what is given it would be other/pixels"):
        reproduce(finished, task=str(images))
    registry.METHODS.extra.clear()
    with pytest.raises(UsageError, match=r"method 'pixels' of .* is not known\ngive its file with --plugin"):
        reproduce(finished, task=str(images))


def test_a_repetition_that_fails_is_an_error_with_its_cause(images, finished, tmp_path):
    registry.METHODS.extra.clear()
    dying = tmp_path / "pixels.py"
    dying.write_text(PLUGIN.read_text().replace("self.seen += 1", "import os; os._exit(9)"))
    registry.add_plugin(dying)
    with pytest.raises(RunError, match=r"the repetition failed: .* exit code 9"):
        reproduce(finished, task=str(images))


def test_images_that_cannot_be_read_are_named(images, finished):
    (images / "dim" / "images" / "case0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"case0\.png"):
        reproduce(finished, task=str(images))


# --- the rule --------------------------------------------------------------------------------------------------------


def altered(folder, tmp_path, change, kept=None, flag=""):
    """A copy of a run whose target cases' Dice went through `change(number of the case, dice)`; its first rows."""
    copied = tmp_path / "altered"
    shutil.copytree(folder, copied)
    cases = pd.read_csv(copied / "cases.csv")
    targets = cases["role"] == "target"
    cases.loc[targets, "dice"] = [change(i, d) for i, d in enumerate(cases.loc[targets, "dice"])]
    if flag:
        cases["flag"] = cases["flag"].astype(object)
        cases.loc[cases.index[targets][0], "flag"] = flag
    cases[:kept].to_csv(copied / "cases.csv", index=False)
    result = read_json(copied / "RESULT.json")
    result["files"]["cases.csv"] = plan.sha256(copied / "cases.csv")
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
    base = [0.5 + 0.01 * i for i in range(40)]
    then = altered(finished, tmp_path / "then", lambda i, d: base[i])
    found = compare(then, altered(finished, tmp_path / "now", lambda i, d: change(i, base[i])))
    assert found.verdict == verdict, found.sentence()


def test_other_cases_are_never_averaged_into_a_verdict(finished, tmp_path):
    found = compare(read_run(finished), altered(finished, tmp_path, lambda i, d: d, kept=-1))
    assert found.verdict == "different" and found.sentence() == "different: the two runs have scores of different cases"


def test_a_structure_found_where_none_is_is_a_difference_and_not_left_out(finished, tmp_path):
    """Where both masks are empty there is no score, as in every table; where one of them is not, there is."""
    absent = altered(finished, tmp_path / "absent", lambda i, d: math.nan if i == 0 else d, flag="both_empty")
    found = altered(finished, tmp_path / "found", lambda i, d: 0.0 if i == 0 else d, flag="false_positive")
    assert compare(absent, absent).verdict == "identical"
    assert compare(absent, found).verdict == "different"


def test_of_two_structures_what_one_falsely_found_costs_is_half_as_in_every_table():
    of = run("erm", "A", {"B": {"disc": [0.8], "cup": ["false_positive"]}}, structures=["disc", "cup"])
    assert _net_scores(of).to_dict() == {("B", "B-0"): pytest.approx(0.8 - 0.5)}


def test_the_interval_is_students():
    mean, low, high = interval(pd.Series([0.0, 0.1, 0.2]).to_numpy())
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


def test_two_cases_of_a_patient_are_one_difference():
    one = run("erm", "A", {"B": [0.8, 0.6, 0.7], "C": [0.5]})
    gain = run_scores(one) * 0 + [0.1, 0.3, 0.5, 0.7]
    assert by_group(gain, one) is gain
    one.cases["group"] = ["P1", "P1", "P2", "P1"]
    assert by_group(gain, one).tolist() == pytest.approx([0.2, 0.5, 0.7])  # P1 of B, P2 of B, P1 of C
