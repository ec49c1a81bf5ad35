"""Pictures of cases: which are chosen, which slice is shown, and where the contours of its masks run."""

import base64
import io
import math
import re

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from PIL import Image

from dgbench.pages import pictures
from dgbench.pages.pictures import Slice
from tests.toy_runs import run

# --- figures ---------------------------------------------------------------------------------------------------------


def square(at: int, size: int = 4, k: int = 1) -> np.ndarray:
    mask = np.zeros((k, 16, 16), bool)
    mask[:, at : at + size, at : at + size] = True
    return mask


def test_the_prediction_is_drawn_in_its_own_colour_around_the_mask():
    figure = pictures.overlays({"a": Slice(np.zeros((16, 16)), square(2), square(8))})
    reference, prediction = figure.axes[0].collections
    assert reference.get_edgecolor()[0] == pytest.approx(to_rgba(pictures.REFERENCE))
    assert prediction.get_edgecolor()[0] == pytest.approx(to_rgba(pictures.PREDICTION))
    vertices = prediction.get_paths()[0].vertices
    assert (vertices.min(), vertices.max()) == (7.5, 11.5)  # pixels 8 to 11, each half a pixel wide to both sides


def test_the_contour_of_a_mask_at_the_edge_of_the_image_is_closed():
    figure = pictures.overlays({"a": Slice(np.zeros((16, 16)), square(0), square(0, 16))})
    vertices = figure.axes[0].collections[1].get_paths()[0].vertices
    assert (vertices.min(), vertices.max()) == (-0.5, 15.5)
    assert tuple(vertices[0]) == tuple(vertices[-1])


@pytest.mark.filterwarnings("error")
def test_an_empty_prediction_draws_no_contour():
    figure = pictures.overlays({"missed": Slice(np.zeros((16, 16, 3)), square(2, k=2), square(2, k=2) & False)})
    (reference,) = figure.axes[0].collections
    assert len(reference.get_paths()) == 2  # its two structures


def test_best_median_and_worst_cases_are_chosen_over_all_runs_of_a_variant():
    records = [
        run("erm", "A", {"A": [0.99], "B": [0.8, "missed"], "C": [0.7]}),
        run("erm", "B", {"A": [0.5], "B": [0.01], "C": [0.9]}),
    ]
    chosen = {word: (e.run.source, e.domain, e.case, e.dice) for word, e in pictures.notable(records).items()}
    assert chosen == {
        "best": ("B", "C", "C-0", 0.9),
        "median": ("A", "C", "C-0", 0.7),
        "worst": ("A", "B", "B-1", 0.0),
    }
    assert pictures.notable(records)["best"].where == "B → C, C-0, seed 0"


def test_one_case_is_shown_once():
    assert len(pictures.notable([run("erm", "A", {"A": [0.9], "B": [0.8]})])) == 1


def test_the_worst_cases_are_each_of_the_run_that_did_worst():
    records = [run("erm", "A", {"A": [0.99], "B": [0.8, b], "C": [0.1]}, seed) for seed, b in enumerate((0.4, 0.3))]
    found = [(e.case, e.run.seed, e.dice) for e in pictures.worst(records, 5, {"B"})]  # the images of C are not there
    assert found == [("B-1", 1, 0.3), ("B-0", 0, 0.8)]
    assert len(pictures.worst(records, 1, {"B", "C"})) == 1


def test_what_is_falsely_found_where_there_is_nothing_is_among_the_worst():
    """A whole structure lost, a whole one invented, and half a Dice; what is rightly left empty loses nothing."""
    scores = {"A": [0.9], "B": [0.5, "false_positive", "both_empty", "missed"], "C": [0.8]}
    found = pictures.worst([run("erm", "A", scores)], 9, {"B", "C"})
    assert [e.case for e in found] == ["B-1", "B-3", "B-0", "C-0"]
    assert [e.dice for e in found] == pytest.approx([math.nan, 0, 0.5, 0.8], nan_ok=True)


def test_a_case_where_one_structure_is_found_and_another_invented_loses_by_both():
    both = {"organ": [0.8, 0.7], "tumour": ["false_positive", "both_empty"]}
    told = {"structures": ["organ", "tumour"]}
    found = pictures.worst([run("erm", "A", {"B": both}, **told)], 9, {"B"})
    assert [(e.case, e.dice) for e in found] == [("B-0", 0.8), ("B-1", 0.7)]  # 0.2 + 1/2 lost, and 0.3


def test_the_slice_shown_is_the_one_with_most_of_the_structures():
    reference = np.zeros((3, 1, 8, 8), bool)
    reference[1, :, 2:5], reference[2, :, 2:4] = True, True
    image = np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 8, 8), np.float32) / 2
    shown = pictures.telling(image, reference, reference)
    assert (shown.number, shown.of) == (2, 3)
    assert shown.image.shape == (8, 8, 3)
    assert (shown.image == 0.5).all()  # slice 1
    assert pictures.telling(image[:, :1], reference & False, reference).image.shape == (8, 8)


# --- on a page --------------------------------------------------------------------------------------------------------


def numbers(path: str) -> np.ndarray:
    return np.array([[float(v) for v in point.split()] for point in re.split("[MLZ]+", path) if point])


def test_a_contour_runs_along_the_outer_edge_of_a_masks_pixels():
    mask = np.zeros((1, 4, 6), bool)
    mask[0, 1:3, 1:4] = True  # rows 1 and 2, columns 1 to 3
    points = numbers(pictures.svg_path(mask))
    assert points.min(axis=0).tolist() == [1, 1]
    assert points.max(axis=0).tolist() == [4, 3]


def test_a_contour_closes_at_the_images_edge_and_an_empty_mask_has_none():
    assert numbers(pictures.svg_path(np.ones((1, 4, 6), bool))).max(axis=0).tolist() == [6, 4]
    assert pictures.svg_path(np.zeros((2, 4, 6), bool)) == ""


def test_two_structures_have_two_contours():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 1:4, 1:4] = masks[1, 5:7, 5:7] = True
    assert pictures.svg_path(masks).count("M") == 2


def test_a_picture_is_small_and_its_contours_are_in_the_pixels_of_the_image():
    mask = np.zeros((1, 1500, 1200), bool)
    mask[0, 300:900, 300:600] = True
    picture = pictures.picture(Slice(np.linspace(0, 1, 1500 * 1200).reshape(1500, 1200), mask, ~mask))
    stored = Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))
    assert max(stored.size) == 320
    assert (picture.width, picture.height) == (1200, 1500)
    assert numbers(picture.reference).max(axis=0).tolist() == pytest.approx([600, 900], abs=2)
    assert len(picture.uri) < 60_000


def test_a_colour_photograph_stays_in_colour():
    red = np.zeros((8, 8, 3))
    red[..., 0] = 1
    mask = np.zeros((1, 8, 8), bool)
    content = pictures.picture(Slice(red, mask, mask)).uri.partition(",")[2]
    stored = Image.open(io.BytesIO(base64.b64decode(content)))
    assert stored.mode == "RGB" and stored.getpixel((4, 4))[0] > 200
