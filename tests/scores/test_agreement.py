"""Whose rows are ranked together: machines agree when a large difference can be excluded, on drawn scores."""

import itertools
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dgbench.files import make_folder, sha256, write_atomic, write_json
from dgbench.pages import leaderboard
from dgbench.protocol import PROTOCOLS
from dgbench.running.records import EXTERNAL, RunRecord
from dgbench.scores import agreement
from dgbench.scores.ranking import Ranking, rank
from dgbench.scores.study import Study, machine
from tests.toy_runs import run

DOMAINS = ("A", "B", "C")
HERE = {"hardware": "AMD EPYC", "device": "cpu", "packages": {"torch": "2.13.0"}}
THERE = {"hardware": "NVIDIA H100", "device": "cuda:1", "packages": {"torch": "2.13.0"}}
SEEDS = (0, 1, 2)


def made(variant: str, means: list[float], environment: dict, sources=DOMAINS, **record: Any) -> list[RunRecord]:
    """Runs whose mean over everything is `means[seed]`: the cases lie about it, as far above as below."""
    return [
        run(
            variant,
            source,
            {d: [mean - 0.05, mean, mean + 0.05] for d in DOMAINS},
            seed,
            environment=environment,
            data=dict.fromkeys(DOMAINS, "1f"),
            **record,
        )
        for (seed, mean), source in itertools.product(enumerate(means), sources)
    ]


ERM = made("erm", [0.68, 0.70, 0.72], HERE)  # 0.02 between seeds


def board(theirs_of_erm: list[RunRecord], *more: list[RunRecord]) -> Ranking:
    """erm and another row made here, one row made there, and what they made of erm there."""
    rows = [*ERM, *made("ours", [0.71, 0.73, 0.75], HERE), *made("theirs", [0.80, 0.81, 0.82], THERE)]
    return rank(Study([*rows, *itertools.chain(*more)], PROTOCOLS["sdg"], again=theirs_of_erm), baseline="erm")


def why(ranking: Ranking) -> dict[str, str]:
    return {of.variant: of.why for of in ranking.apart}


def said(ranking: Ranking) -> str:
    return " ".join(leaderboard.notes(ranking))


# --- the rule --------------------------------------------------------------------------------------------------------


def test_a_machine_is_its_hardware_its_kind_of_device_and_its_torch():
    assert machine({"environment": THERE}) == "NVIDIA H100, cuda, torch 2.13.0"
    assert machine({}) == ""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="of this processor torch knows one kind")
def test_processors_of_one_name_that_compute_with_other_instructions_are_two_machines():
    """All rented ones of a maker may be called "AMD EPYC"; those with AVX2 alone round otherwise than others."""
    tell = "from dgbench.running.description import environment; print(environment('cpu')['hardware'])"
    told = [
        subprocess.run(
            [sys.executable, "-c", tell], capture_output=True, text=True, check=True,
            env=os.environ | {"ATEN_CPU_CAPABILITY": instructions},
        ).stdout
        for instructions in ("default", "avx2")
    ]  # fmt: skip
    assert len(set(told)) == 2 and len({one.partition(" (")[0] for one in told}) == 1


def test_rows_are_ranked_together_when_both_made_erm_and_it_agrees():
    ranking = board(made("erm", [0.71, 0.69, 0.70, 0.10], THERE))  # the fourth seed was made there alone
    assert [of.variant for of in ranking.ranked] == ["theirs", "ours", "erm"]
    (found,) = ranking.machines.others["NVIDIA H100, cuda, torch 2.13.0"]
    assert (found.variant, found.seeds) == ("erm", 3) and found.difference == pytest.approx(0.0)
    # Standard deviations 0.02 and 0.01; the critical value of three seeds is 1.3307 of the pooled one.
    assert found.limit == pytest.approx(1.3307 * math.sqrt((0.02**2 + 0.01**2) / 2), rel=1e-3)
    assert "made on NVIDIA H100, cuda, torch 2.13.0 are ranked with those made on AMD EPYC" in said(ranking)


def test_two_seeds_that_both_made_with_every_source_can_agree():
    third_lacks_a_source = [r for r in made("erm", [0.70, 0.69, 0.10], THERE) if (r.seed, r.source) != (2, "C")]
    ranking = board(third_lacks_a_source)
    (found,) = ranking.machines.others["NVIDIA H100, cuda, torch 2.13.0"]
    assert found.seeds == 2 and found.difference == pytest.approx(0.695 - 0.69) and not ranking.apart


def test_where_another_system_made_its_masks_is_no_matter():
    """They are measured here, and measuring gives the same numbers everywhere: no machine to agree with."""
    masks = made("masks", [0.80, 0.81, 0.82], THERE, origin=EXTERNAL)
    assert rank(Study([*ERM, *masks], PROTOCOLS["sdg"])).machines.others == {}
    reasons = why(board([], masks))
    assert "made on" in reasons["theirs"] and "made on" not in reasons["masks"]


def test_what_others_made_again_is_in_no_number_of_the_board():
    alone, with_theirs = (board(theirs).frame().set_index("variant") for theirs in ([], made("erm", [0.1] * 3, THERE)))
    assert alone.loc["erm", "mean"] == with_theirs.loc["erm", "mean"] == pytest.approx(0.70)
    assert alone.loc["erm", "seeds"] == 3


def test_rows_stand_apart_when_erm_comes_out_otherwise():
    ranking = board(made("erm", [0.73, 0.75, 0.77], THERE))
    assert why(ranking) == {"theirs": "made on NVIDIA H100, cuda, torch 2.13.0, where erm comes out otherwise"}
    assert "are not ranked" in said(ranking) and "erm +5.00 with 3 seeds, at most 2.66" in said(ranking)


