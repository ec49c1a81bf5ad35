"""Table: the one type of all tables, and what it is written as: Markdown, LaTeX, HTML, on a terminal; and CSV."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jinja2
from markupsafe import Markup

from dgbench.pages.screen import printable

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table as RichTable

LATEX = {
    **{c: "\\" + c for c in "{}$&#%_"},
    "\\": r"\textbackslash{}",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # a line that starts with [ or * would be read as an argument of the \\ before it
    "*": "{*}",
    "]": "{]}",
    "±": r"$\pm$",
}


class Cell(NamedTuple):
    """One entry of a table.

    kind: "", "best" (of its column) or "home" (the source's own cases). level: how strong its colour is, in [0, 1];
    None for no colour. href: where it leads on an HTML page. span: what is drawn there beside the text, a point and its
    interval (low, at, high), each in [0, 1] along the column; `kind` "home" draws it hollow.
    """

    text: str
    kind: str = ""
    level: float | None = None
    href: str = ""
    span: tuple[float, float, float] | None = None


Group = tuple[str, Sequence[Sequence[Cell]]]


@dataclass(frozen=True)
class Table:
    """A table before any format. Its first column names the rows; they stand in groups, each under a title or "".

    name: for references to it in LaTeX. total: the last row is a mean or sum, under a rule. foot: a note below.
    hue: of coloured cells, "blue" or "orange". axis: what 0 and 1 of the drawn intervals are, by the column that holds
    them. filters: columns by which a reader of a page may
    choose rows, one of their texts or numbers up to some limit.
    """

    name: str
    caption: str
    header: Sequence[str]
    groups: Sequence[Group]
    total: bool = False
    foot: str = ""
    hue: str = "blue"
    axis: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    filters: Mapping[str, Literal["choice", "most"]] = field(default_factory=dict)

    @property
    def rows(self) -> list[Sequence[Cell]]:
        """Those of all groups."""
        return [row for _, rows in self.groups for row in rows]

    @property
    def numeric(self) -> list[bool]:
        """By column: does it hold numbers only?"""
        words = re.compile(r"\b(?!(to|x)\b)[^\W\d]")
        return [c > 0 and not any(words.search(row[c].text) for row in self.rows) for c in range(len(self.header))]


def groups(rows: Sequence[Sequence[Cell]], first: int, title: str) -> list[Group]:
    """The `first` rows, then the others under a title."""
    return [group for group in (("", rows[:first]), (title, rows[first:])) if group[1]]


# --- text ------------------------------------------------------------------------------------------------------------


def as_text(tables: Iterable[Table], kind: str, title: str = "") -> str:
    """The tables as "md" (pipe tables), "tex" (for the booktabs package) or "html" (a page that opens offline)."""
    return fill(f"tables.{kind}.jinja", tables=list(tables), title=title)


def fill(template: str, **values: Any) -> str:
    """A template of this folder with its values, which HTML escapes."""
    return _templates().get_template(template).render(values)


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=lambda name: bool(name and name.endswith(".html.jinja")),
        finalize=_finalized,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "md": lambda text: re.sub(r"([\\|*`<>])|(?<!\w)_|_(?!\w)|(?<=\])\(", r"\\\g<0>", " ".join(text.split())),
        "tex": lambda text: "".join(LATEX.get(c, c) for c in " ".join(text.split())),
        "label": lambda name: re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-"),
        # a name, escaped, that may go on in a new line after a bracket, a comma or the like
        "breakable": lambda text: Markup("<wbr>").join(re.split(r"(?<=[\[;,_/])(?=\w)", text)),
        "digest": lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
    }
    return environment


def _finalized(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return Markup(printable(value)) if isinstance(value, Markup) else printable(value)


# Where a spreadsheet begins a cell, in some countries after a semicolon, with what makes it a formula.
FORMULA = re.compile(r"(^|[;\t\r\n])(?=[=+@\t\r\uff1d\uff0b\uff0d\uff20-])")


def csv_text(frame: pd.DataFrame) -> str:
    """Full precision, "" for NaN; a name that a spreadsheet would take for a formula is quoted with an apostrophe."""

    def plain(value: Any) -> Any:
        return FORMULA.sub(r"\1'", printable(value)) if isinstance(value, str) else value

    quoted = frame.apply(lambda column: column if column.dtype.kind in "iuf" else column.map(plain))
    return quoted.rename(columns=plain).to_csv(index=False, lineterminator="\n")


# --- terminal --------------------------------------------------------------------------------------------------------


def show(table: Table, console: Console) -> None:
    """A table on the terminal, its caption above and its foot below."""
    from rich.text import Text

    console.print(Text(f"\n{table.caption}", "bold"))
    console.print(OnTerminal(table, padding=0))
    console.print(Text(table.foot, "dim"))


@dataclass(frozen=True)
class OnTerminal:
    """For `Console.print`. Where not all columns fit, in parts under each other, each of which begins with the first.

    padding: blanks beside a column. leave_out: the first word of a header that is left out.
    """

    table: Table
    padding: int = 1
    leave_out: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        for n, part in enumerate(self._parts(options.max_width)):
            if n:
                yield ""
            yield self._shown(part)

    def _parts(self, room: int) -> list[dict[int, int]]:
        """Which columns stand in each part, and how wide: no number is broken, words are where they must be."""
        from rich.cells import cell_len

        t = self.table
        kept = [i for i, name in enumerate(t.header) if not self.leave_out or name.partition(" ")[0] != self.leave_out]
        texts = {i: max((cell_len(row[i].text) for row in t.rows), default=0) for i in kept}
        titles = max(cell_len(title) for title, _ in t.groups)
        widest = {i: max(texts[i], cell_len(t.header[i]), 0 if i else titles) for i in kept}
        word = {i: max(map(cell_len, t.header[i].split()), default=0) for i in kept}
        least = {i: max(texts[i] if t.numeric[i] else min(texts[i], 10 if i else 16), min(word[i], 10)) for i in kept}
        between = self.padding + 1
        parts = [kept[:1]]
        for i in kept[1:]:
            if len(parts[-1]) > 1 and sum(least[j] + between for j in (*parts[-1], i)) - 1 > room:
                parts.append(kept[:1])
            parts[-1].append(i)
        return [_fitting({i: (least[i], widest[i]) for i in of}, room + 1 - between * len(of)) for of in parts]

    def _shown(self, part: Mapping[int, int]) -> RichTable:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        t = self.table
        shown = RichTable(box=box.SIMPLE_HEAD, padding=(0, self.padding, 0, 0), show_edge=False)
        for i, width in part.items():
            side: Literal["left", "right"] = "right" if t.numeric[i] else "left"
            shown.add_column(Text(t.header[i]), justify=side, overflow="fold", width=width)
        for title, rows in t.groups:
            if title:
                shown.add_section()
                shown.add_row(Text(title, "italic"))
            for n, row in enumerate(rows):
                if t.total and n == len(rows) - 1:
                    shown.add_section()
                style = {"best": "bold", "home": "dim"}
                shown.add_row(*(Text(row[i].text, style.get(row[i].kind, "")) for i in part))
        return shown


def _fitting(columns: Mapping[int, tuple[int, int]], room: int) -> dict[int, int]:
    """A width for each column between its least and its widest, the larger ones narrowed first until all have room."""
    widths = {i: widest for i, (_, widest) in columns.items()}
    while sum(widths.values()) > room and (loose := [i for i in widths if widths[i] > columns[i][0]]):
        widths[max(loose, key=widths.__getitem__)] -= 1
    return widths
