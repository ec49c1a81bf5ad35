"""The face: what `import dgbench` offers a script or a notebook. The command line calls the same functions.

Plain arguments in, small frozen objects and pandas frames out; the defaults are those of the command line. Several
names are given as a list, or with commas. A mistake raises an error of `dgbench.errors`, with a cause and a remedy.

The examples run beside a folder `results` with scores on the phantom that come with dgbench (see results/README.md).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dgbench import registry
from dgbench.errors import DataError, UsageError, require
from dgbench.names import one_form
from dgbench.protocol import Budget, budgeted
from dgbench.settings import Range, number, spelled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from dgbench.images.nnunet import Exported
    from dgbench.pages.notebook import Board
    from dgbench.pages.site import Written
    from dgbench.running.launchers import Outcome
    from dgbench.running.plan import Run
    from dgbench.running.status import Standing
    from dgbench.scores.comparison import Comparison
    from dgbench.scores.multiverse import Multiverse
    from dgbench.scores.ranking import Ranking
    from dgbench.scores.study import Study
    from dgbench.scores.submission import Packed, Review
    from dgbench.task import Task

Names = str | Path | int | Iterable[str | Path | int]
Rerun = Literal["missing", "failed", "all"]
Launcher = Literal["local", "slurm"]
Layout = Literal["nnunet"]
RESULTS = Path("results")
EITHER = "--mock draws the images, and --data says where they lie", "give one of them"
SEEDS = Range(0, 2**31 - 1)
OUTSIDE_BRACKETS = re.compile(r",(?![^\[]*\])")  # a comma between two names, not between the values of a setting


# --- run -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ran:
    """What a call of `run` planned, and what came of it.

    runs: one for each method, source and seed. outcomes: how each ended, in the order they did; none after a dry run.
    files: the tables and plots that were written. arrays: after a dry run, what would be submitted to a cluster.
    broken: methods of which no run could be planned beside the others, and why.
    """

    runs: tuple[Run, ...]
    outcomes: tuple[Outcome, ...] = ()
    files: tuple[Path, ...] = ()
    arrays: tuple[str, ...] = ()
    broken: Mapping[str, Exception] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def study(self) -> Study:
        """Those of the runs that are finished: every number of their tables. Raises `UsageError` when none is."""
        from dgbench.protocol import get_protocol
        from dgbench.running.records import read_run
        from dgbench.scores.study import Study

        done = [read_run(Path(r.folder)) for r in self.runs if r.status == "done"]
        if not done:
            raise UsageError("none of these runs is finished", "see `frame` for what became of them")
        return Study(done, get_protocol(self.runs[0].protocol))

    @property
    def figures(self) -> dict[str, Figure]:
        """The plots that were written, by their names, of these runs alone; without cases where the images are gone."""
        from dgbench.pages.after_run import notable_slices, plots

        slices = None
        with suppress(DataError):
            slices = notable_slices(self.runs[0].load_task(), self.study)
        return {name: draw() for name, draw in plots(self.study, slices).items()}

    def _repr_html_(self) -> str:
        from dgbench.pages.notebook import of_runs

        study = None
        with suppress(UsageError):
            study = self.study
        return of_runs(study, self.frame)

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each run: variant, source, seed, status, message (of a run that failed) and folder."""
        import pandas as pd

        ended = {outcome.run: outcome for outcome in self.outcomes}
        rows = []
        for r in self.runs:
            status, message = (ended[r].status, ended[r].message) if r in ended else (r.status, "")
            rows.append((r.variant, r.source, r.seed, status, message, r.folder))
        return pd.DataFrame(rows, columns=["variant", "source", "seed", "status", "message", "folder"])


