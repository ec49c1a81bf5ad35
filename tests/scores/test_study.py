"""Averages worked out by hand, what is blank and why, and what never mixes."""

import dataclasses
import itertools
import json
import math
import random
import shutil
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgbench.errors import DataError, DgbenchError, UsageError
from dgbench.files import sha256
from dgbench.protocol import PROTOCOLS
from dgbench.running.records import RunRecord
from dgbench.scores.study import Study, run_scores
from tests.toy_runs import DIAGONAL, Score, changed, run

SDG, DAPSAM = PROTOCOLS["sdg"], PROTOCOLS["dapsam"]


def matrix(records: list[RunRecord], protocol=SDG, metric: str = "dice", structure: str | None = None, variant="erm"):
    return Study(records, protocol).matrix(variant, metric, structure)


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
    assert Study([a, b], SDG).row("erm").worst == "C"


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


def test_a_case_empty_in_both_masks_is_left_out_and_counted():
    cells = Study([run("erm", "A", {"A": [0.9], "B": [0.8, "both_empty"], "C": [0.7]})], SDG).cells
    cell = cells[(cells["target"] == "B") & (cells["metric"] == "dice")].iloc[0]
    assert (cell["value"], cell["n_cases"], cell["n_both_empty"], cell["n_missed"]) == (0.8, 2, 1, 0)


def test_a_target_whose_references_are_all_empty_is_blank_and_in_no_average_whatever_is_found_there():
    for found in ("both_empty", "false_positive"):
        m = matrix([run("erm", "A", {"A": [0.9], "B": [found], "C": [0.7]})])
        assert math.isnan(m.values.loc["A", "B"])
        assert m.values.loc["A", "mean"] == pytest.approx(0.7) == pytest.approx(m.mean)
        assert (m.false["A"], m.absent["A"]) == (found == "false_positive", 1)


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
        _ = Study(records, SDG).cells
    assert "erm/A-seed0" in error.value.cause and "other/A-seed0" in error.value.cause


def test_runs_are_read_by_their_own_protocol():
    with pytest.raises(UsageError, match="runs of protocol sdg, not dapsam"):
        _ = Study([run("erm", "A", UNEQUAL)], DAPSAM).cells


def test_runs_tested_on_different_cases_are_not_compared():
    with pytest.raises(DataError, match="different cases of domain 'C'"):
        _ = Study([run("erm", "A", UNEQUAL), run("other", "A", {**UNEQUAL, "C": [0.9]})], SDG).cells


def test_a_run_counts_once():
    with pytest.raises(DataError, match="one run twice"):
        _ = Study([run("erm", "A", UNEQUAL), run("erm", "A", UNEQUAL)], SDG).cells


def test_a_case_counts_once():
    once = run("erm", "A", UNEQUAL)
    twice = changed(once, cases=pd.concat([once.cases, once.cases.iloc[:1]]))
    with pytest.raises(DataError, match="case A-0 of domain 'A' twice"):
        _ = Study([twice], SDG).cells


def test_a_domain_that_the_task_does_not_have_is_an_error():
    with pytest.raises(DataError, match="domain 'D'"):
        _ = Study([run("erm", "A", {**UNEQUAL, "D": [0.5]})], SDG).cells


def test_no_run_is_no_table():
    with pytest.raises(UsageError, match="no complete run"):
        _ = Study([], SDG).cells


# --- one row per variant ---------------------------------------------------------------------------------------------


def several() -> list[RunRecord]:
    """Two variants and an oracle, two sources, a test-only domain; erm with two seeds and a missed structure."""
    b = {"A": [0.82], "B": [0.9, 0.94], "C": [0.6, 0.7, 0.68]}
    dapsam: dict[str, Any] = {"initialisation": {"sam_vit_b_01ec64.pth": "ec2df6"}}
    oracle: dict[str, Any] = {"needs": {"needs_batch": False, "uses_target_masks": True, "adapts_in_testing": False}}
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
    return Study(records, SDG).summary().set_index("variant")


def test_a_summary_names_the_worst_target_and_what_is_lost_outside_the_source():
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


def test_a_row_is_of_all_sources_and_its_spread_that_of_their_mean():
    """Of what was found 0.6 and 0.8 from A, 0.5 from B; with a miss in two cases of C, 3/4 of each."""
    a = [run("erm", "A", {"A": [0.9], "B": [x], "C": [x, "missed"]}, n) for n, x in enumerate((0.6, 0.8))]
    b = [run("erm", "B", {"A": [0.5], "B": [0.7], "C": [0.5, "missed"]}, n) for n in (0, 1)]
    row = Study([*a, *b], SDG).row("erm")
    assert (row.found, row.mean) == (pytest.approx((0.7 + 0.5) / 2), pytest.approx(0.75 * 0.6))
    assert row.seed_std == pytest.approx(stdev([0.75 * (0.6 + 0.5) / 2, 0.75 * (0.8 + 0.5) / 2]))
    assert row.validation == pytest.approx(0.8) and row.gap == pytest.approx(0.8 - 0.45)


