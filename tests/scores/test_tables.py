"""Averages worked out by hand, what is blank and why, what never mixes, and the tables as they are written."""

import csv
import dataclasses
import io
import itertools
import math
import random
import re
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dgbench.errors import DataError, DgbenchError, UsageError
from dgbench.pages import tables
from dgbench.protocol import PROTOCOLS
from dgbench.running.records import RunRecord
from tests.toy_runs import DIAGONAL, Score, changed, run

SDG, DAPSAM = PROTOCOLS["sdg"], PROTOCOLS["dapsam"]
GOLDEN = Path(__file__).parent / "golden_tables"


def matrix(records: list[RunRecord], protocol=SDG, metric: str = "dice", structure: str | None = None, variant="erm"):
    return tables.matrix(tables.cells(records, protocol), protocol, variant, metric, structure)


# --- averages --------------------------------------------------------------------------------------------------------

UNEQUAL = {"A": [0.95], "B": [0.8, 0.6], "C": [0.9, 0.9, 0.9]}  # target B has two cases, target C three


def test_every_target_domain_weighs_the_same_in_protocol_sdg():
    m = matrix([run("erm", "A", UNEQUAL)])
    assert m.values.loc["A", "B"] == pytest.approx(0.7)
    assert m.values.loc["A", "C"] == pytest.approx(0.9)
    assert m.values.loc["A", "mean"] == pytest.approx(0.8)  # (0.7 + 0.9) / 2


def test_all_target_cases_are_pooled_in_protocol_dapsam():
    m = matrix([run("erm", "A", UNEQUAL, protocol="dapsam")], DAPSAM)
    assert m.values.loc["A", "mean"] == pytest.approx(0.82)  # (0.8 + 0.6 + 3 x 0.9) / 5
    assert m.mean == pytest.approx(0.82)  # of one source


def test_the_last_row_is_the_mean_over_sources():
    m = matrix([run("erm", "A", UNEQUAL), run("erm", "B", {"A": [0.5], "B": [0.9], "C": [0.5, 0.6, 0.7]})])
    assert m.values.loc["mean", "A"] == pytest.approx(0.5)  # from B only: A is not its own target
    assert m.values.loc["mean", "C"] == pytest.approx(0.75)  # 0.9 and 0.6
    assert m.mean == pytest.approx((0.8 + 0.55) / 2)


def test_a_domain_that_a_source_is_never_tested_on_is_blank_and_in_no_average():
    two = {"targets": ["C"], "sources": ["A", "B"]}
    a, b = (run("erm", s, {s: [0.9], "C": [score]}, **two) for s, score in (("A", 0.6), ("B", 0.8)))
    m = matrix([a, b])
    assert math.isnan(m.values.loc["A", "B"])
    assert m.values.loc["A", "mean"] == pytest.approx(0.6)
    assert m.mean == pytest.approx(0.7)
    assert math.isnan(m.values.loc["mean", "A"])
    every = tables.cells([a, b], SDG)
    assert tables.summary(every, [a, b], SDG)["worst_target"].item() == "C"


def test_validation_cases_stand_apart_and_are_in_no_average():
    good, bad = (run("erm", "A", {**UNEQUAL, "A": [own]}) for own in (0.95, 0.05))
    assert matrix([good]).validation["A"] == 0.95
    assert math.isnan(matrix([good]).values.loc["A", "A"])
    pd.testing.assert_frame_equal(matrix([good]).values, matrix([bad]).values)


def test_seeds_are_averaged_in_each_cell_and_their_spread_is_kept():
    records = [run("erm", "A", {"A": [0.9], "B": [b], "C": [0.6]}, seed) for seed, b in enumerate((0.7, 0.8))]
    m = matrix(records)
    assert m.values.loc["A", "B"] == pytest.approx(0.75)
    assert m.std.loc["A", "B"] == pytest.approx(0.1 / math.sqrt(2))  # of two values 0.1 apart
    assert m.std.loc["A", "mean"] == pytest.approx(0.05 / math.sqrt(2))  # means 0.65 and 0.70
    assert m.seeds_text == "2"