def run(
    method: Names,
    task: str | Path,
    *,
    source: Names = (),
    seed: Names = 0,
    protocol: str = "sdg",
    budget: Budget | None = None,
    settings: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    results: str | Path = RESULTS,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    jobs: int | None = None,
    per_device: int = 1,
    save_every: float = 60.0,
    time_limit: float | None = None,
    compile: bool = False,
    launcher: Launcher = "local",
    slurm: str | None = None,
    detach: bool = False,
    dry_run: bool = False,
    rerun: Rerun = "missing",
    plugin: Names = (),
    mock: bool = False,
    quiet: bool = False,
) -> Ran:
    """Train methods on each source domain of a task, test them on all others; write tables and plots.

    Runs that are finished are kept. A run that fails stops no other: `Ran.frame` says which did, and why.

    Parameters
    ----------
    method: names; `a+b` puts the idea of b over a; `a[steps=100;width=8]`, as tables name rows, has its own settings.
    task: a name, or the path of a folder of images.
    source: domains to train on, all by default. seed: whole numbers from 0 to 2147483647.
    budget: "equal-compute" makes it the protocol of that name with "-compute" behind it: each method has as many steps
    as compute what plain training does; `settings` cannot give steps then. None: the protocol's own.
    settings: hyperparameters that differ from a method's defaults: {"steps": 100}.
    data: the folder with the task's files, ./data/<task> by default. results: the folder that runs are written to.
    checkpoint: weights to test instead of training; `source` then names the domain they were trained on.
    device: `cuda` for all GPUs, `cuda:1` for one; by default all GPUs, or the CPU where there is none.
    jobs: runs made at the same time; by default as many as there are free cores (one thread each), or places on GPUs,
    or as SLURM lets work. per_device: runs made at the same time on one GPU.
    save_every: seconds between two checkpoints of a run. time_limit: seconds after which a run is stopped, as failed.
    compile: networks by torch's compiler; the first step takes much longer, and rounding differs.
    launcher: this host, or a SLURM cluster. slurm: options of sbatch for it, by their long names:
    "partition=gpu,time=04:00:00,gres=gpu:1". detach: submit to the cluster, and do not wait.
    dry_run: plan only. rerun: make also the failed runs again, or all.
    plugin: .py files with methods or tasks of your own. quiet: print neither progress nor tables.
    mock: on a few small images drawn in the layout of the task's, for 20 steps at 64 pixels, as task "mock-<name>": a
    plan, a plug-in or a cluster is tried before the data are here.

    >>> import dgbench
    >>> ran = dgbench.run("constant", "phantom", source="A", settings={"image_size": 32}, results="mine", quiet=True)
    >>> ran.frame[["variant", "source", "seed", "status"]]
                       variant source  seed status
    0  constant[image_size=32]      A     0   done
    """
    from dgbench.images.find_task import get_task, on_drawn
    from dgbench.pages.after_run import show
    from dgbench.pages.progress import Progress
    from dgbench.pages.screen import Screen
    from dgbench.running import launchers, plan
    from dgbench.running import slurm as cluster

    require(launcher, get_args(Launcher), "launcher")
    require(rerun, get_args(Rerun), "choice of runs to make again")
    if launcher == "local" and (slurm or detach):
        raise UsageError("--slurm and --detach are for a cluster", "add --launcher slurm")
    jobs = None if jobs is None else number("jobs", jobs, int, Range(1))
    per_device = number("per_device", per_device, int, Range(1))
    save_every = number("save_every", save_every, float, Range(0))
    if time_limit is not None:
        time_limit = number("time_limit", time_limit, float, Range(0))
    if launcher == "slurm" and time_limit is not None:
        raise UsageError("--time-limit is for this host", "a cluster has its own: --slurm time=04:00:00")
    asked = cluster.parse(slurm or "") if launcher == "slurm" else None
    add_plugins(plugin)
    protocol = budgeted(protocol, budget)
    if mock and data is not None:
        raise UsageError(*EITHER)
    name, results, console = on_drawn(str(task)) if mock else str(task), Path(results), Screen(quiet=quiet)
    loaded = get_task(name, None if data is None else Path(data))
    broken: dict[str, Exception] = {}
    planned = plan.plan(
        loaded,
        several(method, registry.METHODS.names()),
        sources=_sources(source, loaded.domains),
        seeds=_seeds(seed),
        protocol=protocol,
        settings={key: _text(key, value) for key, value in (settings or {}).items()},
        checkpoint=None if checkpoint is None else Path(checkpoint),
        results=results,
        broken=broken,
    )
    if broken and not planned:
        raise next(iter(broken.values()))
    if dry_run:
        due = [r for r in planned if launchers.due(r, rerun)]
        arrays = () if asked is None else tuple(cluster.proposal(due, jobs, asked))
        return Ran(tuple(planned), arrays=arrays, broken=broken)
    options = launchers.Options(
        device, jobs, per_device, save_every, compile, time_limit=time_limit, slurm=asked, detach=detach
    )
    with Progress(console) as progress:
        outcomes = launchers.launch(loaded, planned, rerun, options, progress.report)
    return Ran(tuple(planned), tuple(outcomes), tuple(show(loaded, planned, results, console)), broken=broken)


