"""Centre lines and clDice: what it sees and Dice does not, and the way from a task that asks for it to a table."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.console import Console
from scipy.ndimage import label

from dgbench.metrics import FURTHER, MEASURED, METRICS, cldice, dice, skeleton
from dgbench.pages.score_tables import print_study
from dgbench.protocol import get_protocol
from dgbench.scores.study import Study
from tests.toy_runs import run

PICTURE = [  # "#" and "o" are the mask, "#" what scikit-image 0.26's skimage.morphology.thin leaves of it
    ".....#oo..................",
    "......##o..............oo.",
    ".......o#o..........oooooo",
    "........o#o.......oo#oo#oo",
    "#........o#o....oo##o##ooo",
    "#o........o#o.ooo#oo.ooooo",
    "o#oo.......#oooo#oo.......",
    "o#oooooooooo####oo........",
    "oo##ooooooo#oo#o..........",
    ".o#o#######oooo#o.........",
    ".#o.ooooooooo..o#o........",
    ".......ooo......o#o.......",
    ".................o##......",
]
EIGHT = np.ones((3, 3), bool)


def test_the_skeleton_is_that_of_scikit_images_thin():
    drawn = np.array([list(row) for row in PICTURE])
    np.testing.assert_array_equal(skeleton(drawn != "."), drawn == "#")


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_a_skeleton_lies_in_its_mask_in_as_many_pieces_and_has_no_skeleton_but_itself(mask):
    thinned = skeleton(mask)
    assert (thinned <= mask).all() and label(thinned, EIGHT)[1] == label(mask, EIGHT)[1]
    np.testing.assert_array_equal(skeleton(thinned), thinned)
    np.testing.assert_array_equal(skeleton(mask[None])[0], thinned)


def tube(*rows: int) -> np.ndarray:
    mask = np.zeros((12, 40), bool)
    mask[list(rows), 2:38] = True
    return mask


def test_a_vessel_drawn_too_thick_costs_dice_and_no_cldice():
    thin, thick = tube(5, 6, 7), tube(3, 4, 5, 6, 7, 8, 9)
    assert dice(thick, thin) == 0.6 and cldice(thick, thin) == 1.0


def test_a_vessel_that_is_cut_or_beside_costs_cldice():
    whole = tube(5, 6, 7)
    half = whole & (np.arange(40) < 20)
    found = np.count_nonzero(skeleton(whole) & half) / np.count_nonzero(skeleton(whole))
    assert cldice(half, whole) == pytest.approx(2 * found / (1 + found)) and 0.4 < found < 0.6
    assert cldice(tube(1), whole) == 0.0


def test_empty_masks_give_what_they_give_dice_and_volumes_are_refused():
    nothing, something = np.zeros((6, 6), bool), np.eye(6, dtype=bool)
    assert math.isnan(cldice(nothing, nothing))
    assert cldice(something, nothing) == cldice(nothing, something) == 0.0
    assert cldice(np.ones((1, 2, 2), bool), np.ones((1, 2, 2), bool)) == 1.0, "thinning leaves something of a square"
    with pytest.raises(ValueError, match="the skeleton of a volume"):
        cldice(np.ones((2, 4, 4), bool), np.ones((2, 4, 4), bool))
    with pytest.raises(TypeError, match="must be a bool array"):
        cldice(np.ones((4, 4)), np.ones((4, 4)))


def test_every_metric_is_in_all_runs_or_can_be_asked_for():
    assert (*MEASURED, *FURTHER) == tuple(METRICS)


def test_a_task_that_asks_for_it_has_it_in_its_tables_and_others_do_not():
    runs = [run("erm", s, {d: [0.9, 0.8] for d in "ABC"}) for s in "ABC"]
    assert Study(runs, get_protocol("sdg")).metrics == MEASURED
    for record in runs:
        record.record.update({"further_metrics": ["cldice"], "scored_in": "the field of view"})
        record.cases["cldice"] = [0.7, 0.5] * 3
    study = Study(runs, get_protocol("sdg"))
    assert study.metrics == (*MEASURED, "cldice")
    assert study.row("erm", "cldice").mean == pytest.approx(0.6)
    shown = io.StringIO()
    print_study(Console(file=shown, width=160), study)
    assert "Scored in the field of view only." in " ".join(shown.getvalue().split())
    assert "clDice (%)" in shown.getvalue() and "60.00" in shown.getvalue()
