"""The command line: each verb is a thin function around a library call that a notebook can make too.

Nothing slow is imported at the top: torch, pandas and matplotlib are imported inside the verbs that need them.
"""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from dgbench import face, registry
from dgbench.errors import DataError, DgbenchError, StillQueued, UsageError, of_system
from dgbench.files import make_folder
from dgbench.pages.screen import Screen
from dgbench.protocol import DEFAULT as PROTOCOL
from dgbench.protocol import Budget

if TYPE_CHECKING:
    from dgbench.scores.study import Study

app = typer.Typer(
    name="dgbench",
    help="Compare methods for single-source domain generalization of medical image segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Look at a task's data, check them, prepare them.", no_args_is_help=True)
app.add_typer(data_app, name="data")
weights_app = typer.Typer(help="List pretrained weights, fetch them, check them.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
console = Screen()
errors = Screen(stderr=True)

Task = Annotated[str, typer.Option("--task", "-t", help="A task's name, or a folder of images (PATH).")]
TaskArgument = Annotated[str, typer.Argument(help="Task name, folder or table.")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder with the task's files.", show_default="./data/TASK")]
Results = Annotated[Path, typer.Option("--results", help="Folder the runs are written to.")]
Protocol = Annotated[
    str,
    typer.Option("--protocol", help="sdg, dapsam (as the paper's code), or audit; with -compute: equal compute."),
]
Shown = Annotated[
    str | None,
    typer.Option("--protocol", help="sdg, dapsam, or that of published scores.", show_default="sdg, or what there is"),
]
Metric = Annotated[str, typer.Option("--metric", help="dice, asd, assd or hd95.")]
Against = Annotated[str | None, typer.Option("--against", help="Variant to test all others against.")]
Beside = Annotated[list[Path] | None, typer.Option("--beside", help="Results that others made; several allowed.")]
Format = Literal["table", "md", "csv", "tex", "html"]
Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="A method or task of your own: a .py file.")]