def test_one_seed_has_no_spread():
    assert matrix([run("erm", "A", UNEQUAL)]).std.isna().all(axis=None)


def test_the_spread_of_the_last_row_is_over_the_seeds_that_every_source_has():
    a = [run("erm", "A", {"A": [0.9], "B": [x], "C": [x]}, seed) for seed, x in enumerate((0.6, 0.8, 0.1))]
    b = [run("erm", "B", {"A": [x], "B": [0.9], "C": [x]}, seed) for seed, x in enumerate((0.6, 0.7))]
    m = matrix(a + b)
    assert m.std.loc["mean", "mean"] == pytest.approx(stdev([0.6, 0.75]))
    assert m.seeds_text == "2-3"


def test_structures_weigh_the_same():
    scores = {
        "A": {"disc": [0.9], "cup": [0.9]},
        "B": {"disc": [0.9], "cup": [0.5]},
        "C": {"disc": [0.8], "cup": [0.8]},
    }
    records = [run("erm", "A", scores, structures=["disc", "cup"])]
    assert matrix(records).values.loc["A", "B"] == pytest.approx(0.7)
    assert matrix(records, structure="cup").values.loc["A", "B"] == pytest.approx(0.5)


# --- missed, absent, not there ---------------------------------------------------------------------------------------

MISSED = {"A": [0.9], "B": [0.8, "missed"], "C": [0.7]}


def test_a_missed_structure_costs_the_diagonal_and_the_found_mean_stands_beside_it():
    m = matrix([run("erm", "A", MISSED)], metric="asd")
    assert m.values.loc["A", "B"] == pytest.approx((2 + DIAGONAL) / 2)
    assert m.found.loc["A", "B"] == pytest.approx(2)
    assert (m.missed["A"], m.tested["A"]) == (1, 3)


def test_a_missed_structure_has_dice_zero():
    m = matrix([run("erm", "A", MISSED)])
    assert (m.values.loc["A", "B"], m.found.loc["A", "B"]) == (0.4, 0.8)


def test_a_falsely_found_structure_costs_the_diagonal_too():
    m = matrix([run("erm", "A", {"A": [0.9], "B": ["false_positive"], "C": [0.7]})], metric="hd95")
    assert m.values.loc["A", "B"] == DIAGONAL
    assert m.missed["A"] == 0


def test_a_case_empty_in_both_masks_is_left_out_and_counted():
    cells = tables.cells([run("erm", "A", {"A": [0.9], "B": [0.8, "both_empty"], "C": [0.7]})], SDG)
    cell = cells[(cells["target"] == "B") & (cells["metric"] == "dice")].iloc[0]
    assert (cell["value"], cell["n_cases"], cell["n_both_empty"], cell["n_missed"]) == (0.8, 2, 1, 0)


def test_a_cell_of_cases_that_are_all_empty_is_blank():
    m = matrix([run("erm", "A", {"A": [0.9], "B": ["both_empty"], "C": [0.7]})])
    assert math.isnan(m.values.loc["A", "B"])
    assert math.isnan(m.values.loc["A", "mean"])


def test_in_protocol_dapsam_one_missed_structure_loses_the_cell_as_in_the_authors_code():
    m = matrix([run("erm", "A", MISSED, protocol="dapsam")], DAPSAM, metric="asd")
    assert math.isnan(m.values.loc["A", "B"])
    assert math.isnan(m.values.loc["A", "mean"])
    assert m.values.loc["A", "C"] == pytest.approx(3)
    assert m.found.loc["A", "mean"] == pytest.approx(2.5)  # 2 and 3, the missed one left out


