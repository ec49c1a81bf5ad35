"""Showing runs: progress while they are made, then tables on the terminal, and tables and plots as files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from dgbench.protocol import get_protocol
from dgbench.running.launchers import News, Outcome
from dgbench.running.plan import Run
from dgbench.running.records import RunRecord, comparable, read_run, read_runs
from dgbench.task import Task

if TYPE_CHECKING:
    import numpy as np

    from dgbench.pages import plots


class Progress:
    """A live bar per run on a terminal, a plain line now and then elsewhere."""

    def __init__(self, console: Console, seconds_between_lines: float = 10.0):
        self.console, self.pause = console, seconds_between_lines
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self.rows: dict[Run, TaskID] = {}
        self.last: dict[Run, float] = {}

    def __enter__(self) -> Progress:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.bars.stop()

    def report(self, news: News | Outcome) -> None:
        """Show what a run tells."""
        name = escape(f"{news.run.variant} {news.run.source}-seed{news.run.seed}")
        if isinstance(news, Outcome):
            if news.run in self.rows:
                self.bars.remove_task(self.rows.pop(news.run))
            if news.status != "kept":
                style = {"done": "green", "failed": "red"}.get(news.status, "yellow")
                message = f": {escape(news.message)}" if news.message else ""
                self.console.print(f"[{style}]{news.status}[/] {name}{message}", highlight=False, soft_wrap=True)
        elif self.console.is_terminal:
            if news.run not in self.rows:
                self.rows[news.run] = self.bars.add_task(name, total=None, detail="")
            row, label = self.rows[news.run], f"{news.phase} {name}"
            self.bars.update(row, description=label, completed=news.done, total=news.total, detail=news.detail)
        elif time.monotonic() - self.last.get(news.run, 0) > self.pause:
            self.last[news.run] = time.monotonic()
            line = f"{news.phase} {name} {news.done}/{news.total} {news.detail}"
            self.console.print(line, highlight=False, soft_wrap=True)


class Download:
    """A live bar of bytes on a terminal, a plain line now and then elsewhere."""

    def __init__(self, console: Console, name: str, size: int, seconds_between_lines: float = 10.0):
        self.console, self.name, self.size, self.pause = console, name, size, seconds_between_lines
        columns = TextColumn("{task.description}"), BarColumn(bar_width=20), DownloadColumn(), TimeRemainingColumn()
        self.bars = Bars(*columns, console=console, transient=True)
        self.row: TaskID | None = None
        self.last = 0.0

    def __enter__(self) -> Download:
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self.bars.stop()

    def report(self, done: int) -> None:
        """Show how many bytes are there."""
        if self.console.is_terminal:
            if self.row is None:
                self.row = self.bars.add_task(escape(self.name), total=self.size)
            self.bars.update(self.row, completed=done)
        elif time.monotonic() - self.last > self.pause:
            self.last = time.monotonic()
            line = f"fetching {self.name}: {done / 1e6:,.0f} of {self.size / 1e6:,.0f} MB"
            self.console.print(escape(line), highlight=False, soft_wrap=True)


def failures(outcomes: Sequence[Outcome], console: Console) -> bool:
    """Say which runs were not finished and what to do; True if any."""
    unfinished = [o for o in outcomes if o.status in ("failed", "interrupted")]
    for outcome in unfinished:
        console.print(f"[bold red]{outcome.status}:[/] {escape(f'{outcome.run}: {outcome.message}')}", soft_wrap=True)
        if outcome.remedy:
            console.print(f"[bold]try:[/]    {escape(outcome.remedy)}", soft_wrap=True)
    if unfinished:
        console.print(f"{len(unfinished)} of {len(outcomes)} runs are not finished", style="bold red")
    return bool(unfinished)


def show(task: Task, planned: Sequence[Run], results: Path, console: Console) -> list[Path]:
    """Print the planned runs' tables; write tables and plots of all finished runs of the task beside them.

    Runs on other data than the planned ones (images were changed since) are left out of the files, and so are folders
    that cannot be read, which are named. Returns the files.
    """
    from dgbench.pages import plots, tables

    done = [read_run(Path(r.folder)) for r in planned if r.status == "done"]
    if not done:
        return []
    protocol = get_protocol(planned[0].protocol)
    tables.print_matrix(console, done, protocol)
    folder = Path(results) / task.name / protocol.name
    readable, left_out = read_runs(results, task.name, protocol.name)
    everything = comparable(done[0], readable)
    written = tables.write(everything, protocol, folder / "tables")
    written += plots.write(everything, protocol, folder / "plots", overlays(task, everything))
    for sentence in left_out:
        console.print(escape(sentence), style="yellow", highlight=False, soft_wrap=True)
    console.print(f"\ntables and plots: {folder}/tables, {folder}/plots", highlight=False, soft_wrap=True)
    return written


def overlays(task: Task, records: Sequence[RunRecord]) -> dict[str, list[plots.Panel]]:
    """By variant: its best, median and worst target cases as pictures, images read anew from the task's files."""
    from dgbench.pages import plots

    pictures: dict[str, list[plots.Panel]] = {}
    for variant in sorted({r.variant for r in records}):
        pictured = [r for r in records if r.variant == variant and r.has_predictions]
        for title, run, domain, case_id in plots.notable(pictured):
            image, reference = seen(task, run, domain, case_id)
            prediction = run.predictions(domain, case_id)
            pictures.setdefault(variant, []).append(plots.panel(title, image, reference, prediction))
    return pictures


def seen(task: Task, run: RunRecord, domain: str, case_id: str) -> tuple[np.ndarray, np.ndarray]:
    """(image, reference) of a case on the grid that the run's protocol compared masks on."""
    from dgbench.images import preparation

    case, protocol = task.load(domain, case_id), get_protocol(run.protocol)
    kept = case.mask.any(axis=(1, 2, 3)) if protocol.slices == "foreground" else slice(None)
    if protocol.resolution == "image":
        return case.image[kept], case.mask[kept]
    size = run.record["hparams"]["image_size"] or run.record["image_size"]
    return preparation.to_network(case.image[kept], size), preparation.mask_to_network(case.mask[kept], size).astype(
        bool
    )
