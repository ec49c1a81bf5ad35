"""A run from its plan to its folder: what it leaves, what makes it stale, and what a kill does to it (nothing)."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch

from dgbench import face, registry
from dgbench.errors import DataError, UsageError
from dgbench.files import lock, read_json, sha256, write_json
from dgbench.images.folder_task import FolderTask
from dgbench.running import launchers, plan, records
from tests import toy_runs
from tests.discs import write_discs

PLUGIN = Path(__file__).parents[1] / "pixels.py"
QUICK = launchers.Options(device="cpu")


@pytest.fixture
def discs(tmp_path, monkeypatch):
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    registry.add_plugin(PLUGIN)
    return FolderTask(write_discs(tmp_path / "discs"))


def plan_pixels(task, results, methods=("pixels",), **options):
    return plan.plan(task, methods, results=results, **options)


def weights_and_cases(run):
    return sha256(Path(run.folder) / "weights.safetensors"), sha256(Path(run.folder) / "cases.csv")


def test_a_run_leaves_a_folder_that_verifies_and_reads_back(discs, tmp_path):
    (run,) = plan_pixels(discs, tmp_path / "results", sources=["bright"])
    assert run.status == "missing"
    (outcome,) = launchers.launch(discs, [run], options=QUICK)
    assert (outcome.status, run.status) == ("done", "done")
    folder = Path(run.folder)
    assert folder == tmp_path / "results" / "discs" / "sdg" / "pixels" / "bright-seed0"
    assert {p.name for p in folder.iterdir()} == {
        "run.json", "history.jsonl", "cases.csv", "predictions.npz", "weights.safetensors", "RESULT.json", ".lock",
    }  # fmt: skip
    record = records.read_run(folder)
    assert record.cases.groupby("role")["case"].count().to_dict() == {"target": 10, "validation": 1}
    assert list(record.history["step"]) == list(range(1, 13))
    case = record.cases.iloc[-1]
    assert record.predictions(case["domain"], case["case"]).sum() == case["n_prediction"]
    costs = record.record["costs"]
    assert costs["parameters"] == costs["trained"] == 8 * 75 + 8 + 16 + 200 + 1
    assert costs["peak_memory_mb"] > 50
    forward = 2 * 4 * 48**2 * (8 * 75 + 200)  # of four images; the first layer's input has no gradient
    assert costs["train_flops"] == 12 * costs["train_step_flops"] == 12 * (2 * forward + forward // 4)
    assert costs["predict_image_flops"] == forward // 4


def test_a_program_read_from_standard_input_makes_runs_once_and_without_a_guard(discs, tmp_path):
    program = f"""
