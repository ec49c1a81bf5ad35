"""Tables as they are written: formats, captions, and what was looked at once."""


import csv
import dataclasses
import io
import math
import random
import re
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from dgbench.pages import tables
from dgbench.protocol import PROTOCOLS
from dgbench.running.records import RunRecord
from tests.toy_runs import changed, run

SDG, DAPSAM = PROTOCOLS["sdg"], PROTOCOLS["dapsam"]
GOLDEN = Path(__file__).parent / "golden_tables"


def test_the_best_number_is_bold_ties_too_and_an_oracle_never():
    scores = {"tied": 0.80001, "also tied": 0.80002, "worse": 0.7, "prompted": 0.99}
    records = [run(v, "A", {"A": [0.9], "B": [x], "C": [x]}) for v, x in scores.items()]
    every = tables.cells(records, SDG)
    shown = tables.sources_table([tables.matrix(every, SDG, v, "dice") for v in scores], {"prompted"}, "", "", "")
    bold = {row[0].text for row in shown.rows if len(row) > 1 and row[1].style == "best"}
    assert bold == {"tied", "also tied"}


def test_one_variant_alone_is_not_the_best():
    assert "**" not in tables.markdown([sources_table_of(run("erm", "A", UNEQUAL))])


def sources_table_of(*records: RunRecord) -> tables.Table:
    return tables.sources_table([matrix(list(records))], set(), "name", "heading", "context")


# --- formats ---------------------------------------------------------------------------------------------------------


def test_dice_is_shown_in_percent_points_and_a_distance_as_it_is():
    assert tables.number(0.788712, "dice") == "78.87"
    assert tables.number(0.788712, "dice", 0.0041) == "78.87 ± 0.41"
    assert tables.number(2.5, "asd") == "2.50"
    assert tables.number(math.nan, "dice") == ""
    assert tables.number(-0.00001, "dice") == "0.00"


def table_with(name: str) -> tables.Table:
    return tables.Table("t", f"about {name}", ("source", name), ((tables.Entry(name), tables.Entry("1.00", "best")),))


def test_latex_specials_are_escaped():
    text = tables.latex([table_with(r"50% of_A & B #1 {x} ~^ \cmd $5 [a] ±")])
    assert (
        r"50\% of\_A \& B \#1 \{x\} \textasciitilde{}\textasciicircum{} \textbackslash{}cmd \$5 {[}a{]} $\pm$" in text
    )
    assert r"\textbf{1.00} \\" in text


def test_markdown_cells_cannot_break_out_of_their_table():
    text = tables.markdown([table_with("a|b\n<script> *c* _d_ of_e")])
    assert r"a\|b \<script\> \*c\* \_d\_ of_e" in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize("name", ["=1+1", "+A", "-A", "@SUM(A1)", "\tA"])
def test_a_name_is_never_a_formula_in_a_spreadsheet(name: str):
    text = tables.csv_text(pd.DataFrame({name: [name], "value": [-0.5]}))
    frame = pd.read_csv(io.StringIO(text))
    assert list(frame.columns) == [f"'{name}", "value"]
    assert frame.iloc[0].tolist() == [f"'{name}", -0.5]


def test_csv_numbers_lose_no_digit(tmp_path: Path):
    third = 1 / 3
    tables.write([run("erm", "A", {"A": [0.9], "B": [third], "C": [0.1 + 0.2]})], SDG, tmp_path)
    rows = list(csv.DictReader((tmp_path / "cells.csv").open()))
    assert [float(r["value"]) for r in rows if r["metric"] == "dice"] == [0.9, third, 0.1 + 0.2]
    first = next(csv.DictReader((tmp_path / "dice.csv").open()))
    assert (first["A"], float(first["B"]), float(first["validation"])) == ("", third, 0.9)


def test_a_caption_says_all_that_makes_two_numbers_comparable():
    records = several()
    text = tables.context(tables.cells(records, SDG), records, SDG)
    for fact in (
        "Task toy",
        "protocol sdg",
        "each domain equal",
        "Seeds: 0, 1",
        "B 2, C 3",
        "36 tested structures: 1 missed",
        "Metrics version 1",
    ):
        assert fact in text
    assert tables.heading(tables.cells(records, SDG), records, SDG, "asd", None) == "ASD (mm) of prostate"


def test_distances_of_the_network_grid_are_in_voxels():
    assert tables.unit([run("erm", "A", UNEQUAL)], DAPSAM, "asd") == "voxels"


def test_every_row_of_a_latex_table_has_its_columns(tmp_path: Path):
    tables.write(several(), SDG, tmp_path)
    for path in tmp_path.glob("*.tex"):
        for columns, body in re.findall(
            r"\\begin\{tabular\}\{(l?r*)\}\n(.*?)\\end\{tabular\}", path.read_text(), re.DOTALL
        ):
            rows = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
            assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
        assert path.read_text().count("{") == path.read_text().count("}")


def test_the_order_of_the_runs_changes_nothing(tmp_path: Path):
    records = several()
    once = {p.name: p.read_bytes() for p in tables.write(records, SDG, tmp_path / "once")}
    random.Random(0).shuffle(records)
    shuffled = [changed(r, cases=r.cases.sample(frac=1, random_state=1)) for r in records]
    assert {p.name: p.read_bytes() for p in tables.write(shuffled, SDG, tmp_path / "again")} == once


def printed(records: list[RunRecord], protocol=SDG) -> str:
    screen = io.StringIO()
    tables.print_matrix(Console(width=80, file=screen), records, protocol)
    return screen.getvalue()


def test_the_terminal_shows_the_matrix_with_the_sources_own_cases_in_brackets():
    text = printed(several())
    assert re.search(r"A +\[94\.00\] +55\.00 +65\.00 +60\.00 +1", text)  # erm from A: B (40 + 70) / 2, C (60 + 70) / 2
    assert "dapsam[memory=64;steps=500]" in text  # brackets are no markup


def test_six_domains_fit_a_terminal_of_80_columns():
    domains = ["BIDMC", "BMC", "HK", "I2CVB", "RUNMC", "UCL"]
    records = [
        run(v, s, {d: [0.5, "missed"] for d in domains}, seed, domains=domains)
        for v in ("erm", "dapsam[image_size=384;memory=256;steps=2000]")
        for s in domains
        for seed in (0, 1)
    ]
    text = printed(records)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("[25.00]") == 12
    assert re.search(r"mean +(25\.00 +){7}60", text)  # 6 sources, 5 targets, 2 seeds, one missed each


# --- as written ------------------------------------------------------------------------------------------------------

SHORT = dataclasses.replace(SDG, metrics=("dice", "asd"))


def test_tables_are_written_as_before(tmp_path: Path):
    written = tables.write(several(), SHORT, tmp_path)
    assert sorted(p.name for p in written) == sorted(p.name for p in GOLDEN.iterdir())
    for path in written:
        assert path.read_text() == (GOLDEN / path.name).read_text(), (
            f"if {path.name} changed on purpose: python -m tests.test_tables"
        )


if __name__ == "__main__":
    tables.write(several(), SHORT, GOLDEN)
