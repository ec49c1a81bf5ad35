"""Progress: what is being done: live bars on a terminal and in a notebook, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich import progress as bars
from rich.console import Console
from rich.markup import escape
from rich.progress import TextColumn

from dgbench.running.launchers import News, Outcome
from dgbench.running.plan import run_place

if TYPE_CHECKING:
    from dgbench.pages.notebook import Bars


class _Lines:
    """Bars on a terminal and in a notebook, one for each thing that is done; else a line for each every `pause`."""

    def __init__(self, console: Console, pause: float, *columns: bars.ProgressColumn):
        self.console, self.pause = console, pause
        first = TextColumn("{task.description}"), bars.BarColumn(bar_width=20)
        last = bars.TimeRemainingColumn()
        self.bars = bars.Progress(*first, *columns, last, console=console, transient=True)
        self.rows: dict[Hashable, bars.TaskID] = {}
        self.last: dict[Hashable, float] = {}
        self.notebook: Bars | None = None

    def __enter__(self) -> Self:
        if self.console.is_jupyter and not self.console.quiet:
            from dgbench.pages.notebook import Bars

            self.notebook = Bars()
        elif self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.notebook:
            self.notebook.close()
        elif self.console.is_terminal:  # it would leave an empty line elsewhere
            self.bars.stop()

    def show(self, what: Hashable, label: str, line: str, done: int, total: int | None, detail: str = "") -> None:
        """`label` stands beside a bar; `line` says the same and the numbers in words."""
        if self.console.is_terminal or self.notebook:
            if what not in self.rows:
                self.rows[what] = self.bars.add_task("", total=None)
            self.bars.update(
                self.rows[what], description=escape(label), completed=done, total=total, detail=escape(detail),
                label=label, shown=detail,
            )  # fmt: skip
            if self.notebook:
                self.notebook.draw(self.bars.tasks)
        elif time.monotonic() - self.last.get(what, -self.pause) > self.pause:
            self.last[what] = time.monotonic()
            self.say(escape(line))

    def say(self, line: str) -> None:
        """A line that stays; markup is read."""
        self.console.print(line, highlight=False, soft_wrap=True)

    def remove(self, what: Hashable) -> None:
        """Its bar, if it has one."""
        if what in self.rows:
            self.bars.remove_task(self.rows.pop(what))


class Progress(_Lines):
    """Of runs: counts steps or cases."""

    def __init__(self, console: Console, seconds_between_lines: float = 10.0):
        super().__init__(console, seconds_between_lines, bars.MofNCompleteColumn(), TextColumn("{task.fields[detail]}"))

    def report(self, news: News | Outcome | str) -> None:
        """Show what a run tells, or what is said of all."""
        if isinstance(news, str):
            return self.say(escape(news))
        name = f"{news.run.variant} {run_place(news.run.source, news.run.seed, news.run.held_out)}"
        if isinstance(news, Outcome):
            self.remove(news.run)
            if news.status != "kept":
                style = {"done": "green", "failed": "red"}.get(news.status, "yellow")
                message = f": {news.message}" if news.message else ""
                self.say(f"[{style}]{news.status}[/] {escape(name + message)}")
            return
        label = f"{news.phase} {name}"
        line = f"{label} {news.done}/{news.total} {news.detail}"
        self.show(news.run, label, line, news.done, news.total, news.detail)


class Preparation(_Lines):
    """Of domains: counts cases."""

    def __init__(self, console: Console, seconds_between_lines: float = 10.0):
        super().__init__(console, seconds_between_lines, bars.MofNCompleteColumn())

    def of(self, domain: str) -> Callable[[int, int], None]:
        """Shows how many cases of a domain are done, of all."""
        what = f"preparing {domain}"
        return lambda done, total: self.show(what, what, f"{what}: {done} of {total} cases", done, total)


class Download(_Lines):
    """Of files: counts bytes."""

    def __init__(self, console: Console, seconds_between_lines: float = 10.0):
        super().__init__(console, seconds_between_lines, bars.DownloadColumn())

    def report(self, what: str, done: int, size: int | None) -> None:
        """Show how many bytes are there, of so many if that is known: `what` is "fetching ..." or "unpacking ..."."""
        line = f"{what}: {done / 1e6:,.0f} {f'of {size / 1e6:,.0f} ' if size else ''}MB"
        self.show(what, what, line, done, size)
