"""The command line: what it prints, what it writes, and how it ends."""

import contextlib
import html
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from dgbench import cli, face
from dgbench.registry import METHODS
from tests.discs import write_discs

PLUGIN = Path(__file__).parent / "pixels.py"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    write_discs(folder / "discs")
    return folder


def dgbench(home, *arguments, code=0, **variables):
    """What a command prints, in this process: starting one for each would take longer than all they do."""
    METHODS.extra.clear()  # a plug-in of the call before
    variables |= {"DGBENCH_CACHE": str(home / "cache"), "COLUMNS": "100"}
    printed, ended = io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.chdir(home):
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["dgbench", *map(str, arguments)])
        patch.setattr("signal.signal", lambda *_: None)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                cli.main()
            except SystemExit as end:
                ended = end.code or 0
    assert ended == code, printed.getvalue()
    return printed.getvalue()


def in_a_process(home, *arguments, code=0):
    """What the real command prints, as a user starts it."""
    environment = {**os.environ, "DGBENCH_CACHE": str(home / "cache"), "COLUMNS": "100"}
    command = [sys.executable, "-m", "dgbench", *map(str, arguments)]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def first(home):
    return in_a_process(home, "run", "-m", "pixels,constant", "--plugin", PLUGIN, "-t", "./discs", "--jobs", "2")


def test_run_prints_the_matrices_and_writes_tables_and_plots(home, first):
    for word in ("pixels", "constant", "bright", "dim", "inverted", "Dice", "ASD"):
        assert word in first
    folder = home / "results" / "discs" / "sdg"
    kinds = {p.suffix for p in (folder / "tables").iterdir()}
    assert {".csv", ".md", ".tex"} <= kinds
    plots = {p.name for p in (folder / "plots").rglob("*.png")}
    for kind in ("matrix", "targets", "curves", "overlay"):
        assert any(kind in name for name in plots), (kind, plots)


def test_a_second_call_prints_the_same_tables_and_makes_nothing(home, first):
    stamps = {p: p.stat().st_mtime_ns for p in home.glob("results/discs/sdg/*/*/RESULT.json")}
    again = dgbench(home, "run", "-m", "pixels,constant", "--plugin", PLUGIN, "-t", "./discs")
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    tables = [re.sub(r"(?m)^(done|train|test|\d+ runs) .*\n", "", text) for text in (first, again)]
    assert tables[0] == tables[1]


def test_a_broken_folder_of_another_method_is_named_and_stops_no_table(home, first):
    torn = home / "results/discs/sdg/torn/dim-seed0"
    torn.mkdir(parents=True)
    (torn / "RESULT.json").write_text('{"schema": 1, "files": {"cases.csv": "0"}}')
    text = dgbench(home, "run", "-m", "constant", "-t", "./discs")
    shutil.rmtree(torn.parent)
    assert re.search(r"Left out: \S+torn/dim-seed0: cases.csv, run.json missing or changed", text)
    assert "tables and plots: results/discs/sdg/tables" in text


def test_dry_run_shows_each_run_and_its_state_and_makes_none(home, first):
    text = dgbench(home, "run", "-m", "pixels", "--plugin", PLUGIN, "-t", "./discs", "--seed", "0,1", "--dry-run")
    assert len(re.findall(r"(?m)^done +discs/sdg/pixels/", text)) == 3
    assert len(re.findall(r"(?m)^missing +discs/sdg/pixels/.*-seed1", text)) == 3
    assert not list(home.glob("results/discs/sdg/pixels/*-seed1"))


def test_list_runs_shows_the_finished_ones(home, first):
    assert "discs/sdg/pixels/dim-seed0" in dgbench(home, "list", "runs")


def test_predict_applies_a_run_to_an_image(home, first):
    image = home / "discs" / "inverted" / "images" / "case0.png"
    run = home / "results" / "discs" / "sdg" / "pixels" / "bright-seed0"
    text = dgbench(home, "predict", run, image, "--out", "masks", "--plugin", PLUGIN)
    assert "wrote" in text
    (mask,) = (home / "masks").rglob("*.png")
    assert Image.open(mask).size == Image.open(image).size


