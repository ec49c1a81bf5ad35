"""The command line: each verb is a thin function around a library call that a notebook can make too.

Nothing slow is imported at the top: torch, pandas and matplotlib are imported inside the verbs that need them.
"""

from __future__ import annotations

import functools
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
    from dgbench.task import Task as AnyTask

app = typer.Typer(
    name="dgbench",
    help="Compare methods for single-source domain generalization of medical image segmentation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(help="Fetch a task's data, look at them, check them, prepare them.", no_args_is_help=True)
app.add_typer(data_app, name="data")
weights_app = typer.Typer(help="List pretrained weights, fetch them, check them.", no_args_is_help=True)
app.add_typer(weights_app, name="weights")
console = Screen()
errors = Screen(stderr=True)

Task = Annotated[str, typer.Option("--task", "-t", help="A task's name, or a folder of images (PATH).")]
TaskArgument = Annotated[str, typer.Argument(help="Task name, folder or table.")]
Data = Annotated[Path | None, typer.Option("--data", help="Folder with the task's files.", show_default="./data/TASK")]
Mock = Annotated[bool, typer.Option("--mock", help="Small drawn images instead of the task's: to try a command.")]
Results = Annotated[Path, typer.Option("--results", help="Folder the runs are written to.")]
Protocol = Annotated[
    str,
    typer.Option("--protocol", help="sdg, in_domain, dapsam (as the paper's code), audit; -compute: equal."),
]
Shown = Annotated[
    str | None,
    typer.Option("--protocol", help="sdg, dapsam, or that of published scores.", show_default="sdg, or what there is"),
]
Metric = Annotated[str, typer.Option("--metric", help="dice, asd, assd or hd95.")]
Against = Annotated[str | None, typer.Option("--against", help="Variant to test all others against.")]
Beside = Annotated[list[Path] | None, typer.Option("--beside", help="Results or archives that others made; several.")]
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
    mock: Mock = False,
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
                    mock=mock,
                )  # fmt: skip
            except DataError as error:  # of this task; the others go on
                lacking.append(error)
                continue
            except DgbenchError:
                _tell(lacking)
                raise
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
    long: Annotated[
        bool, typer.Option("--long", help="Methods: also cost, lineage, what papers report and what was measured.")
    ] = False,
) -> None:
    """List methods, tasks, finished runs or pretrained weights. Imports no method and no task."""
    if long and kind != "methods":
        raise UsageError(f"--long is for methods, not for {kind}", f"leave it out: dgbench list {kind}")
    if kind == "weights":
        return weights_list()
    if kind == "runs":
        from dgbench.running.records import find_runs

        return say(*map(str, find_runs(results)))
    from rich.table import Table

    face.add_plugins(plugin or ())
    if long:
        from dgbench.pages.cards import method_card

        for name in registry.METHODS.names():
            card = method_card(name)
            say(card.pop("method"), style="bold")
            say(*(f"  {what:12} {value}" for what, value in card.items() if value))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column(kind[:-1], style="bold", no_wrap=True)
    table.add_column("what it is")
    for row in face.listing("methods" if kind == "methods" else "datasets"):
        needs = f"needs {row['needs']}" if row["needs"] else ""
        if kind == "tasks":
            cases = f"{row['cases']} cases" if row["cases"] else ""
            access = {"account": "account needed", "form": "form to fill in"}.get(row["access"], row["access"])
            told = (row["domains"], cases, row["structures"], access)
            row["paper"] = " | ".join(filter(None, told))
        table.add_row(row[kind[:-1]], escape(row["what"]))
        kind_of_idea = ", ".join(filter(None, (row.get("family"), row.get("year"))))
        if details := "; ".join(
            filter(None, (kind_of_idea, needs, row["pretrained"], row["paper"].removeprefix("https://")))
        ):
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