def status(task: str | Path | None = None, *, results: str | Path = RESULTS) -> pd.DataFrame:
    """Where the runs in a folder of results stand, one row each: those made on this host, on others, on a cluster.

    Columns: run, state (running, waiting, failed, interrupted, not begun or done), where, phase, done of total (steps
    or cases), rate (of them a second), left (seconds to the end of the phase), detail.

    >>> import dgbench
    >>> dgbench.status("phantom")["state"].value_counts().to_dict()
    {'done': 24}
    """
    import pandas as pd

    from dgbench.running.status import Standing

    names = [field.name for field in dataclasses.fields(Standing)]
    return pd.DataFrame([vars(standing) for standing in standings(task, results=results)], columns=names)


def standings(task: str | Path | None = None, *, results: str | Path = RESULTS) -> list[Standing]:
    """What `status` makes its frame of, and `dgbench status` its table, which may not wait for pandas."""
    from dgbench.running.status import look

    return look(Path(results).resolve(), None if task is None else task_name(task))


def cancel(task: str | Path | None = None, *, results: str | Path = RESULTS) -> list[str]:
    """Take the runs of a task, or all in a folder of results, out of a cluster's queue; returns their jobs.

    Those that run write a checkpoint and stop. Runs on this host are ended where they were started.
    """
    from dgbench.running import squeue

    jobs = queued(task, results=results)
    squeue.cancel(jobs)
    return jobs


def queued(task: str | Path | None = None, *, results: str | Path = RESULTS) -> list[str]:
    """The jobs that `cancel` would end."""
    from dgbench.running import squeue

    folder = Path(results).resolve()
    inside = folder if task is None else folder / task_name(task)
    return [job.job for run, (_, job) in squeue.living(folder).items() if run.is_relative_to(inside)]


# --- what finished runs say ------------------------------------------------------------------------------------------


def leaderboard(
    task: str | Path,
    *,
    metric: str = "dice",
    against: str | None = None,
    protocol: str | None = None,
    results: str | Path = RESULTS,
    beside: Names = (),
    without_contaminated: bool = False,
    cost: bool = False,
) -> Board:
    """Rank the finished runs of a task: one row per variant, with intervals, tests and costs, in full precision.

    A frame that a notebook shows as the tables of the command; `figures` are its plots, `ranking` what it is made of.

    Dice is in [0, 1], distances are in the unit of the row. What cannot be ranked has no rank, and its reason.
    against: the variant to test all others against; the first of the ranking by default. protocol: sdg, or, where no
    run of it was made, that of the first board which was published for the task.
    beside: folders of results that others made; their rows are ranked where what both made agrees.
    without_contaminated: rank no row whose weights were trained on the task's images, or likely so.
    cost: draw the mean against the FLOPs of training, too: cost-<metric>.png and .pdf among the plots.

    >>> import dgbench
    >>> dgbench.leaderboard("phantom", against="erm")[["variant", "verdict", "mean"]].round(3)
        variant       verdict   mean
    0       erm                0.466
    1  maxstyle  not resolved  0.424
    """
    from dgbench.pages.notebook import Board

    return Board.of(ranking(task, metric, against, protocol, results, beside, without_contaminated, cost))


def ranking(
    task: str | Path,
    metric: str = "dice",
    against: str | None = None,
    protocol: str | None = None,
    results: str | Path = RESULTS,
    beside: Names = (),
    without_contaminated: bool = False,
    cost: bool = False,
) -> Ranking:
    """What `leaderboard` makes its table of, for tables and statistics of one's own."""
    from dgbench.scores.ranking import rank
    from dgbench.scores.study import Study

    study = Study.load(Path(results), task_name(task), protocol, beside=_paths(beside))
    ranked = rank(study, metric, against, without_contaminated=without_contaminated)
    if cost:
        from dgbench.pages.figures import write_cost

        write_cost(ranked, Path(results) / study.task / study.protocol.name / "plots")
    return ranked


