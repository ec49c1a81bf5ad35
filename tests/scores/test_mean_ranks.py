"""Mean ranks over tasks: by hand, of which boards and rows, and how sure."""

import math

import pytest

from dgbench.protocol import PROTOCOLS
from dgbench.scores.mean_ranks import mean_ranks
from dgbench.scores.ranking import Ranking, rank
from dgbench.scores.study import Study
from tests.toy_runs import run

SPREAD = (-0.02, 0.0, 0.02)


def board(task: str, seeds=(0, 1), metric: str = "dice", **dice: float) -> Ranking:
    """Rows by name that score so on every case, give or take; `erm_published` was published."""
    records = []
    for name, value in dice.items():
        method, published = name.removesuffix("_published"), name.endswith("_published")
        words = {"published": {"board": "b", "words": "Doe.", "metrics": ["dice"]}} if published else {}
        for source in "ABC":
            for seed in seeds:
                cases = {d: [value + s + 0.001 * seed for s in SPREAD] for d in "ABC"}
                variant = f"{method} (published)" if published else method
                told = {"task": task, "data": {}, "method": method} | words
                records.append(run(variant, source, cases, seed, **told))
    return rank(Study(records, PROTOCOLS["sdg"]), metric, draws=300)


@pytest.mark.parametrize("metric", ["dice", "asd"])
def test_a_mean_rank_is_the_mean_over_tasks(metric: str):
    """erm is first, first, second: 4/3; slaug second, second, first: 5/3. No draw of cases can exchange them."""
    levels = {"x": (0.9, 0.3), "y": (0.8, 0.4), "z": (0.2, 0.7)}
    found = mean_ranks({n: board(n, metric=metric, erm=a, slaug=b) for n, (a, b) in levels.items()})
    assert found is not None and found.tasks == ("x", "y", "z") and not found.drawn and math.isnan(found.p)
    assert {row.name: row.mean for row in found.rows} == pytest.approx({"erm": 4 / 3, "slaug": 5 / 3})
    assert all(row.low == row.high == pytest.approx(row.mean) for row in found.rows)
    assert list(found.frame()["mean_rank"]) == [row.mean for row in found.rows]


def test_rows_that_other_boards_lack_are_no_rivals_and_published_ones_are_the_same_row():
    """On x, slaug is third of three, and second of the two that y has as well."""
    found = mean_ranks({"x": board("x", erm=0.9, mixup=0.6, slaug=0.3), "y": board("y", erm_published=0.9, slaug=0.3)})
    assert found is not None
    assert [(row.name, row.mean) for row in found.rows] == [("erm", 1.0), ("slaug", 2.0)]


def test_of_a_board_that_has_a_row_measured_and_published_the_measured_one_counts():
    found = mean_ranks({n: board(n, erm=0.9, erm_published=0.2, slaug=0.5) for n in ("x", "y")})
    assert found is not None
    assert [(row.name, row.mean) for row in found.rows] == [("erm", 1.0), ("slaug", 2.0)]


def test_a_board_that_shares_too_little_is_left_out():
    """Three boards share one row only; two of them share three."""
    boards = {n: board(n, erm=0.9, slaug=0.6, mixup=0.3) for n in ("x", "y")} | {"z": board("z", erm=0.9, cutout=0.5)}
    found = mean_ranks(boards)
    assert found is not None and found.boards == ("x", "y") and len(found.rows) == 3


def test_two_boards_of_one_task_count_as_one():
    """erm: second on both boards of x, first on y: (2 + 1) / 2, not 5 / 3."""
    x, y = board("x", erm=0.3, slaug=0.9), board("y", erm=0.9, slaug=0.3)
    found = mean_ranks({"x": x, "x-128": x, "y": y})
    assert found is not None and found.tasks == ("x", "y")
    assert {row.name: row.mean for row in found.rows} == {"erm": 1.5, "slaug": 1.5}


def test_equal_rows_share_the_mean_of_their_ranks():
    found = mean_ranks({n: board(n, erm=0.5, slaug=0.5, mixup=0.9) for n in ("x", "y")})
    assert found is not None
    assert {row.name: row.mean for row in found.rows} == {"mixup": 1.0, "erm": 2.5, "slaug": 2.5}


def test_from_five_tasks_on_tasks_are_drawn_and_friedman_is_asked():
    """Five tasks with three rows always in one order: chi2 = 12 * 5 / (3 * 4) * (1 + 0 + 1) = 10, p = exp(-5). Where
    one task turns two rows round, five tasks that are drawn hold it k times, binomial with p = 1/5: none in 33 % of the
    draws, more than 2 in 5.8 %, more than 3 in 0.7 %. So 1 + 3/5 is the 97.5th percentile of the mean rank."""
    same = {n: board(n, erm=0.9, slaug=0.6, mixup=0.3) for n in "vwxyz"}
    found = mean_ranks(same)
    assert found is not None and found.drawn and found.p == pytest.approx(math.exp(-5))
    turned = mean_ranks(same | {"z": board("z", erm=0.6, slaug=0.9, mixup=0.3)})
    assert turned is not None
    first = turned.rows[0]
    assert (first.name, first.mean) == ("erm", pytest.approx(1.2))
    assert (first.low, first.high) == (1.0, pytest.approx(1.6))


def test_four_tasks_or_two_rows_are_too_few_for_what_five_tasks_and_three_rows_tell():
    four = mean_ranks({n: board(n, erm=0.9, slaug=0.6, mixup=0.3) for n in "wxyz"})
    assert four is not None and not four.drawn and math.isnan(four.p)
    two = mean_ranks({n: board(n, erm=0.9, slaug=0.6) for n in "vwxyz"})
    assert two is not None and two.drawn and math.isnan(two.p)


def test_without_two_boards_of_the_same_two_rows_there_is_none():
    assert mean_ranks({}) is None
    assert mean_ranks({"x": board("x", erm=0.9, slaug=0.3)}) is None
    assert mean_ranks({"x": board("x", erm=0.9, slaug=0.3), "y": board("y", erm=0.9, mixup=0.3)}) is None
