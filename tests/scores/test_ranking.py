"""The leaderboard: what is ranked, what stands apart and why, and that nothing unlike is ever averaged."""

import csv
import io
import itertools
import json
import math
import random
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from dgbench.errors import DataError, UsageError
from dgbench.files import sha256
from dgbench.pages import tables
from dgbench.protocol import PROTOCOLS
from dgbench.running import records
from dgbench.scores import ranking
from dgbench.scores.ranking import build
from tests.toy_runs import changed, run

SDG, DAPSAM = PROTOCOLS["sdg"], PROTOCOLS["dapsam"]
GOLDEN = Path(__file__).parent / "golden_leaderboard"
DOMAINS = ("A", "B", "C")


def study(variant: str, level: float, seeds=(0, 1, 2), sources=DOMAINS, cases: int = 8, **record):
    """All runs of a variant: eight cases a domain, spread about `level`, some variation between seeds."""
    made = []
    for source, seed in itertools.product(sources, seeds):
        scores = {
            d: [level + 0.05 * math.sin(3 * i + j) + 0.0005 * (seed - 1) for i in range(cases)]
            for j, d in enumerate(DOMAINS)
        }
        made.append(run(variant, source, scores, seed, **record))
    return made


def board(*studies, **options):
    return build([r for s in studies for r in s], SDG, **options)


GOOD, SAME, BAD = study("good", 0.8), study("same", 0.8), study("bad", 0.6)


# --- ranks -----------------------------------------------------------------------------------------------------------


def test_rows_are_ordered_by_their_mean_and_ranked_by_what_is_sure():
    b = board(BAD, GOOD)
    assert [(r.variant, r.rank) for r in b.rows] == [("good", (1, 1)), ("bad", (2, 2))]


def test_what_cannot_be_told_apart_shares_its_ranks():
    nearly = study("nearly", 0.8001)
    ranks = {r.variant: r.rank_text for r in board(GOOD, nearly, BAD).rows}
    assert ranks == {"nearly": "1-2", "good": "1-2", "bad": "3"}


def test_equal_rows_have_equal_ranks():
    ranks = {r.variant: r.rank for r in board(GOOD, SAME, BAD).rows}
    assert ranks["good"][0] == ranks["same"][0] == 1 and ranks["bad"] == (3, 3)


def test_of_a_distance_the_smallest_is_best():
    assert [r.variant for r in board(BAD, GOOD, metric="asd").rows] == ["good", "bad"]


def test_the_order_of_the_runs_changes_nothing():
    runs = [*GOOD, *BAD, *SAME]
    expected = ranking.frame(build(runs, SDG))
    random.Random(0).shuffle(runs)
    pd.testing.assert_frame_equal(ranking.frame(build(runs, SDG)), expected)


def test_the_names_of_the_variants_change_nothing():
    """Renamed so that their order turns round, each keeps its numbers."""
    before = ranking.frame(board(study("a", 0.8), study("b", 0.7), study("c", 0.6), reference="a"))
    after = ranking.frame(board(study("z", 0.8), study("y", 0.7), study("x", 0.6), reference="z"))
    assert list(after["variant"]) == ["z", "y", "x"]
    named = ["variant", "method", "reference"]
    pd.testing.assert_frame_equal(after.drop(columns=named), before.drop(columns=named))


def test_a_number_on_the_board_is_the_number_in_the_matrix():
    b = board(GOOD, BAD)
    for row in b.rows:
        m = tables.matrix(tables.cells([*GOOD, *BAD], SDG), SDG, row.variant, "dice")
        assert row.mean == pytest.approx(m.mean) == pytest.approx(b.scores[row.variant].mean)
        assert b.scores[row.variant].seed_std == pytest.approx(row.seed_std)


def test_pooled_cases_weigh_as_their_protocol_says():
    uneven = [
        run("erm", s, {"A": [0.9], "B": [0.8, 0.6], "C": [0.7, 0.7, 0.1]}, n, protocol="dapsam")
        for s in DOMAINS
        for n in (0, 1)
    ]
    found, _, _ = ranking.case_scores(uneven, DAPSAM, "dice")
    assert found["erm"].mean == pytest.approx(tables.matrix(tables.cells(uneven, DAPSAM), DAPSAM, "erm", "dice").mean)


def test_a_case_that_lacks_a_structure_counts_for_the_other_only():
    both = {"structures": ["disc", "cup"]}
    scores = {d: {"disc": [0.9, 0.8], "cup": [0.7, "both_empty"]} for d in DOMAINS}
    runs = [run("erm", s, scores, seed, **both) for s in DOMAINS for seed in (0, 1)]
    found, cases, _ = ranking.case_scores(runs, SDG, "dice")
    assert len(cases) == 6
    assert found["erm"].mean == pytest.approx((0.85 + 0.7) / 2)