@dataclass(frozen=True)
class Compared:
    """Two variants; or, of two folders of results, each variant that both have. notes: what was left out or differs."""

    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The verdict in words, with the numbers it rests on; a line for each comparison."""
        from dgbench.pages.verdict import sentence

        return "\n".join(map(sentence, self.comparisons))

    def _repr_html_(self) -> str:
        from dgbench.pages.notebook import of_comparisons

        return of_comparisons(self.comparisons, self.notes)

    @property
    def frame(self) -> pd.DataFrame:
        """For each comparison a row for all targets and one for each target, in full precision: Dice is in [0, 1]."""
        import pandas as pd

        frames = [c.frame().rename(columns={c.one: "mean_one", c.other: "mean_other"}) for c in self.comparisons]
        for c, frame in zip(self.comparisons, frames, strict=True):
            frame.insert(0, "one", c.one)
            frame.insert(1, "other", c.other)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def compare(
    one: str | Path,
    other: str | Path,
    task: str | Path,
    *,
    metric: str = "dice",
    margin: float | None = None,
    protocol: str | None = None,
    results: str | Path = RESULTS,
    beside: Names = (),
) -> Compared:
    """Is one variant better than another? Paired by case; what would settle it, where it is open.

    one, other: variants, or methods of which there is one variant; or two folders of results, made before and after.
    margin: two results are equivalent within it, in Dice points or in the unit of the distances; 0.5 and 0.1 by
    default. beside: folders of results that others made, whose variants may be compared, too, not where two folders
    are.

    >>> import dgbench
    >>> print(dgbench.compare("maxstyle", "erm", "phantom").sentence.partition(".")[0])
    maxstyle against erm: not resolved
    """
    from dgbench.metrics import get_metric
    from dgbench.scores import agreement, comparison
    from dgbench.scores.study import Study

    name = task_name(task)
    within = None if margin is None else number("margin", margin, float, Range(0)) / get_metric(metric).scale
    if Path(one).is_dir() and Path(other).is_dir():
        if _paths(beside):
            raise UsageError("two folders are compared, with none beside them", "leave --beside out")
        before, after = (Study.load(Path(folder), name, protocol) for folder in (one, other))
        found, notes = comparison.folders(before, after, metric, within)
        return Compared(tuple(found), tuple(notes))
    study = Study.load(Path(results), name, protocol, beside=_paths(beside))
    two = comparison.compare(study, str(one), str(other), metric, within)
    where = agreement.machines(two.study, two.metric.name)
    apart = [f"{v}: {why}." for v in (two.one, two.other) for why in where.why_apart(two.study.runs[v])]
    asked = {str(one): two.one, str(other): two.other}
    taken = [f"{name}: its only variant here is {found}." for name, found in asked.items() if name != found]
    return Compared((two,), (*taken, *study.left_out, *apart))


@dataclass(frozen=True)
class Universes:
    """What became of a leaderboard under other choices. found: the universes, every pair, what could not be had."""

    found: Multiverse

    @property
    def sentence(self) -> str:
        """What holds under every choice, and what depends on which."""
        from dgbench.pages.multiverse import sentence

        return sentence(self.found)

    @property
    def figures(self) -> dict[str, Figure]:
        """The picture of all ranks, under the name of its file."""
        from dgbench.pages.rank_map import rank_map

        return {"multiverse": rank_map(self.found)}

    def _repr_html_(self) -> str:
        from dgbench.pages.notebook import of_universes

        return of_universes(self.found)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per universe and variant: kind of choice, universe, same_as, metric, variant, mean, rank."""
        return self.found.frame()


def multiverse(
    task: str | Path,
    *,
    metric: str = "dice",
    data: str | Path | None = None,
    protocol: str | None = None,
    results: str | Path = RESULTS,
    plugin: Names = (),
) -> Universes:
    """Would the order be another one under other defensible choices that need no training?

    The metric, missed structures, how means are taken, and what is left out are chosen otherwise, one by one and some
    together. Slices and resolution too, where the runs' predictions and the task's images are at hand.

    >>> import dgbench
    >>> print(dgbench.multiverse("phantom").sentence.partition(".")[0])
    erm is first in 22 of 29 universes
    """
    from dgbench.scores.multiverse import of_folder

    add_plugins(plugin)
    board = ranking(task, metric, None, protocol, results)
    return Universes(of_folder(board, _task_of(task, data), Path(results)))


