"""What can go wrong with a folder of runs, each broken for real; and that one broken folder hides no other."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from dgbench import registry
from dgbench.errors import UsageError
from dgbench.files import read_json, sha256, write_json
from dgbench.images.folder_task import FolderTask
from dgbench.running import launchers, plan
from dgbench.running.test import Predictions
from dgbench.scores.verify import verify
from tests.discs import write_discs

PLUGIN = Path(__file__).parents[1] / "pixels.py"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Results of two finished runs and one that failed."""
    folder = tmp_path_factory.mktemp("verify")
    before = os.environ.get("DGBENCH_CACHE")
    os.environ["DGBENCH_CACHE"] = str(folder / "cache")
    registry.add_plugin(PLUGIN)
    task = FolderTask(write_discs(folder / "discs", cases=3, steps=2))
    options = {"results": folder / "results"}
    planned = plan.plan(task, ["pixels"], sources=["bright", "dim"], **options)
    planned += plan.plan(task, ["pixels"], sources=["dim"], settings={"fail_at": "1"}, **options)
    outcomes = launchers.launch(task, planned, options=launchers.Options(device="cpu"))
    assert [o.status for o in outcomes] == ["done", "done", "failed"]
    os.environ.pop("DGBENCH_CACHE")
    if before is not None:
        os.environ["DGBENCH_CACHE"] = before
    return folder / "results"


@pytest.fixture
def results(whole, tmp_path):
    copied = tmp_path / "results"
    shutil.copytree(whole, copied)
    shutil.rmtree(copied / "discs" / "sdg" / "pixels[fail_at=1]")
    return copied


def bright(results):
    return results / "discs" / "sdg" / "pixels" / "bright-seed0"


def seal(folder, **changed):
    """Give RESULT.json the checksums of what lies there now, as a run that went wrong would have done."""
    result = read_json(folder / "RESULT.json")
    files = {n: sha256(folder / n) for n in result["files"] if (folder / n).is_file()}
    write_json(folder / "RESULT.json", result | {"files": files} | changed)


def edit_record(folder, **changed):
    write_json(folder / "run.json", read_json(folder / "run.json") | changed)
    seal(folder)


def edit_cases(folder, pattern, replacement):
    text, count = re.subn(pattern, replacement, (folder / "cases.csv").read_text(), count=1, flags=re.MULTILINE)
    assert count
    (folder / "cases.csv").write_text(text)
    seal(folder)


def only_problem(results):
    _, problems = verify(results)
    assert len(problems) == 1, problems
    return problems[0]


def test_whole_runs_have_no_problem(results):
    assert verify(results) == (2, [])


@pytest.mark.parametrize("depth", range(5))
def test_a_task_a_protocol_a_variant_or_one_run_can_be_verified_alone(results, depth):
    folder = results.joinpath(*("discs", "sdg", "pixels", "dim-seed0")[:depth])
    assert verify(folder) == (1 if depth == 4 else 2, [])


def test_a_run_copied_to_another_place_by_itself_is_whole(results, tmp_path):
    shutil.copytree(bright(results), tmp_path / "elsewhere" / "bright-seed0")
    assert verify(tmp_path / "elsewhere" / "bright-seed0") == (1, [])


def test_a_failed_run_is_told_with_its_cause(whole):
    count, problems = verify(whole)
    assert count == 3
    assert len(problems) == 1
    assert "pixels[fail_at=1]/dim-seed0: failed: the loss is nan at step 1" in problems[0]


def test_a_run_that_was_interrupted_is_not_a_failed_one(results):
    (bright(results) / "RESULT.json").unlink()
    assert "bright-seed0: unfinished" in only_problem(results)


def test_a_folder_of_a_run_with_nothing_in_it_never_began(results):
    (results / "discs" / "sdg" / "pixels" / "inverted-seed0").mkdir()
    assert "inverted-seed0: holds no run" in only_problem(results)


def test_what_was_moved_aside_is_not_looked_at(results):
    aside = bright(results).with_name(".bright-seed0.old1")
    aside.mkdir()
    (aside / "RESULT.json").write_text("{")
    assert verify(results) == (2, [])


def test_a_changed_and_a_missing_file_are_told_in_one_go(results):
    (bright(results) / "history.jsonl").write_text("{}\n")
    (bright(results) / "weights.safetensors").unlink()
    assert "history.jsonl, weights.safetensors missing or changed" in only_problem(results)


def test_a_schema_from_the_future_is_told(results):
    seal(bright(results), schema=99)
    assert "RESULT.json has schema 99" in only_problem(results)


def test_a_file_that_was_never_sealed_is_told(results):
    result = read_json(bright(results) / "RESULT.json")
    del result["files"]["predictions.npz"]
    write_json(bright(results) / "RESULT.json", result)
    assert "no checksum of predictions.npz" in only_problem(results)


@pytest.mark.parametrize(
    "change", [{"task": "other"}, {"protocol": "dapsam"}, {"variant": "erm"}, {"source": "dim"}, {"seed": 4}]
)
def test_a_run_lies_where_its_record_says(results, change):
    edit_record(bright(results), **change)
    problems = verify(results)[1]
    assert any("bright-seed0: its record says" in p for p in problems), problems


