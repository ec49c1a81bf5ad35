"""Ranking: what is ranked, what stands apart and why, and that nothing unlike is ever averaged."""

import itertools
import math
import random
from pathlib import Path

import pandas as pd
import pytest

from dgbench.errors import DataError, UsageError
from dgbench.networks.weights import WEIGHTS
from dgbench.protocol import PROTOCOLS
from dgbench.scores.ranking import rank
from dgbench.scores.study import Study
from tests.toy_runs import changed, run

SDG, DAPSAM = PROTOCOLS["sdg"], PROTOCOLS["dapsam"]
DOMAINS = ("A", "B", "C")


def runs_of(variant: str, level: float, seeds=(0, 1, 2), sources=DOMAINS, cases: int = 8, **record):
    """All runs of a variant: eight cases a domain, spread about `level`, some variation between seeds."""
    made = []
    for source, seed in itertools.product(sources, seeds):
        scores = {
            d: [level + 0.05 * math.sin(3 * i + j) + 0.0005 * (seed - 1) for i in range(cases)]
            for j, d in enumerate(DOMAINS)
        }
        made.append(run(variant, source, scores, seed, **record))
    return made


def board(*runs, **options):
    return rank(Study([r for of in runs for r in of], SDG), **options)


GOOD, SAME, BAD = runs_of("good", 0.8), runs_of("same", 0.8), runs_of("bad", 0.6)


# --- ranks -----------------------------------------------------------------------------------------------------------


def test_rows_are_ordered_by_their_mean_and_ranked_by_what_is_sure():
    b = board(BAD, GOOD)
    assert [(r.variant, r.rank) for r in b.ranked] == [("good", (1, 1)), ("bad", (2, 2))]


def test_what_cannot_be_told_apart_shares_its_ranks():
    nearly = runs_of("nearly", 0.8001)
    ranks = {r.variant: r.rank_text for r in board(GOOD, nearly, BAD).ranked}
    assert ranks == {"nearly": "1-2", "good": "1-2", "bad": "3"}


def test_equal_rows_have_equal_ranks():
    ranks = {r.variant: r.rank for r in board(GOOD, SAME, BAD).ranked}
    assert ranks["good"][0] == ranks["same"][0] == 1 and ranks["bad"] == (3, 3)


def test_of_a_distance_the_smallest_is_best():
    assert [r.variant for r in board(BAD, GOOD, metric="asd").ranked] == ["good", "bad"]


def test_the_order_of_the_runs_changes_nothing():
    runs = [*GOOD, *BAD, *SAME]
    expected = board(runs).frame()
    random.Random(0).shuffle(runs)
    pd.testing.assert_frame_equal(board(runs).frame(), expected)


def test_the_names_of_the_variants_change_nothing():
    """Renamed so that their order turns round, each keeps its numbers."""
    before = board(runs_of("a", 0.8), runs_of("b", 0.7), runs_of("c", 0.6), baseline="a").frame()
    after = board(runs_of("z", 0.8), runs_of("y", 0.7), runs_of("x", 0.6), baseline="z").frame()
    assert list(after["variant"]) == ["z", "y", "x"]
    named = ["variant", "method", "baseline"]
    pd.testing.assert_frame_equal(after.drop(columns=named), before.drop(columns=named))


def test_a_number_on_the_board_is_the_number_in_the_matrix():
    b = board(GOOD, BAD)
    for of in b.ranked:
        m, scores = b.study.matrix(of.variant), b.scores[of.variant]
        assert of.row.mean == pytest.approx(m.mean) == pytest.approx(scores.mean)
        assert scores.of_seed.std(ddof=1) == pytest.approx(of.row.seed_std)


def test_pooled_cases_weigh_as_their_protocol_says():
    uneven = [
        run("erm", s, {"A": [0.9], "B": [0.8, 0.6], "C": [0.7, 0.7, 0.1]}, n, protocol="dapsam")
        for s in DOMAINS
        for n in (0, 1)
    ]
    study = Study(uneven, DAPSAM)
    assert study.target_cases().scores["erm"].mean == pytest.approx(study.matrix("erm").mean)


def test_a_case_that_lacks_a_structure_counts_for_the_other_only():
    both = {"structures": ["disc", "cup"]}
    scores = {d: {"disc": [0.9, 0.8], "cup": [0.7, "both_empty"]} for d in DOMAINS}
    runs = [run("erm", s, scores, seed, **both) for s in DOMAINS for seed in (0, 1)]
    found, cases, *_ = Study(runs, SDG).target_cases()
    assert len(cases) == 6
    assert found["erm"].mean == pytest.approx((0.85 + 0.7) / 2)