def main() -> None:
    """Run the command line; a user's mistake ends in two lines and an exit code, never in a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter shows a question mark
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves every `finally` its turn, as Ctrl-C does
    try:
        app(standalone_mode=True)
    except Exception as error:
        told = error if isinstance(error, DgbenchError) else of_system(error)
        if told is None:
            raise
        _tell([told])
        raise SystemExit(told.exit_code) from None


def _end(broken: Sequence[DgbenchError]) -> None:
    """After all that could be done: tell what could not, and end in its exit code."""
    _tell(broken)
    if broken:
        raise SystemExit(broken[0].exit_code)


def _tell(mistakes: Sequence[DgbenchError]) -> None:
    for error in mistakes:
        errors.print(f"[bold red]error:[/] {escape(error.cause)}", soft_wrap=True)
        if error.remedy:
            errors.print(f"[bold]try:[/]   {escape(error.remedy)}", soft_wrap=True)


@app.command()
def run(
    method: Annotated[
        list[str], typer.Option("--method", "-m", help="Method or variant, e.g. erm[width=8]; several, or with commas.")
    ],
    task: Annotated[list[str], typer.Option("--task", "-t", help="Task, folder of images or table; several allowed.")],
    source: Annotated[list[str] | None, typer.Option("--source", help="Train on this domain only.")] = None,
    seed: Annotated[list[str] | None, typer.Option("--seed", help="Seeds >= 0, e.g. 0,1,2.", show_default="0")] = None,
    protocol: Protocol = "sdg",
    budget: Annotated[
        Budget | None,
        typer.Option("--budget", help="equal-steps, or equal-compute: as erm's.", show_default="the protocol's"),
    ] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value: a hyperparameter.")] = None,
    data: Data = None,
    results: Results = face.RESULTS,
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", help="Test these weights, do not train.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda (all GPUs), cuda:1, ...")] = "auto",
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Runs made at the same time.", show_default="free cores, GPUs; SLURM: all"),
    ] = None,
    per_device: Annotated[int, typer.Option("--per-device", min=1, help="Runs at the same time on one GPU.")] = 1,
    save_every: Annotated[float, typer.Option("--save-every", min=0, help="Seconds between checkpoints.")] = 60.0,
    time_limit: Annotated[
        float | None, typer.Option("--time-limit", min=0, help="Seconds after which a run is stopped, as failed.")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Use torch's compiler; rounding differs.")] = False,
    launcher: Annotated[face.Launcher, typer.Option("--launcher", help="This host, or a SLURM cluster.")] = "local",
    slurm: Annotated[
        str | None, typer.Option("--slurm", help="Options of sbatch: partition=gpu,time=04:00:00,gres=gpu:1.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Submit to the cluster, and do not wait.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run.")] = False,
    rerun: Annotated[face.Rerun, typer.Option("--rerun", help="Make also the failed runs again, or all.")] = "missing",
    plugin: Plugins = None,
) -> None:
    """Train on each source domain, test on all others; print and write the tables and plots.

    Example: dgbench run --method dapsam,erm --task phantom
    """
    failed, tasks = False, face.several(task, lambda text: Path(text).exists())
    if not tasks:
        raise UsageError("no task is named", "give one with --task; `dgbench list tasks` shows all")
    lacking: list[DataError] = []
    with _interruptible("without --rerun all the same command continues" if rerun == "all" else CONTINUES):
        for name in tasks:
            try:
                ran = face.run(
                    method, name, source=source or (), seed=seed or 0, protocol=protocol, budget=budget, data=data,
                    results=results, settings=_settings(settings or ()), checkpoint=checkpoint, device=device,
                    jobs=jobs, per_device=per_device, save_every=save_every, time_limit=time_limit, compile=compile,
                    launcher=launcher, slurm=slurm, detach=detach, dry_run=dry_run, rerun=rerun, plugin=plugin or (),
                )  # fmt: skip
            except DataError as error:  # of this task; the others go on
                lacking.append(error)
                continue
            if dry_run:
                say(*(f"{planned.status:12} {planned}" for planned in ran.runs), *ran.arrays)
            if ran.outcomes or ran.broken:
                from dgbench.pages.after_run import failures

                failed |= failures(ran.outcomes, errors, ran.broken)
    if failed:
        _tell(lacking)
        raise SystemExit(4)
    _end(lacking)


@app.command()
def status(
    task: Annotated[str | None, typer.Option("--task", "-t", help="Of this task only.", show_default="all")] = None,
    results: Results = face.RESULTS,
) -> None:
    """Show what runs (step, rate, time left, node), waits, failed or was interrupted: here, elsewhere, on a cluster."""
    from dgbench.pages.standings import table

    standings = face.standings(task, results=results)
    console.print(table(standings))
    states = [standing.state for standing in standings]
    say(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "no runs here")


@app.command()
def cancel(
    task: Annotated[str | None, typer.Option("--task", "-t", help="Of this task only.", show_default="all")] = None,
    results: Results = face.RESULTS,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take runs out of the cluster's queue; those that run write a checkpoint first, and can be continued."""
    jobs = face.queued(task, results=results)
    if not jobs:
        return say("no run of yours is in a cluster's queue; one on this host ends by Ctrl-C where it was started")
    if not yes:
        typer.confirm(f"cancel {len(jobs)} runs?", abort=True)
    say(f"cancelled {len(face.cancel(task, results=results))} runs: {CONTINUES}")


@app.command("list")
def list_(
    kind: Annotated[Literal["methods", "tasks", "runs", "weights"], typer.Argument(help="What to list.")],
    results: Results = face.RESULTS,
    plugin: Plugins = None,
) -> None:
    """List methods, tasks, finished runs or pretrained weights. Imports no method and no task."""
    if kind == "weights":
        return weights_list()
    if kind == "runs":
        from dgbench.running.records import find_runs

        return say(*map(str, find_runs(results)))
    from rich.table import Table

    face.add_plugins(plugin or ())
    table = Table(box=None, pad_edge=False)
    table.add_column(kind[:-1], style="bold", no_wrap=True)
    table.add_column("what it is")
    for row in face.listing("methods" if kind == "methods" else "datasets"):
        needs = f"needs {row['needs']}" if row["needs"] else ""
        table.add_row(row[kind[:-1]], escape(row["what"]))
        if details := "; ".join(filter(None, (needs, row["pretrained"], row["paper"].removeprefix("https://")))):
            table.add_row("", escape(details), style="dim")
    console.print(table)