from pathlib import Path
from dgbench import registry
from dgbench.images.find_task import get_task
from dgbench.running import launchers, plan
registry.add_plugin(Path({str(PLUGIN)!r}))
root, results = {str(discs.root)!r}, Path({str(tmp_path / "r")!r})
planned = plan.plan(get_task(root), ["pixels"], sources=["dim"], results=results)
print([outcome.status for outcome in launchers.launch(get_task(root), planned)])
"""
    done = subprocess.run([sys.executable], input=program, capture_output=True, text=True, check=True)
    assert done.stdout == "['done']\n"


def test_a_second_launch_makes_nothing(discs, tmp_path):
    planned = plan_pixels(discs, tmp_path / "results")
    assert [o.status for o in launchers.launch(discs, planned, options=QUICK)] == ["done"] * 3
    before = [weights_and_cases(r) for r in planned]
    assert [o.status for o in launchers.launch(discs, planned, options=QUICK)] == ["kept"] * 3
    assert [weights_and_cases(r) for r in planned] == before


def test_two_runs_beside_each_other_give_what_they_give_alone(discs, tmp_path):
    alone, together = plan_pixels(discs, tmp_path / "alone"), plan_pixels(discs, tmp_path / "together")
    launchers.launch(discs, alone, options=QUICK)
    launchers.launch(discs, together, options=launchers.Options(device="cpu", jobs=2))
    assert [weights_and_cases(r) for r in alone] == [weights_and_cases(r) for r in together]


def test_a_run_killed_again_and_again_gives_the_same_bytes(discs, tmp_path):
    (whole,) = plan_pixels(discs, tmp_path / "whole", sources=["dim"])
    launchers.launch(discs, [whole], options=QUICK)
    (killed,) = plan_pixels(discs, tmp_path / "killed", sources=["dim"])
    curve = Path(killed.folder) / "history.jsonl"
    command = [sys.executable, "-m", "dgbench", "run", "--method", "pixels", "--plugin", str(PLUGIN)]
    command += ["--task", str(discs.root), "--source", "dim", "--results", str(tmp_path / "killed")]
    command += ["--save-every", "0", "--device", "cpu"]
    left = []
    for steps in (1, 6, 12):  # after the twelfth and last step it is testing
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        while (curve.read_text().count("\n") if curve.exists() else 0) < steps and process.poll() is None:
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        left.append(killed.status)
    assert "interrupted" in left and set(left) <= {"interrupted", "done"}  # a kill may come too late, not every one
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert weights_and_cases(killed) == weights_and_cases(whole)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "the same command continues"),
        (["--rerun", "all"], "without --rerun all the same command continues"),
    ],
)
def test_ctrl_c_writes_a_checkpoint_and_says_which_command_continues(discs, tmp_path, options, words):
    command = [sys.executable, "-m", "dgbench", "run", "--method", "pixels", "--plugin", str(PLUGIN)]
    command += ["--task", str(discs.root), "--source", "dim", "--results", str(tmp_path / "r"), "--set", "steps=100000"]
    command += options
    # What runs in the background of a shell is deaf to Ctrl-C, and so would its children be.
    hearing = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    how = {"start_new_session": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "preexec_fn": hearing}
    process = subprocess.Popen(command, **how)
    (run,) = plan_pixels(discs, tmp_path / "r", sources=["dim"], settings={"steps": "100000"})
    folder = Path(run.folder)
    while not (folder / "history.jsonl").exists() or not (folder / "history.jsonl").read_text():
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    message = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert f"interrupted: {words}" in " ".join(message.split())
    assert run.status == "interrupted"
    assert list(folder.glob("checkpoint-*.safetensors"))
    with lock(folder):  # it is free again
        pass


def test_a_run_that_fails_leaves_its_traceback_and_the_others_go_on(discs, tmp_path):
    planned = plan_pixels(discs, tmp_path / "results", settings={"fail_at": "2"})
    good = plan_pixels(discs, tmp_path / "results", sources=["dim"])
    outcomes = launchers.launch(discs, planned + good, options=QUICK)
    assert [o.status for o in outcomes] == ["failed"] * 3 + ["done"]
    folder = Path(planned[0].folder)
    assert "the loss is nan at step 2" in read_json(folder / "FAILED.json")["cause"]
    assert "RunError" in (folder / "traceback.txt").read_text()
    again = launchers.launch(discs, planned, options=QUICK)
    assert {o.message[:13] for o in again} == {"failed before"}
    assert [o.status for o in launchers.launch(discs, planned[:1], "failed", QUICK)] == ["failed"]


def test_the_folder_for_temporary_files_may_have_a_long_name(discs, tmp_path, monkeypatch):
    """The path of the server's socket in it is just short enough here; a byte more, and there is no server."""
    deep = Path(tempfile.mkdtemp(dir="/tmp"))
    deep = deep / ("d" * (launchers.LONGEST_FOLDER - len(os.fsencode(deep)) - 1))
    deep.mkdir()
    command = [sys.executable, "-m", "dgbench", "run", "--method", "constant", "--task", str(discs.root)]
    command += ["--source", "dim", "--results", str(tmp_path / "r"), "--set", "steps=1"]
    try:
        subprocess.run(command, env={**os.environ, "TMPDIR": str(deep)}, check=True, capture_output=True)
    finally:
        shutil.rmtree(deep.parent)
    monkeypatch.setattr(tempfile, "tempdir", f"{deep}d")
    assert launchers._context().get_start_method() == "spawn"


def test_what_is_written_in_one_locale_is_read_in_another(discs, tmp_path):
    toml = discs.root / "task.toml"
    toml.write_text(toml.read_text().replace('"disc"', '"Größe"') + 'citation = "Müller"\n', encoding="utf-8")
    task = FolderTask(discs.root)
    (run,) = plan.plan(task, ["constant"], results=tmp_path / "r", sources=["dim"])
    assert [o.status for o in launchers.launch(task, [run], options=QUICK)] == ["done"]
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "dgbench", "leaderboard", "--task", str(discs.root), "--results", tmp_path / "r"]
    shown = subprocess.run(command, env=ascii_only, capture_output=True, check=True)
    assert b"constant" in shown.stdout and shown.stdout.isascii()


