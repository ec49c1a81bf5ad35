"""Is one better than the other: by case, by domain, in words, and between two folders."""

import numpy as np
import pytest
from typer.testing import CliRunner

from dgbench import cli, face
from dgbench.errors import UsageError
from dgbench.protocol import PROTOCOLS
from dgbench.scores import comparison
from dgbench.scores.study import Study
from tests.scores.test_ranking import BAD, DOMAINS, GOOD, runs_of
from tests.scores.test_study import on_disk
from tests.toy_runs import run

SDG = PROTOCOLS["sdg"]


def test_the_difference_is_that_of_the_means():
    c = comparison.compare(Study([*GOOD, *BAD], SDG), "good", "bad")
    assert list(c.differences) == ["all targets", *DOMAINS]
    for name, d in c.differences.items():
        one, other = c.means[name]
        assert d.estimate.mean == pytest.approx(one - other) == pytest.approx(0.2)
    assert c.verdict() == "better"
    assert comparison.compare(Study([*GOOD, *BAD], SDG), "bad", "good").verdict() == "worse"


def test_every_target_has_a_row_of_its_own_cases_and_the_frame_holds_all_of_it():
    """`one` is better by 0.3 on A, 0.2 on B and 0.1 on C, whose cases are 6, 7 and 8: targets weigh the same, 0.2."""
    levels, n = {"A": 0.9, "B": 0.8, "C": 0.7}, {"A": 6, "B": 7, "C": 8}
    spread = {d: [i - (n[d] - 1) / 2 for i in range(n[d])] for d in DOMAINS}
    one, other = (
        {d: [x(d) + e * s for e in spread[d]] for d in DOMAINS} for x, s in ((levels.get, 0.02), (lambda d: 0.6, 0.01))
    )
    runs = [run(v, s, of, seed) for v, of in (("one", one), ("other", other)) for s in DOMAINS for seed in (0, 1)]
    frame = comparison.compare(Study(runs, SDG), "one", "other").frame().set_index("target")
    assert frame.index.tolist() == ["all targets", *DOMAINS] and frame["cases"].tolist() == [21, 6, 7, 8]
    assert frame["one"].tolist() == pytest.approx([0.8, 0.9, 0.8, 0.7])
    assert frame["other"].tolist() == pytest.approx([0.6] * 4)
    assert frame["difference"].tolist() == pytest.approx([0.2, 0.3, 0.2, 0.1])
    # Every case is better: Wilcoxon's p is 2 / 2^n. Holm's: 4 of the smallest, then 3, 2 and 1, and none below these.
    assert frame["p_holm"].tolist() == pytest.approx([4 * 2 / 2**21, 2 / 2**6, 2 * 2 / 2**7, 3 * 2 / 2**8])
    assert (frame["improved"] == 1).all() and (frame["verdict"] == "better").all()
    assert (frame["low"] < frame["difference"]).all() and (frame["difference"] < frame["high"]).all()


def test_distances_are_better_when_they_are_smaller():
    c = comparison.compare(Study([*GOOD, *BAD], SDG), "good", "bad", "asd")
    assert c.differences["all targets"].estimate.mean < 0 and c.verdict() == "better"


def test_what_has_no_mean_is_not_compared():
    lost = runs_of("lost", 0.8, protocol="dapsam")
    lost[0].cases.loc[lost[0].cases["domain"] == "B", ["dice", "asd", "flag"]] = [0.0, float("inf"), "missed"]
    both = Study([*runs_of("good", 0.8, protocol="dapsam"), *lost], PROTOCOLS["dapsam"])
    with pytest.raises(UsageError, match="lost has no mean ASD: prostate of B is missed in 8 of 8 cases"):
        comparison.compare(both, "good", "lost", "asd")


def noisy(variant: str, level: float, seeds=(0, 1, 2)):
    rng = np.random.default_rng(len(variant))
    cases = {d: level + 0.1 * rng.standard_normal(8) for d in DOMAINS}
    return [run(variant, s, {d: list(cases[d] + 0.01 * n) for d in DOMAINS}, n) for s in DOMAINS for n in seeds]


def test_half_a_matrix_is_not_compared():
    with pytest.raises(UsageError, match="partial cannot be compared: no run of source C"):
        comparison.compare(Study([*GOOD, *runs_of("partial", 0.9, sources=("A", "B"))], SDG), "good", "partial")


def test_the_margin_is_the_users():
    runs = [*GOOD, *runs_of("nearly", 0.79)]
    assert comparison.compare(Study(runs, SDG), "good", "nearly", margin=0.02).verdict() == "equivalent"
    assert comparison.compare(Study(runs, SDG), "good", "nearly", margin=0.001).verdict() == "better"