def report(
    task: str | Path,
    *,
    data: str | Path | None = None,
    against: str | None = None,
    protocol: str | None = None,
    results: str | Path = RESULTS,
    beside: Names = (),
    plugin: Names = (),
) -> Path:
    """Write one HTML page with everything: leaderboard, plots, worst cases, costs, how each number was made.

    The pictures need the task's images; without them the page says so. Returns its path.

    >>> import dgbench
    >>> print(dgbench.report("phantom", against="erm"))
    results/phantom/sdg/report.html
    """
    from dgbench.pages import report as pages
    from dgbench.scores.multiverse import of_folder

    add_plugins(plugin)
    board = ranking(task, "dice", against, protocol, results, beside)
    loaded = _task_of(task, data)
    universes = of_folder(board, loaded, Path(results))
    return pages.write(loaded, board, Path(results) / task_name(task) / board.study.protocol.name, universes)


def site(*, results: Names = RESULTS, out: str | Path, date: str | None = None) -> Written:
    """Write a static site: a page for each board, method and run, tables as CSV and JSON, and a copy of the day.

    results: folders, with the archives `scores-*.tar.xz` in them, or archives; published scores are in it, too. out: a
    new folder, or one that a site was made in; copies of other days stay. date: of this copy, by default today.

    >>> import dgbench
    >>> written = dgbench.site(results="results", out="site", date="2030-01-31")
    >>> print(written.start, written.frozen)
    site/index.html site/frozen/2030-01-31
    """
    from dgbench.pages.site import write
    from dgbench.scores.collection import collect

    return write(collect(_paths(results)), Path(out), date)


def import_scores(
    scores: str | Path,
    task: str | Path,
    *,
    citation: str,
    protocol: str,
    stated: str = "",
    name: str | None = None,
    results: str | Path = RESULTS,
    plugin: Names = (),
) -> Path:
    """Keep scores that others measured, case by case, as a board for `leaderboard`, `compare` and `report`.

    They are marked as published, and stand in no table with runs of another protocol. Returns the file of the board.
    scores: a CSV file, see docs/published-scores.md. citation: who measured them, and where to look them up.
    protocol: a name for what they held fixed; stated: that in words. name: of the board, by default the file's.

    >>> import dgbench
    >>> rows = ["method,source,seed,target,case,dice"]
    >>> rows += [f"theirs,A,{seed},B,case{n:02},0.7" for seed in (0, 1, 2) for n in range(8)]
    >>> written = Path("doe.csv").write_text("\\n".join(rows))
    >>> print(dgbench.import_scores("doe.csv", "phantom", citation="Doe 2030", protocol="doe"))
    results/phantom/doe/published/doe.json
    """
    from dgbench.images.find_task import get_task
    from dgbench.scores.importing import import_board

    add_plugins(plugin)
    path = Path(scores)
    told = {
        "name": name or path.name.partition(".")[0],
        "protocol": protocol,
        "citation": citation,
        "notes": [f"{stated.rstrip('.')}."] if stated else [],
    }
    return import_board(path, get_task(str(task)), told, Path(results))