def test_rows_stand_apart_when_erm_was_not_made_there():
    ranking = board([])
    assert "no other row was made again with the same seeds" in why(ranking)["theirs"]
    assert "nothing to compare" in said(ranking)


@pytest.mark.parametrize(
    ("theirs", "because"),
    [
        (made("erm", [0.70], THERE), "one seed has no spread"),
        ([r for r in made("erm", [0.0] * 3 + [0.70, 0.71], THERE) if r.seed > 2], "other seeds"),
        (made("erm", [0.68, 0.70, 0.72], THERE, sources=("A", "B")), "a source is missing"),
    ],
)
def test_what_cannot_be_compared_is_no_agreement(theirs, because):
    assert "no other row was made again" in why(board(theirs))["theirs"], because


def test_a_row_that_is_the_same_for_every_seed_tells_nothing():
    same = made("constant", [0.3, 0.3, 0.3], HERE)
    ranking = rank(
        Study(
            [*ERM, *same, *made("theirs", [0.80, 0.81, 0.82], THERE)],
            PROTOCOLS["sdg"],
            again=made("constant", [0.3, 0.3, 0.3], THERE),
        )
    )
    assert "no other row" in why(ranking)["theirs"]


def test_one_row_that_disagrees_is_enough():
    """Both machines made two rows; of the second the means are far apart."""
    theirs = [*made("erm", [0.71, 0.69, 0.70], THERE), *made("ours", [0.91, 0.93, 0.95], THERE)]
    assert "where ours comes out otherwise" in why(board(theirs))["theirs"]


def test_a_row_of_two_machines_needs_their_agreement_too():
    mixed = [*made("mixed", [0.5], HERE), *(r for r in made("mixed", [0.0, 0.5, 0.5], THERE) if r.seed)]
    assert "mixed" in why(board([], mixed)) and "mixed" not in why(board(made("erm", [0.71, 0.69, 0.70], THERE), mixed))


def test_machines_that_differ_in_what_they_find_falsely_alone_do_not_agree():
    """Variants are ranked by the mean less what that costs, and so machines are compared by it."""

    def made_on(environment: dict, falsely: int) -> list[RunRecord]:
        empty = ["false_positive"] * falsely + ["both_empty"] * (4 - falsely)
        return [
            run("erm", s, {d: [0.7 + seed / 100, *empty] for d in DOMAINS}, seed, environment=environment, data={})
            for s, seed in itertools.product(DOMAINS, SEEDS)
        ]

    def on_both(falsely: int) -> agreement.Agreement:
        other = [r.renamed("other") for r in made_on(THERE, falsely)]
        study = Study([*made_on(HERE, 1), *other], PROTOCOLS["sdg"], again=made_on(THERE, falsely))
        (others,) = agreement.machines(study, "dice").others.values()
        return others[0]

    assert on_both(1).difference == pytest.approx(0) and on_both(1).holds
    assert on_both(3).difference == pytest.approx(-2 / 5) and not on_both(3).holds


def test_runs_that_say_nothing_of_their_machine_are_ranked_as_ever():
    ranking = rank(Study([*made("a", [0.7, 0.71], {}), *made("b", [0.6, 0.61], {})], PROTOCOLS["sdg"]))
    assert len(ranking.ranked) == 2 and ranking.machines.others == {} and "Machines" not in said(ranking)


# --- how often it is wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_of_machines_that_differ_by_the_limit_five_in_a_hundred_pass_and_of_equal_ones_most(seeds: int):
    """Two machines, `seeds` normal means each. The share at the limit is the level of the test, by theory 5 %."""
    rng = np.random.default_rng(seeds)
    one, two = rng.standard_normal((2, 40_000, seeds))
    std = np.sqrt((one.var(axis=1, ddof=1) + two.var(axis=1, ddof=1)) / 2)
    most = agreement.limit(seeds, 1.0) * std
    passed = {shift: float((np.abs(two.mean(axis=1) + shift - one.mean(axis=1)) <= most).mean()) for shift in (0, 2.8)}
    assert passed[2.8] == pytest.approx(0.05, abs=0.005)
    assert passed[0] == pytest.approx({2: 0.60, 3: 0.82, 5: 0.97}[seeds], abs=0.01)


def test_one_seed_has_no_limit():
    assert agreement.limit(1, 0.02) == 0.0


# --- from folders ----------------------------------------------------------------------------------------------------


def written(runs: list[RunRecord], results: Path) -> Path:
    for r in runs:
        folder = make_folder(results / r.path.relative_to("results"))
        write_json(folder / "run.json", {**r.record, "started": "2026-01-01"})
        write_atomic(folder / "cases.csv", r.cases.to_csv(index=False))
        files = {name: sha256(folder / name) for name in ("run.json", "cases.csv")}
        write_json(folder / "RESULT.json", {"schema": 1, "files": files})
    return results


def test_results_of_others_are_read_beside_ones_own(tmp_path: Path):
    ours = written(ERM, tmp_path / "ours")
    their_erm = made("erm", [0.71, 0.69, 0.70, 0.70], THERE)
    theirs = written([*their_erm, *made("theirs", [0.80, 0.81, 0.82], THERE)], tmp_path / "theirs")
    study = Study.load(ours, "toy", "sdg", beside=[theirs])
    assert sorted(study.runs) == ["erm", "theirs"] and len(study.runs["erm"]) == 9 and len(study.again) == 12
    assert [of.variant for of in rank(study).ranked] == ["theirs", "erm"]
