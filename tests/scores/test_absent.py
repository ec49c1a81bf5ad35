"""Structures that a domain does not have: what counts is decided by the reference, and a false finding costs.

Two structures, organ and tumour; no patient of target C has a tumour.
"""

import io
import itertools
import math
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dgbench.errors import UsageError
from dgbench.pages import leaderboard, score_tables, verdict
from dgbench.pages import multiverse as multiverse_pages
from dgbench.pages.table import show
from dgbench.protocol import PROTOCOLS
from dgbench.running.records import RunRecord
from dgbench.scores import comparison
from dgbench.scores.multiverse import multiverse
from dgbench.scores.ranking import Ranking, rank
from dgbench.scores.study import Study
from tests.toy_runs import DIAGONAL, changed, run

SDG, DAPSAM = PROTOCOLS["sdg"], PROTOCOLS["dapsam"]
DOMAINS = ("A", "B", "C")


def patients(variant: str, organ: float, tumour: float, in_c: str, sources=DOMAINS, **record: Any) -> list[RunRecord]:
    """Eight cases of every domain; in C, in place of a tumour's Dice, what became of the empty reference."""
    made = []
    for source, seed in itertools.product(sources, (0, 1, 2)):
        spread = [0.002 * math.sin(i + seed) for i in range(8)]
        organs, tumours = ([level + e for e in spread] for level in (organ, tumour))
        scores = {d: {"organ": organs, "tumour": [in_c] * 8 if d == "C" else tumours} for d in DOMAINS}
        told = {"structures": ["organ", "tumour"], "data": {}, "fingerprint": "f", "hparams": {}, **record}
        made.append(run(variant, source, scores, seed, **told))
    return made


def board(*variants: list[RunRecord], protocol=SDG, **options: Any) -> Ranking:
    return rank(Study([r for of in variants for r in of], protocol), draws=500, **options)


RIGHT = patients("right", 0.995, 0.8, "both_empty")
WRONG = patients("wrong", 0.996, 0.801, "false_positive")  # a little better on all that is there


# --- means, ranks, tests ---------------------------------------------------------------------------------------------


def test_who_rightly_finds_nothing_is_ranked_above_who_finds_tumours_that_are_not_there():
    b = board(RIGHT, WRONG)
    assert [(r.variant, r.rank_text) for r in b.ranked] == [("right", "1"), ("wrong", "2")] and not b.apart
    right, wrong = b.ranked
    # From A and B: ((organ + tumour) / 2 of the other, organ of C) / 2 each; from C: (organ + tumour) / 2.
    assert right.row.mean == pytest.approx(((0.8975 + 0.995) / 2 * 2 + 0.8975) / 3, abs=1e-3)
    assert wrong.row.mean > right.row.mean  # of what is there
    # In C every case has one of two structures too many: half a Dice, in one of two targets, from two of three sources.
    assert wrong.row.false_cost == pytest.approx(0.5 / 2 * 2 / 3) and right.row.false_cost == 0
    assert (wrong.row.false_positive, wrong.row.absent, wrong.row.false_rate) == (48, 48, 1.0)
    assert b.verdict(wrong) == "worse"


@pytest.mark.parametrize("metric", SDG.metrics)
def test_the_mean_does_not_hang_on_what_is_predicted_where_nothing_is(metric: str):
    """The same masks but in C: the same means, matrices and weights of cases, by any metric."""
    same = patients("wrong", 0.995, 0.8, "false_positive")
    study = Study([*RIGHT, *same], SDG)
    right, wrong = (study.matrix(v, metric).values.to_numpy() for v in ("right", "wrong"))
    np.testing.assert_array_equal(right, wrong)
    scores = study.target_cases(metric).scores
    np.testing.assert_array_equal(scores["right"].weight, scores["wrong"].weight)
    assert scores["right"].mean == pytest.approx(study.matrix("right", metric).mean)


def test_a_false_finding_shows_in_every_table_of_the_runs():
    """Beside the matrix of each variant, in the overview and in the files; of another task's tables nothing changes."""
    study = Study([*RIGHT, *WRONG], SDG)
    matrix = score_tables.matrix_table(study.matrix("wrong"))
    assert [row[-1].text for row in matrix.rows] == ["24 of 24", "24 of 24", "", "48 of 48"]
    assert matrix.header[-1] == "falsely found"
    overview, _ = score_tables.summary_tables(study, ("dice", "asd"))
    at = overview.header.index("falsely found")
    assert [row[at].text for row in overview.rows] == ["0 of 48", "48 of 48"]
    by_source = score_tables.sources_table(study, "dice")
    assert all(len(row) == len(by_source.header) for row in by_source.rows)