def test_a_row_tells_the_mean_time_of_its_runs_the_most_memory_and_what_one_of_them_counted():
    one, other = (run("erm", "A", UNEQUAL, seed) for seed in (0, 1))
    one.record["costs"] = {**one.record["costs"], "train_seconds": 60.0, "test_seconds": 4.0, "peak_memory_mb": 800}
    more = {"train_seconds": 100.0, "test_seconds": 5.0, "peak_memory_mb": 900, "train_flops": 5e12}
    other.record["costs"] = {**other.record["costs"], **more}
    row = Study([one, other], SDG).row("erm")
    assert (row.train_seconds, row.test_seconds, row.memory_mb, row.train_flops) == (80.0, 4.5, 900, 5e12)
    assert math.isnan(row.predict_image_flops)  # nobody counted it


def test_an_incomplete_variant_has_no_mean_and_no_worst_target():
    row = overview([run("erm", "A", {"A": [0.9], "B": [0.8]})]).loc["erm"]
    assert math.isnan(row["dice"]) and row["worst_target"] == ""


# --- derived once ----------------------------------------------------------------------------------------------------


def test_every_number_is_derived_once():
    study = Study(several(), SDG)
    assert study.cells is study.cells and study.cases is study.cases
    assert study.matrix("erm", "asd") is study.matrix("erm", "asd")
    assert study.row("erm") is study.row("erm")


def test_the_order_of_the_runs_changes_nothing():
    records = several()
    random.Random(0).shuffle(records)
    shuffled = [changed(r, cases=r.cases.sample(frac=1, random_state=1)) for r in records]
    pd.testing.assert_frame_equal(Study(shuffled, SDG).cells, Study(several(), SDG).cells)


def test_a_case_scores_the_same_wherever_it_is_asked_for():
    """In a mean over seeds, in one run, on a leaderboard: a case empty in both masks is in none of them."""
    one = run("erm", "A", {"A": [0.9], "B": [0.8, "both_empty"], "C": [0.7, 0.5]})
    study = Study([one], SDG)
    expected = {("B", "B-0"): 0.8, ("C", "C-0"): 0.7, ("C", "C-1"): 0.5}
    assert run_scores(one).to_dict() == pytest.approx(expected)
    assert study.case_means().droplevel("variant").to_dict() == pytest.approx(expected)
    found, cases, *_ = study.target_cases()
    weighing = zip(cases, found["erm"].of_case, found["erm"].weight, strict=True)
    assert {case: score for case, score, weight in weighing if weight} == pytest.approx(expected)


def with_groups(record: RunRecord, **group: str) -> RunRecord:
    """The same run with a column group, as given by case."""
    names = record.cases["case"].map(lambda c: group.get(c.replace("-", ""), c))
    return changed(record, cases=record.cases.assign(group=names))


def test_cases_of_a_patient_are_drawn_together_and_scores_that_do_not_say_so_learn_it():
    scores = {"A": [0.9], "B": [0.8, 0.6, 0.7], "C": [0.7, 0.5]}
    told = with_groups(run("erm", "A", scores), B0="P1", B1="P1")
    published = run("mine", "A", scores)
    found = Study([told, published], SDG).target_cases()
    assert found.cases == [("B", "B-0"), ("B", "B-1"), ("B", "B-2"), ("C", "C-0"), ("C", "C-1")]
    assert found.group is not None and found.group.tolist() == [0, 0, 1, 2, 3]
    assert found.scores["mine"].group is found.group and found.counting_groups == ["B", "B", "C", "C"]
    assert Study([published], SDG).target_cases().group is None


def test_a_case_without_any_structure_is_drawn_apart_unless_its_patient_has_another():
    """Weight 0 it has either way: drawn with the others it would only take their place."""
    scores = {"A": [0.9], "B": [0.8, "both_empty", "both_empty", 0.6], "C": [0.7]}
    alone = Study([run("erm", "A", scores)], SDG).target_cases()
    assert alone.domain.tolist() == [0, 2, 2, 0, 1] and alone.counting == ["B", "B", "C"]
    found = Study([with_groups(run("erm", "A", scores), B0="P1", B1="P1")], SDG).target_cases()
    assert found.domain.tolist() == [0, 0, 2, 0, 1] and found.counting_groups == ["B", "B", "C"]
    assert found.scores["erm"].weight.tolist() == alone.scores["erm"].weight.tolist() == [0.25, 0, 0, 0.25, 0.5]