def test_a_run_that_failed_with_other_code_is_tried_again(discs, tmp_path):
    (run,) = plan_pixels(discs, tmp_path / "results", sources=["dim"])
    Path(run.folder).mkdir(parents=True)
    failure = {"run": str(run), "fingerprint": "of the code before it was mended", "cause": "a fault", "remedy": ""}
    write_json(Path(run.folder) / "FAILED.json", failure)
    assert [o.status for o in launchers.launch(discs, [run], options=QUICK)] == ["done"]


def test_a_run_that_lacked_a_file_is_tried_again_by_the_same_command(discs, tmp_path):
    settings = {"initialisation": str(tmp_path / "weights.safetensors"), "steps": "1", "width": "4"}
    options = {"results": tmp_path / "r", "sources": ["dim"], "settings": settings}
    (run,) = plan.plan(discs, ["erm"], **options)
    (outcome,) = launchers.launch(discs, [run], options=QUICK)
    assert outcome.status == "failed"
    assert "weights.safetensors" in outcome.message
    cls, hparams = run.load_method()
    network = cls(discs.info, hparams).net
    safetensors.torch.save_file(network.state_dict(), settings["initialisation"])
    assert [o.status for o in launchers.launch(discs, [run], options=QUICK)] == ["done"]


def test_a_process_that_dies_is_reported_and_stops_no_other(discs, tmp_path):
    plugin = tmp_path / "dies.py"
    plugin.write_text(PLUGIN.read_text().replace("self.seen += 1", "import os; os._exit(9)"))
    registry.add_plugin(plugin)
    (dying,) = plan.plan(discs, ["dies"], results=tmp_path / "r", sources=["dim"])
    (good,) = plan_pixels(discs, tmp_path / "r", sources=["dim"])
    outcomes = launchers.launch(discs, [dying, good], options=QUICK)
    assert [o.status for o in outcomes] == ["failed", "done"]
    assert "exit code 9" in outcomes[0].message


def test_a_method_that_opens_a_target_while_it_trains_fails(discs, tmp_path):
    plugin = tmp_path / "peeks.py"
    target = discs.root / "inverted" / "masks" / "case0.png"
    plugin.write_text(PLUGIN.read_text().replace("self.seen += 1", f"open({str(target)!r}, 'rb')"))
    registry.add_plugin(plugin)
    (run,) = plan.plan(discs, ["peeks"], results=tmp_path / "r", sources=["dim"])
    (outcome,) = launchers.launch(discs, [run], options=QUICK)
    assert outcome.status == "failed"
    assert "while it was being trained" in outcome.message


def test_changed_images_make_a_run_stale_and_nothing_is_lost(discs, tmp_path):
    (run,) = plan_pixels(discs, tmp_path / "r", sources=["dim"])
    launchers.launch(discs, [run], options=QUICK)
    old = weights_and_cases(run)
    image, other = (discs.root / "dim" / "images" / f"case{i}.png" for i in (0, 1))
    first = image.read_bytes()
    shutil.copy(other, image)
    other.write_bytes(first)
    (run,) = plan_pixels(FolderTask(discs.root), tmp_path / "r", sources=["dim"])
    assert run.status == "stale"
    launchers.launch(discs, [run], options=QUICK)
    assert run.status == "done"
    aside = Path(run.folder).parent / ".dim-seed0.old1"
    assert (sha256(aside / "weights.safetensors"), sha256(aside / "cases.csv")) == old


def test_a_changed_method_makes_its_runs_stale_but_a_changed_comment_does_not(discs, tmp_path):
    def status(source):
        registry.METHODS.extra.clear()
        for module in [m for m in sys.modules if m.startswith("dgbench_plugin")]:
            del sys.modules[module]
        (tmp_path / "mine.py").write_text(source)
        registry.add_plugin(tmp_path / "mine.py")
        (run,) = plan.plan(discs, ["mine"], results=tmp_path / "r", sources=["dim"])
        return run

    source = PLUGIN.read_text()
    launchers.launch(discs, [status(source)], options=QUICK)
    assert status(source.replace('"""A network', '"""Another word: a network') + "# a comment\n").status == "done"
    assert status(source.replace("Dropout(0.2)", "Dropout(0.3)")).status == "stale"