def test_a_first_place_that_hangs_on_one_target_is_pointed_out():
    """`steady` scores 0.7 everywhere; `lucky` 0.9 on target A and less elsewhere, and leads by that alone."""
    levels = {"steady": (0.7, 0.7, 0.7), "lucky": (0.95, 0.6, 0.6), "poor": (0.3, 0.3, 0.3)}
    runs = [
        run(name, source, {d: [x + 0.01 * i for i in range(4)] for d, x in zip(DOMAINS, level, strict=True)}, seed)
        for (name, level), source, seed in itertools.product(levels.items(), DOMAINS, (0, 1))
    ]
    b = build(runs, SDG)
    assert [r.variant for r in b.rows] == ["lucky", "steady", "poor"]
    # On two thirds of the cases steady is first: the averaged ranks turn the two round, one discordant pair of three.
    assert "tau 0.33" in ranking.stability(b)
    assert "changes: steady without A" in ranking.stability(b)


# --- apart -----------------------------------------------------------------------------------------------------------


def reasons(*studies, **options) -> dict[str, str]:
    return {r.variant: r.why for r in board(*studies, **options).apart}


def test_a_row_with_one_seed_is_shown_and_not_ranked():
    b = board(GOOD, study("lucky", 0.95, seeds=(0,)))
    assert [r.variant for r in b.rows] == ["good"]
    assert any("one seed is over cases alone" in note for note in b.notes)
    assert b.apart[0].why == "one seed" and b.apart[0].mean == pytest.approx(0.95, abs=0.05)


def test_an_oracle_is_never_ranked():
    needs = {"needs_batch": False, "uses_target_masks": True, "uses_target_batch": False}
    assert "oracle" in reasons(GOOD, study("prompted", 0.95, needs=needs))["prompted"]


def test_a_method_that_adapts_to_the_test_images_stands_apart():
    needs = {"needs_batch": False, "uses_target_masks": False, "uses_target_batch": True}
    assert "adapts" in reasons(GOOD, study("adapting", 0.95, needs=needs))["adapting"]


def test_a_variant_without_all_sources_has_no_mean_and_says_what_is_missing():
    b = board(GOOD, study("partial", 0.9, sources=("A", "B")))
    assert math.isnan(b.apart[0].mean) and b.apart[0].why == "no run of source C"


def test_a_seed_that_lacks_a_source_is_left_out_of_a_row_that_has_others():
    extra = run("good", "A", {d: [0.1] * 8 for d in DOMAINS}, seed=7)
    row = board(GOOD, [extra]).rows[0]
    assert row.seeds == (0, 1, 2) and row.mean > 0.7


def test_a_mean_that_is_not_defined_is_not_ranked():
    lost = study("lost", 0.8, protocol="dapsam")
    lost[0].cases.loc[lost[0].cases["domain"] == "B", ["dice", "asd", "flag"]] = [0.0, math.inf, "missed"]
    b = build([*study("good", 0.8, protocol="dapsam"), *lost], DAPSAM, "asd")
    assert [r.variant for r in b.rows] == ["good"] and "NaN" in b.apart[0].why


def test_a_failed_run_is_named(tmp_path: Path):
    partial = [changed(r, path=tmp_path / r.path) for r in study("partial", 0.9, sources=("A", "B"))]
    failed = partial[0].path.parent / "C-seed0"
    failed.mkdir(parents=True)
    (failed / "FAILED.json").write_text('{"cause": "the loss is NaN"}')
    assert reasons(GOOD, partial)["partial"] == "no run of source C; failed: source C"


# --- never averaged --------------------------------------------------------------------------------------------------


def test_two_protocols_are_never_averaged():
    with pytest.raises(UsageError, match="cannot mix protocol"):
        board(GOOD, study("other", 0.8, protocol="dapsam"))


def test_two_versions_of_the_metrics_are_never_averaged():
    with pytest.raises(DataError, match="cannot mix metrics version"):
        board(GOOD, study("other", 0.8, metrics_version=2))


def test_runs_on_other_images_are_never_averaged():
    with pytest.raises(DataError, match="different images of domain 'A'"):
        board(study("good", 0.8, data={"A": "1f"}), study("other", 0.8, data={"A": "2e"}))


# --- against a reference ---------------------------------------------------------------------------------------------


def test_every_row_is_tested_against_the_reference_that_was_asked_for():
    b = board(GOOD, SAME, BAD, reference="bad")
    assert {r.variant: b.verdict(r) for r in b.rows} == {"good": "better", "same": "better", "bad": ""}
    assert "Against bad: better: good, same." in ranking.conclusion(b)