def test_files_that_lie_otherwise_become_a_table_and_the_table_a_task(home):
    for path in (home / "discs").glob("*/*/*.png"):
        other = home / "lying" / {"images": "Images", "masks": "labels"}[path.parent.name] / path.parents[1].name
        other.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, other)
    text = dgbench(home, "data", "adopt", "lying", "--out", "lying.csv")
    cases = len(list(home.glob("lying/Images/*/*.png")))
    assert f"{cases} cases of 3 domains in lying" in text
    assert "files in labels/ are masks; a mask has the name of its image" in text
    assert "all is well" in dgbench(home, "data", "verify", "lying.csv")
    assert "bright" in dgbench(home, "run", "-m", "constant", "-t", "lying.csv", "--dry-run")
    assert "is there already" in dgbench(home, "data", "adopt", "lying", "--out", "lying.csv", code=2)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "-m", "erm", "-t", "phantm"], 2, ["unknown task 'phantm'", "did you mean 'phantom'"]),
        (["run", "-m", "erm", "-t", "./nowhere"], 3, ["nowhere"]),
        (["run", "-m", "erm", "-t", "./discs", "--source", "dimm"], 2, ["'dimm'", "did you mean 'dim'"]),
        (["run", "-m", "erm", "-t", "./discs", "--set", "step=3"], 2, ["'step'", "did you mean 'steps'"]),
        (["run", "-m", "erm", "-t", "./discs", "--set", "steps=x"], 2, ["steps cannot be 'x'", "a whole number of"]),
        (["run", "-m", "erm", "-t", "./discs", "--set", "steps"], 2, ["has no value"]),
        (["run", "-m", "erm", "-t", "./discs", "--set", "steps=3", "--set", "steps=4"], 2, ["steps twice: 3 and 4"]),
        (["run", "-m", "erm", "-t", "./discs", "--seed", "a"], 2, ["seed cannot be 'a'", "from 0 to 2147483647"]),
        (["run", "-m", "erm", "-t", "./discs", "--seed=-1"], 2, ["seed cannot be '-1'"]),
        (["run", "-m", "erm", "-t", "./discs", "--seed", ""], 2, ["no seed is named", "without --seed it is 0"]),
        (["run", "-m", "erm", "-t", "./discs", "--source", " "], 2, ["no source is named", "known: bright, dim"]),
        (["run", "-m", "erm", "-t", ""], 2, ["no task is named"]),
        (["run", "-m", " , ", "-t", "./discs"], 2, ["no method is named"]),
        (["data", "verify", ""], 2, ["unknown task ''"]),
        (["run", "-m", "erm", "-t", "./discs", "--device", "cuda:77"], 2, ["cuda:77"]),
        (["run", "-m", "erm", "-t", "./discs", "--results", "discs/task.toml"], 2, ["cannot write to"]),
        (["run", "-m", "erm", "-t", "./discs", "--checkpoint", "x.pth", "--source", "dim"], 2, ["no such checkpoint"]),
        (["run", "-m", "erm", "-t", "prostate"], 3, ["prostate", "RUNMC"]),
        (["run", "-m", "mine", "-t", "./discs", "--plugin", "mine.py"], 2, ["no such plug-in"]),
        (["check", "erm2"], 2, ["unknown method"]),
        (["weights", "fetch", "sam_vitb"], 2, ["unknown weights 'sam_vitb'", "did you mean 'sam_vit_b'"]),
    ],
)
def test_a_mistake_ends_in_a_cause_a_remedy_and_an_exit_code(home, arguments, code, words):
    text = dgbench(home, *arguments, code=code)
    for word in words:
        assert word in text
    assert len(text.strip().splitlines()) <= 4


def test_explain_shows_what_the_settings_of_a_method_may_be(home):
    text = dgbench(home, "explain", "cutout")
    assert re.search(r"(?m)^cutout_side +0\.333\d+ +a number from 0 to 1 \(of the square, in shorter", text)
    assert re.search(r"(?m)^steps +None +a whole number of at least 1 or none \(None: the task's budget\)$", text)


def test_a_failed_run_ends_in_exit_code_4_with_a_summary(home):
    how = ("--plugin", PLUGIN, "-t", "./discs", "--source", "dim")
    text = dgbench(home, "run", "-m", "pixels", *how, "--set", "fail_at=1", code=4)
    assert "the loss is nan at step 1" in text
    assert "1 of 1 runs are not finished" in text


def test_verify_lists_every_problem_at_once(home, tmp_path):
    folder = write_discs(tmp_path / "broken")
    (folder / "dim" / "masks" / "case1.png").unlink()
    image = folder / "bright" / "images" / "case2.png"
    image.write_bytes(image.read_bytes()[:300])
    text = dgbench(home, "data", "verify", folder, code=3)
    assert "case1" in text
    assert "case2" in text
    assert "all is well" in dgbench(home, "data", "verify", "./discs")