def test_by_a_distance_a_false_finding_costs_the_diagonal():
    wrong = board(RIGHT, WRONG, metric="asd").ranked[1]
    assert wrong.row.false_cost == pytest.approx(DIAGONAL / 6)
    assert wrong.row.net == pytest.approx(wrong.row.mean + DIAGONAL / 6)


def test_what_is_there_alone_makes_a_cell_and_one_false_finding_costs_what_one_miss_does():
    """One structure, B has two patients with it and two without; of these one is falsely found: 1/4 of the cases."""
    scores = {"A": [0.9], "B": [0.8, 0.6, "both_empty", "false_positive"], "C": [0.7] * 4}
    study = Study([run("erm", "A", scores, n) for n in (0, 1)], SDG)
    assert study.matrix("erm").values.loc["A"].to_list()[1:] == pytest.approx([0.7, 0.7, 0.7])
    assert study.row("erm").false_cost == pytest.approx((1 / 4 + 0) / 2)
    assert study.row("erm").net == pytest.approx(0.575)


def test_cases_without_any_structure_move_no_interval_of_the_mean():
    """Patients of whom nothing is there have weight 0: they are drawn apart, and are in no test."""
    few, many = ([run("erm", "A", {"A": [0.9], "B": [0.8, 0.6, 0.7] + ["both_empty"] * n, "C": [0.5, 0.7]}, s)
                  for s in (0, 1)] for n in (0, 20))  # fmt: skip
    one, other = (rank(Study(of, SDG)).every[0] for of in (few, many))
    assert one.high - one.low == pytest.approx(other.high - other.low, rel=0.05)
    again = [r.renamed("again") for r in many]
    assert comparison.compare(Study([*many, *again], SDG), "erm", "again").differences["all targets"].cases == 5


def test_a_comparison_has_a_row_of_its_own_for_what_was_falsely_found():
    c = comparison.compare(Study([*RIGHT, *WRONG], SDG), "wrong", "right")
    assert list(c.differences) == ["all targets", "A", "B", "C", comparison.FALSE]
    assert c.means[comparison.FALSE] == (pytest.approx(1 / 6), 0)
    assert c.verdict(comparison.FALSE) == "worse" == c.verdict()
    assert {c.verdict(d) for d in DOMAINS} == {"equivalent"}  # of a target's mean alone
    assert "Structures falsely found cost them 16.67 and 0.00 points: worse." in verdict.sentence(c)
    shown = verdict.comparison_table(c)
    assert [row[0].text for row in shown.rows][-1] == "cost of falsely found (24 cases)"


@pytest.mark.parametrize("metric", ["dice", "hd95"])
def test_in_every_universe_that_counts_false_findings_who_finds_nothing_is_before_who_does(metric: str):
    found = multiverse(board(RIGHT, WRONG, metric=metric))
    assert found.universes[0].means.tolist() == pytest.approx([r.row.net for r in found.board.ranked])
    lost = [u.label for u in found.universes if u.ranks.tolist() != [1, 2]]
    # Without C, without tumours or without what false findings cost, and case by case, as only C's third has any.
    assert lost and all("left out" in label or label == "mean rank over cases" for label in lost)


# --- where a structure may lack -------------------------------------------------------------------------------------


def pair(source: str, tumours: str, found: str, **record: Any) -> list[RunRecord]:
    """Organs of Dice 0.9 everywhere, tumours of Dice 0.5 in these domains alone, and in the others `found`."""
    scores = {d: {"organ": [0.9] * 3, "tumour": [0.5 if d in tumours else found] * 3} for d in DOMAINS}
    return [run("erm", source, scores, n, structures=["organ", "tumour"], **record) for n in (0, 1)]


@pytest.mark.parametrize("found", ["both_empty", "false_positive"])
def test_tumours_of_the_source_alone_are_in_no_mean_and_its_validation_has_them(found: str):
    study = Study(pair("A", "A", found), SDG)
    m = study.matrix("erm")
    assert m.mean == pytest.approx(0.9) == m.values.loc["A", "B"] and m.validation["A"] == pytest.approx(0.7)
    assert study.matrix("erm", structure="tumour").values.isna().all(axis=None)
    assert study.row("erm").false_cost == pytest.approx(0.5 if found == "false_positive" else 0)