def test_a_method_edited_while_its_runs_wait_makes_none_of_them(discs, tmp_path):
    """Else runs of two codes would stand in one table, under the fingerprint of the first."""
    mine = tmp_path / "mine.py"
    mine.write_text(PLUGIN.read_text())
    registry.add_plugin(mine)
    (run,) = plan.plan(discs, ["mine"], results=tmp_path / "r", sources=["dim"])
    mine.write_text(PLUGIN.read_text().replace("Dropout(0.2)", "Dropout(0.3)"))
    (outcome,) = launchers.launch(discs, [run], options=QUICK)
    assert outcome.status == "failed" and outcome.message == "the code that makes mine was changed while the run waited"
    assert run.status == "missing", "the same command makes it"
    mine.write_text(PLUGIN.read_text() + "# with a comment\n")
    assert [o.status for o in launchers.launch(discs, [run], options=QUICK)] == ["done"]


def test_a_task_of_a_plug_in_is_run_again_and_continued(discs, tmp_path):
    """A run's process knows no plug-in but those of its run, and looks for the task first."""
    ward = tmp_path / "ward.py"
    ward.write_text(
        "from dgbench.images.folder_task import FolderTask\n\n\n"
        f"class Ward(FolderTask):\n    def __init__(self, data=None):\n        super().__init__({str(discs.root)!r})\n"
    )
    options = {"source": "dim", "plugin": [PLUGIN, ward], "results": tmp_path / "r", "quiet": True, "device": "cpu"}
    for rerun in ("missing", "all"):
        assert face.run("pixels", "ward", rerun=rerun, **options).frame["status"].tolist() == ["done"]


def test_a_run_that_ended_at_the_moment_of_its_time_limit_is_done(discs, tmp_path):
    (run,) = plan_pixels(discs, tmp_path / "r", sources=["dim"])
    launchers.launch(discs, [run], options=QUICK)
    done = subprocess.Popen([sys.executable, "-c", ""])
    assert launchers._stopped(run, SimpleNamespace(pid=done.pid, kill=done.kill, join=done.wait), 1.0).status == "done"
    write_json(Path(run.folder) / "FAILED.json", {"fingerprint": run.fingerprint, "cause": "of an older dgbench"})
    assert [o.status for o in launchers.launch(discs, [run], options=QUICK)] == ["kept"]


def test_runs_recorded_with_other_collections_are_named(discs, tmp_path):
    """Whether weights have seen the images is judged by what the records say."""
    (run,) = plan_pixels(discs, tmp_path / "r", sources=["dim"])
    launchers.launch(discs, [run], options=QUICK)

    def told() -> list[str]:
        said: list[object] = []
        launchers.launch(discs, [run], options=QUICK, report=said.append)
        return [text for text in said if isinstance(text, str)]

    assert told() == []
    discs.collections = ["BUSI"]
    (text,) = told()
    assert "finished runs of pixels were recorded when the task's `collections` were others" in text


def test_a_file_changed_after_the_run_ended_is_noticed(discs, tmp_path):
    (run,) = plan_pixels(discs, tmp_path / "r", sources=["dim"])
    launchers.launch(discs, [run], options=QUICK)
    cases = Path(run.folder) / "cases.csv"
    cases.write_text(cases.read_text().replace("0.", "1.", 1))
    with pytest.raises(DataError, match=r"cases\.csv missing or changed"):
        records.read_run(Path(run.folder))
    assert run.status == "interrupted"


def test_variants_are_named_by_what_differs_from_the_defaults(discs, tmp_path):
    (run,) = plan_pixels(discs, tmp_path, sources=["dim"], settings={"steps": "7", "learning_rate": "0.5"})
    assert run.variant == "pixels[learning_rate=0.5;steps=7]"
    (same,) = plan_pixels(discs, tmp_path, sources=["dim"], settings={"learning_rate": "0.01"})
    assert same.variant == "pixels"