@app.command()
def leaderboard(
    task: Task,
    metric: Metric = "dice",
    format_: Annotated[Format, typer.Option("--format", help="On the terminal, or as text to copy.")] = "table",
    against: Against = None,
    protocol: Shown = None,
    results: Results = face.RESULTS,
    beside: Beside = None,
    without_contaminated: Annotated[
        bool, typer.Option("--without-contaminated", help="Rank no row whose weights saw the task's images.")
    ] = False,
    cost: Annotated[bool, typer.Option("--cost", help="Also plot score against training FLOPs.")] = False,
    picture: Annotated[Path | None, typer.Option("--picture", help="Also draw it: a .png or .pdf file.")] = None,
) -> None:
    """Rank the finished runs of a task: intervals, tests, costs, and what papers report.

    Example: dgbench leaderboard --task phantom --against erm
    """
    if picture and picture.suffix not in (".png", ".pdf"):
        raise UsageError(f"a picture cannot be written as '{picture.suffix}'", "name a .png or a .pdf file")
    board = face.ranking(
        task, metric=metric, against=against, protocol=protocol, results=results, beside=beside or (),
        without_contaminated=without_contaminated, cost=cost,
    )  # fmt: skip
    _say_protocol(board.study, protocol)
    if cost:
        plots = results / board.study.task / board.study.protocol.name / "plots"
        errors.print(f"wrote {plots}/cost-{metric}.png and .pdf", highlight=False, soft_wrap=True)
    from dgbench.pages import leaderboard as pages
    from dgbench.pages.table import show
    from dgbench.scores import published

    if picture:
        from dgbench.pages import drawing, figures

        make_folder(picture.parent)
        drawing.save(figures.forest(board), picture)
    beside = published.beside(published.load(board.study.task), board.study)
    if format_ != "table":
        print(pages.render(board, format_, beside), end="")
        return
    for table in pages.board_tables(board, beside):
        show(table, console)
    console.print(escape(pages.conclusion(board)), style="bold", highlight=False)


@app.command()
def compare(
    one: Annotated[str, typer.Argument(help="A variant; or a folder of results, made before.", metavar="A")],
    other: Annotated[str, typer.Argument(help="Another variant; or a folder of results, made after.", metavar="B")],
    task: Task,
    metric: Metric = "dice",
    margin: Annotated[
        float | None,
        typer.Option("--margin", min=0, help="Equivalent within: points or mm.", show_default="0.5 points, 0.1 mm"),
    ] = None,
    protocol: Shown = None,
    results: Results = face.RESULTS,
    beside: Beside = None,
) -> None:
    """Is A better than B? Paired by case, with interval, test, and what would settle it if it is open.

    Example: dgbench compare erm dapsam --task phantom
    """
    compared = face.compare(
        one, other, task, metric=metric, margin=margin, protocol=protocol, results=results, beside=beside or ()
    )
    from dgbench.pages.table import show
    from dgbench.pages.verdict import comparison_table, sentence

    for found in compared.comparisons[:1]:
        _say_protocol(found.study, protocol)
    for found in compared.comparisons:
        show(comparison_table(found), console)
        console.print(escape(sentence(found)), style="bold", highlight=False)
    for note in compared.notes:
        console.print(escape(note), highlight=False)


@app.command()
def multiverse(
    task: Task,
    metric: Metric = "dice",
    format_: Annotated[Format, typer.Option("--format", help="On the terminal, or as text to copy.")] = "table",
    data: Data = None,
    protocol: Shown = None,
    results: Results = face.RESULTS,
    plugin: Plugins = None,
) -> None:
    """Would other defensible choices change the order? Each variant's rank in every one, as tables and a picture.

    Example: dgbench multiverse --task phantom
    """
    looked = face.multiverse(task, metric=metric, data=data, protocol=protocol, results=results, plugin=plugin or ())
    from dgbench.pages import multiverse as pages
    from dgbench.pages.table import show

    if format_ != "table":
        print(pages.render(looked.found, format_), end="")
        return
    for table in pages.tables(looked.found):
        show(table, console)
    console.print(escape(looked.sentence), style="bold", highlight=False)
    study = looked.found.board.study
    _say_protocol(study, protocol)
    say(*(f"wrote {path}" for path in pages.write(looked.found, results / study.task / study.protocol.name)))


