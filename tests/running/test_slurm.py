"""Runs on a cluster: a real SLURM of two nodes on this host, real arrays, nodes that are really killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from submitit.core.utils import FailedJobError
from typer.testing import CliRunner

from dgbench import cli, registry
from dgbench.errors import StillQueued, UsageError
from dgbench.files import sha256
from dgbench.images.find_task import get_task
from dgbench.images.folder_task import FolderTask
from dgbench.running import launchers, plan, slurm, squeue
from dgbench.running.slurm import Array, Needs
from tests.discs import write_discs
from tests.patient import PIXELS, patient, until
from tests.slurm_cluster import LARGEST_ARRAY, Cluster, why_not

STEPS = {"steps": "30"}
ASKED = "mem=1G,time=10"


@pytest.fixture(scope="session")
def cluster():
    if reason := why_not():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:  # pytest's own are closed to munge's user
        started = Cluster(Path(folder))
        try:
            started.start()
            yield started
        finally:
            started.stop()


@pytest.fixture
def here(cluster, tmp_path, monkeypatch):
    """Three domains and the patient method."""
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    registry.add_plugin(patient(tmp_path))
    registry.add_plugin(PIXELS)
    scene = Scene(cluster, tmp_path, FolderTask(write_discs(tmp_path / "discs")))
    yield scene
    scene.hold.unlink(missing_ok=True)
    cluster.call("scancel", "--user=root")  # a test that failed leaves no node busy or dead for the next one
    cluster.start_nodes()


class Scene:
    def __init__(self, cluster, folder, task):
        self.cluster, self.folder, self.task = cluster, folder, task
        self.hold, self.results = folder / "hold", folder / "results"

    def plan(self, method="patient", **options):
        return plan.plan(self.task, [method], settings=STEPS, **{"results": self.results, **options})

    def dgbench(self, *arguments):
        done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    def submit(self, *more):
        arguments = ["--method", "patient", "--plugin", "patient.py", "--task", "discs", "--set", "steps=30"]
        asked = ["--launcher", "slurm", "--slurm", ASKED, "--save-every", "0", "--device", "cpu"]
        return self.dgbench("run", *arguments, *asked, *more)

    def wait(self, runs):
        """What the same command without --detach does, before it draws its tables."""
        told = []
        options = launchers.Options(device="cpu", slurm=slurm.parse(ASKED))
        outcomes = launchers.launch(self.task, runs, options=options, report=told.append)
        return [outcome.status for outcome in outcomes], [text for text in told if isinstance(text, str)]

    def step(self, run):
        curve = Path(run.folder) / "history.jsonl"
        return curve.read_text().count("\n") if curve.exists() else 0

    def until_held(self, *runs):
        until(lambda: all(self.step(run) == 9 for run in runs), self.cluster.logs)

    def queued(self, run):
        return squeue.living(self.results)[Path(run.folder)][1]


def bytes_of(run):
    return [sha256(Path(run.folder) / name) for name in ("weights.safetensors", "cases.csv", "predictions.npz")]


@pytest.fixture(scope="session")
def made_here(tmp_path_factory):
    """What the three runs leave when they are made on this host: {source: checksums}."""
    folder = tmp_path_factory.mktemp("made-here")
    registry.add_plugin(PIXELS)
    task = FolderTask(write_discs(folder / "discs"))
    runs = plan.plan(task, ["pixels"], settings=STEPS, results=folder / "results")
    launchers.launch(task, runs, options=launchers.Options(device="cpu", threads=1))
    return {run.source: bytes_of(run) for run in runs}


def test_neither_a_dead_node_nor_a_time_limit_changes_a_byte(here, made_here):
    """Three runs on two nodes in arrays of two: one's node is killed, one's time is up, one has to wait for both."""
    here.hold.touch()
    told = here.submit("--detach")
    assert told.count("submitted 2 runs as job") == 1 and told.count("submitted 1 runs as job") == 1
    bright, dim, _ = runs = here.plan()
    here.until_held(bright, dim)
    waiting = {run.partition(" ")[0] for run in here.dgbench("status").splitlines() if "inverted" in run}
    assert waiting == {"waiting"}
    here.cluster.kill_node(here.queued(dim).node)
    here.cluster.call("scancel", "--signal=USR2", here.queued(bright).job)  # as SLURM does before the time limit
    here.hold.unlink()
    until(lambda: here.step(bright) > 10 or here.queued(bright).state == "PENDING")
    here.cluster.start_nodes()
    assert here.wait(runs) == (["done"] * 3, []), "they are waited for and not submitted again"
    assert {run.source: bytes_of(run) for run in runs} == made_here
    assert not list(here.results.glob(f"{squeue.PLACE}/*")), "what finished arrays printed is swept away"


def test_cancelled_runs_can_be_continued_anywhere(here, made_here):
    here.hold.touch()
    here.submit("--detach", "--source", "dim")
    (run,) = here.plan(sources=["dim"])
    here.until_held(run)
    node = here.queued(run).node
    shown = " ".join(here.dgbench("status").split())
    assert re.search(rf"running discs/sdg/{re.escape(run.variant)}/dim-seed0 train [1-9]/30 .*{node}, job", shown)
    assert "cancelled 1 runs" in here.dgbench("cancel", "--task", "discs", "--yes")
    here.hold.unlink()
    until(lambda: not squeue.living(here.results))
    assert run.status == "interrupted"
    left = re.search(r"checkpoint at step (\d+)", here.dgbench("status"))
    assert left and 10 <= int(left[1]) < 30, "it was told to stop in its tenth step"
    (outcome,) = launchers.launch(here.task, [run], options=launchers.Options(device="cpu", threads=1))
    assert (outcome.status, bytes_of(run)) == ("done", made_here["dim"])


def test_two_people_who_submit_one_run_make_it_once(here, made_here):
    here.hold.touch()
    here.submit("--detach", "--source", "dim")
    (first,) = here.results.glob(f"{squeue.PLACE}/*/runs.json")
    os.chown(first, 65534, -1)  # whoever else submits does not see it
    (run,) = here.plan(sources=["dim"])
    here.until_held(run)
    assert here.wait([run])[0] == ["skipped"]
    here.hold.unlink()
    until(lambda: run.status == "done")
    assert bytes_of(run) == made_here["dim"]
    assert not list(Path(run.folder).parent.glob(".*.old*")), "it was made once"


def test_what_slurm_would_refuse_is_refused_before_anything_is_written(here):
    runs = here.plan()
    for asked, words in (("partition=gpx", "invalid partition"), ("mem=900G", "configuration is not available")):
        options = launchers.Options(device="cpu", slurm=slurm.parse(asked))
        with pytest.raises(UsageError, match=f"(?i){words}.*--{asked}"):
            launchers.launch(here.task, runs, options=options)
    assert not (here.results / squeue.PLACE).exists()


def test_a_dry_run_says_what_would_be_submitted(here):
    before = squeue.queue().keys()
    told = here.submit("--dry-run", "--jobs", "1").splitlines()
    assert len([line for line in told if line.startswith("missing")]) == 3
    assert told[3].startswith("array of 2 tasks, 1 at once: sbatch --time=10 --mem=1G --cpus-per-task=1")
    assert told[4].startswith("array of 1 tasks, 1 at once, after array 1: sbatch")
    assert squeue.array_limit() == LARGEST_ARRAY and squeue.queue().keys() == before


def test_what_a_cluster_takes_in_smaller_parts_only_is_handed_in_so(here, monkeypatch):
    """A user may have few tasks in the queue: there, sbatch refuses whole arrays, and each run goes by itself."""
    wrapper = here.folder / "sbatch"
    refuse = 'grep -qs -e "--array" "$1" && { echo "sbatch: error: AssocMaxSubmitJobLimit" >&2; exit 1; }'
    wrapper.write_text(f'#!/bin/sh\n{refuse}\nexec {shutil.which("sbatch")} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{here.folder}:{os.environ['PATH']}")
    told = here.submit("--detach", "--source", "dim,bright")
    assert told.count("submitted 1 runs as job") == 2
    assert "cancelled 2 runs" in here.dgbench("cancel", "--yes")
    until(lambda: not squeue.living(here.results))


def test_after_ctrl_c_the_tasks_go_on_where_nobody_can_be_asked(monkeypatch):
    def interrupted(*arguments, **options):
        raise StillQueued(["7_0", "7_1"])

    monkeypatch.setattr(cli.face, "run", interrupted)
    done = CliRunner().invoke(cli.app, ["run", "--method", "erm", "--task", "phantom", "--launcher", "slurm"])
    assert done.exit_code == 130 and "2 runs go on" in " ".join(done.output.split())


A, B = Needs(30, 2, 1), Needs(60, 4, 1)


@pytest.mark.parametrize(
    ("jobs", "limit", "expected"),
    [
        (None, 10, [(A, (0, 2, 4), 3, None), (B, (1, 3), 2, None)]),
        (None, 2, [(A, (0, 2), 2, None), (A, (4,), 1, None), (B, (1, 3), 2, None)]),
        (4, 2, [(A, (0, 2), 2, None), (A, (4,), 1, None), (B, (1, 3), 1, None)]),  # 4 = 2 + 1 + 1
        (2, 2, [(A, (0, 2), 1, None), (A, (4,), 1, None), (B, (1, 3), 1, 0)]),
        (1, 2, [(A, (0, 2), 1, None), (A, (4,), 1, 0), (B, (1, 3), 1, 1)]),  # one after the other
    ],
)
def test_runs_with_the_same_needs_share_an_array_and_all_share_the_jobs(jobs, limit, expected):
    assert slurm.arrays([A, B, A, B, A], jobs, limit) == [Array(*each) for each in expected]


@settings(max_examples=50)
@given(st.lists(st.sampled_from([A, B]), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 9))
def test_every_run_is_in_one_array_and_never_do_more_work_than_jobs(asking, jobs, limit):
    made = slurm.arrays(asking, jobs, limit)
    assert sorted(place for array in made for place in array.places) == list(range(len(asking)))
    assert all(len(array.places) <= limit for array in made)
    chains = {}  # arrays that wait for each other, by the first of them: one works at a time
    for number, array in enumerate(made):
        chains[number] = chains[array.after] if array.after is not None else number
    most = {first: max(a.at_once for n, a in enumerate(made) if chains[n] == first) for first in chains.values()}
    assert sum(most.values()) <= jobs


def test_an_array_that_had_to_be_halved_has_no_more_at_once(tmp_path, monkeypatch):
    submitted: list[tuple[int, str]] = []  # tasks and what they wait for, of each array that was taken

    class Cluster:  # one that takes two tasks at a time
        def __init__(self, folder, **options):
            pass

        def update_parameters(self, array_parallelism, additional_parameters):
            self.after = additional_parameters.get("dependency", "")

        def submit_array(self, errands):
            if len(errands) > 2:
                raise FailedJobError("sbatch: error: QOSMaxSubmitJobPerUserLimit")
            submitted.append((len(errands), self.after))
            return [SimpleNamespace(job_id=f"{len(submitted)}_{task}") for task in range(len(errands))]

    monkeypatch.setattr("submitit.SlurmExecutor", Cluster)
    orders = [SimpleNamespace(run=run) for run in plan.plan(get_task("phantom"), ["constant"], results=tmp_path)]
    for jobs, expected in ((1, [(2, ""), (2, "afterany:1")]), (None, [(2, ""), (2, "")]), (4, [(2, ""), (2, "")])):
        submitted.clear()
        (array,) = slurm.arrays([A] * 4, jobs, 10)
        desk = slurm._Desk(tmp_path, {}, lambda news: None, [(0, array, orders)])
        desk.hand_in()
        assert submitted == expected and len(desk.queued) == 4


def test_options_of_sbatch_are_taken_as_they_are():
    assert slurm.parse("") == {}
    assert slurm.parse("partition=gpu,time=1-04:00:00,gres=gpu:1") == {
        "partition": "gpu", "time": "1-04:00:00", "gres": "gpu:1",
    }  # fmt: skip
    assert slurm.parse("exclude=n1,n2,mem-per-cpu=2G") == {"exclude": "n1,n2", "mem_per_cpu": "2G"}
    assert Needs().options({"mem_per_cpu": "2G"}).keys() >= {"time", "cpus_per_task", "requeue", "mem_per_cpu"}
    assert "mem" not in Needs().options({"mem_per_cpu": "2G"})


@pytest.mark.parametrize(
    ("text", "words"),
    [("gpu", "'gpu' has no value"), ("array=0-3", "not to be chosen\neach run is a task"), ("nodes=2", "one node")],
)
def test_options_that_make_no_sense_are_refused(text, words):
    with pytest.raises(UsageError) as error:
        slurm.parse(text)
    assert words in str(error.value)


def test_a_task_asks_for_what_finished_runs_of_its_method_took(tmp_path):
    run = plan.plan(get_task("phantom"), ["constant"], sources=["A"], results=tmp_path)[0]
    assert slurm.needs(run, cores=1) == Needs(240, 8, 1)

    def finished(variant, seconds, memory, device="cpu"):
        costs = {"train_seconds": seconds, "test_seconds": 60, "peak_memory_mb": memory}
        folder = tmp_path / "phantom" / "sdg" / variant / "B-seed0"
        folder.mkdir(parents=True)
        (folder / "RESULT.json").write_text("{}")
        (folder / "run.json").write_text(json.dumps({"costs": costs, "environment": {"device": device}}))

    finished("constant_too", 1, 1)  # another method
    finished("constant[image_size=32]", 2640, 3000)
    assert slurm.needs(run, cores=1) == Needs(120, 8, 1)  # 2 x 45 + 5 = 95 minutes; 4.4 GB
    finished("constant", 60, 1000, "cuda")
    assert slurm.needs(run, cores=1) == Needs(30, 8, 1)  # its own variant; what a GPU held says nothing of the host