@pytest.mark.parametrize("found", ["both_empty", "false_positive"])
def test_tumours_that_the_source_lacks_are_tested_and_its_validation_is_of_the_others(found: str):
    m = Study(pair("A", "BC", found), SDG).matrix("erm")
    assert m.mean == pytest.approx(0.7) and m.validation["A"] == pytest.approx(0.9)


def test_where_no_target_holds_anything_there_is_no_mean_and_the_reason_says_so():
    none = [run("erm", s, {d: ["both_empty"] * 3 for d in DOMAINS}, n) for s in DOMAINS for n in (0, 1)]
    b = board(none)
    assert b.apart[0].why == "a mean that is not defined: no reference of any target holds a structure"
    assert [cell.text for cell in score_tables.quartiles(b.study, "dice", {"erm": ""}).rows[0]] == ["erm"]
    console = Console(width=40, file=io.StringIO())
    show(multiverse_pages.tables(multiverse(b))[0], console)
    assert "variant" in console.file.getvalue(), "a table without rows is its header"
    with pytest.raises(UsageError, match="no reference of any target holds a structure"):
        comparison.compare(Study([*none, *(r.renamed("other") for r in none)], SDG), "erm", "other")


def test_a_whole_target_without_anything_is_blank_and_who_finds_nothing_there_is_first():
    """A domain of healthy people, one structure: it is in no mean, and finding some costs all of one target in two."""
    cases = {"A": [0.9, 0.8], "B": [0.7, 0.6]}
    right, wrong = (
        [run(v, s, {**cases, "C": [found] * 3}, n, sources=["A", "B"]) for s in "AB" for n in (0, 1)]
        for v, found in (("right", "both_empty"), ("wrong", "false_positive"))
    )
    b = board(wrong, right)
    assert [(r.variant, r.rank_text, r.row.worst) for r in b.ranked] == [("right", "1", "B"), ("wrong", "2", "B")]
    assert b.ranked[1].row.net == pytest.approx((0.85 + 0.65) / 2 - 0.5)
    c = comparison.compare(b.study, "wrong", "right")
    assert list(c.differences) == ["all targets", "A", "B", comparison.FALSE]
    assert multiverse(b).universes[0].means.tolist() == pytest.approx([r.row.net for r in b.ranked])


# --- published -------------------------------------------------------------------------------------------------------


def test_of_published_scores_what_one_left_blank_another_found_falsely():
    """Nobody tells flags there: a blank Dice says that the reference is empty, for all who were tested on that case."""
    told = {"published": {"board": "b", "words": "Doe 2030.", "metrics": ["dice"]}}
    right, wrong = (
        changed(r, cases=r.cases.assign(flag=r.cases["flag"].replace({"false_positive": ""})))
        for v, found in (("right", "both_empty"), ("wrong", "false_positive"))
        for r in [run(v, "A", {"B": [0.8, found], "C": [0.7, 0.7]}, **told)]
    )
    study = Study([right, wrong], SDG)
    assert study.row("right").mean == study.row("wrong").mean == pytest.approx(0.75)
    assert (study.row("wrong").false_positive, study.row("wrong").net) == (1, pytest.approx(0.75 - 0.25))


# --- said ------------------------------------------------------------------------------------------------------------


def test_the_board_says_what_is_not_there_what_was_found_all_the_same_and_what_it_costs():
    b = board(RIGHT, WRONG)
    reached, *_ = leaderboard.board_tables(b)
    rows = {row[0].text: dict(zip(reached.header, (c.text for c in row), strict=True)) for row in reached.rows}
    assert rows["wrong"]["falsely found"] == "48 of 48, -16.67" and rows["right"]["falsely found"] == "0 of 48"
    assert "No reference of C holds tumour: its mean is over the others." in reached.foot
    assert "Trained on C a method never sees tumour." in reached.foot
    assert "Ranked by the mean less that." in reached.foot
    assert "falsely_found" in b.frame() and b.frame()["mean_less_cost"].tolist() == [r.row.net for r in b.ranked]
    plain = [run("erm", "A", {"A": [0.9], "B": [0.7], "C": [0.7]}, n) for n in (0, 1)]
    assert "falsely found" not in leaderboard.board_tables(board(plain))[0].header


def test_under_dapsam_where_such_a_case_is_nan_the_reason_names_structure_and_domain():
    b = board(patients("right", 0.995, 0.8, "both_empty", protocol="dapsam"), protocol=DAPSAM)
    assert b.apart[0].why == (
        "a mean that is not defined: tumour of C is in neither mask in 48 of 48 cases, which is NaN under this protocol"
    )