@app.command()
def report(
    task: Task,
    data: Data = None,
    against: Against = None,
    protocol: Shown = None,
    results: Results = face.RESULTS,
    beside: Beside = None,
    plugin: Plugins = None,
) -> None:
    """Write one HTML page with everything: leaderboard, plots, worst cases, costs, how each number was made."""
    page = face.report(
        task, data=data, against=against, protocol=protocol, results=results, beside=beside or (), plugin=plugin or ()
    )
    say(f"wrote {page}")


@app.command("import")
def import_(
    scores: Annotated[Path, typer.Argument(help="CSV file with a row for each run and target case.")],
    task: Task,
    citation: Annotated[str, typer.Option("--citation", help="Who measured them, and where to look them up.")],
    protocol: Annotated[str, typer.Option("--protocol", help="A name for what they held fixed.")],
    stated: Annotated[str, typer.Option("--stated", help="What they held fixed, in words.")] = "",
    name: Annotated[str | None, typer.Option("--name", help="Of the board.", show_default="the file's")] = None,
    results: Results = face.RESULTS,
    plugin: Plugins = None,
) -> None:
    """Keep scores that others measured, case by case, as a board for leaderboard, compare and report.

    Example: dgbench import doe.csv --task prostate --protocol doe --citation "Doe 2030. https://doi.org/..."
    """
    board = face.import_scores(
        scores, task, citation=citation, protocol=protocol, stated=stated, name=name, results=results,
        plugin=plugin or (),
    )  # fmt: skip
    say(f"wrote {board}", f"next: dgbench leaderboard --task {task} --protocol {protocol}")


@app.command()
def verify(results: Annotated[Path, typer.Argument(help="Folder of results, or of one task or run.")]) -> None:
    """Check every run's folder: hashes, schema, counts, versions; list all that is wrong, at once."""
    from dgbench.scores.verify import verify

    count, problems = verify(results)
    _all_well(problems, f"{count} runs")


@app.command()
def reproduce(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    task: Annotated[str | None, typer.Option("--task", "-t", help="The folder of images, if it was one.")] = None,
    data: Data = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="The weights, if given ones were tested.")
    ] = None,
    device: Annotated[str | None, typer.Option("--device", show_default="the recorded one")] = None,
    out: Annotated[Path | None, typer.Option("--out", show_default="a hidden folder beside RUN")] = None,
    plugin: Plugins = None,
) -> None:
    """Make a run again from its record: identical, within its interval, or different; and what changed around it."""
    face.add_plugins(plugin or ())
    from dgbench.pages.progress import Progress
    from dgbench.scores.reproduce import reproduce

    with Progress(console) as progress:
        report = progress.report
        found = reproduce(run_folder, out, task=task, data=data, checkpoint=checkpoint, device=device, report=report)
    say(*(f"{what}: {then} -> {now}" for what, then, now in found.changed))
    say(found.sentence(), style="bold")
    if found.verdict == "different":
        raise SystemExit(4)


@app.command()
def explain(
    topic: Annotated[str, typer.Argument(help="asd, assd, hd95, dice, mean, missed, oracle, gap; or a method.")],
    plugin: Plugins = None,
) -> None:
    """What a word means here and elsewhere, on one pair of masks; or a method's settings and what each may be."""
    from dgbench.pages.glossary import TOPICS, explain

    face.add_plugins(plugin or ())
    if topic not in TOPICS and topic.partition("+")[0] in registry.METHODS.names():
        from dgbench.pages.cards import settings_card

        card = settings_card(registry.get_method(topic))
        return say(*(f"{name:{max(map(len, card))}}  {value}" for name, value in card.items()))
    console.print(explain(topic))


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the method: a Python identifier.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where the file is written.")] = Path("."),
) -> None:
    """Write a commented, working method file to start from."""
    from dgbench.running.new_method import write_method

    path = write_method(name, folder)
    say(f"wrote {path}", f"next: dgbench check {name} --plugin {path}")