@pytest.mark.parametrize("metric", ["dice", "asd"])
def test_a_first_place_that_hangs_on_one_target_is_pointed_out(metric: str):
    """`steady` scores 0.7 everywhere; `lucky` 0.9 on target A and less elsewhere, and leads by that alone."""
    levels = {"steady": (0.7, 0.7, 0.7), "lucky": (0.95, 0.6, 0.6), "poor": (0.3, 0.3, 0.3)}
    runs = [
        run(name, source, {d: [x + 0.01 * i for i in range(4)] for d, x in zip(DOMAINS, level, strict=True)}, seed)
        for (name, level), source, seed in itertools.product(levels.items(), DOMAINS, (0, 1))
    ]
    b = board(runs, metric=metric)
    assert [r.variant for r in b.ranked] == ["lucky", "steady", "poor"]
    # On two thirds of the cases steady is first: the averaged ranks turn the two round, one discordant pair of three.
    assert b.stability is not None
    assert b.stability.tau == pytest.approx(1 / 3)
    assert b.stability.firsts == {"A": "steady"}


def test_a_first_place_without_a_target_is_that_of_the_protocols_mean():
    """`x` scores 0.5 from B on C and from C on B, else 0.9: without A the sources' means are 0.9, 0.5 and 0.5."""
    levels = {"x": lambda s, d: 0.5 if {s, d} == {"B", "C"} else 0.9, "y": lambda s, d: 0.65, "z": lambda s, d: 0.1}
    b = board(
        run(v, s, {d: [of(s, d)] * 2 for d in DOMAINS}, seed)
        for (v, of), s, seed in itertools.product(levels.items(), DOMAINS, (0, 1))
    )
    assert [r.variant for r in b.ranked] == ["x", "y", "z"] and b.stability is not None
    assert b.stability.firsts == {"A": "y"}


def test_of_a_single_target_nothing_is_left_out():
    two = {"domains": ["A", "B"], "sources": ["A"]}
    levels = {"x": 0.9, "y": 0.6, "z": 0.1}
    b = board(run(v, "A", {"B": [of] * 3}, seed, **two) for v, of in levels.items() for seed in (0, 1))
    assert b.stability is not None and b.stability.firsts == {}


def test_what_is_found_falsely_counts_in_the_order_by_cases_too():
    """Net of the cost, 1/2 for one of two structures, `eager` is last: 0.9 - 0.5 in every case and so in the mean."""
    both = {"structures": ["disc", "cup"]}
    kinds = {"eager": (0.9, "false_positive"), "calm": (0.8, "both_empty"), "poor": (0.6, "both_empty")}
    b = board(
        run(v, source, {d: {"disc": [disc] * 2, "cup": [cup] * 2} for d in DOMAINS}, seed, **both)
        for (v, (disc, cup)), source, seed in itertools.product(kinds.items(), DOMAINS, (0, 1))
    )
    assert [r.variant for r in b.ranked] == ["calm", "poor", "eager"]
    assert b.stability is not None and b.stability == (pytest.approx(1), {})


def test_a_target_that_is_left_out_takes_what_was_falsely_found_in_it_along():
    """`eager` scores 0.95, less 2/4 on A and 1/4 on B: 0.7 in the mean. Without A 0.95 - 1/8 = 0.825, above 0.8."""
    held = {"A": 2, "B": 3, "C": 4}  # of four cases
    kinds = {"eager": (0.95, "false_positive"), "calm": (0.8, "both_empty"), "poor": (0.3, "both_empty")}
    b = board(
        run(v, source, {d: [dice] * n + [empty] * (4 - n) for d, n in held.items()}, seed)
        for (v, (dice, empty)), source, seed in itertools.product(kinds.items(), DOMAINS, (0, 1))
    )
    assert {r.variant: r.row.net for r in b.ranked} == pytest.approx({"calm": 0.8, "eager": 0.7, "poor": 0.3})
    assert b.stability is not None and b.stability.firsts == {"A": "eager"}


# --- apart -----------------------------------------------------------------------------------------------------------


def reasons(*runs, **options) -> dict[str, str]:
    return {r.variant: r.why for r in board(*runs, **options).apart}


