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


def test_a_narrow_terminal_leaves_out_the_column_parameters():
    table = Table(
        "t", "caption", ("variant", "parameters"), [("", [[Cell("erm[steps=5]"), Cell("123.0")]])], foot="end"
    )
    for width, shown in ((120, True), (80, False)):
        console = Console(width=width, file=io.StringIO())
        show(table, console)
        text = console.file.getvalue()
        assert ("123.0" in text) == shown
        assert text.index("caption") < text.index("erm[steps=5]") < text.index("end")  # brackets are no markup


@pytest.mark.parametrize("name", ["=1+1", "+A", "-A", "@SUM(A1)", "\tA"])
def test_a_name_is_never_a_formula_in_a_spreadsheet(name: str):
    text = csv_text(pd.DataFrame({name: [name], "value": [-0.5]}))
    frame = pd.read_csv(io.StringIO(text))
    assert list(frame.columns) == [f"'{name}", "value"]
    assert frame.iloc[0].tolist() == [f"'{name}", -0.5]


def test_csv_numbers_lose_no_digit_and_what_is_not_known_is_blank():
    text = csv_text(pd.DataFrame({"a": [0.1 + 0.2, float("nan")], "b": pd.array([1, pd.NA], "Int64")}))
    assert text == "a,b\n0.30000000000000004,1\n,\n"