def test_a_name_in_two_domains_is_one_patient_only_where_domains_are_paired():
    scores = {"A": [0.9], "B": [0.8, 0.6], "C": [0.7, 0.5]}
    one = with_groups(run("erm", "A", scores), B0="P1", C0="P1", B1="P2", C1="P2")
    assert Study([one], SDG).target_cases().group is None
    paired = with_groups(run("erm", "A", scores, paired=True), B0="P1", C0="P1", B1="P2", C1="P2")
    assert Study([paired], SDG).target_cases().group.tolist() == [0, 1, 0, 1]


def test_sources_of_paired_domains_may_test_other_cases_each():
    scores = {"A": {"A": [0.9], "C": [0.8, 0.6]}, "B": {"B": [0.9], "C": [0.5, 0.3, 0.1]}}
    two = {"targets": ["C"], "sources": ["A", "B"]}
    with pytest.raises(DataError, match="were tested on different cases of domain 'C'"):
        _ = Study([run("erm", s, of, **two) for s, of in scores.items()], SDG).cases
    study = Study([run("erm", s, of, paired=True, **two) for s, of in scores.items()], SDG)
    assert study.matrix("erm").mean == pytest.approx((0.7 + 0.3) / 2)
    assert study.target_cases().scores["erm"].mean == pytest.approx(0.5)


def test_a_case_with_a_missed_structure_has_no_distance_in_protocol_dapsam():
    two = {"disc": ["missed"], "cup": [0.5]}
    one = run("erm", "A", {"B": two, "C": two})
    lost = run("erm", "A", {"B": two, "C": two}, protocol="dapsam")
    assert math.isnan(run_scores(lost, "asd")["B", "B-0"])
    assert run_scores(one, "asd")["B", "B-0"] == pytest.approx((DIAGONAL + 5) / 2)


# --- from folders ----------------------------------------------------------------------------------------------------

LEVELS = {"A": [0.9], "B": [0.8], "C": [0.7]}


def on_disk(results: Path, *runs: RunRecord) -> Path:
    """The run folders, as `dgbench run` leaves them, but for weights and predictions."""
    for r in runs:
        folder = results / Path(*r.path.parts[1:])
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"started": "2026-01-01", "data": {"A": "1f"}, **r.record}))
        r.cases.to_csv(folder / "cases.csv", index=False)
        (folder / "history.jsonl").write_text("")
        files = {n: sha256(folder / n) for n in ("run.json", "cases.csv", "history.jsonl")}
        (folder / "RESULT.json").write_text(json.dumps({"schema": 1, "files": files}))
    return results


def every_source(variant: str, levels: dict = LEVELS, **record: Any) -> list[RunRecord]:
    return [run(variant, source, levels, **record) for source in levels]


def test_a_folder_that_was_changed_is_left_out_and_named(tmp_path: Path):
    on_disk(tmp_path, *every_source("good"), *every_source("bad"))
    (tmp_path / "toy/sdg/bad/A-seed0/cases.csv").write_text("nothing")
    study = Study.load(tmp_path, "toy", "sdg")
    assert len(study.records) == 5
    assert len(study.left_out) == 1 and "A-seed0: cases.csv missing or changed" in study.left_out[0]