def test_new_writes_a_method_that_runs(home):
    dgbench(home, "new", "my_method")
    dgbench(home, "new", "my_method", code=2)
    how = ("-t", "./discs", "--source", "dim", "--set", "steps=4", "--set", "width=4")
    assert "done my_method" in dgbench(home, "run", "-m", "my_method", "--plugin", "my_method.py", *how)


def test_the_command_itself_ends_a_mistake_in_two_lines_and_its_exit_code(home):
    cause, remedy = in_a_process(home, "run", "-m", "dapsan", "-t", "./discs", code=2).splitlines()
    assert cause == "error: unknown method 'dapsan'" and "did you mean 'dapsam'" in remedy
    assert "no method is named" in dgbench(home, "run", "-m", "", "-t", "./discs", code=2)


@pytest.mark.parametrize(("rerun", "advice"), [("missing", "the same"), ("all", "without --rerun all the same")])
def test_what_is_interrupted_says_how_to_go_on(home, monkeypatch, rerun, advice):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(face, "run", interrupted)
    text = dgbench(home, "run", "-m", "erm", "-t", "./discs", "--rerun", rerun, code=130)
    assert text == f"interrupted: {advice} command continues\n"


def test_a_domain_whose_name_holds_a_comma_is_named_as_it_is_also_by_the_report(home, tmp_path):
    folder = write_discs(tmp_path / "a, b")
    (folder / "dim").rename(folder / "c,d")
    (folder / "task.toml").write_text((folder / "task.toml").read_text().replace('"discs"', '"commas"'))
    how = ("-m", "constant", "-t", folder, "--results", "commas")
    assert "done constant c,d-seed0" in dgbench(home, "run", *how, "--source", "c,d")
    both = dgbench(home, "run", *how, "--source", "c,d", "--source", "bright,inverted", "--dry-run")
    assert re.findall(r"(?m)^(\w+) .*/(.+)-seed0$", both) == [
        ("done", "c,d"),
        ("missing", "bright"),
        ("missing", "inverted"),
    ]
    dgbench(home, "report", "-t", folder, "--results", "commas")
    page = html.unescape((home / "commas/commas/sdg/report.html").read_text(encoding="utf-8"))
    (command,) = re.findall(r"dgbench (run --method constant .*?)\s*<", page)
    again = in_a_process(home, *shlex.split(command), "--results", "commas", "--dry-run")
    assert re.findall(r"(?m)^(\w+) .*/(.+)-seed0$", again) == [("done", "c,d")]


def test_data_describe_and_doctor_answer(home):
    card = dgbench(home, "data", "describe", "fundus")
    assert "MESSIDOR" in card
    assert "cup" in card
    told = dgbench(home, "doctor")
    assert "torch" in told and re.search(r"bfloat16 +processor: (fast|in hardware|emulated)", told)


def test_the_list_of_tasks_says_domains_cases_structures_and_who_may_have_the_data(home):
    listed = " ".join(dgbench(home, "list", "tasks").split())
    assert "RUNMC, BMC, I2CVB, UCL, BIDMC, HK | 116 cases | prostate | open" in listed
    assert "| 38 cases | gtv | open" in listed, "counted in the list beside the task"
    assert "| 1537 cases | polyp | account needed" in listed


@pytest.mark.parametrize("verb", [["--help"], ["run", "--help"], ["list", "methods"], ["list", "tasks"]])
def test_help_and_lists_import_nothing_slow(home, verb):
    script = "import sys\nfrom dgbench.cli import app\ntry:\n    app(sys.argv[1:])\nexcept SystemExit: pass\n"
    script += (
        "slow = {'torch', 'pandas', 'matplotlib', 'timm', 'scipy', 'nibabel'} & set(sys.modules)\nassert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", script, *verb], check=True, capture_output=True, cwd=home)


@pytest.fixture(scope="module")
def study(home):
    """Two methods, all sources, three seeds."""
    every = ("-m", "pixels,constant", "--plugin", PLUGIN, "-t", "./discs", "--seed", "0,1,2", "--jobs", "2")
    dgbench(home, "run", *every, "--results", "study")
    return ("-t", "discs", "--results", "study")


def test_a_leaderboard_ranks_what_has_seeds_and_needs_no_images(home, study):
    text = dgbench(home, "leaderboard", *study, "--against", "constant")
    assert re.search(r"(?m)^pixels +[12](-2)? ", text) and "Against constant:" in text
    rows = dgbench(home, "leaderboard", *study, "--format", "csv").splitlines()
    assert rows[0].startswith("variant,method,rank_low") and len(rows) == 3