@app.command()
def site(
    out: Annotated[Path, typer.Option("--out", help="Folder of the site: new, or one that a site was made in.")],
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", help="Folder of results, or archive of scores; several.", show_default="results"),
    ] = None,
    date: Annotated[
        str | None, typer.Option("--date", help="Of the frozen copy: 2030-12-31.", show_default="today")
    ] = None,
) -> None:
    """Write a static site: every board, method and run, files to download, and a copy of the day that stays.

    Example: dgbench site --results results --out site
    """
    written = face.site(results=results or face.RESULTS, out=out, date=date)
    kept = "was there already and stays as it is" if written.kept else "the copy of this day"
    say(f"{written.frozen}: {kept}", f"wrote {written.start} and {written.pages - 1} more pages")
    _end(written.broken)


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
def score(
    predictions: Annotated[Path, typer.Argument(help="Folder with a file for each case; several files: structures.")],
    task: Task,
    source: Annotated[str, typer.Option("--source", help="The domain that the system was trained on.")],
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="What tables call it.", show_default="the folder's name")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of this training.")] = 0,
    protocol: Protocol = "sdg",
    stated: Annotated[
        list[str] | None, typer.Option("--stated", help="budget=TEXT, pretraining=TEXT, labels={disc=[1,2], cup=[2]}.")
    ] = None,
    data: Data = None,
    results: Results = face.RESULTS,
    plugin: Plugins = None,
) -> None:
    """Measure masks that another system wrote: a run like any other, marked as not trained here.

    Example: dgbench score predictions --task phantom --source A --method nnunet --stated budget="250 epochs"
    """
    scored = face.score(
        predictions, task, source=source, method=method, seed=seed, protocol=protocol,
        stated=_settings(stated or (), "--stated"), data=data, results=results, plugin=plugin or (),
    )  # fmt: skip
    from dgbench.pages.score_tables import print_study

    print_study(console, scored.study)
    for note in scored.notes:
        errors.print(escape(note), style="yellow", highlight=False, soft_wrap=True)
    say(f"wrote {scored.folder}", f"next: dgbench leaderboard --task {task} --protocol {protocol}")


@app.command()
def export(
    layout: Annotated[face.Layout, typer.Argument(help="Whose: nnU-Net v2's.")],
    task: Task,
    source: Annotated[str, typer.Option("--source", help="The domain to train on.")],
    out: Annotated[Path, typer.Option("--out", help="Folder the images are written to.")],
    number: Annotated[
        int | None, typer.Option("--number", min=1, max=999, help="Of the data set.", show_default="500 and on")
    ] = None,
    data: Data = None,
    plugin: Plugins = None,
) -> None:
    """Write a task's images for another system, and the commands that train, predict and score it.

    Example: dgbench export nnunet --task phantom --source A --out nnunet
    """
    exported = face.export(layout, task, source=source, out=out, number=number, data=data, plugin=plugin or ())
    say(f"wrote {exported.folder}", *exported.commands)


@app.command()
def submit(
    results: Annotated[Path, typer.Argument(help="Folder of results.")],
    task: Task,
    to: Annotated[Path, typer.Option("--to", help="Folder the archive is written to.")],
    name: Annotated[str, typer.Option("--name", help="Of the submission.")],
    disclose: Annotated[
        list[str] | None, typer.Option("--disclose", help="pretraining=TEXT, trials=TEXT, targets=no; else asked for.")
    ] = None,
    disclosure: Annotated[Path | None, typer.Option("--disclosure", help="TOML file with these answers.")] = None,
    beside: Beside = None,
    yes: Annotated[bool, typer.Option("--yes", help="Write it without asking.")] = False,
) -> None:
    """Pack the scores of finished runs to pass them on: no image, no weights, nothing of this machine's user.

    Example: dgbench submit results --task phantom --to outbox --name mine --disclosure answers.toml --yes
    """
    from dgbench.scores import submission

    told = submission.disclosure(disclosure) if disclosure else {}
    told |= _settings(disclose or (), "--disclose")
    asks = sys.stdin.isatty()
    for key, question in submission.DISCLOSED.items() if asks else ():
        if key not in told:
            told[key] = typer.prompt(f"{key}: {question}")
    packed = face.submit(results, task, to=to, name=name, disclosed=told, beside=beside or ())
    say(*packed.members)
    say(*(f"taken out: {what}" for what in packed.removed), f"{len(packed.members)} files, and nothing else")
    for protocol, variant, why in packed.verdicts:
        say(f"{protocol}: {variant} will {f'not be ranked: {why}' if why else 'be ranked'}")
    if not yes and not asks:
        raise UsageError("nothing was written", "look at what is above, and add --yes")
    if not yes:
        typer.confirm(f"write {packed.path}?", abort=True)
    say(f"wrote {packed.write()}", f"next: dgbench review {packed.path}, then pass it on: docs/submitting.md")