def test_a_row_with_one_seed_is_shown_and_not_ranked():
    b = board(GOOD, runs_of("lucky", 0.95, seeds=(0,)))
    assert [r.variant for r in b.ranked] == ["good"]
    assert b.apart[0].why == "one seed" and b.apart[0].row.mean == pytest.approx(0.95, abs=0.05)


def test_an_oracle_is_never_ranked():
    needs = {"needs_batch": False, "uses_target_masks": True, "adapts_in_testing": False}
    assert "oracle" in reasons(GOOD, runs_of("prompted", 0.95, needs=needs))["prompted"]


def test_a_method_that_adapts_to_the_test_images_stands_apart():
    needs = {"needs_batch": False, "uses_target_masks": False, "adapts_in_testing": True}
    assert "adapts" in reasons(GOOD, runs_of("adapting", 0.95, needs=needs))["adapting"]


def test_a_variant_without_all_sources_has_no_mean_and_says_what_is_missing():
    b = board(GOOD, runs_of("partial", 0.9, sources=("A", "B")))
    assert math.isnan(b.apart[0].row.mean) and b.apart[0].why == "no run of source C"


def test_a_seed_that_lacks_a_source_is_left_out_of_a_row_that_has_others_and_is_told(tmp_path: Path):
    """Else a method that diverged with a seed would stand better for it."""
    extra = run("good", "A", {d: [0.1] * 8 for d in DOMAINS}, seed=7)
    b = board([changed(r, path=tmp_path / r.path) for r in (*GOOD, extra)])
    assert b.ranked[0].row.seeds == (0, 1, 2) and b.ranked[0].row.mean > 0.7
    assert b.study.left_out == ("Seed 7 of good is left out: it has no run of source B, C.",)
    failed = tmp_path / extra.path.parent / "B-seed7"
    failed.mkdir(parents=True)
    (failed / "FAILED.json").write_text('{"cause": "the loss is NaN"}')
    b = board([changed(r, path=tmp_path / r.path) for r in (*GOOD, extra)])
    assert b.study.left_out == ("Seed 7 of good is left out: it has no run of source B (failed), C.",)


def test_distances_in_voxels_of_another_grid_are_not_ranked():
    """Of 48 pixels a side they are twice as large as of 96; an overlap does not depend on it."""
    told = {"protocol": "dapsam", "image_size": 96}
    rows = [*runs_of("usual", 0.8, **told), *runs_of("coarse", 0.9, hparams={"image_size": 48}, **told)]
    assert [r.variant for r in rank(Study(rows, DAPSAM), "dice").ranked] == ["coarse", "usual"]
    by_distance = rank(Study(rows, DAPSAM), "asd")
    assert [r.variant for r in by_distance.ranked] == ["usual"]
    assert by_distance.apart[0].why == "in voxels of a grid of 48 pixels, not 96"


def test_a_mean_that_is_not_defined_is_not_ranked():
    lost = runs_of("lost", 0.8, protocol="dapsam")
    lost[0].cases.loc[lost[0].cases["domain"] == "B", ["dice", "asd", "flag"]] = [0.0, math.inf, "missed"]
    b = rank(Study([*runs_of("good", 0.8, protocol="dapsam"), *lost], DAPSAM), "asd")
    assert [r.variant for r in b.ranked] == ["good"] and "NaN" in b.apart[0].why


@pytest.mark.parametrize(
    ("flag", "because"),
    [
        ("missed", "prostate of B is missed in 6 of 48 cases, and what that costs is not known"),
        ("false_positive", "what a structure falsely found costs is not known"),
    ],
)
def test_what_costs_a_diagonal_that_nobody_knows_leaves_the_mean_undefined_and_says_why(flag: str, because: str):
    """One case of B, in the runs of two sources with three seeds."""
    lost = []
    for r in runs_of("lost", 0.8):
        cases = r.cases.assign(diagonal=math.nan)
        cases.loc[cases["case"] == "B-0", ["dice", "asd", "flag"]] = [0.0, math.inf, flag]
        lost.append(changed(r, cases=cases))
    assert reasons(lost, metric="asd") == {"lost": f"a mean that is not defined: {because}"}


def test_a_failed_run_is_named(tmp_path: Path):
    partial = [changed(r, path=tmp_path / r.path) for r in runs_of("partial", 0.9, sources=("A", "B"))]
    failed = partial[0].path.parent / "C-seed0"
    failed.mkdir(parents=True)
    (failed / "FAILED.json").write_text('{"cause": "the loss is NaN"}')
    assert reasons(GOOD, partial)["partial"] == "no run of source C; failed: source C"