def test_a_lost_case_is_noticed(results):
    edit_cases(bright(results), r"^target,dim,case1,.*\n", "")
    problems = verify(results)[1]
    assert any("cases.csv has 6 cases, RESULT.json says 7" in p for p in problems)
    assert any("dim/case1 disc is in predictions.npz alone" in p for p in problems)


def test_a_structure_twice_in_one_case_is_noticed(results):
    edit_cases(bright(results), r"^(target,dim,case1,.*\n)", r"\1\1")
    assert "dim/case1 has rows of disc, disc, not one of each" in only_problem(results)


def test_a_run_without_validation_cases_is_noticed(results):
    edit_cases(bright(results), r"^validation,bright", "target,bright")
    problems = verify(results)[1]
    assert any("no validation case of domain 'bright'" in p for p in problems)
    assert any("target cases of domain 'bright', which the run does not have" in p for p in problems)


ROW = r"^target,dim,case1,disc,[^,]*,[^,]*,([^,]*),([^,]*),[^,]*,(\d+),(\d+),"


@pytest.mark.parametrize(
    ("new", "problem"),
    [
        (r"target,dim,case1,disc,1.5,1.0,\1,\2,,\3,\4,", "dice 1.5 is not possible"),
        (r"target,dim,case1,disc,-0.1,1.0,\1,\2,,\3,\4,", "dice -0.1 is not possible"),
        (r"target,dim,case1,disc,0.0,-1.0,\1,\2,,\3,\4,", "must not be negative or infinite: dice 0.0, asd -1.0"),
        (r"target,dim,case1,disc,0.0,inf,\1,\2,,\3,\4,", "must not be negative or infinite"),
        (r"target,dim,case1,disc,0.5,1.0,\1,\2,missed,\3,\4,", "flag 'missed' with"),
        (r"target,dim,case1,disc,0.5,1.0,\1,\2,,0,\4,", "flag '' with 0 voxels in the reference"),
        (r"target,dim,case1,disc,0.1,inf,inf,inf,false_positive,0,\4,", "false_positive, yet dice 0.1"),
        (r"target,dim,case1,disc,0.99,1.0,\1,\2,,1,\4,", "dice 0.99 is not possible with 1 and"),
        (r"target,dim,case1,disc,high,1.0,\1,\2,,\3,\4,", "cases.csv cannot be read: ValueError"),
    ],
)
def test_a_row_that_contradicts_itself_is_told(results, new, problem):
    edit_cases(bright(results), ROW, new)
    assert problem in only_problem(results)


def test_masks_with_another_number_of_voxels_than_the_table_says_are_noticed(results):
    edit_cases(bright(results), r"^(target,dim,case1,.*,)(\d+)(,[^,]*)$", lambda m: f"{m[1]}{int(m[2]) + 1}{m[3]}")
    masks = Predictions(bright(results) / "predictions.npz")
    n = int(np.count_nonzero(masks["dim", "case1"]))
    told = f"dim/case1 disc: {n} voxels in predictions.npz, {n + 1} in cases.csv"
    assert any(told in problem for problem in verify(results)[1])


def test_weights_with_nan_are_told_by_name(results):
    path = bright(results) / "weights.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["net.0.bias"] = torch.full_like(weights["net.0.bias"], torch.nan)
    safetensors.torch.save_file(weights, path)
    seal(bright(results))
    assert "NaN in net.0.bias" in only_problem(results)


def test_two_versions_of_the_metrics_and_two_sets_of_images_never_share_a_table(results):
    record = read_json(bright(results) / "run.json")
    edit_record(bright(results), metrics_version=99, data=record["data"] | {"dim": "0123"})
    problems = verify(results)[1]
    assert [p.partition(":")[0] for p in problems] == [
        "discs mixes images of domain 'dim'",
        "discs/sdg mixes metrics version",
    ]


@pytest.mark.parametrize("name", ["RESULT.json", "run.json", "cases.csv", "predictions.npz", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\xff\xfe\x00 nonsense", b'{"files": 3}'])
def test_no_garbage_in_one_folder_hides_what_is_wrong_with_another(results, name, content):
    (bright(results) / name).write_bytes(content)
    (results / "discs" / "sdg" / "pixels" / "dim-seed0" / "RESULT.json").unlink()
    if name != "RESULT.json":
        seal(bright(results))
    count, problems = verify(results)
    assert count == 2
    assert any("bright-seed0: " in p for p in problems)
    assert any("dim-seed0: unfinished" in p for p in problems)


def test_a_record_that_lacks_its_keys_is_broken_and_no_crash(results):
    (bright(results) / "run.json").write_text(json.dumps({"schema": 1}))
    seal(bright(results))
    assert any("run.json cannot be read: KeyError" in p for p in verify(results)[1])


def test_a_folder_that_is_not_there_is_a_mistake_of_the_user(tmp_path):
    with pytest.raises(UsageError, match="no such folder"):
        verify(tmp_path / "no")
    assert verify(tmp_path) == (0, [])