@app.command()
def review(
    archive: Annotated[list[Path], typer.Argument(help="Archives of `dgbench submit`.")],
    board: Annotated[
        list[Path] | None, typer.Option("--board", help="Archives or folders of what is there already; several.")
    ] = None,
) -> None:
    """Check submitted scores, and show as Markdown what is wrong or odd and what becomes of the board.

    Example: dgbench review scores-phantom-mine.tar.xz --board results/scores-phantom.tar.xz
    """
    found = face.review(archive, board=board or ())
    from dgbench.pages.submission import markdown

    print(markdown(found), end="")
    if found.problems:
        raise SystemExit(3)


@app.command()
def merge(
    results: Annotated[list[Path], typer.Argument(help="Folders of results, or archives of `dgbench submit`.")],
    to: Annotated[Path, typer.Option("--to", help="Folder that takes the runs of all.")],
) -> None:
    """Join collections of results; conflicts are named, and nothing is overwritten.

    Example: dgbench merge results theirs/results scores-phantom-mine.tar.xz --to all
    """
    new = face.merge(results, to=to)
    say(f"wrote {len(new)} runs to {to}" if new else f"{to} has every run already")


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
    topic: Annotated[str, typer.Argument(help="asd, assd, hd95, dice, mean, missed, oracle, gap, in_domain; METHOD.")],
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
def check(
    name: Annotated[str | None, typer.Argument(help="Name of the method.", show_default=False)] = None,
    task: Annotated[str | None, typer.Option("--task", "-t", help="Check this task instead of a method.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="The task's real files.", show_default="drawn ones")
    ] = None,
    plugin: Plugins = None,
) -> None:
    """Run the conformance tests on a method, or on a task; each failure says what to change.

    Example: dgbench check --task my_task --plugin my_task.py
    """
    if (name is None) == (task is None) or (data and name):
        raise UsageError("one method or one task is checked", "dgbench check METHOD; or dgbench check --task TASK")
    known, asked = (registry.TASKS, task) if name is None else (registry.METHODS, name)
    assert asked is not None
    if not plugin and asked not in known.names() and Path(f"{asked}.py").is_file():
        plugin = [Path(f"{asked}.py")]
    face.add_plugins(plugin or ())
    if name is None:
        from dgbench.running.task_conformance import run_checks as run_task_checks

        findings = run_task_checks(registry.TASKS.get(asked), data)
    else:
        from dgbench.running.conformance import run_checks

        findings = run_checks(registry.get_method(name))
    failed = False
    for title, ok, advice in findings:
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


@app.command()
def cache(
    clean: Annotated[bool, typer.Option("--clean", help="Delete what is old.")] = False,
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", help="Delete also what was used longest ago: 20GB.", show_default="no limit"),
    ] = None,
) -> None:
    """List what lies in the cache, prepared and drawn images and scores: sizes, when they were used, what is old."""
    import time

    from dgbench.files import cache_folder
    from dgbench.images import cache as room
    from dgbench.images.preparation import duration

    found, most = room.entries(), None if max_size is None else room.read_size(max_size)
    for entry in found:
        age = duration(max(0.0, time.time() - entry.used))
        old = f"  [yellow]{entry.old}[/]" if entry.old else ""
        console.print(
            f"{entry.size / 1e6:9,.1f} MB  {age:>8}  {escape(f'{entry.kind}/{entry.path.name}')}{old}", soft_wrap=True
        )
    say(f"{len(found)} folders, {sum(entry.size for entry in found) / 1e6:,.1f} MB in {cache_folder()}", style="bold")
    if clean or most is not None:
        deleted = room.clean(found, most)
        say(f"deleted {len(deleted)} folders, {sum(entry.size for entry in deleted) / 1e6:,.1f} MB")