def test_a_failed_run_of_a_source_whose_folder_has_another_name_is_named(tmp_path: Path):
    """A blank in the name of a domain is no part of a folder's name: the report says whose it is."""
    sites = ("site A", "site B", "site C")
    made = [
        run(v, s, {d: [0.8] for d in sites}, seed, domains=list(sites))
        for v, tested in (("good", sites), ("partial", sites[:2]))
        for s in tested
        for seed in (0, 1)
    ]
    made = [changed(r, path=tmp_path / r.path) for r in made]
    failed = made[-1].path.parent / "site_C~1f2e3d-seed0"
    failed.mkdir(parents=True)
    (failed / "FAILED.json").write_text('{"run": "toy/sdg/partial/site C-seed0", "cause": "the loss is NaN"}')
    assert reasons(made)["partial"] == "no run of source site C; failed: source site C"


# --- never averaged --------------------------------------------------------------------------------------------------


def test_two_protocols_are_never_averaged():
    with pytest.raises(UsageError, match="cannot mix protocol"):
        board(GOOD, runs_of("other", 0.8, protocol="dapsam"))


def test_two_versions_of_the_metrics_are_never_averaged():
    with pytest.raises(DataError, match="cannot mix metrics version"):
        board(GOOD, runs_of("other", 0.8, metrics_version=2))


def test_runs_on_other_images_are_never_averaged():
    with pytest.raises(DataError, match="different images of domain 'A'"):
        board(runs_of("good", 0.8, data={"A": "1f"}), runs_of("other", 0.8, data={"A": "2e"}))


# --- against a baseline ---------------------------------------------------------------------------------------------


def test_every_row_is_tested_against_the_baseline_that_was_asked_for():
    b = board(GOOD, SAME, BAD, baseline="bad")
    assert {r.variant: b.verdict(r) for r in b.ranked} == {"good": "better", "same": "better", "bad": ""}


def test_rows_inside_the_margin_are_equivalent():
    b = board(GOOD, runs_of("nearly", 0.799), BAD, baseline="good")
    assert {r.variant: b.verdict(r) for r in b.ranked} == {"good": "", "nearly": "equivalent", "bad": "worse"}
    wide = board(GOOD, runs_of("nearly", 0.79), baseline="good", margin=0.02)
    assert {r.variant: wide.verdict(r) for r in wide.ranked} == {"good": "", "nearly": "equivalent"}


def test_an_unknown_baseline_is_refused():
    with pytest.raises(UsageError, match="unknown variant to compare with 'god'"):
        board(GOOD, BAD, baseline="god")


def test_a_variant_without_a_mean_is_no_baseline():
    with pytest.raises(UsageError, match="unknown variant to compare with 'partial'"):
        board(GOOD, BAD, runs_of("partial", 0.9, sources=("A", "B")), baseline="partial")


def test_a_row_made_by_two_versions_of_its_code_is_pointed_out():
    older = runs_of("good", 0.8, seeds=(0,), code={"method": "1f"})
    newer = runs_of("good", 0.8, seeds=(1, 2), code={"method": "2e"})
    assert board(older, newer).mixed_code == ["good"]
    assert board(GOOD, BAD).mixed_code == []


# --- contaminated ----------------------------------------------------------------------------------------------------


SEEN_BY = {"collections": ["BUSI", "BUS-BRA"], "initialisation": {"m.pth": WEIGHTS["lite_medsam"].sha256}}


def test_a_row_whose_weights_saw_the_images_is_marked_and_ranked():
    b = board(runs_of("tuned", 0.9, **SEEN_BY), GOOD, BAD)
    assert [r.variant for r in b.ranked] == ["tuned", "good", "bad"]
    marks = b.frame().set_index("variant")["contaminated"]
    assert marks.to_dict() == {"tuned": "lite_medsam on BUSI (likely)", "good": "", "bad": ""}


def test_such_rows_can_be_left_out_of_the_ranking_and_what_is_not_known_stays():
    unknown = runs_of("other", 0.85, **{**SEEN_BY, "collections": ["BUS-BRA"]})
    b = board(runs_of("tuned", 0.9, **SEEN_BY), unknown, GOOD, without_contaminated=True)
    assert [r.variant for r in b.ranked] == ["other", "good"]
    assert [(r.variant, r.why) for r in b.apart] == [("tuned", "contaminated: lite_medsam on BUSI (likely)")]