@app.command()
def check(name: Annotated[str, typer.Argument(help="Name of the method.")], plugin: Plugins = None) -> None:
    """Run the conformance tests on a method; each failure says what to change."""
    if not plugin and name not in registry.METHODS.names() and Path(f"{name}.py").is_file():
        plugin = [Path(f"{name}.py")]
    face.add_plugins(plugin or ())
    from dgbench.running.conformance import run_checks

    failed = False
    for title, ok, advice in run_checks(registry.get_method(name)):
        say(title, before="[green]ok  [/] " if ok else "[red]FAIL[/] ")
        if not ok:
            failed = True
            say(advice, before="     ")
    if failed:
        raise SystemExit(4)


@app.command()
def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of a DICOM series.")],
    out: Annotated[Path, typer.Option("--out", help="Folder the masks are written to.")] = Path("predictions"),
    device: Annotated[str, typer.Option("--device")] = "auto",
    domain: Annotated[
        str | None, typer.Option("--domain", help="Whose intensity rule, where they differ.", show_default="the source")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Apply a run's weights to images of your own; writes one mask per image and structure."""
    face.add_plugins(plugin or ())
    from dgbench.running.predict import predict_files

    for path in predict_files(run_folder, images, out, device, domain=domain):
        say(f"wrote {path}")


@app.command()
def doctor() -> None:
    """Show versions, devices and folders: what to paste into a bug report."""
    from dgbench.pages.cards import environment

    say(*(f"{name:14} {value}" for name, value in environment().items()))


@data_app.command("describe")
def data_describe(task: TaskArgument, data: Data = None) -> None:
    """Show a task's data card: domains, cases, structures, intensity rule, licence, where to get the data."""
    from dgbench.images.find_task import get_task
    from dgbench.pages.cards import card

    for name, value in card(get_task(task, data)).items():
        say(value, before=f"[bold]{name:12}[/] ")


@data_app.command("adopt")
def data_adopt(
    path: Annotated[Path, typer.Argument(help="Folder of images and masks, however they lie.")],
    out: Annotated[Path, typer.Option("--out", help="The table to write.")] = Path("cases.csv"),
) -> None:
    """Make a table of cases from files as they lie; say what was understood, what was not, and what to decide.

    Example: dgbench data adopt scans --out scans.csv
    """
    from dgbench.images.adopt import adopt, told

    found = adopt(path)
    say(*told(found))
    for written in found.write(out):
        say(f"wrote {written}")
    say(f"dgbench data verify {out}", before="[bold]next:[/] ")


@data_app.command("verify")
def data_verify(task: TaskArgument, data: Data = None) -> None:
    """Read every case and list all that is wrong, at once; and masks that are odd, which may be meant."""
    from dgbench.images.find_task import get_task

    loaded = get_task(task, data)
    problems = loaded.verify()
    for remedy in dict.fromkeys(doubt.remedy for doubt in loaded.doubts):
        say(*(doubt.cause for doubt in loaded.doubts if doubt.remedy == remedy), before="[yellow]?[/] ")
        say(remedy, before="  [bold]try:[/] ")
    if problems or not loaded.doubts:
        return _all_well(problems)
    say(f"no problem; {len(loaded.doubts)} mask(s) to look at")


@data_app.command("prepare")
def data_prepare(
    task: TaskArgument,
    data: Data = None,
    image_size: Annotated[
        int | None, typer.Option("--image-size", min=16, max=4096, help="Side of the network's input.")
    ] = None,
) -> None:
    """Read every case into the cache that runs train and test from."""
    from dgbench.images.find_task import get_task
    from dgbench.images.preparation import prepare

    loaded, broken = get_task(task, data), list[DataError]()
    for domain in loaded.domains:
        try:
            prepared = prepare(loaded, domain, image_size or loaded.image_size)
            say(f"{domain}: {len(prepared.cases)} cases, {len(prepared.images)} slices in {prepared.folder}")
        except DataError as error:
            broken.append(error)
    _end(broken)


@weights_app.command("list")
def weights_list() -> None:
    """Show the weights that are known: where they lie, whether they are there, size, checksum, licence, origin."""
    from dgbench.networks import weights
    from dgbench.pages.cards import weights_card

    for name in weights.WEIGHTS:
        card = weights_card(name)
        say(card.pop("weights"), style="bold")
        say(*(f"  {what:8} {value}" for what, value in card.items()))


@weights_app.command("fetch")
def weights_fetch(names: Annotated[list[str], typer.Argument(help="Names: see `dgbench list weights`.")]) -> None:
    """Download weights into their folder and verify them; what was cut continues, what is there stays.

    Example: dgbench weights fetch sam_vit_b
    """
    from dgbench.networks import download, weights
    from dgbench.pages.progress import Download

    entries, broken = {name: weights.known_weights(name) for name in names}, list[DataError]()
    with _interruptible(CONTINUES):
        for name, known in entries.items():
            try:
                with Download(console, known.file, known.size) as progress:
                    path = download.fetch(name, progress.report)
                say(f"{name}: {path}", before="[green]here[/] ")
            except DataError as error:
                broken.append(error)
    _end(broken)


@weights_app.command("verify")
def weights_verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names: see `dgbench list weights`.", show_default="all")
    ] = None,
) -> None:
    """Read weights and compare their checksums; ends in exit code 3 when any is damaged, or named and missing."""
    from dgbench.networks import weights

    problems = []
    for name in names or weights.WEIGHTS:
        if not names and not weights.place(name).exists():
            say(f"missing {name}")
            continue
        try:
            say(f"{name}: {weights.find(name)}", before="[green]here[/] ")
        except DataError as error:
            problems.append(f"{error.cause}\n  {error.remedy}")
    if problems:
        _all_well(problems)