def test_a_target_that_was_not_tested_is_blank_and_so_is_every_average_over_it():
    untested = run("erm", "A", {"A": [0.9], "B": [0.8]})
    other = run("erm", "B", {"A": [0.6], "B": [0.9], "C": [0.6]})
    for protocol in (SDG, dataclasses.replace(SDG, mean="cases")):
        m = matrix([untested, other], protocol)
        blank = [(s, d) for s in m.values.index for d in m.values.columns if s != d and math.isnan(m.values.loc[s, d])]
        assert blank == [("A", "C"), ("A", "mean"), ("mean", "C")]
        assert math.isnan(m.mean)
        assert m.values.loc["mean", "B"] == pytest.approx(0.8)


def test_a_source_that_another_variant_has_is_a_blank_row():
    half = run("half", "A", UNEQUAL)
    whole = [run("whole", "A", UNEQUAL), run("whole", "B", {"A": [0.5], "B": [0.9], "C": [0.5, 0.6, 0.7]})]
    m = matrix([half, *whole], variant="half")
    assert m.values.loc["B"].isna().all()
    assert math.isnan(m.mean)
    assert m.seeds_text == "0-1"


def test_a_source_that_the_task_has_but_nobody_trained_on_is_a_blank_row():
    m = matrix([run("erm", "A", UNEQUAL, sources=["A", "B"])])
    assert list(m.values.index) == ["A", "B", "mean"]
    assert math.isnan(m.mean)


scores_of_a_target = st.lists(st.floats(0, 1) | st.just("missed"), min_size=1, max_size=4)


@settings(max_examples=15, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([p for p in itertools.permutations("ABC", 2)]), scores_of_a_target, min_size=6, max_size=6
    )
)
def test_the_average_is_that_of_nested_loops(scores: dict[tuple[str, str], list[Score]]):
    n = {d: min(len(v) for (_, t), v in scores.items() if t == d) for d in "ABC"}  # all sources see the same cases
    scores = {(s, t): v[: n[t]] for (s, t), v in scores.items()}
    records = [run("erm", s, {s: [0.9], **{t: scores[s, t] for t in "ABC" if t != s}}) for s in "ABC"]
    costs = {
        pair: [DIAGONAL if v == "missed" else 10 * (1 - float(v)) for v in values] for pair, values in scores.items()
    }
    by_domain = fmean(fmean(fmean(costs[s, t]) for t in "ABC" if t != s) for s in "ABC")
    pooled = fmean(fmean(c for t in "ABC" if t != s for c in costs[s, t]) for s in "ABC")
    assert matrix(records, metric="asd").mean == pytest.approx(by_domain)
    assert matrix(records, dataclasses.replace(SDG, mean="cases"), "asd").mean == pytest.approx(pooled)


# --- what may stand in one table -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "difference",
    [
        {"task": "x"},
        {"protocol": "dapsam"},
        {"metrics_version": 2},
        {"unit": "px"},
        {"structures": ["prostate", "cup"]},
    ],
)
def test_two_tasks_protocols_or_metric_versions_never_meet_in_one_table(difference: dict):
    records = [run("erm", "A", UNEQUAL), run("other", "A", UNEQUAL, **difference)]
    with pytest.raises(DgbenchError, match=f"cannot mix .*{next(iter(difference)).partition('_')[0]}") as error:
        tables.cells(records, SDG)
    assert "erm/A-seed0" in error.value.cause and "other/A-seed0" in error.value.cause


def test_runs_are_read_by_their_own_protocol():
    with pytest.raises(UsageError, match="runs of protocol sdg, not dapsam"):
        tables.cells([run("erm", "A", UNEQUAL)], DAPSAM)


def test_runs_tested_on_different_cases_are_not_compared():
    with pytest.raises(DataError, match="different cases of domain 'C'"):
        tables.cells([run("erm", "A", UNEQUAL), run("other", "A", {**UNEQUAL, "C": [0.9]})], SDG)


def test_a_run_counts_once():
    with pytest.raises(DataError, match="one run twice"):
        tables.cells([run("erm", "A", UNEQUAL), run("erm", "A", UNEQUAL)], SDG)