def test_two_folders_are_compared_variant_by_variant():
    before, after = [*runs_of("erm", 0.6), *runs_of("gone", 0.6)], [*runs_of("erm", 0.7), *runs_of("added", 0.6)]
    compared, notes = comparison.folders(Study(before, SDG), Study(after, SDG))
    assert [(c.one, c.other, c.verdict()) for c in compared] == [("erm (after)", "erm (before)", "better")]
    assert notes == ["added: only after", "gone: only before"]


def test_folders_tested_on_other_cases_are_told_apart_not_averaged():
    before, after = runs_of("erm", 0.6), runs_of("erm", 0.7, cases=7)
    compared, notes = comparison.folders(Study(before, SDG), Study(after, SDG))
    assert not compared and "different cases of domain 'A'" in notes[0]


def test_what_differs_between_the_runs_of_two_folders_is_named_with_the_number_of_runs():
    """Of the same source and seed alone: seed 2 was made after only, and has nothing to differ from."""
    before = runs_of("erm", 0.6, seeds=(0, 1), environment={"packages": {"torch": "2.6"}}, hparams={"steps": 10})
    after = runs_of("erm", 0.6, environment={"packages": {"torch": "2.7"}}, hparams={"steps": 10})
    after[0].record["hparams"] = {"steps": 20}
    compared, notes = comparison.folders(Study(before, SDG), Study(after, SDG))
    assert len(compared) == 1
    assert sorted(notes) == ["package torch: 2.6 -> 2.7 (in 6 runs)", "setting steps: 10 -> 20 (in 1 run)"]


def test_scores_that_others_published_are_the_same_in_every_folder_and_are_not_compared():
    told = {"published": {"board": "b", "words": "Doe 2030.", "metrics": ["dice"]}}
    both = Study([*GOOD, *runs_of("theirs", 0.7, **told)], SDG)
    compared, notes = comparison.folders(both, both)
    assert [c.one for c in compared] == ["good (after)"] and compared[0].verdict() == "equivalent" and not notes


def test_a_method_is_enough_where_it_has_one_variant_and_it_is_said_which(tmp_path):
    """What was trained inside the targets is no variant that a method's name could mean."""
    bound = runs_of("other (in_domain)", 0.9, method="other", bound="in_domain")
    study = Study([*GOOD, *runs_of("other[norm=group]", 0.6, method="other"), *bound], SDG)
    c = comparison.compare(study, "other", "good")
    assert (c.one, c.other, c.verdict()) == ("other[norm=group]", "good", "worse")
    results = on_disk(tmp_path, *GOOD, *runs_of("other[norm=group]", 0.6, method="other"))
    told = face.compare("good", "other", "toy", results=results)
    assert told.notes == ("other: its only variant here is other[norm=group].",)
    assert "good is better than other[norm=group]" in told.sentence
    assert face.compare("good", "other[norm=group]", "toy", results=results).notes == ()


def test_of_a_method_with_several_variants_one_must_be_named():
    several = [*runs_of("other[norm=group]", 0.6, method="other"), *runs_of("other[width=8]", 0.5, method="other")]
    with pytest.raises(UsageError, match="'other' is not among the variants of other") as caught:
        comparison.compare(Study([*GOOD, *several], SDG), "good", "other")
    assert caught.value.remedy == "name one: other[norm=group], other[width=8]"
    plain = runs_of("other", 0.7)
    assert comparison.compare(Study([*GOOD, *several, *plain], SDG), "good", "other").other == "other"


def test_what_was_trained_inside_the_targets_is_asked_for_by_its_own_name():
    bound = runs_of("other (in_domain)", 0.9, method="other", bound="in_domain")
    with pytest.raises(UsageError, match="unknown variant 'other'"):
        comparison.compare(Study([*GOOD, *bound], SDG), "other", "good")
    assert comparison.compare(Study([*GOOD, *bound], SDG), "other (in_domain)", "good").verdict() == "better"


def test_a_variant_that_others_made_is_compared_from_their_folder(tmp_path):
    """`--beside`, as the leaderboard has it; two whole folders have none beside them."""
    ours, theirs = on_disk(tmp_path / "ours", *GOOD), on_disk(tmp_path / "theirs", *BAD)
    with pytest.raises(UsageError, match="unknown variant 'bad'"):
        face.compare("bad", "good", "toy", results=ours)
    with pytest.raises(UsageError, match="two folders are compared"):
        face.compare(ours, theirs, "toy", beside=theirs)
    told = ["compare", "bad", "good", "--task", "toy", "--results", str(ours), "--beside", str(theirs)]
    assert "bad is worse than good" in " ".join(CliRunner().invoke(cli.app, told).output.split())
