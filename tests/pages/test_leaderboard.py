"""The leaderboard as it is written, and what it says in words."""

import csv
import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dgbench.networks.weights import WEIGHTS
from dgbench.pages import leaderboard
from dgbench.protocol import PROTOCOLS
from dgbench.scores import published
from dgbench.scores.ranking import Ranking, rank
from dgbench.scores.study import Study
from tests.scores.test_ranking import BAD, DOMAINS, GOOD, board, runs_of
from tests.toy_runs import run

SDG = PROTOCOLS["sdg"]
GOLDEN = Path(__file__).parent / "golden_leaderboard"


def everything() -> Ranking:
    one_seed = runs_of("method[steps=5;width=8]", 0.5, seeds=(0,))
    return board(GOOD, BAD, one_seed, runs_of("partial", 0.9, sources=("A", "B")))


def said(ranking: Ranking) -> str:
    return " ".join(leaderboard.notes(ranking))


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["md", "tex"])
def test_the_board_is_written_as_it_was_looked_at(kind: str):
    assert leaderboard.render(everything(), kind) == (GOLDEN / f"leaderboard.{kind}").read_text(encoding="utf-8")


def test_the_csv_is_the_one_that_was_looked_at():
    """To nine digits: the last ones depend on how a processor adds."""
    new = pd.read_csv(io.StringIO(leaderboard.render(everything(), "csv")))
    pd.testing.assert_frame_equal(new, pd.read_csv(GOLDEN / "leaderboard.csv"), rtol=1e-9)


def test_the_csv_holds_full_precision_and_blanks():
    rows = list(csv.DictReader(io.StringIO(leaderboard.render(everything(), "csv"))))
    assert float(rows[0]["mean"]) == everything().ranked[0].row.mean
    assert rows[-1]["mean"] == "" and rows[-1]["not_ranked"] == "no run of source C"


