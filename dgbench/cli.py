"""The command line: each verb is a thin function around a library call that a notebook can make too.

Nothing slow is imported at the top: torch, pandas and matplotlib are imported inside the verbs that need them.
"""

from __future__ import annotations

import re
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from dgbench import registry
from dgbench.errors import DgbenchError, UsageError

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
console = Console()
errors = Console(stderr=True)


class Kind(StrEnum):
    methods = "methods"
    tasks = "tasks"
    runs = "runs"
    weights = "weights"


class Again(StrEnum):
    missing = "missing"
    failed = "failed"
    all = "all"


class Format(StrEnum):
    table = "table"
    md = "md"
    csv = "csv"
    tex = "tex"
    html = "html"


Task = Annotated[str, typer.Option("--task", "-t", help="A task's name, or a folder of images (PATH).")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder with the task's files.", show_default="./data/TASK")]
Results = Annotated[Path, typer.Option("--results", help="Folder the runs are written to.")]
Protocol = Annotated[str, typer.Option("--protocol", help="sdg, or dapsam (as the paper's code).")]
Metric = Annotated[str, typer.Option("--metric", help="dice, asd, assd or hd95.")]
Plugins = Annotated[list[Path] | None, typer.Option("--plugin", help="A method or task of your own: a .py file.")]


def main() -> None:
    """Run the command line; a user's mistake ends in two lines and an exit code, never in a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves every `finally` its turn, as Ctrl-C does
    try:
        app(standalone_mode=True)
    except DgbenchError as error:
        fail(error)


def fail(error: DgbenchError) -> NoReturn:
    errors.print(f"[bold red]error:[/] {escape(error.cause)}", soft_wrap=True)
    if error.remedy:
        errors.print(f"[bold]try:[/]   {escape(error.remedy)}", soft_wrap=True)
    raise SystemExit(error.exit_code)


@app.command()
def run(
    method: Annotated[list[str], typer.Option("--method", "-m", help="Method name; several, or with commas.")],
    task: Annotated[list[str], typer.Option("--task", "-t", help="Task name or folder of images; several allowed.")],
    source: Annotated[list[str] | None, typer.Option("--source", help="Train on this domain only.")] = None,
    seed: Annotated[list[str] | None, typer.Option("--seed", help="Seeds, e.g. 0,1,2.", show_default="0")] = None,
    protocol: Protocol = "sdg",
    set_: Annotated[list[str] | None, typer.Option("--set", help="key=value: a hyperparameter.")] = None,
    data: Data = None,
    results: Results = Path("results"),
    checkpoint: Annotated[Path | None, typer.Option("--checkpoint", help="Test these weights, do not train.")] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs made at the same time.")] = 1,
    save_every: Annotated[float, typer.Option("--save-every", help="Seconds between checkpoints.")] = 60.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be run.")] = False,
    rerun: Annotated[Again, typer.Option("--rerun", help="Make also the failed runs again, or all.")] = Again.missing,
    plugin: Plugins = None,
) -> None:
    """Train on each source domain, test on all others; print and write the tables and plots.

    Example: dgbench run --method dapsam,erm --task phantom
    """
    _add_plugins(plugin)
    from dgbench.pages import after_run
    from dgbench.pages.progress import Progress
    from dgbench.running import launchers, plan

    failed = False
    for reference in _split(task):
        loaded = registry.get_task(reference, data)
        planned = plan.plan(
            loaded,
            _split(method),
            sources=_split(source),
            seeds=_seeds(seed),
            protocol=protocol,
            settings=_settings(set_),
            checkpoint=checkpoint,
            results=results,
        )
        if dry_run:
            for item in planned:
                console.print(f"{item.status:12} {escape(str(item))}", highlight=False, soft_wrap=True)
            continue
        options = launchers.Options(device=device, jobs=jobs, save_every=save_every)
        try:
            with Progress(console) as progress:
                outcomes = launchers.launch(loaded, planned, rerun.value, options, progress.report)
        except KeyboardInterrupt:
            over = "would start over; without --rerun all it " if rerun is Again.all else ""
            errors.print(f"interrupted: the same command {over}continues", style="yellow")
            raise SystemExit(130) from None
        after_run.show(loaded, planned, results, console)
        failed |= after_run.failures(outcomes, errors)
    if failed:
        raise SystemExit(4)


@app.command("list")
def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    results: Results = Path("results"),
    plugin: Plugins = None,
) -> None:
    """List methods, tasks, finished runs or pretrained weights. Imports no method and no task."""
    _add_plugins(plugin)
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    if kind is Kind.runs:
        from dgbench.running.records import find_runs

        for path in find_runs(results):
            console.print(escape(str(path)), highlight=False, soft_wrap=True)
        return
    if kind is Kind.weights:
        weights_list()
        return
    table.add_column(kind.value[:-1], style="bold", no_wrap=True)
    table.add_column("what it is")
    for item in (registry.METHODS if kind is Kind.methods else registry.TASKS).plugins().values():
        facts = item.facts()
        needs = [f"needs {text}" for name, text in registry.NEEDS.items() if name in facts]
        details = filter(None, [*needs, facts.get("pretrained"), facts.get("paper", "").removeprefix("https://")])
        summary = re.sub(r"^[A-Z][\w-]{1,11}: ", "", item.summary())  # the name stands before it
        table.add_row(item.name, escape(summary))
        if line := "; ".join(details):
            table.add_row("", escape(line), style="dim")
    console.print(table)


@app.command()
def leaderboard(
    task: Task,
    metric: Metric = "dice",
    format_: Annotated[Format, typer.Option("--format", help="On the terminal, or as text to copy.")] = Format.table,
    baseline: Annotated[str | None, typer.Option("--against", help="Variant to test all others against.")] = None,
    protocol: Protocol = "sdg",
    results: Results = Path("results"),
) -> None:
    """Rank the finished runs of a task: intervals, tests, costs, and what papers report.

    Example: dgbench leaderboard --task phantom --against erm
    """
    from dgbench.pages import leaderboard, table
    from dgbench.scores import published
    from dgbench.scores.ranking import rank
    from dgbench.scores.study import Study

    ranking = rank(Study.load(results, _task_name(task), protocol), metric, baseline)
    quoted = published.load(ranking.study.task)
    beside = published.beside(quoted, ranking.study)
    if format_ is not Format.table:
        print(leaderboard.render(ranking, format_.value, beside), end="")
        return
    for each in leaderboard.board_tables(ranking, beside):
        table.show(each, console)
    console.print(escape(leaderboard.conclusion(ranking)), style="bold", highlight=False)


@app.command()
def compare(
    one: Annotated[str, typer.Argument(help="A variant; or a folder of results, made before.", metavar="A")],
    other: Annotated[str, typer.Argument(help="Another variant; or a folder of results, made after.", metavar="B")],
    task: Task,
    metric: Metric = "dice",
    margin: Annotated[
        float | None,
        typer.Option("--margin", help="Equivalent within: Dice points, or mm.", show_default="0.5 points, 0.1 mm"),
    ] = None,
    protocol: Protocol = "sdg",
    results: Results = Path("results"),
) -> None:
    """Is A better than B? Paired by case, with interval, test, and what would settle it if it is open.

    Example: dgbench compare erm dapsam --task phantom
    """
    from dgbench.metrics import get_metric
    from dgbench.pages import table, verdict
    from dgbench.scores import comparison
    from dgbench.scores.study import Study

    name = _task_name(task)
    within = None if margin is None else margin / get_metric(metric).scale
    if Path(one).is_dir() and Path(other).is_dir():
        before, after = (Study.load(Path(folder), name, protocol) for folder in (one, other))
        compared, notes = comparison.folders(before, after, metric, within)
    else:
        study = Study.load(results, name, protocol)
        compared, notes = [comparison.compare(study, one, other, metric, within)], list(study.left_out)
    for found in compared:
        table.show(verdict.comparison_table(found), console)
        console.print(escape(verdict.sentence(found)), style="bold", highlight=False)
    for note in notes:
        console.print(escape(note), highlight=False)


@app.command()
def report(
    task: Task,
    data: Data = None,
    baseline: Annotated[str | None, typer.Option("--against", help="Variant to test all others against.")] = None,
    protocol: Protocol = "sdg",
    results: Results = Path("results"),
    plugin: Plugins = None,
) -> None:
    """Write one HTML page with everything: leaderboard, plots, worst cases, costs, how each number was made."""
    _add_plugins(plugin)
    from dgbench.pages import report
    from dgbench.scores.ranking import rank
    from dgbench.scores.study import Study

    name = _task_name(task)
    known = registry.is_folder(task) or name in registry.TASKS.names()
    ranking = rank(Study.load(results, name, protocol), baseline=baseline)
    path = report.write(registry.get_task(task, data) if known else None, ranking, results / name / protocol)
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)


@app.command()
def verify(results: Annotated[Path, typer.Argument(help="Folder of results, or of one task or run.")]) -> None:
    """Check every run's folder: hashes, schema, counts, versions; list all that is wrong, at once."""
    from dgbench.scores.verify import verify

    count, problems = verify(results)
    for problem in problems:
        console.print(f"[red]-[/] {escape(problem)}", highlight=False, soft_wrap=True)
    if problems:
        errors.print(f"{len(problems)} problem(s) in {count} runs", style="bold red")
        raise SystemExit(3)
    console.print(f"all is well: {count} runs")


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
    _add_plugins(plugin)
    from dgbench.pages.progress import Progress
    from dgbench.scores.reproduce import reproduce

    with Progress(console) as progress:
        report = progress.report
        found = reproduce(run_folder, out, task=task, data=data, checkpoint=checkpoint, device=device, report=report)
    for what, then, now in found.changed:
        console.print(escape(f"{what}: {then} -> {now}"), highlight=False, soft_wrap=True)
    console.print(escape(found.sentence()), style="bold", highlight=False, soft_wrap=True)
    if found.verdict == "different":
        raise SystemExit(4)


@app.command()
def explain(topic: Annotated[str, typer.Argument(help="asd, assd, hd95, dice, mean, missed, oracle, gap.")]) -> None:
    """What a word means here and elsewhere, and what each definition gives on one pair of masks."""
    from dgbench.pages.glossary import explain

    console.print(explain(topic))


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the method: a Python identifier.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where the file is written.")] = Path("."),
) -> None:
    """Write a commented, working method file to start from."""
    from dgbench.running.new_method import write_method

    path = write_method(name, folder)
    console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    console.print(f"next: dgbench check {name} --plugin {path}", highlight=False, soft_wrap=True)


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="Name of the method.")],
    plugin: Plugins = None,
) -> None:
    """Run the conformance tests on a method; each failure says what to change."""
    if not plugin and name not in registry.METHODS.names() and Path(f"{name}.py").is_file():
        plugin = [Path(f"{name}.py")]
    _add_plugins(plugin)
    from dgbench.running.conformance import run_checks

    failures = 0
    for title, ok, advice in run_checks(registry.get_method(name)):
        console.print(f"[{'green' if ok else 'red'}]{'ok  ' if ok else 'FAIL'}[/] {escape(title)}", highlight=False)
        if not ok:
            failures += 1
            console.print(f"     {escape(advice)}", highlight=False, soft_wrap=True)
    if failures:
        raise SystemExit(4)