@dataclass(frozen=True)
class Scored:
    """A run made of predictions of another system. notes: what its reader should know; what keeps it from a rank."""

    folder: Path
    notes: tuple[str, ...]

    @functools.cached_property
    def study(self) -> Study:
        """The run: every number of its tables."""
        from dgbench.protocol import get_protocol
        from dgbench.running.records import read_run
        from dgbench.scores.study import Study

        record = read_run(self.folder)
        return Study([record], get_protocol(record.protocol))

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each case and structure, in full precision, as in cases.csv."""
        return self.study.cases


def score(
    predictions: str | Path,
    task: str | Path,
    *,
    source: str,
    method: str | None = None,
    seed: int = 0,
    protocol: str = "sdg",
    stated: Mapping[str, str] | None = None,
    data: str | Path | None = None,
    results: str | Path = RESULTS,
    plugin: Names = (),
) -> Scored:
    """Measure masks or probabilities that another system wrote, by a protocol, as a run that was not trained here.

    predictions: a folder with a file for each case, see docs/submitting.md. source: the domain that the system was
    trained on; predictions of its training cases are refused. method: what tables call it, by default the folder's
    name. seed: tells several trainings apart. stated: budget, pretraining (both are needed for a rank), labels.
    Raises `DataError` that names all predictions that are missing, extra, doubled, or of another size.

    >>> import dgbench
    >>> import numpy as np
    >>> from dgbench.images.find_task import get_task
    >>> phantom = get_task("phantom")
    >>> for domain in "BCD":
    ...     Path("theirs", domain).mkdir(parents=True)
    ...     for case in phantom.case_ids(domain):
    ...         np.save(f"theirs/{domain}/{case}.npy", phantom.load(domain, case).mask[:, 0])
    >>> scored = dgbench.score("theirs", "phantom", source="A", results="theirs/results")
    >>> float(scored.frame["dice"].mean())
    1.0
    """
    from dgbench.images.find_task import get_task
    from dgbench.running import foreign

    add_plugins(plugin)
    seed = number("seed", seed, int, SEEDS)
    given = foreign.Foreign(Path(predictions), source, method, seed, dict(stated or {}))
    loaded = get_task(str(task), None if data is None else Path(data))
    done = foreign.score(loaded, given, protocol, Path(results))
    return Scored(done.run.path, done.notes)


def export(
    layout: Layout,
    task: str | Path,
    *,
    source: str,
    out: str | Path,
    number: int | None = None,
    data: str | Path | None = None,
    plugin: Names = (),
) -> Exported:
    """Write a task's images for another system: the source's training cases with masks, the others without.

    Gives the commands that train, predict, and hand the predictions to `score`. layout: "nnunet", v2. number: of the
    data set there, by default 500 and the source's place.

    >>> import dgbench
    >>> exported = dgbench.export("nnunet", "phantom", source="A", out="nnunet")
    >>> print(exported.folder.name, len(list(exported.folder.glob("imagesTr/*.nii.gz"))))
    Dataset500_phantom_A 8
    """
    from dgbench.images import nnunet
    from dgbench.images.find_task import get_task

    require(layout, get_args(Layout), "layout")
    add_plugins(plugin)
    loaded = get_task(str(task), None if data is None else Path(data))
    return nnunet.export(loaded, source, Path(out), number)


def submit(
    results: str | Path,
    task: str | Path,
    *,
    to: str | Path,
    name: str,
    disclosed: Mapping[str, str],
    beside: Names = (),
) -> Packed:
    """The scores of the finished runs of a task, ready to be passed on: `.write()` writes the archive.

    No image, mask or weights are in it, no path, and no name of this machine or its user. disclosed: answers to
    pretraining, trials and targets, see docs/submitting.md. beside: folders of results that they are to be ranked with.

    >>> import dgbench
    >>> answers = {"pretraining": "none", "trials": "one", "targets": "no"}
    >>> packed = dgbench.submit("results", "phantom", to="outbox", name="mine", disclosed=answers)
    >>> print(packed.write(), len(packed.members) // 3, *packed.verdicts[0][:2])
    outbox/scores-phantom-mine.tar.xz 24 sdg erm
    """
    from dgbench.scores import submission

    return submission.pack(Path(results), task_name(task), name, disclosed, Path(to), _paths(beside))


def review(archive: Names, *, board: Names = ()) -> Review:
    """Look at submitted scores before they are believed: problems, doubts, and what becomes of the board.

    archive: of `submit`, several allowed. board: archives or folders of results that are there already.

    >>> import dgbench
    >>> answers = {"pretraining": "none", "trials": "one", "targets": "no"}
    >>> found = dgbench.review(dgbench.submit("results", "phantom", to="in", name="ours", disclosed=answers).write())
    >>> found.problems, [of.after.ranked[0].variant for of in found.effects]
    ([], ['erm'])
    """
    from dgbench.scores import submission

    return submission.review(_paths(archive), _paths(board))


def merge(results: Names, *, to: str | Path) -> list[Path]:
    """Join collections of results into one folder; returns the runs that were not there.

    results: folders, or archives of `submit`. Nothing that is there is replaced; where two runs of one name have other
    scores, all such are named and nothing is written.

    >>> import dgbench
    >>> len(dgbench.merge("results", to="joined"))
    24
    """
    from dgbench.scores import submission

    return submission.merge(_paths(results), Path(to))


# --- what there is ---------------------------------------------------------------------------------------------------


def methods(plugin: Names = (), *, long: bool = False) -> pd.DataFrame:
    """The methods by name: what each is, family, year, what it needs and starts from, its paper. Imports none of them.

    long: also the cost of a training step beside plain training's, what it derives from and how it differs from its
    paper, what papers report, and what was measured on the boards that come with dgbench.

    >>> import dgbench
    >>> print(dgbench.methods().loc["erm", "what"])
    plain training on the source, what every other method is compared with.
    >>> print(dgbench.methods(long=True).loc["dual_norm", "cost"])
    2 x erm
    """
    if not long:
        return _listed("methods", plugin)
    import pandas as pd

    from dgbench.pages.cards import method_card

    add_plugins(plugin)
    return pd.DataFrame([method_card(name) for name in registry.METHODS.names()]).set_index("method")


def tasks(plugin: Names = ()) -> pd.DataFrame:
    """The tasks by name: what each is, domains, cases, structures, access to the data. Imports none of them.

    >>> import dgbench
    >>> dgbench.tasks().loc["sarcoma", ["domains", "cases", "access"]].to_dict()
    {'domains': 'ct, mr_t1, pet', 'cases': '38', 'access': 'open'}
    """
    return _listed("datasets", plugin).drop(columns=["needs", "pretrained", "paper"])


def _listed(kind: registry.Kind, plugin: Names) -> pd.DataFrame:
    import pandas as pd

    add_plugins(plugin)
    return pd.DataFrame(listing(kind)).set_index(registry.WORD[kind])


def listing(kind: registry.Kind) -> list[dict[str, str]]:
    """What `methods` and `tasks` make their frames of, and `dgbench list` its table, which may not wait for pandas."""
    rows = []
    for plugin in (registry.METHODS if kind == "methods" else registry.TASKS).plugins().values():
        facts = plugin.facts()
        paper = facts.get("paper", "")
        said = registry.said(plugin.header(), paper)
        rows.append(
            {
                registry.WORD[kind]: plugin.name,
                "what": re.sub(r"^[A-Z][\w-]{1,11}: ", "", plugin.summary()),  # the name stands before it
                **({"family": said["family"], "year": said["year"]} if kind == "methods" else {}),
                "needs": "; ".join(words for name, words in registry.NEEDS.items() if name in facts),
                "pretrained": facts.get("pretrained", ""),
                "paper": paper,
                **({} if kind == "methods" else dict.fromkeys(registry.OF_DATA, "") | plugin.data()),
            }
        )
    return rows


# --- arguments -------------------------------------------------------------------------------------------------------


def task_name(task: str | Path) -> str:
    """The name that runs are stored under; the images themselves need not be there any more."""
    from dgbench.images.find_task import get_task, is_path

    if not str(task).strip():
        raise UsageError("the name of a task is empty", "give one of `dgbench list tasks`")
    return get_task(str(task)).name if is_path(str(task)) else str(task)


def _task_of(task: str | Path, data: str | Path | None) -> Task | None:
    """The task itself; None for a name that only runs know."""
    from dgbench.images.find_task import get_task, is_named, is_path

    known = is_path(str(task)) or is_named(str(task))
    return get_task(str(task), None if data is None else Path(data)) if known else None


def add_plugins(plugin: Names) -> None:
    """Make methods and tasks of one's own known, by the paths of their files."""
    for path in _paths(plugin):
        registry.add_plugin(path)


def _paths(given: Names) -> list[Path]:
    return [Path(str(path)) for path in _listed_names(given)]


def several(given: Names, known: Sequence[str] | Callable[[str], bool] = ()) -> list[str]:
    """Names in a list and with commas alike, each once. One that is known stays whole, as does what is in brackets."""
    whole = known if callable(known) else known.__contains__
    texts = [str(g) for g in _listed_names(given)]
    parts = [part.strip() for text in texts for part in ([text] if whole(text) else OUTSIDE_BRACKETS.split(text))]
    return list(dict.fromkeys(filter(None, parts)))


def _listed_names(given: Names) -> list[str | Path | int]:
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]


def _sources(given: Names, known: Sequence[str]) -> list[str]:
    forms = {one_form(name): name for name in known}
    found = [forms.get(one_form(name), name) for name in several(given, known)]
    if not found and _listed_names(given):
        raise UsageError("no source is named", f"known: {', '.join(known)}; without --source each is trained on")
    return found


def _seeds(given: Names) -> list[int]:
    if not (texts := several(given)):
        raise UsageError("no seed is named", "e.g. --seed 0,1,2; without --seed it is 0")
    return list(dict.fromkeys(number("seed", text, int, SEEDS) for text in texts))


def _text(name: str, value: Any) -> str:
    """A setting as `--set` would give it."""
    try:
        return spelled(value)
    except ValueError as error:
        raise UsageError(f"{name}: {error}", "give a number, a text, True, False, None, or a list of these") from None
