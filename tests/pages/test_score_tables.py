"""Tables of numbers: what stands where, what is bold, and all files as they were looked at once."""

import csv
import dataclasses
import io
import random
import re
from pathlib import Path

import pytest
from rich.console import Console

from dgbench.pages import score_tables
from dgbench.pages.captions import context, counted, heading
from dgbench.pages.score_tables import Scale
from dgbench.pages.table import Table
from dgbench.protocol import PROTOCOLS
from dgbench.scores.study import Study
from tests.scores.test_study import UNEQUAL, several
from tests.toy_runs import changed, run

SDG, DAPSAM = PROTOCOLS["sdg"], PROTOCOLS["dapsam"]
GOLDEN = Path(__file__).parent / "golden_tables"
TWO = Study(
    [
        run("erm", "A", {"A": [0.9], "B": [0.1, 0.2, 0.3, 0.4, 0.5], "C": [0.6]}),
        run("dapsam", "A", {"A": [0.9], "B": [0.2, 0.2, 0.2, 0.2, 0.2], "C": ["missed"]}),
    ],
    SDG,
)


def texts(table: Table) -> list[list[str]]:
    return [[cell.text for cell in row] for row in table.rows]


# --- words -----------------------------------------------------------------------------------------------------------


def test_a_caption_says_all_that_makes_two_numbers_comparable():
    text = context(Study(several(), SDG))
    for fact in (
        "Task toy",
        "protocol sdg",
        "each domain equal",
        "Seed numbers: 0, 1.",
        "B 2, C 3",
        "36 tested structures: 1 missed",
        "Metrics version 1",
    ):
        assert fact in text


def test_a_caption_of_one_variant_tells_of_its_runs_alone():
    text = context(Study(several(), SDG), "prompted")
    assert "Seed numbers: 0." in text and "9 tested structures: 0 missed" in text


def test_a_heading_names_the_metric_its_unit_and_the_structures():
    assert heading(Study(several(), SDG), "asd") == "ASD (mm) of prostate"
    scores = {d: {"disc": [0.9], "cup": [0.9]} for d in "ABC"}
    study = Study([run("erm", "A", scores, structures=["disc", "cup"], protocol="dapsam")], DAPSAM)
    assert heading(study, "asd") == "ASD (voxels) of disc and cup averaged"
    assert heading(study, "dice", "cup") == "Dice (%) of cup"


def test_one_seed_and_three_seeds():
    assert [counted(n, "seed") for n in (1, "1", 3, "0-1")] == ["1 seed", "1 seed", "3 seeds", "0-1 seeds"]


# --- tables ----------------------------------------------------------------------------------------------------------


def test_the_best_number_is_bold_ties_too_and_an_oracle_never():
    scores = {"tied": 0.80001, "also tied": 0.80002, "worse": 0.7, "prompted": 0.99}
    needs = {"needs": {"uses_target_masks": True}}
    runs = [
        run(v, "A", {"A": [0.9], "B": [x], "C": [x]}, **(needs if v == "prompted" else {})) for v, x in scores.items()
    ]
    study = Study(runs, SDG)
    for table in (score_tables.sources_table(study, "dice"), score_tables.summary_tables(study, ["dice"])[0]):
        assert {row[0].text for row in table.rows if row[1].kind == "best"} == {"tied", "also tied"}
        assert table.groups[1][0] == "oracles, not ranked"


def test_one_variant_alone_is_not_the_best():
    study = Study([run("erm", "A", UNEQUAL)], SDG)
    assert not any(cell.kind == "best" for cell in score_tables.sources_table(study, "dice").rows[0])


def test_a_matrix_colours_targets_on_one_scale_and_not_the_sources_own_cases():
    matrices = [TWO.matrix(variant) for variant in ("erm", "dapsam")]
    erm, dapsam = (score_tables.matrix_table(m, scale=Scale.of(matrices)).rows[0] for m in matrices)
    assert [cell.text for cell in erm[:5]] == ["A", "[90.00]", "30.00", "60.00", "45.00"]
    assert (erm[1].kind, erm[1].level) == ("home", None)
    assert dapsam[3].level == 0  # 0 is the lowest of all
    assert erm[2].level == pytest.approx(0.3) and dapsam[2].level == pytest.approx(0.2)


def test_a_scale_of_distances_begins_at_0_and_holds_the_largest():
    scale = Scale.of([TWO.matrix("erm", "asd")])
    assert (scale.low, scale.high) == (0, 7)  # 10 (1 - 0.3)


def test_a_median_stands_before_its_quartiles():
    table = score_tables.quartiles(TWO, "dice", {"erm": "#1", "dapsam": "#2"})
    assert table.header == ("variant", "B", "C")
    assert texts(table)[0] == ["erm", "30.00 (20.00 to 40.00)", "60.00 (60.00 to 60.00)"]
    assert [row[0].href for row in table.rows] == ["#1", "#2"]