@app.command()
def predict(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    images: Annotated[list[Path], typer.Argument(help="Images: PNG, JPEG, TIFF or NIfTI.")],
    out: Annotated[Path, typer.Option("--out", help="Folder the masks are written to.")] = Path("predictions"),
    device: Annotated[str, typer.Option("--device")] = "auto",
    plugin: Plugins = None,
) -> None:
    """Apply a run's weights to images of your own; writes one mask per image and structure."""
    _add_plugins(plugin)
    from dgbench.running.predict import predict_files

    for path in predict_files(run_folder, images, out, device):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


@app.command()
def doctor() -> None:
    """Show versions, devices and folders: what to paste into a bug report."""
    from dgbench.pages.cards import environment

    for name, value in environment().items():
        console.print(f"{name:14} {escape(str(value))}", highlight=False, soft_wrap=True)


@data_app.command("describe")
def data_describe(task: Annotated[str, typer.Argument(help="Task name or folder.")], data: Data = None) -> None:
    """Show a task's data card: domains, cases, structures, intensity rule, licence, where to get the data."""
    from dgbench.pages.cards import card

    for name, value in card(registry.get_task(task, data)).items():
        console.print(f"[bold]{name:12}[/] {escape(str(value))}", highlight=False, soft_wrap=True)


@data_app.command("verify")
def data_verify(task: Annotated[str, typer.Argument(help="Task name or folder.")], data: Data = None) -> None:
    """Read every case and list all that is wrong, at once."""
    problems = registry.get_task(task, data).verify()
    for problem in problems:
        console.print(f"[red]-[/] {escape(problem)}", highlight=False, soft_wrap=True)
    if problems:
        errors.print(f"{len(problems)} problem(s)", style="bold red")
        raise SystemExit(3)
    console.print("all is well")