def test_a_case_counts_once():
    once = run("erm", "A", UNEQUAL)
    twice = changed(once, cases=pd.concat([once.cases, once.cases.iloc[:1]]))
    with pytest.raises(DataError, match="case A-0 of domain 'A' twice"):
        tables.cells([twice], SDG)


def test_a_domain_that_the_task_does_not_have_is_an_error():
    with pytest.raises(DataError, match="domain 'D'"):
        tables.cells([run("erm", "A", {**UNEQUAL, "D": [0.5]})], SDG)


def test_no_run_is_no_table():
    with pytest.raises(UsageError, match="no complete run"):
        tables.cells([], SDG)


# --- one row per variant ---------------------------------------------------------------------------------------------


def several() -> list[RunRecord]:
    """Two variants and an oracle, two sources, a test-only domain; erm with two seeds and a missed structure."""
    b = {"A": [0.82], "B": [0.9, 0.94], "C": [0.6, 0.7, 0.68]}
    dapsam: dict[str, Any] = {"initialisation": {"sam_vit_b_01ec64.pth": "ec2df6"}}
    oracle: dict[str, Any] = {"needs": {"needs_batch": False, "uses_target_masks": True, "uses_target_batch": False}}
    return [
        run("erm", "A", {"A": [0.95], "B": [0.8, "missed"], "C": [0.5, 0.7, 0.6]}),
        run("erm", "A", {"A": [0.93], "B": [0.8, 0.6], "C": [0.5, 0.7, 0.9]}, seed=1),
        run("erm", "B", {"A": [0.72], "B": [0.9, 0.92], "C": [0.5, 0.6, 0.55]}),
        run("erm", "B", {"A": [0.74], "B": [0.9, 0.92], "C": [0.5, 0.6, 0.58]}, seed=1),
        run("dapsam[memory=64;steps=500]", "A", {"A": [0.95], "B": [0.8, 0.7], "C": [0.75, 0.8, 0.79]}, **dapsam),
        run("dapsam[memory=64;steps=500]", "B", b, **dapsam),
        run("prompted", "A", {"A": [0.97], "B": [0.95, 0.96], "C": [0.93, 0.95, 0.94]}, **oracle),
        run("prompted", "B", {"A": [0.97], "B": [0.95, 0.96], "C": [0.93, 0.95, 0.94]}, **oracle),
    ]


def overview(records: list[RunRecord]) -> pd.DataFrame:
    return tables.summary(tables.cells(records, SDG), records, SDG).set_index("variant")


def test_a_summary_names_the_worst_target_and_what_is_lost_by_leaving_home():
    row = overview([run("erm", "A", UNEQUAL)]).loc["erm"]
    assert (row["worst_target"], row["worst_dice"]) == ("B", pytest.approx(0.7))
    assert row["gap"] == pytest.approx(0.95 - 0.8)


def test_the_best_variant_comes_first_and_an_oracle_last():
    assert list(overview(several()).index) == ["dapsam[memory=64;steps=500]", "erm", "prompted"]


def test_the_rate_of_missed_structures_is_over_those_that_were_there():
    row = overview([run("erm", "A", {"A": [0.9], "B": ["missed", 0.8, "both_empty"], "C": ["false_positive"]})]).loc[
        "erm"
    ]
    assert (row["missed"], row["false_positive"], row["both_empty"], row["tested"]) == (1, 1, 1, 4)
    assert row["missed_rate"] == 0.5


def test_a_summary_tells_what_a_variant_costs_and_starts_from():
    row = overview(several()).loc["dapsam[memory=64;steps=500]"]
    assert (row["trained"], row["train_seconds"], row["initialisation"]) == (500_000, 60.0, "sam_vit_b_01ec64.pth")
    assert overview(several()).loc["prompted", "needs"] == "target masks"


def test_an_incomplete_variant_has_no_mean_and_no_worst_target():
    row = overview([run("erm", "A", {"A": [0.9], "B": [0.8]})]).loc["erm"]
    assert math.isnan(row["dice"]) and row["worst_target"] == ""


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
