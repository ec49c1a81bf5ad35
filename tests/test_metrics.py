"""What Dice and the surface distances say, on masks small enough to count by hand."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dgbench import metrics
from dgbench.metrics import asd, assd, dice, hd95, image_diagonal, measure, surface_distances

MM = (1.0, 1.0, 1.0)
MEASURES = {"asd": asd, "assd": assd, "hd95": hd95}


def drawn(picture: str) -> np.ndarray:
    """(H, W) mask from a drawing, `#` inside."""
    return np.array([[c == "#" for c in row] for row in picture.split()])


def cube(side: int, corner: tuple[int, int, int] = (2, 2, 2)) -> np.ndarray:
    mask = np.zeros((10, 12, 12), bool)
    mask[tuple(slice(c, c + side) for c in corner)] = True
    return mask


nothing = np.zeros((10, 12, 12), bool)

SQUARE = drawn("""
    .......
    .#####.
    .#####.
    .#####.
    .#####.
    .#####.
    ....... """)
RING = drawn("""
    .......
    .#####.
    .#...#.
    .#...#.
    .#...#.
    .#####.
    ....... """)
DOT = drawn("""
    .......
    .......
    .......
    ...#...
    .......
    .......
    ....... """)
BAR = drawn("""
    .......
    .......
    .......
    ...####
    .......
    .......
    ....... """)


# Dice


def test_dice_of_equal_masks_is_one():
    assert dice(cube(3), cube(3)) == 1


def test_dice_of_masks_that_do_not_meet_is_zero():
    assert dice(cube(2), cube(2, corner=(6, 6, 6))) == 0


def test_dice_of_cubes_that_overlap_by_half():
    assert dice(cube(4), cube(4, corner=(4, 2, 2))) == 0.5


def test_dice_of_a_small_cube_in_a_large_one():
    assert dice(cube(2), cube(4)) == 2 * 8 / (8 + 64)


def test_dice_counts_the_inside_and_surface_distances_do_not():
    assert dice(SQUARE, RING) == 2 * 16 / (25 + 16)
    assert asd(SQUARE, RING, (1, 1)) == 0


# Surface distances


def test_a_cube_moved_by_two_slices_of_3_mm():
    prediction, reference = cube(1), cube(1, corner=(4, 2, 2))
    scores = measure(prediction, reference, (3, 0.6, 0.6))
    assert scores == (0, 6, 6, 6, "", 1, 1)


def test_the_distance_is_between_voxel_centres():
    assert asd(cube(1), cube(1, corner=(2, 5, 6)), (9, 1, 1)) == 5  # 3 down, 4 across


def test_the_surface_of_a_square_is_its_rim_of_16():
    to_dot, to_square = surface_distances(SQUARE, DOT, (1, 1))
    corner, knight, straight = math.sqrt(8), math.sqrt(5), 2
    first_row = [corner, knight, straight, knight, corner]
    rim = [*first_row, knight, knight, straight, straight, knight, knight, *first_row]
    assert to_dot == pytest.approx(rim)
    assert to_square == [2]


def test_the_voxel_in_the_middle_of_a_plus_is_no_border():
    plus = drawn(".#. ### .#.")
    assert len(surface_distances(plus, plus, (1, 1))[0]) == 4


def test_the_rim_of_the_image_is_a_border():
    full = np.ones((4, 5), bool)
    assert len(surface_distances(full, full, (1, 1))[0]) == 4 * 5 - 2 * 3


def test_distances_to_a_bar():
    to_bar, to_dot = surface_distances(DOT, BAR, (1, 2))
    assert to_bar.tolist() == [0]
    assert to_dot.tolist() == [0, 2, 4, 6]


def test_asd_is_directed_and_blind_to_what_the_prediction_leaves_out():
    assert asd(DOT, BAR, (1, 1)) == 0
    assert asd(BAR, DOT, (1, 1)) == (0 + 1 + 2 + 3) / 4


def test_assd_pools_both_directions_so_the_larger_surface_weighs_more():
    assert assd(DOT, BAR, (1, 1)) == (0 + 0 + 1 + 2 + 3) / 5  # not (0 + 1.5) / 2


def test_hd95_interpolates_in_the_pooled_distances():
    # 0 0 1 2 3: rank 0.95 * 4 = 3.8 lies between the fourth and the fifth
    assert hd95(DOT, BAR, (1, 1)) == pytest.approx(2.8)


def test_hd95_forgives_an_island_that_is_under_five_percent_of_the_surfaces():
    island = SQUARE.copy()
    island[0, 0] = True  # 1 of 17 + 16 border voxels, sqrt(2) from the corner
    assert hd95(island, SQUARE, (1, 1)) == 0
    assert assd(island, SQUARE, (1, 1)) == pytest.approx(math.sqrt(2) / 33)


def test_a_cube_in_a_cube():
    # The rim of a 5-cube has 5^3 - 3^3 = 98 voxels. From the single voxel in its middle, the nearest is 2 away.
    to_voxel, to_cube = surface_distances(cube(5), cube(1, corner=(4, 4, 4)), MM)
    assert len(to_voxel) == 98
    assert (to_voxel.min(), to_voxel.max()) == (2, pytest.approx(math.sqrt(12)))
    assert to_cube.tolist() == [2]


# Empty masks


@pytest.mark.parametrize(
    ("prediction", "reference", "overlap", "distance", "flag"),
    [
        (nothing, nothing, math.nan, math.nan, "both_empty"),
        (nothing, cube(2), 0, math.inf, "missed"),
        (cube(2), nothing, 0, math.inf, "false_positive"),
        (cube(2), cube(2), 1, 0, ""),
    ],
    ids=["both empty", "missed", "false positive", "found"],
)
def test_empty_masks(prediction, reference, overlap, distance, flag):
    scores = measure(prediction, reference, MM)
    assert scores[:4] == pytest.approx((overlap, distance, distance, distance), nan_ok=True)
    assert scores[4:] == (flag, prediction.sum(), reference.sum())
    assert dice(prediction, reference) == pytest.approx(overlap, nan_ok=True)
    for f in MEASURES.values():
        assert f(prediction, reference, MM) == pytest.approx(distance, nan_ok=True)


def test_an_empty_mask_has_no_border_and_lies_infinitely_far():
    to_reference, to_prediction = surface_distances(nothing, cube(2), MM)
    assert to_reference.tolist() == []
    assert to_prediction.tolist() == [math.inf] * 8


def test_scores_are_plain_numbers_that_json_can_write():
    assert [type(x) for x in measure(cube(2), cube(3), MM)] == [float, float, float, float, str, int, int]


# Depth


def test_a_volume_of_one_slice_is_measured_as_an_image():
    image = measure(SQUARE, DOT, (1, 2))
    assert measure(SQUARE[None], DOT[None], (5, 1, 2)) == image
    assert image.asd > 0


def test_a_structure_in_one_slice_of_a_volume_is_all_border():
    volume = np.zeros((3, 7, 7), bool)
    volume[1] = SQUARE
    assert len(surface_distances(volume, volume, MM)[0]) == 25
    assert len(surface_distances(SQUARE[None], SQUARE[None], MM)[0]) == 16


def test_the_diagonal_reaches_from_corner_to_corner_of_the_image():
    assert image_diagonal((2, 3, 6), MM) == 7
    assert image_diagonal((2, 3, 6), (10, 10, 10)) == 70
    assert image_diagonal((30, 40), (0.5, 0.5)) == 25


def test_the_diagonal_of_a_volume_of_one_slice_lies_in_the_slice():
    assert image_diagonal((1, 30, 40), (99, 0.5, 0.5)) == 25


def test_a_miss_costs_more_than_the_worst_that_can_be_found():
    corner, opposite = nothing.copy(), nothing.copy()
    corner[0, 0, 0] = opposite[-1, -1, -1] = True
    assert hd95(corner, opposite, (3, 1, 1)) < image_diagonal(nothing.shape, (3, 1, 1)) < math.inf


# How a metric is read and shown

DICE, ASD = metrics.METRICS["dice"], metrics.METRICS["asd"]


def test_dice_is_shown_in_percent_and_a_distance_in_its_unit():
    assert (DICE.number(0.83125), ASD.number(1.5)) == ("83.12", "1.50")
    assert (DICE.unit("mm"), DICE.points("mm")) == ("%", "points")
    assert (ASD.unit("mm"), ASD.points("mm")) == ("mm", "mm")


def test_a_spread_stands_behind_its_number_and_what_is_not_known_is_blank():
    assert DICE.number(0.8, std=0.0123) == "80.00 ± 1.23"
    assert DICE.number(math.nan) == DICE.number(math.nan, std=0.1) == DICE.signed(math.nan) == ""


def test_a_difference_has_a_sign_and_nothing_has_no_minus():
    assert [DICE.signed(d) for d in (0.012, -0.012, 0.0, -0.00001)] == ["+1.20", "-1.20", "+0.00", "+0.00"]


def test_the_best_are_those_that_show_the_best_number():
    assert DICE.best([0.8, 0.81234, math.nan, 0.81231]) == {1, 3}
    assert ASD.best([2.0, 1.0, 3.0]) == {1}
    assert DICE.best([0.8, math.nan]) == DICE.best([]) == set()  # one alone is not the best of anything


def test_less_dice_is_worse_and_more_distance_is_worse():
    assert (DICE.worse(0.8, 0.1), ASD.worse(2.0, 0.5)) == (pytest.approx(0.7), 2.5)
    assert DICE.cost(0.8) < DICE.cost(0.7) and ASD.cost(1.0) < ASD.cost(2.0)
    assert sorted([0.7, math.nan, 0.9], key=DICE.order)[:2] == [0.9, 0.7]
    assert sorted([math.nan, 2.0, 1.0], key=ASD.order)[:2] == [1.0, 2.0]


def test_an_interval_ends_where_values_do():
    assert DICE.possible(-0.1, 1.2) == (0, 1)
    assert ASD.possible(-0.1, 250) == (0, 250)
    assert metrics.METRICS["cldice"].possible(-0.1, 1.2) == (0, 1)


# What is refused


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64])
def test_a_mask_that_is_not_bool_is_refused_rather_than_thresholded(dtype):
    with pytest.raises(TypeError, match=f"prediction must be a bool array, got {np.dtype(dtype)}"):
        measure(cube(2).astype(dtype), cube(2), MM)
    with pytest.raises(TypeError, match=f"reference must be a bool array, got {np.dtype(dtype)}"):
        dice(cube(2), cube(2).astype(dtype))


def test_a_list_is_refused():
    with pytest.raises(TypeError, match="prediction must be a bool array, got list"):
        dice([[True]], np.ones((1, 1), bool))


def test_masks_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"prediction \(7, 6\) and reference \(7, 7\) differ in shape"):
        dice(SQUARE[:, :6], SQUARE)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4, 5)])
def test_masks_that_are_neither_image_nor_volume_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be \(D, H, W\) or \(H, W\)"):
        dice(np.ones(shape, bool), np.ones(shape, bool))


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 1, 1), (1, 0, 1), (1, -1, 1), (1, math.nan, 1), (math.inf, 1, 1)])
def test_a_spacing_that_does_not_fit_is_refused(spacing):
    for call in (lambda: measure(cube(2), cube(3), spacing), lambda: image_diagonal(nothing.shape, spacing)):
        with pytest.raises(ValueError, match="must be 3 positive numbers"):
            call()


def test_the_spacing_must_be_given():
    for f in (*MEASURES.values(), measure, surface_distances):
        with pytest.raises(TypeError, match="spacing"):
            f(cube(2), cube(2))


# Laws. Each side is at least 2 long, since an image of one slice is measured in 2-D.


@st.composite
def pairs(draw):
    """(prediction, reference, spacing): two non-empty masks, 2-D or 3-D."""
    shape = draw(array_shapes(min_dims=2, max_dims=3, min_side=2, max_side=7))
    prediction, reference = draw(arrays(bool, shape)), draw(arrays(bool, shape))
    assume(prediction.any() and reference.any())
    return prediction, reference, tuple(draw(st.floats(0.1, 10)) for _ in shape)


def same(scores, others, scale=1.0):
    """Equal scores, but for rounding and with distances `scale` times as long."""
    return scores[:4] == pytest.approx((others[0], *(scale * d for d in others[1:4])), rel=1e-9, abs=1e-12)


law = settings(max_examples=50, deadline=None)


@law
@given(pairs())
def test_a_mask_is_at_no_distance_from_itself(pair):
    prediction, _, spacing = pair
    assert measure(prediction, prediction, spacing)[:4] == (1, 0, 0, 0)


@law
@given(pairs())
def test_every_score_but_asd_is_symmetric(pair):
    prediction, reference, spacing = pair
    there, back = measure(prediction, reference, spacing), measure(reference, prediction, spacing)
    assert same(there._replace(asd=0), back._replace(asd=0))


@law
@given(pairs())
def test_no_distance_exceeds_the_diagonal(pair):
    prediction, reference, spacing = pair
    scores = measure(prediction, reference, spacing)
    assert 0 <= scores.dice <= 1
    assert all(0 <= d < image_diagonal(prediction.shape, spacing) for d in scores[1:4])


@law
@given(pairs(), st.data())
def test_flipping_both_masks_changes_nothing(pair, data):
    prediction, reference, spacing = pair
    axis = data.draw(st.integers(0, prediction.ndim - 1))
    assert same(
        measure(np.flip(prediction, axis), np.flip(reference, axis), spacing), measure(prediction, reference, spacing)
    )


@law
@given(pairs(), st.data())
def test_permuting_the_axes_with_their_spacing_changes_nothing(pair, data):
    prediction, reference, spacing = pair
    axes = data.draw(st.permutations(range(prediction.ndim)))
    permuted = measure(prediction.transpose(axes), reference.transpose(axes), [spacing[a] for a in axes])
    assert same(permuted, measure(prediction, reference, spacing))


@law
@given(pairs(), st.floats(0.01, 100))
def test_spacing_times_k_gives_distances_times_k(pair, k):
    prediction, reference, spacing = pair
    scaled = measure(prediction, reference, [k * s for s in spacing])
    assert same(scaled, measure(prediction, reference, spacing), scale=k)


@law
@given(pairs(), st.data())
def test_padding_and_so_moving_both_masks_changes_nothing(pair, data):
    prediction, reference, spacing = pair
    widths = [data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) for _ in spacing]
    assert measure(np.pad(prediction, widths), np.pad(reference, widths), spacing) == measure(*pair)


@law
@given(pairs())
def test_the_combined_call_gives_what_the_single_calls_give(pair):
    prediction, reference, spacing = pair
    singles = [dice(prediction, reference), *(f(prediction, reference, spacing) for f in MEASURES.values())]
    assert list(measure(prediction, reference, spacing)[:4]) == singles


@law
@given(pairs())
def test_distances_are_those_of_a_search_through_all_border_voxels(pair):
    prediction, reference, spacing = pair

    def border(mask):
        padded = np.pad(mask, 1)
        steps = [sign * step for step in np.eye(mask.ndim, dtype=int) for sign in (1, -1)]
        return [i for i in np.argwhere(mask) if not all(padded[tuple(i + 1 + step)] for step in steps)]

    p, r = border(prediction), border(reference)
    table = np.array([[math.dist(i * spacing, j * spacing) for j in r] for i in p])
    to_reference, to_prediction = surface_distances(prediction, reference, spacing)
    assert to_reference == pytest.approx(table.min(1), rel=1e-9, abs=1e-12)
    assert to_prediction == pytest.approx(table.min(0), rel=1e-9, abs=1e-12)


@law
@given(pairs())
def test_a_sweep_of_the_box_and_a_search_in_the_tree_give_the_same_distances(pair):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "SWEEP", math.inf)
        swept = measure(*pair)
        patch.setattr(metrics, "SWEEP", 0)
        assert same(measure(*pair), swept)


# MedPy


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scores_equal_those_of_medpy_on_random_pairs():
    pytest.importorskip("medpy")
    benchmark = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "metrics.py"))
    assert max(benchmark["difference"](seed) for seed in range(120)) < 1e-9
