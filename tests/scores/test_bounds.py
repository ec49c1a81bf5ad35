"""What was reached inside the targets becomes a row: by hand, from runs of nothing but scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from dgbench.pages import figures, leaderboard
from dgbench.protocol import get_protocol
from dgbench.running.records import RunRecord
from dgbench.scores.bounds import joined
from dgbench.scores.ranking import Ranking, rank
from dgbench.scores.study import Study
from tests import toy_runs

SDG = get_protocol("sdg")
TARGETS = {"A": ["B", "C"], "B": ["A", "C"], "C": ["A", "B"]}
INSIDE = {"A": [[0.9, 0.8], [0.7, 0.6]], "B": [[0.9, 0.9], [0.5, 0.5]], "C": [[1.0], [0.8]]}  # by domain and fold
CASES = {d: [f"{d}-{i}" for i in range(sum(map(len, folds)))] for d, folds in INSIDE.items()}


def inside(
    of: Mapping[str, Sequence[Sequence[float]]] = INSIDE, seed: int = 0, variant: str = "erm", **record: Any
) -> list[RunRecord]:
    runs = []
    for domain, folds in of.items():
        names = iter(CASES[domain])
        for n, dice in enumerate(folds, 1):
            told = {"protocol": "in_domain", "started": "2026", "data": {}, "sources": ["A", "B", "C"], **record}
            told |= {"targets": [domain], "fold": n, "folds": 2, "trained_on": [], "targets_of": TARGETS}
            run = toy_runs.run(variant, domain, {domain: dice}, seed, **told)
            run.cases["case"] = [next(names) for _ in dice]
            run.cases["role"] = "target"
            runs.append(run)
    return runs


def beside(variant: str, dice: float, **record: Any) -> list[RunRecord]:
    """Runs of three seeds by `sdg` on the same cases."""
    scores = {d: [dice + 0.01 * i for i in range(len(c))] for d, c in CASES.items()}
    return [toy_runs.run(variant, s, scores, seed, **record) for s in "ABC" for seed in range(3)]


def test_a_targets_value_is_the_mean_of_all_its_folds_and_weighs_as_in_every_row():
    """A 0.75, B 0.7, C 0.9; each is the target of two sources of three."""
    rows, told = joined(inside(), SDG)
    study = Study(rows, SDG)
    row = study.row("erm (in_domain)")
    assert not told and row.bound == "in_domain" and row.knows_targets and not row.oracle
    assert row.targets == pytest.approx({"A": 0.75, "B": 0.7, "C": 0.9})
    assert row.mean == pytest.approx((0.75 + 0.7 + 0.9) / 3)


def test_its_costs_are_those_of_a_fold_on_average():
    runs = inside()
    for i, run in enumerate(runs):
        run.record["costs"]["train_seconds"] = 10.0 * i  # 0 to 50, of six runs
    row = Study(joined(runs, SDG)[0], SDG).row("erm (in_domain)")
    assert (row.train_seconds, row.test_seconds) == (25.0, 4.0)


def test_where_a_target_belongs_to_more_sources_it_weighs_more_as_in_every_row():
    """C is never trained on: both sources have it as a target, and A and B are a target of one source each."""
    of = {"A": ["B", "C"], "B": ["A", "C"]}
    runs = inside()
    for run in runs:
        run.record.update(targets_of=of, sources=["A", "B"])
    study = Study(joined(runs, SDG)[0], SDG)
    assert study.row("erm (in_domain)").mean == pytest.approx(((0.7 + 0.9) / 2 + (0.75 + 0.9) / 2) / 2)


def test_where_domains_show_the_same_patients_only_the_cases_that_others_are_tested_on_count():
    plain = beside("erm", 0.5, paired=True)
    for run in plain:
        vars(run)["cases"] = run.cases[run.cases["case"] != "B-0"]
    rows, _ = joined(inside(paired=True), SDG, plain)
    assert all("B-0" not in set(r.cases["case"]) for r in rows)
    assert Study([*plain, *rows], SDG).row("erm (in_domain)").targets["B"] == pytest.approx((0.9 + 0.5 + 0.5) / 3)


def test_a_missing_fold_makes_its_domain_blank_and_other_seeds_stay():
    runs = [*inside()[1:], *inside(seed=1)]
    rows, told = joined(runs, SDG)
    assert told == ["Inside A: erm, seed 0, lacks runs of some folds, and is blank."]
    assert {r.seed for r in rows if "A" in set(r.cases["domain"])} == {1}


def test_board_and_plot_show_it_apart_with_its_own_reason():
    runs = [*beside("erm", 0.5), *beside("constant", 0.3), *joined([*inside(), *inside(seed=1)], SDG)[0]]
    ranking = rank(Study(runs, SDG), draws=200)
    assert [of.variant for of in ranking.ranked] == ["erm", "constant"]
    (bound,) = ranking.apart
    assert bound.why == "trained inside the target" and bound.row.mean > ranking.ranked[0].row.mean
    assert "trained inside the target" in leaderboard.render(ranking, "md")


def through_all_rows(ranking: Ranking, line: str) -> list[list[float]]:
    """Where vertical lines of a style stand, by panel: the mean, then each target."""
    panels = [[of.get_xdata() for of in a.lines if of.get_linestyle() == line] for a in figures.forest(ranking).axes]
    return [[left for left, right in of if left == right] for of in panels]


def test_two_lines_frame_the_plot_what_knew_the_target_above_and_what_looks_at_no_image_below():
    runs = [*beside("erm", 0.5), *beside("constant", 0.3), *joined([*inside(), *inside(seed=1)], SDG)[0]]
    ranking = rank(Study(runs, SDG), draws=200)
    _, floor = ranking.ranked
    (bound,) = ranking.apart
    above, below = (through_all_rows(ranking, line) for line in ("--", ":"))
    assert above == pytest.approx(np.array([[100 * bound.row.mean], [75], [70], [90]]))
    assert below == pytest.approx(100 * np.array([[floor.row.mean], *([v] for v in floor.row.targets.values())]))
    assert figures.frames(ranking) == {"dashed": ["erm (in_domain)"], "dotted": ["constant"]}


def test_without_a_bound_nothing_frames_the_plot():
    ranking = rank(Study([*beside("erm", 0.5), *beside("other", 0.3)], SDG), draws=200)
    assert figures.frames(ranking) == {} and not any(through_all_rows(ranking, "--") + through_all_rows(ranking, ":"))


def test_constant_trained_inside_the_targets_is_a_bound_from_above_as_any_other_there():
    runs = [*beside("erm", 0.5), *joined(inside(variant="constant"), SDG)[0]]
    ranking = rank(Study(runs, SDG), draws=200)
    assert figures.frames(ranking) == {"dashed": ["constant (in_domain)"]}