def test_a_row_s_name_makes_its_runs_and_variants_stand_side_by_side_in_one_command(discs, tmp_path):
    named = "pixels[learning_rate=0.5;steps=7],pixels[steps=7],pixels"
    names = face.several(named)
    assert names == ["pixels[learning_rate=0.5;steps=7]", "pixels[steps=7]", "pixels"]
    runs = plan_pixels(discs, tmp_path, methods=[*names, "pixels[learning_rate=0.01]"], sources=["dim"])
    assert [r.variant for r in runs] == names, "the last one spells a default, so it is no fourth run"
    (changed,) = plan_pixels(discs, tmp_path, methods=names[:1], sources=["dim"], settings={"steps": "9"})
    assert changed.variant == names[0], "what stands in the name goes before --set"


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("pixels[steps=7", "is no method with settings"),
        ("pixels[steps]", "is no method with settings"),
        ("pixels[steps=7;steps=8]", "gives a setting twice"),
        ("pixels[encoder=a~0123ab]", "stands for a hash"),
        ("pixels[stpes=7]", "unknown hyperparameter of Pixels 'stpes'"),
    ],
)
def test_a_name_with_settings_that_cannot_be_read_is_refused(discs, tmp_path, name, cause):
    with pytest.raises(UsageError, match=cause):
        plan_pixels(discs, tmp_path, methods=[name], sources=["dim"])


def test_a_name_that_a_file_system_would_misread_is_made_safe():
    assert plan.safe("A-1.5") == "A-1.5"
    assert "/" not in plan.safe("../../etc") and not plan.safe("../../etc").startswith(".")
    assert plan.safe("a b") != plan.safe("a_b")
    assert len(plan.variant_name("erm", {"initialisation": "x" * 500})) <= 150


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": ["brigth"]}, "unknown domain.* 'brigth'\ndid you mean 'bright'"),
        ({"protocol": "sgd"}, "unknown protocol 'sgd'\ndid you mean 'sdg'"),
        ({"settings": {"learning_rat": "1"}}, "unknown hyperparameter of Pixels 'learning_rat'\ndid you mean"),
        ({"settings": {"steps": "many"}}, "steps cannot be 'many': it must be a whole number of at least 1 or none"),
        ({"checkpoint": Path("no.pth")}, "no such checkpoint"),
    ],
)
def test_a_wrong_name_or_value_is_met_with_the_right_ones(discs, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        plan_pixels(discs, tmp_path, **options)


def test_one_domain_is_not_enough(discs, tmp_path):
    for domain in ("dim", "inverted"):
        shutil.rmtree(discs.root / domain)
    with pytest.raises(DataError, match="one domain only"):
        plan_pixels(FolderTask(discs.root), tmp_path)


def test_the_record_says_how_to_judge_and_repeat_the_run(discs, tmp_path):
    (run,) = plan_pixels(discs, tmp_path / "r", sources=["dim"], seeds=[3])
    launchers.launch(discs, [run], options=QUICK)
    record = json.loads((Path(run.folder) / "run.json").read_text())
    assert record["seed"] == 3
    assert record["targets"] == ["bright", "inverted"]
    assert record["hparams"]["learning_rate"] == 0.01
    assert record["initialisation"] == "scratch"
    assert record["environment"]["packages"]["torch"]
    assert record["environment"]["threads"] == 1
    assert set(record["data"]) == {"bright", "dim", "inverted"}
    assert str(tmp_path) not in json.dumps(record)  # a record may be published: it holds no path of its maker


def test_a_record_of_an_earlier_version_says_its_needs_in_todays_words():
    needs = {"needs_batch": True, "uses_target_masks": False, "uses_target_batch": True}
    assert toy_runs.run("erm", "A", {"A": [0.9]}, needs=needs).needs == {"needs_batch", "adapts_in_testing"}


def test_weights_given_as_a_checkpoint_are_tested_without_training_and_say_the_same(discs, tmp_path):
    (trained,) = plan_pixels(discs, tmp_path / "r", sources=["dim"])
    launchers.launch(discs, [trained], options=QUICK)
    weights = Path(trained.folder) / "weights.safetensors"
    (given,) = plan_pixels(discs, tmp_path / "r", sources=["dim"], checkpoint=weights)
    assert given.variant == f"pixels[checkpoint={sha256(weights)[:8]}]"
    launchers.launch(discs, [given], options=QUICK)
    assert sha256(Path(given.folder) / "cases.csv") == weights_and_cases(trained)[1]
    record = records.read_run(Path(given.folder)).record
    assert record["initialisation"] == {"weights.safetensors": sha256(weights)}
    assert record["costs"]["trained"] == 0


def test_a_checkpoint_needs_to_know_its_source(discs, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match="which domain were these weights trained on"):
        plan_pixels(discs, tmp_path, checkpoint=tmp_path / "w.safetensors")