def test_a_leaderboard_that_cannot_be_says_what_to_do(home, study):
    assert "dgbench run --task nowhere" in dgbench(home, "leaderboard", "-t", "nowhere", code=2)
    assert "did you mean" in dgbench(home, "leaderboard", *study, "--metric", "dce", code=2).lower()


def test_compare_ends_in_a_sentence(home, study):
    text = " ".join(dgbench(home, "compare", "pixels", "constant", *study).split())
    assert re.search(r"pixels (is (better than|worse than|equivalent to)|against) constant", text)
    assert "known: constant, pixels" in dgbench(home, "compare", "pixels", "erm", *study, code=2)


def test_two_folders_are_compared_and_what_differs_is_named(home, study):
    dgbench(home, "run", "-m", "constant", "-t", "./discs", "--seed", "0,1", "--results", "after")
    text = " ".join(dgbench(home, "compare", "study", "after", "-t", "discs").split())
    assert "constant (after) is equivalent to constant (before)" in text and "pixels: only before" in text


def test_verify_ends_with_3_when_a_file_was_changed(home, study):
    assert "all is well: 18 runs" in dgbench(home, "verify", "study")
    weights = home / "study/discs/sdg/pixels/dim-seed2/weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    assert "weights.safetensors" in dgbench(home, "verify", "study", code=3)
    weights.write_bytes(content)


def test_reproduce_says_identical(home, study):
    run = home / "study/discs/sdg/pixels/dim-seed0"
    assert "identical" in dgbench(home, "reproduce", run, "--plugin", PLUGIN, "-t", "./discs")
    assert "--plugin" in dgbench(home, "reproduce", run, "-t", "./discs", code=2)


def test_scores_that_were_passed_on_are_ranked_beside_runs_made_here_and_can_be_reproduced(home, study):
    with tarfile.open(home / "scores.tar.xz", "w:xz") as archive:
        for name in ("run.json", "cases.csv", "RESULT.json"):
            for path in (home / "study").glob(f"discs/sdg/pixels/*/{name}"):
                archive.add(path, path.relative_to(home / "study"))
    with tarfile.open(home / "scores.tar.xz") as archive:
        archive.extractall(home / "beside", filter="data")
    dgbench(home, "run", "-m", "constant", "-t", "./discs", "--seed", "0,1,2", "--results", "beside")
    assert list((home / "beside/discs/sdg/plots").rglob("overlays-constant.png"))
    whole, beside = (
        dgbench(home, "leaderboard", "-t", "discs", "--results", folder, "--format", "csv").splitlines()
        for folder in ("study", "beside")
    )
    (then,), (now,) = ([row for row in rows if row.startswith("pixels,")] for rows in (whole, beside))
    assert then == now
    run = home / "beside/discs/sdg/pixels/dim-seed0"
    assert "identical" in dgbench(home, "reproduce", run, "--plugin", PLUGIN, "-t", "./discs")


def test_report_writes_one_page(home, study):
    dgbench(home, "report", "-t", "./discs", "--results", "study", "--plugin", PLUGIN)
    page = (home / "study/discs/sdg/report.html").read_text(encoding="utf-8")
    assert "pixels" in page and 'src="http' not in page


def test_explain_computes_what_it_prints(home):
    assert "ASSD" in dgbench(home, "explain", "asd")
    assert "known:" in dgbench(home, "explain", "foo", code=2)


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "--user", "true"], capture_output=True).returncode != 0,
    reason="another user can be tried where user namespaces are allowed",
)
def test_a_user_without_a_name_and_a_home_as_in_a_container_can_work(home):
    bare = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "OMP_NUM_THREADS": "1"}
    command = ["unshare", "--user", "--map-user=12345", sys.executable, "-m", "dgbench", "doctor"]
    done = subprocess.run(command, env=bare, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0 and "dgbench-12345" in done.stdout, done.stderr


def test_weights_that_cannot_be_fetched_are_two_lines(home):
    offline = {"https_proxy": "http://127.0.0.1:9", "DGBENCH_WEIGHTS": str(home / "weights")}
    text = dgbench(home, "weights", "fetch", "mobile_sam", code=3, **offline)
    cause, remedy = text.splitlines()
    assert "mobile_sam.pt cannot be downloaded: " in cause
    assert "41 MB, sha256 6dbb9052" in remedy and str(home / "weights") in remedy
    assert "missing: " in dgbench(home, "list", "weights", **offline)