def test_the_hardest_cases_are_those_all_variants_do_worst_on():
    rows = texts(score_tables.hardest(TWO, ["erm", "dapsam"]))
    assert rows[0] == ["B, B-0", "15.00", "10.00", "20.00"]
    assert rows[-1] == ["B, B-4", "35.00", "50.00", "20.00"]
    assert ["C, C-0", "30.00", "60.00", "0.00"] in rows  # missed by one
    table = score_tables.hardest(TWO, ["erm", "dapsam"], "asd")
    assert table.caption.startswith("ASD (mm) of the 6 target cases")
    assert [cell.level for cell in table.rows[0][1:]] == pytest.approx([0.52, 0.04, 1.0])
    assert texts(table)[:2] == [["C, C-0", "52.00", "4.00", "100.00"], ["B, B-0", "8.50", "9.00", "8.00"]]


def test_runs_from_two_machines_are_counted_apart():
    made = {"A": "cpu", "B": "cuda", "C": "cpu"}
    scores = {d: [0.9] for d in made}
    rows = texts(
        score_tables.machines(Study([run("erm", s, scores, environment={"device": d}) for s, d in made.items()], SDG))
    )
    assert ["device", "cpu", "2"] in rows and ["device", "cuda", "1"] in rows


# --- terminal --------------------------------------------------------------------------------------------------------


def printed(records) -> str:
    screen = io.StringIO()
    score_tables.print_study(Console(width=80, file=screen), Study(records, SDG))
    return screen.getvalue()


def test_the_terminal_shows_the_matrix_with_the_sources_own_cases_in_brackets():
    text = printed(several())
    assert re.search(r"A +\[94\.00\] +55\.00 +65\.00 +60\.00 +1", text)  # erm from A: B (40 + 70) / 2, C (60 + 70) / 2
    assert "dapsam[memory=64;steps=500]" in text  # brackets are no markup
    assert "ASD (mm) of prostate, 2 seeds" in text


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
    written = score_tables.write(Study(several(), SHORT), tmp_path)
    assert sorted(p.name for p in written) == sorted(p.name for p in GOLDEN.iterdir())
    for path in written:
        assert path.read_text() == (GOLDEN / path.name).read_text(), (
            f"if {path.name} changed on purpose: python -m tests.pages.test_score_tables"
        )


def test_every_structure_has_its_tables(tmp_path: Path):
    scores = {d: {"disc": [0.9], "cup": [0.5]} for d in "ABC"}
    score_tables.write(Study([run("erm", "A", scores, structures=["disc", "cup"])], SHORT), tmp_path)
    text = (tmp_path / "dice.md").read_text()
    assert [f"Dice (%) of {what}, erm" in text for what in ("disc and cup averaged", "disc", "cup")] == [True] * 3
    rows = list(csv.DictReader((tmp_path / "dice.csv").read_text().splitlines()))
    assert [(r["structure"], r["B"]) for r in rows if r["source"] == "A"] == [
        ("mean", "0.7"),
        ("disc", "0.9"),
        ("cup", "0.5"),
    ]


def test_numbers_in_files_lose_no_digit(tmp_path: Path):
    third = 1 / 3
    score_tables.write(Study([run("erm", "A", {"A": [0.9], "B": [third], "C": [0.1 + 0.2]})], SDG), tmp_path)
    rows = list(csv.DictReader((tmp_path / "cells.csv").read_text().splitlines()))
    assert [float(r["value"]) for r in rows if r["metric"] == "dice"] == [0.9, third, 0.1 + 0.2]
    first = next(csv.DictReader((tmp_path / "dice.csv").read_text().splitlines()))
    assert (first["A"], float(first["B"]), float(first["validation"])) == ("", third, 0.9)


def test_every_row_of_a_latex_table_has_its_columns(tmp_path: Path):
    score_tables.write(Study(several(), SDG), tmp_path)
    for path in tmp_path.glob("*.tex"):
        for columns, body in re.findall(
            r"\\begin\{tabular\}\{(l?r*)\}\n(.*?)\\end\{tabular\}", path.read_text(), re.DOTALL
        ):
            rows = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
            assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
        assert path.read_text().count("{") == path.read_text().count("}")


def test_the_order_of_the_runs_changes_nothing(tmp_path: Path):
    records = several()
    once = {p.name: p.read_bytes() for p in score_tables.write(Study(records, SDG), tmp_path / "once")}
    random.Random(0).shuffle(records)
    shuffled = [changed(r, cases=r.cases.sample(frac=1, random_state=1)) for r in records]
    assert {p.name: p.read_bytes() for p in score_tables.write(Study(shuffled, SDG), tmp_path / "again")} == once


if __name__ == "__main__":
    score_tables.write(Study(several(), SHORT), GOLDEN)


def test_flops_stand_in_units_that_one_can_read_and_a_dash_where_nobody_counted():
    costs = run("erm", "A", UNEQUAL).record["costs"]
    counted_ones = {"train_flops": 1.2413e12, "train_step_flops": 4.965138432e9, "predict_image_flops": 0}
    new = run("new", "A", UNEQUAL, costs=costs | counted_ones)
    old = run("old", "A", UNEQUAL)
    _, table = score_tables.summary_tables(Study([new, old], SDG), ("dice",))
    assert table.header[-3:] == ("train TFLOP", "step GFLOP", "image GFLOP") and "matrix products" in table.caption
    assert {row[0]: row[-3:] for row in texts(table)} == {"new": ["1.24", "4.97", "0"], "old": ["-", "-", "-"]}
    _, table = score_tables.summary_tables(Study([old], SDG), ("dice",))
    assert table.header[-1] == "peak MB", "no column that says nothing"