def test_a_copied_folder_is_left_out_and_one_that_differs_is_not_chosen_for(tmp_path: Path):
    on_disk(tmp_path, *every_source("good"))
    folder = tmp_path / "toy/sdg/good/A-seed0"
    copy = shutil.copytree(folder, folder.with_name("A-seed0 (copy)"))
    study = Study.load(tmp_path, "toy", "sdg")
    assert [r.path for r in study.records if r.source == "A"] == [folder]
    assert study.left_out == (f"Left out: {copy}, a copy of {folder}.",)
    other = json.loads((copy / "run.json").read_text()) | {"started": "2026-01-02"}
    (copy / "run.json").write_text(json.dumps(other))
    result = json.loads((copy / "RESULT.json").read_text())
    result["files"]["run.json"] = sha256(copy / "run.json")
    (copy / "RESULT.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match="one run twice") as told:
        Study.load(tmp_path, "toy", "sdg")
    assert str(copy) in told.value.cause and str(folder) in told.value.cause


BROKEN = {
    "RESULT.json holds a list": ("RESULT.json", lambda text: "[]", "holds no finished run"),
    "RESULT.json says nothing": ("RESULT.json", lambda text: "{}", "RESULT.json missing or changed"),
    "files are a list": ("RESULT.json", lambda text: '{"schema": 1, "files": []}', "RESULT.json missing or changed"),
    "run.json holds a list": ("run.json", lambda text: "[]", "run.json is damaged"),
    "run.json is of elsewhere": ("run.json", lambda text: text.replace('"unit"', '"u"'), "run.json lacks unit"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_folder_of_whatever_content_is_left_out_and_named_and_the_others_make_their_table(tmp_path: Path, what: str):
    on_disk(tmp_path, *every_source("good"), *every_source("bad"))
    name, change, said = BROKEN[what]
    folder = tmp_path / "toy/sdg/bad/A-seed0"
    (folder / name).write_text(change((folder / name).read_text()))
    if name == "run.json":  # and whole, as far as checksums tell
        result = json.loads((folder / "RESULT.json").read_text())
        result["files"]["run.json"] = sha256(folder / "run.json")
        (folder / "RESULT.json").write_text(json.dumps(result))
    study = Study.load(tmp_path, "toy", "sdg")
    assert len(study.records) == 5 and set(study.runs) == {"good", "bad"}
    assert len(study.left_out) == 1 and str(folder) in study.left_out[0] and said in study.left_out[0]


def test_scores_are_all_that_need_be_passed_on(tmp_path: Path):
    for path in on_disk(tmp_path, *every_source("good")).rglob("history.jsonl"):
        path.unlink()
    study = Study.load(tmp_path, "toy", "sdg")
    assert len(study.records) == 3 and not study.left_out
    assert study.records[0].history.empty and not study.records[0].has_predictions


def test_runs_on_older_images_are_left_out_and_counted(tmp_path: Path):
    on_disk(tmp_path, *every_source("old", data={"A": "0a"}, started="2025"), *every_source("good"))
    study = Study.load(tmp_path, "toy", "sdg")
    assert list(study.runs) == ["good"]
    assert study.left_out == ("Left out: 3 runs on other images or by other metrics than the newest run (old).",)


def test_newer_runs_of_others_on_other_images_do_not_drive_out_ones_own(tmp_path: Path):
    on_disk(tmp_path / "ours", *every_source("good", started="2025"))
    on_disk(tmp_path / "theirs", *every_source("new", data={"A": "0a"}, started="2026"))
    study = Study.load(tmp_path / "ours", "toy", "sdg", beside=[tmp_path / "theirs"])
    assert list(study.runs) == ["good"]
    assert study.left_out == ("Left out: 3 runs on other images or by other metrics than the newest run (new).",)


def test_images_that_the_newest_run_does_not_name_are_those_of_the_first_that_does(tmp_path: Path):
    """Each names the images of the domains that it saw."""
    both, odd = ({"data": {"A": "1f", "B": b}, "started": "2025"} for b in ("1f", "2e"))
    on_disk(tmp_path, *every_source("both", **both), *every_source("newest"), *every_source("odd", **odd))
    study = Study.load(tmp_path, "toy", "sdg")
    assert list(study.runs) == ["both", "newest"]
    assert study.left_out == ("Left out: 3 runs on other images or by other metrics than the newest run (odd).",)


def test_one_run_that_is_left_out_is_told_as_one(tmp_path: Path):
    on_disk(tmp_path, run("old", "A", LEVELS, unit="px", started="2025"), *every_source("good"))
    assert Study.load(tmp_path, "toy", "sdg").left_out == (
        "Left out: 1 run with another unit than the newest run (old).",
    )


def test_a_domain_added_to_the_task_leaves_older_variants_out_and_names_them(tmp_path: Path):
    more = {**LEVELS, "D": [0.6]}
    on_disk(tmp_path, *every_source("old", started="2025"), *every_source("new", more, domains=list(more)))
    study = Study.load(tmp_path, "toy", "sdg")
    assert list(study.runs) == ["new"] and study.domains == ["A", "B", "C", "D"]
    assert study.left_out == ("Left out: 3 runs with other domains than the newest run (old).",)


def test_no_runs_is_an_error_with_a_remedy(tmp_path: Path):
    with pytest.raises(UsageError, match="no finished run of task toy"):
        Study.load(tmp_path, "toy", "sdg")


@pytest.mark.parametrize(("typed", "meant"), [("nuclie", "nuclei"), ("clinc", "clinic")])
def test_a_task_that_is_misspelt_is_guessed_among_those_that_are_known_and_those_of_the_runs(
    tmp_path: Path, typed: str, meant: str
):
    on_disk(tmp_path, *every_source("erm"))
    (tmp_path / "toy").rename(tmp_path / "clinic")
    with pytest.raises(UsageError, match=f"no finished run of task {typed}") as raised:
        Study.load(tmp_path, typed, "sdg")
    assert raised.value.remedy.startswith(f"did you mean '{meant}'? make some: dgbench run --task {typed}")


def test_a_task_that_is_known_is_not_guessed(tmp_path: Path):
    with pytest.raises(UsageError) as raised:
        Study.load(tmp_path, "fundus", "sdg")
    assert raised.value.remedy.startswith("make some: dgbench run --task fundus")