@data_app.command("prepare")
def data_prepare(
    task: Annotated[str, typer.Argument(help="Task name or folder.")],
    data: Data = None,
    image_size: Annotated[int | None, typer.Option("--image-size", help="Side of the network's input.")] = None,
) -> None:
    """Read every case into the cache that runs train and test from."""
    from dgbench.images.preparation import prepare

    loaded = registry.get_task(task, data)
    for domain in loaded.domains:
        prepared = prepare(loaded, domain, image_size or loaded.image_size)
        count = f"{len(prepared.cases)} cases, {len(prepared.images)} slices"
        console.print(f"{domain}: {count} in {prepared.folder}", highlight=False, soft_wrap=True)


@weights_app.command("list")
def weights_list() -> None:
    """Show the weights that are known: where they lie, whether they are there, size, checksum, licence, origin."""
    from dgbench.networks import weights
    from dgbench.pages.cards import weights_card

    for name in weights.WEIGHTS:
        card = weights_card(name)
        console.print(f"[bold]{escape(card.pop('weights'))}[/]", highlight=False)
        for what, value in card.items():
            console.print(f"  {what:8} {escape(value)}", highlight=False, soft_wrap=True)


@weights_app.command("fetch")
def weights_fetch(names: Annotated[list[str], typer.Argument(help="Names: see `dgbench list weights`.")]) -> None:
    """Download weights into their folder and verify them; what was cut continues, what is there stays.

    Example: dgbench weights fetch sam_vit_b
    """
    from dgbench.networks import weights
    from dgbench.pages.progress import Download

    entries = {name: weights.known_weights(name) for name in names}
    try:
        for name, known in entries.items():
            with Download(console, known.file, known.size) as progress:
                path = weights.fetch(name, progress.report)
            console.print(f"[green]here[/] {name}: {escape(str(path))}", highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        errors.print("interrupted: the same command continues", style="yellow")
        raise SystemExit(130) from None


@weights_app.command("verify")
def weights_verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names: see `dgbench list weights`.", show_default="all")
    ] = None,
) -> None:
    """Read weights and compare their checksums; ends in exit code 3 when any is damaged, or named and missing."""
    from dgbench.errors import DataError
    from dgbench.networks import weights

    wrong = 0
    for name in names or weights.WEIGHTS:
        if not names and not weights.place(name).exists():
            console.print(f"missing {name}", highlight=False)
            continue
        try:
            path = weights.find(name)
        except DataError as error:
            wrong += 1
            console.print(f"[red]-[/] {escape(error.cause)}", highlight=False, soft_wrap=True)
            console.print(f"  {escape(error.remedy)}", highlight=False, soft_wrap=True)
        else:
            console.print(f"[green]here[/] {name}: {escape(str(path))}", highlight=False, soft_wrap=True)
    if wrong:
        errors.print(f"{wrong} problem(s)", style="bold red")
        raise SystemExit(3)


def _task_name(reference: str) -> str:
    """The name runs are stored under; the images themselves need not be there any more."""
    return registry.get_task(reference).name if registry.is_folder(reference) else reference


def _add_plugins(paths: list[Path] | None) -> None:
    for path in paths or []:
        registry.add_plugin(path)


def _split(values: list[str] | None) -> list[str]:
    """Repeated options and commas alike, each value once; a path that holds a comma stays whole."""
    parts = [p for v in values or [] for p in ([v] if Path(v).exists() else v.split(","))]
    return list(dict.fromkeys(p.strip() for p in parts if p.strip()))


def _seeds(values: list[str] | None) -> list[int]:
    try:
        return [int(v) for v in _split(values)] or [0]
    except ValueError:
        raise UsageError(f"seeds must be whole numbers, got {', '.join(values or [])}", "e.g. --seed 0,1,2") from None


def _settings(values: list[str] | None) -> dict[str, str]:
    pairs = dict(v.partition("=")[::2] for v in values or [])
    for value in values or []:
        if "=" not in value:
            raise UsageError(f"--set {value} has no value", f"give --set {value}=VALUE")
    return pairs