@data_app.command("fetch")
def data_fetch(
    task: TaskArgument,
    data: Data = None,
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="Agree to the licence, unasked.")] = False,
    plugin: Plugins = None,
) -> None:
    """Download a task's data into the folders it reads; what was cut continues. Else: how to get them, step by step.

    Example: dgbench data fetch nuclei
    """
    from dgbench.images.fetch import fetch, is_here
    from dgbench.images.file_task import FileTask
    from dgbench.images.find_task import get_task
    from dgbench.pages.progress import Download

    face.add_plugins(plugin or ())
    loaded = get_task(task, data)
    if not isinstance(loaded, FileTask):
        return say(loaded.download or "nothing to download")
    lacking = [one for one in loaded.sources_of_data if not is_here(one, loaded.place)]
    if lacking:
        _agree(loaded.licence, accept_licence)
        with _interruptible(CONTINUES), Download(console) as progress:
            fetch(lacking, loaded.place, progress.report)
    if loaded.sources_of_data:
        say(f"{task}: {loaded.place}", before="[green]here[/] ")
    if not loaded.steps_to_get and loaded.sources_of_data:
        return say(f"next: dgbench data verify {task}")
    steps = loaded.steps_to_get or (loaded.download,)
    if problems := loaded.verify():
        needs = {"account": " needs an account", "form": " needs a form to be filled in"}.get(loaded.access, "")
        say(f"what dgbench cannot fetch{needs}; the task's folder is {loaded.place}", style="bold")
        say(*(f"{n}. {step}" for n, step in enumerate(steps, 1)))
    _all_well(problems[:MOST_PROBLEMS], more=len(problems) - MOST_PROBLEMS)


def _agree(licence: str, accepted: bool) -> None:
    say(licence or "not stated", before="[bold]licence:[/] ")
    if accepted:
        return
    if not sys.stdin.isatty():
        raise UsageError("the licence must be agreed to", "read it, then add --accept-licence")
    typer.confirm("do you agree to it?", abort=True)


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
def data_verify(task: TaskArgument, data: Data = None, mock: Mock = False, plugin: Plugins = None) -> None:
    """Read every case and list all that is wrong, at once; and masks that are odd, which may be meant."""
    loaded = _asked_for(task, data, mock, plugin)
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
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Threads that read cases.", show_default="as memory allows")
    ] = None,
    mock: Mock = False,
    plugin: Plugins = None,
) -> None:
    """Read every case into the cache that runs train and test from; what was ended continues."""
    from dgbench.images.preparation import prepare
    from dgbench.pages.progress import Preparation

    loaded, broken = _asked_for(task, data, mock, plugin), list[DataError]()
    with _interruptible(CONTINUES), Preparation(console) as progress:
        for domain in loaded.domains:
            try:
                size = image_size or loaded.image_size
                prepared = prepare(loaded, domain, size, report=progress.of(domain), jobs=jobs)
                say(f"{domain}: {len(prepared.cases)} cases, {len(prepared.images)} slices in {prepared.folder}")
            except DataError as error:
                broken.append(error)
    _end(broken)


def _asked_for(task: str, data: Path | None, mock: bool, plugin: list[Path] | None) -> AnyTask:
    from dgbench.images.find_task import get_task, on_drawn

    face.add_plugins(plugin or ())
    if mock and data is not None:
        raise UsageError(*face.EITHER)
    return get_task(on_drawn(task) if mock else task, data)


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
                with Download(console) as progress:
                    told = functools.partial(progress.report, f"fetching {known.file}", size=known.size)
                    path = download.fetch(name, told)
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


MOST_PROBLEMS = 20  # that are listed where all data may be missing
CONTINUES = "the same command continues"


def say(*lines: str, before: str = "", style: str | None = None) -> None:
    """Print lines as they are, however long; `before` may hold markup."""
    for line in lines:
        console.print(before + escape(line), style=style, highlight=False, soft_wrap=True)


def _say_protocol(study: Study, asked: str | None) -> None:
    """Say first that another protocol's runs are shown than a user expects who named none."""
    if asked is None and study.protocol.name != PROTOCOL:
        errors.print(escape(study.left_out[0]), style="yellow", highlight=False, soft_wrap=True)


def _all_well(problems: Sequence[str], of: str = "", more: int = 0) -> None:
    """List all problems and end in exit code 3, or say that there is none. more: how many are not listed."""
    for problem in problems:
        say(problem, before="[red]-[/] ")
    if more > 0:
        say(f"and {more} more: `dgbench data verify` lists all", before="[red]-[/] ")
    if problems:
        errors.print(f"{len(problems) + max(0, more)} problem(s){f' in {of}' if of else ''}", style="bold red")
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


def _settings(values: Sequence[str], option: str = "--set") -> dict[str, str]:
    settings: dict[str, str] = {}
    for value in values:
        key, given, text = value.partition("=")
        if not given:
            raise UsageError(f"{option} {value} has no value", f"give {option} {value}=VALUE")
        if settings.setdefault(key.strip(), text) != text:
            raise UsageError(f"{option} gives {key} twice: {settings[key]} and {text}", "give one of them")
    return settings
