"""Where runs stand, as a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from rich.markup import escape
from rich.table import Table

from dgbench.running.status import Standing

STYLE = {"running": "green", "waiting": "cyan", "failed": "red", "interrupted": "yellow"}


def table(standings: Sequence[Standing]) -> Table:
    """All but the finished ones: how far, how fast, how long yet, where."""
    made = Table(box=None, pad_edge=False)
    for heading in ("state", "run", "done", "rate", "left", "where", ""):
        made.add_column(heading, justify="right" if heading in ("done", "rate", "left") else "left", overflow="fold")
    for s in standings:
        if s.state == "done":
            continue
        done = f"{s.phase} {s.done}/{s.total}" if s.total else ""
        rate = f"{s.rate:.2f}/s" if s.rate else ""
        left = str(timedelta(seconds=round(s.left))) if s.left is not None else ""
        state = f"[{STYLE.get(s.state, 'dim')}]{s.state}[/]"
        made.add_row(state, *map(escape, (s.run, done, rate, left, s.where, s.detail)))
    return made