def test_rows_inside_the_margin_are_equivalent():
    b = board(GOOD, study("nearly", 0.799), BAD, reference="good")
    assert {r.variant: b.verdict(r) for r in b.rows} == {"good": "", "nearly": "equivalent", "bad": "worse"}


def test_an_unknown_reference_is_refused():
    with pytest.raises(UsageError, match="unknown variant to compare with 'god'"):
        board(GOOD, BAD, reference="god")


def test_different_budgets_are_pointed_out():
    short = study("short", 0.7, hparams={"steps": 50, "batch_size": 8})
    long = study("long", 0.8, hparams={"steps": 500, "batch_size": 8})
    assert any("different budgets" in note for note in board(short, long).notes)


def test_a_row_made_by_two_versions_of_its_code_is_pointed_out():
    older = study("good", 0.8, seeds=(0,), code={"method": "1f"})
    newer = study("good", 0.8, seeds=(1, 2), code={"method": "2e"})
    assert any("different versions of the code are averaged in good" in note for note in board(older, newer).notes)
    assert not any("versions" in note for note in board(GOOD, BAD).notes)


# --- formats ---------------------------------------------------------------------------------------------------------


def everything():
    return board(
        GOOD, BAD, study("method[steps=5;width=8]", 0.5, seeds=(0,)), study("partial", 0.9, sources=("A", "B"))
    )


@pytest.mark.parametrize("kind", ["md", "tex"])
def test_the_board_is_written_as_it_was_looked_at(kind: str):
    assert ranking.render(everything(), kind) == (GOLDEN / f"leaderboard.{kind}").read_text(encoding="utf-8")


def test_the_csv_is_the_one_that_was_looked_at():
    """To nine digits: the last ones depend on how a processor adds."""
    new, old = (
        pd.read_csv(f) for f in (io.StringIO(ranking.render(everything(), "csv")), GOLDEN / "leaderboard.csv")
    )
    pd.testing.assert_frame_equal(new, old, rtol=1e-9)


def test_the_csv_holds_full_precision_and_blanks():
    rows = list(csv.DictReader(io.StringIO(ranking.render(everything(), "csv"))))
    assert float(rows[0]["mean"]) == everything().rows[0].mean
    assert rows[-1]["mean"] == "" and rows[-1]["not_ranked"] == "no run of source C"


def test_a_page_escapes_the_names_of_variants():
    page = ranking.render(board(study("<script>alert(1)</script>", 0.8), BAD), "html")
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex")
def test_the_tex_compiles(tmp_path: Path):
    text = ranking.render(everything(), "tex")
    document = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{text}\end{{document}}"
    (tmp_path / "board.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "board.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


# --- from folders ----------------------------------------------------------------------------------------------------


def on_disk(results: Path, runs) -> None:
    for r in runs:
        folder = results / Path(*r.path.parts[1:])
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"started": "2026-01-01", "data": {"A": "1f"}, **r.record}))
        r.cases.to_csv(folder / "cases.csv", index=False)
        (folder / "history.jsonl").write_text("")
        files = {n: sha256(folder / n) for n in ("run.json", "cases.csv", "history.jsonl")}
        (folder / "RESULT.json").write_text(json.dumps({"schema": 1, "files": files}))


def test_a_folder_that_was_changed_is_left_out_and_named(tmp_path: Path):
    on_disk(tmp_path, [*GOOD, *BAD])
    (tmp_path / "toy/sdg/bad/A-seed0/cases.csv").write_text("nothing")
    found, left_out = records.load(tmp_path, "toy", "sdg")
    assert len(found) == 17
    assert len(left_out) == 1 and "A-seed0: cases.csv missing or changed" in left_out[0]


def test_scores_are_all_that_need_be_passed_on(tmp_path: Path):
    on_disk(tmp_path, GOOD)
    for path in tmp_path.rglob("history.jsonl"):
        path.unlink()
    found, left_out = records.load(tmp_path, "toy", "sdg")
    assert len(found) == len(GOOD) and not left_out
    assert found[0].history.empty and not found[0].has_predictions


def test_runs_on_older_images_are_left_out_and_counted(tmp_path: Path):
    on_disk(tmp_path, [*study("old", 0.8, data={"A": "0a"}, started="2025"), *GOOD])
    found, left_out = records.load(tmp_path, "toy", "sdg")
    assert {r.variant for r in found} == {"good"}
    assert left_out == ["Left out: 9 runs on other images or by other metrics than the newest run (old)."]


def test_no_runs_is_an_error_with_a_remedy(tmp_path: Path):
    with pytest.raises(UsageError, match="no finished run of task toy"):
        records.load(tmp_path, "toy", "sdg")
