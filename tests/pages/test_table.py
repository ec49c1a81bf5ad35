"""The formats of a table: what a name may not do to each of them, and that no digit is lost."""

import io

import pandas as pd
import pytest
from rich.console import Console

from dgbench.pages.table import Cell, Table, as_text, csv_text, groups, show


def table_with(name: str, **more) -> Table:
    return Table("t", f"about {name}", ("source", name), [("", [[Cell(name), Cell("1.00", "best")]])], **more)


def test_latex_specials_are_escaped():
    text = as_text([table_with(r"50% of_A & B #1 {x} ~^ \cmd $5 [a] ±")], "tex")
    assert (
        r"50\% of\_A \& B \#1 \{x\} \textasciitilde{}\textasciicircum{} \textbackslash{}cmd \$5 {[}a{]} $\pm$" in text
    )
    assert r"\textbf{1.00} \\" in text


def test_markdown_cells_cannot_break_out_of_their_table():
    text = as_text([table_with("a|b\n<script> *c* _d_ of_e")], "md")
    assert r"a\|b \<script\> \*c\* \_d\_ of_e" in text
    assert len(text.splitlines()) == 5


def test_a_page_escapes_names_and_leads_where_they_lead():
    name = "<script>alert(1)</script>"
    page = as_text([Table("t", name, ("variant",), [(name, [[Cell(name, href="#a")]])], foot=name)], "html", name)
    assert "<script>" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/") == 6  # title, heading, caption, group, row, foot
    assert '<a href="#a">' in page


def test_a_group_stands_under_its_title_in_every_format():
    rows = [[Cell(name), Cell("1")] for name in ("one", "two", "three")]
    table = Table("t", "c", ("variant", "n"), groups(rows, 1, "apart"))
    assert "| one | 1 |\n| *apart* |  |\n| two | 1 |" in as_text([table], "md")
    assert r"\midrule \multicolumn{2}{l}{\textit{apart}} \\" in as_text([table], "tex")
    assert '<th scope="rowgroup" colspan="2"><span>apart</span></th>' in as_text([table], "html")
    assert [title for title, _ in groups(rows, 3, "apart")] == [""]
    assert [title for title, _ in groups(rows, 0, "apart")] == ["apart"]


def test_a_total_stands_under_a_rule():
    table = Table("t", "c", ("source", "n"), [("", [[Cell("A"), Cell("1")], [Cell("mean"), Cell("2")]])], total=True)
    assert "A & 1 \\\\\n\\midrule\nmean & 2 \\\\" in as_text([table], "tex")
    assert "<tr class=total>" in as_text([table], "html")


def test_columns_of_numbers_are_told_from_columns_of_words():
    row = [Cell(text) for text in ("erm", "1.20 ± 0.10", "-1.00 to 2.00", "3 (1.5%)", "250 x 8", "B")]
    table = Table("t", "caption", ("variant", "mean", "interval", "missed", "steps x batch", "worst"), [("", [row])])
    assert table.numeric == [False, True, True, True, True, False]


def on_screen(table: Table, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    show(table, console)
    return console.file.getvalue().splitlines()


def wide(columns: int) -> Table:
    """Two variants, so many columns of numbers that tell their row and column, and a verdict at the end."""
    names, words = ("erm[steps=5]", "constant"), ("not resolved", "better")
    rows = [
        [Cell(name), *(Cell(f"{100 * r + c}.25") for c in range(columns)), Cell(word)]
        for r, (name, word) in enumerate(zip(names, words, strict=True), 1)
    ]
    return Table(
        "t", "caption", ("variant", *(f"target {c}" for c in range(columns)), "verdict"), [("", rows)], foot="end"
    )


@pytest.mark.parametrize("width", [25, 40, 60, 80, 300])
def test_a_terminal_of_any_width_shows_every_column_whole_under_the_others_where_it_is_narrow(width: int):
    lines = on_screen(wide(11), width)
    assert all(len(line) <= width for line in lines)
    shown = " ".join(lines).split()
    assert all(shown.count(f"{100 * r + c}.25") == 1 for r in (1, 2) for c in range(11))
    assert {"not", "resolved", "better"} <= set(shown)
    assert lines[1] == "caption" and lines[-1] == "end"
    parts = [line for line in lines if line.startswith("variant")]
    assert sum(line.startswith("erm[steps=5]") for line in lines) == len(parts) and (len(parts) == 1) == (width == 300)


def test_a_table_that_fits_stands_as_wide_as_it_is():
    assert on_screen(wide(2), 80)[2:6] == [
        "variant      target 0 target 1 verdict     ",
        "\N{BOX DRAWINGS LIGHT HORIZONTAL}" * 43,
        "erm[steps=5]   100.25   101.25 not resolved",
        "constant       200.25   201.25 better      ",
    ]


def test_a_long_name_is_broken_before_a_column_is_moved_below():
    table = Table("t", "c", ("variant", "mean"), [("", [[Cell("erm[encoder=resnet34;steps=5]"), Cell("12.34")]])])
    assert [line.rstrip() for line in on_screen(table, 25)[4:6]] == ["erm[encoder=resnet3 12.34", "4;steps=5]"]


@pytest.mark.parametrize("name", ["=1+1", "+A", "-A", "@SUM(A1)", "\tA"])
def test_a_name_is_never_a_formula_in_a_spreadsheet(name: str):
    text = csv_text(pd.DataFrame({name: [name], "value": [-0.5]}))
    frame = pd.read_csv(io.StringIO(text))
    assert list(frame.columns) == [f"'{name}", "value"]
    assert frame.iloc[0].tolist() == [f"'{name}", -0.5]


def test_csv_numbers_lose_no_digit_and_what_is_not_known_is_blank():
    text = csv_text(pd.DataFrame({"a": [0.1 + 0.2, float("nan")], "b": pd.array([1, pd.NA], "Int64")}))
    assert text == "a,b\n0.30000000000000004,1\n,\n"