CONTINUES = "the same command continues"


def say(*lines: str, before: str = "", style: str | None = None) -> None:
    """Print lines as they are, however long; `before` may hold markup."""
    for line in lines:
        console.print(before + escape(line), style=style, highlight=False, soft_wrap=True)


def _say_protocol(study: Study, asked: str | None) -> None:
    """Say first that another protocol's runs are shown than a user expects who named none."""
    if asked is None and study.protocol.name != PROTOCOL:
        errors.print(escape(study.left_out[0]), style="yellow", highlight=False, soft_wrap=True)


def _all_well(problems: Sequence[str], of: str = "") -> None:
    """List all problems and end in exit code 3, or say that there is none."""
    for problem in problems:
        say(problem, before="[red]-[/] ")
    if problems:
        errors.print(f"{len(problems)} problem(s){f' in {of}' if of else ''}", style="bold red")
        raise SystemExit(3)
    say(f"all is well{f': {of}' if of else ''}")


@contextmanager
def _interruptible(advice: str) -> Iterator[None]:
    try:
        yield
    except StillQueued as left:
        _cancel_or_leave(left.jobs)
        raise SystemExit(130) from None
    except KeyboardInterrupt:
        errors.print(f"interrupted: {advice}", style="yellow")
        raise SystemExit(130) from None


def _cancel_or_leave(jobs: Sequence[str]) -> None:
    """What becomes of tasks in a cluster's queue that are not waited for any more: asked on a terminal only."""
    from dgbench.running.squeue import cancel

    if sys.stdin.isatty() and typer.confirm(f"\ncancel the {len(jobs)} runs that are in the queue?", err=True):
        cancel(jobs)
        errors.print(f"cancelled: {CONTINUES}", style="yellow")
    else:
        errors.print(f"{len(jobs)} runs go on: `dgbench status`; the same command waits for them again", style="yellow")


def _settings(values: Sequence[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for value in values:
        key, given, text = value.partition("=")
        if not given:
            raise UsageError(f"--set {value} has no value", f"give --set {value}=VALUE")
        if settings.setdefault(key.strip(), text) != text:
            raise UsageError(f"--set gives {key} twice: {settings[key]} and {text}", "give one of them")
    return settings