def test_a_page_escapes_the_names_of_variants():
    page = leaderboard.render(board(runs_of("<script>alert(1)</script>", 0.8), BAD), "html")
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_the_tex_compiles(tmp_path: Path):
    text = leaderboard.render(everything(), "tex")
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{text}\end{{document}}"
    (tmp_path / "board.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "board.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


# --- words -----------------------------------------------------------------------------------------------------------


def test_a_row_says_how_it_stands_to_the_baseline_or_why_it_is_apart():
    reached = leaderboard.board_tables(everything())[0]
    assert reached.header[-1] == "against good"
    last = {row[0].text: row[-1].text for row in reached.rows}
    assert last == {
        "good": "baseline",
        "bad": "-20.00 worse",
        "method[steps=5;width=8]": "one seed",
        "partial": "no run of source C",
    }


def test_the_conclusion_names_the_first_and_what_every_other_is_to_the_baseline():
    words = leaderboard.conclusion(board(GOOD, BAD, runs_of("poor", 0.3), baseline="bad"))
    assert words.startswith("good has the best mean, 80.20 % (95 % interval ")
    assert words.endswith("rank 1 of 3. Against bad: better: good; worse: poor.")


def test_the_conclusion_names_what_a_mask_that_ignores_the_images_beats():
    three = [runs_of("constant", 0.7), runs_of("poor", 0.6), runs_of("poorer", 0.4)]
    words = leaderboard.conclusion(board(GOOD, *three))
    assert words.endswith("By the mean below constant, which ignores the images: poor, poorer.")
    assert "ignores" not in leaderboard.conclusion(board(GOOD, three[0]))


def test_a_mean_above_that_of_a_mask_that_ignores_the_images_is_not_called_below():
    """`eager` has 0.9, and finds in three of four cases what is not there: it stands behind `constant` by that."""
    kinds = {"constant": (0.5, "both_empty"), "eager": (0.9, "false_positive")}
    ranking = board(
        run(v, s, {d: [dice, *[empty] * 3] for d in DOMAINS}, seed)
        for v, (dice, empty) in kinds.items()
        for s in DOMAINS
        for seed in (0, 1)
    )
    assert [of.variant for of in ranking.ranked] == ["constant", "eager"]
    assert "ignores the images" not in leaderboard.conclusion(ranking)


def test_every_test_that_was_made_is_counted_also_against_a_row_that_is_not_ranked():
    assert "Holm-corrected for 2 tests" in said(board(GOOD, BAD, runs_of("lone", 0.5, seeds=(0,)), baseline="lone"))
    assert "Holm-corrected for 1 test," in said(board(GOOD, BAD, baseline="good"))


def test_of_one_variant_nothing_is_concluded():
    assert "nothing can be concluded" in leaderboard.conclusion(board(GOOD))


def test_different_budgets_are_pointed_out():
    longer = runs_of("longer", 0.6, hparams={"steps": 500, "batch_size": 8})
    assert "The rows had different budgets" in said(board(GOOD, longer))
    assert "budgets" not in said(board(GOOD, BAD))


def test_a_training_that_came_to_nothing_is_named_for_a_mean_does_not_tell_it_from_a_weak_one():
    """From A, with seeds 0 and 2, nothing is found in A's own validation cases; from B one of eight is."""
    weak = runs_of("weak", 0.5)
    for r in weak:
        silent = (r.source == "A" and r.seed != 1) | ((r.source == "B") & (r.cases["case"] != "B-0"))
        r.cases.loc[silent & (r.cases["role"] == "validation"), ["dice", "flag"]] = 0.0, "missed"
    assert "own validation cases, too: weak from A (seed 0, 2)." in said(board(GOOD, weak))
    assert "own validation cases" not in said(board(GOOD, BAD))


def test_a_first_place_that_hangs_on_one_target_is_pointed_out():
    """Of three variants the first is first by one domain only."""
    rng = np.random.default_rng(0)
    lucky, others = {"A": 0.4, "B": 0.4, "C": 0.99}, {"second": 0.58, "third": 0.3}

    def runs(variant, of_domain):
        noise = 0.01 * rng.standard_normal(8)
        return [
            run(variant, s, {d: list(level + noise) for d, level in of_domain.items()}, seed)
            for s in DOMAINS
            for seed in (0, 1, 2)
        ]

    ranking = board(runs("lucky", lucky), *(runs(v, dict.fromkeys(DOMAINS, level)) for v, level in others.items()))
    assert ranking.ranked[0].variant == "lucky"
    assert "first place changes: second without C" in said(ranking)
    assert "first place is the same" in said(board(GOOD, BAD, runs_of("poor", 0.3)))


def test_a_row_made_by_two_versions_of_its_code_is_pointed_out():
    mixed = [r for seed in (0, 1, 2) for r in runs_of("bad", 0.6, seeds=(seed,), code={"method": f"v{seed}"})]
    assert "Runs by different versions of the code are averaged in bad" in said(board(GOOD, mixed))


def test_what_is_drawn_together_and_what_is_not_tested_is_among_the_notes():
    scores = {"A": [0.9], "B": [0.8, 0.6, 0.7], "C": [0.7, 0.5, 0.6]}
    two = [run("erm", "A", scores, seed, paired=True, excluded={"B": 7}) for seed in (0, 1)]
    for r in two:
        r.cases["group"] = r.cases["case"].str[-1]
    words = said(rank(Study(two, SDG)))
    assert "within each domain, 6 target cases, those of a patient together. Rank" in words
    assert "cases of patients that a source trains on are not tested. Left out, by source: A (B 7)." in words
    for r in two:
        r.record.pop("paired")
        r.cases["group"] = r.cases["domain"] + (r.cases["case"].str[-1] == "2").astype(str)
    words = said(rank(Study(two, SDG)))
    assert "4 groups (patients, pairs of eyes, videos) of 6 target cases" in words and "same patients" not in words


def test_what_was_left_out_is_among_the_notes():
    assert leaderboard.notes(rank(Study([*GOOD, *BAD], SDG, ["Left out: one."])))[-1] == "Left out: one."


def test_published_numbers_stand_below_and_are_never_ranked():
    names = ("BIDMC", "BMC", "HK", "I2CVB", "RUNMC", "UCL")
    told = {"task": "prostate", "domains": list(names)}
    runs = [run("dapsam", d, {d: [0.5, 0.6, 0.7] for d in names}, seed, **told) for d in names for seed in (0, 1)]
    ranking = board(runs)
    beside = published.beside(published.load("prostate"), ranking.study)
    *_, table = leaderboard.board_tables(ranking, beside)
    row = next(row for row in table.rows if row[0].text.startswith("dapsam ("))
    assert row[5].text == "60.00"  # measured here
    assert float(row[4].text) + float(row[6].text) == pytest.approx(60, abs=0.011)
    assert leaderboard.published_table(ranking, beside.iloc[:0]) is None


def test_a_contaminated_row_is_marked_in_every_format_with_what_is_known_under_it():
    seen_by = {"collections": ["BUSI", "BUS-BRA"], "initialisation": {"m.pth": WEIGHTS["lite_medsam"].sha256}}
    ranking = board(runs_of("tuned", 0.9, **seen_by), GOOD, BAD)
    for kind in ("md", "tex", "html"):
        text = leaderboard.render(ranking, kind)
        assert "tuned †" in text and "good †" not in text, kind
        assert "been trained on the task" in text and "US/Breast-Ultrasound" in text, kind
    assert "lite\\_medsam on BUSI" in leaderboard.render(ranking, "md").replace("lite_medsam", "lite\\_medsam")
    assert "Not known whether weights saw the task's images: lite_medsam on BUS-BRA (" in said(ranking)
    assert "lite_medsam on BUSI (likely)" in leaderboard.render(ranking, "csv")
    apart = board(runs_of("tuned", 0.9, **seen_by), GOOD, BAD, without_contaminated=True)
    assert "contaminated: lite_medsam on BUSI (likely)" in leaderboard.render(apart, "md").replace("\\", "")
    assert "†" not in said(board(GOOD, BAD))
