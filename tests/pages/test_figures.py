"""Figures of the report: what is drawn where, and that a page can hold them in its own colours and nobody's markup."""

import base64
import io
import math
import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dgbench.pages import figures
from dgbench.pages.figures import Interval

ROWS = [Interval(80, 75, 85), Interval(70, 60, 82), Interval(50, math.nan, math.nan)]


def forest(names: tuple[str, ...] = ("best", "next", "apart"), **more) -> Figure:
    return figures.forest(names, {"mean": ROWS[: len(names)], "A": ROWS[: len(names)]}, "Dice (%)", 2, **more)


def drawn(figure: Figure) -> str:
    return figures.svg(figure, "one")


def words(svg: str) -> list[str]:
    return ["".join(t.itertext()).strip() for t in ElementTree.fromstring(svg).iter() if t.tag.endswith("text")]


# --- forest and ranks ------------------------------------------------------------------------------------------------


def test_a_forest_plot_has_a_point_and_its_interval_for_each_variant_and_panel():
    for axes in forest().axes:
        points = [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "o"]
        assert points == [(80, 0), (70, 1), (50, 2)]
        spans = [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2][:4:1]
        assert (75, 85) in spans and (60, 82) in spans


def test_a_variant_that_is_not_ranked_is_hollow():
    markers = [line for line in forest().axes[0].lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in markers] == [False, False, True]


def test_all_panels_share_one_scale_which_ends_where_the_metric_does():
    figure = figures.forest(["a"], {"A": [Interval(1, -9, 700)], "B": [Interval(9, 8, 10)]}, "Dice (%)", 1, (-2, 102))
    assert {axes.get_xlim() for axes in figure.axes} == {(-2, 102)}


def test_a_bar_joins_the_longest_runs_of_ranks_within_the_critical_difference():
    #        1.0 1.5 2.2 4.0 4.9: 1.0-1.5 lies within 1.5-2.2's reach of 1.0; 2.2 is 1.2 from 1.0
    assert figures.cliques([1.0, 1.5, 2.2, 4.0, 4.9], 1.3) == [(0, 2), (3, 4)]
    assert figures.cliques([1.0, 1.5, 2.2, 4.0, 4.9], 1.0) == [(0, 1), (1, 2), (3, 4)]
    assert figures.cliques([1.0, 2.0, 3.0], 0.5) == []
    assert figures.cliques([2.0, 2.0], 0.5) == [(0, 1)]


def test_a_critical_difference_diagram_names_every_variant_and_its_rank():
    shown = words(drawn(figures.critical_difference({"c": 2.75, "a": 1.25, "b": 2.0}, 1.2)))
    assert {"a", "b", "c", "1.25", "2.00", "2.75", "critical difference 1.20"} <= set(shown)


def test_thirty_variants_with_long_names_do_not_lie_over_each_other():
    ranks = {f"method{i:02}[encoder=resnet34;learning_rate=0.000{i}]": 1 + 0.9 * i for i in range(30)}
    figure = figures.critical_difference(ranks, 5.0)
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[0].texts if "method" in t.get_text()]
    assert len(boxes) == 30
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 for b in boxes)


def test_the_domain_shift_figure_has_a_point_for_every_source_and_target():
    points = pd.DataFrame(
        [("erm", "A", "B", 0.1, 0.3), ("erm", "B", "A", 0.1, 0.1), ("erm", "A", "C", 0.2, 0.5)],
        columns=["variant", "source", "target", "distance", "loss"],
    )
    figure = figures.domain_shift(points, {"erm": 0.5}, ["A", "B"])
    own = [line.get_xydata().tolist() for line in figure.axes[0].lines if line.get_markersize() == 4.5]
    assert own == [[[0.1, 30.0], [0.2, 50.0]], [[0.1, 10.0]]]
    assert figure.axes[0].get_title(loc="left") == f"erm\n{figures.RHO} = 0.50"


# --- what a page holds -----------------------------------------------------------------------------------------------


def test_ink_and_ground_are_the_pages_so_that_a_figure_is_read_in_the_dark():
    svg = drawn(forest())
    assert "#000000" not in svg and "#ffffff" not in svg
    assert "currentColor" in svg and "var(--quiet)" in svg


def test_letters_stay_letters_and_numbers_in_names_are_not_rounded():
    svg = drawn(forest(("erm[learning_rate=0.00031]", "#000000", "$x$")))
    assert {"erm[learning_rate=0.00031]", "#000000", "$x$"} <= set(words(svg))


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a --> b", 'x" onload="y', "]]> &amp; <!--"])
def test_a_name_that_looks_like_markup_is_only_a_name(name: str):
    svg = drawn(forest((name, "b", "c")))
    assert name in " ".join(words(svg))
    tags = [element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()]
    assert "script" not in tags
    assert not any("onload" in element.attrib for element in ElementTree.fromstring(svg).iter())


def test_two_figures_on_a_page_share_no_id_and_each_finds_its_own():
    one, two = (figures.svg(forest(), prefix) for prefix in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', one)) <= ids[0]


def test_a_figure_loads_nothing_and_is_the_same_each_time():
    assert "http" not in drawn(forest()).replace("http://www.w3.org/", "")
    assert drawn(forest()) == drawn(forest())


def test_a_large_figure_is_an_image():
    content = figures.png(forest())
    assert Image.open(io.BytesIO(base64.b64decode(content.partition(",")[2]))).format == "PNG"


# --- pictures --------------------------------------------------------------------------------------------------------


def numbers(path: str) -> np.ndarray:
    return np.array([[float(v) for v in point.split()] for point in re.split("[MLZ]+", path) if point])


def test_a_contour_runs_along_the_outer_edge_of_a_masks_pixels():
    mask = np.zeros((1, 4, 6), bool)
    mask[0, 1:3, 1:4] = True  # rows 1 and 2, columns 1 to 3
    points = numbers(figures.outline(mask))
    assert points.min(axis=0).tolist() == [1, 1]
    assert points.max(axis=0).tolist() == [4, 3]


def test_a_contour_closes_at_the_images_edge_and_an_empty_mask_has_none():
    assert numbers(figures.outline(np.ones((1, 4, 6), bool))).max(axis=0).tolist() == [6, 4]
    assert figures.outline(np.zeros((2, 4, 6), bool)) == ""


def test_two_structures_have_two_contours():
    masks = np.zeros((2, 8, 8), bool)
    masks[0, 1:4, 1:4] = masks[1, 5:7, 5:7] = True
    assert figures.outline(masks).count("M") == 2


def test_a_picture_is_small_and_its_contours_are_in_the_pixels_of_the_image():
    mask = np.zeros((1, 1500, 1200), bool)
    mask[0, 300:900, 300:600] = True
    picture = figures.picture(np.linspace(0, 1, 1500 * 1200).reshape(1500, 1200), mask, ~mask)
    stored = Image.open(io.BytesIO(base64.b64decode(picture.uri.partition(",")[2])))
    assert max(stored.size) == 320
    assert (picture.width, picture.height) == (1200, 1500)
    assert numbers(picture.reference).max(axis=0).tolist() == pytest.approx([600, 900], abs=2)
    assert len(picture.uri) < 60_000


def test_a_colour_photograph_stays_in_colour():
    red = np.zeros((8, 8, 3))
    red[..., 0] = 1
    mask = np.zeros((1, 8, 8), bool)
    stored = Image.open(io.BytesIO(base64.b64decode(figures.picture(red, mask, mask).uri.partition(",")[2])))
    assert stored.mode == "RGB" and stored.getpixel((4, 4))[0] > 200
