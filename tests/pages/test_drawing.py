"""What all figures share: that a page can hold them in its own colours and nobody's markup, and files stay the same."""

import base64
import io
import itertools
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure
from PIL import Image

from dgbench.pages import drawing
from dgbench.pages.drawing import styled


@styled
def figure(*names: str) -> Figure:
    """Rows with names, a point in each, in black and gray."""
    made, (axes,) = drawing.row_per_name([*names, "last"], 1, 2.0, (0.1, 0.3))
    axes.plot([0.5] * (len(names) + 1), range(len(names) + 1), "o", color=drawing.GRAY)
    axes.set_title("title")
    return drawing.settled(made)


def drawn(figure: Figure) -> str:
    return drawing.svg(figure, "one")


def words(svg: str) -> list[str]:
    return ["".join(t.itertext()).strip() for t in ElementTree.fromstring(svg).iter() if t.tag.endswith("text")]


def test_the_first_name_is_at_the_top_and_only_the_left_panel_has_names():
    made, (left, right) = drawing.row_per_name(["a", "b"], 2, 2.0, (0.1, 0.3))
    assert left.get_ylim() == right.get_ylim() == (1.5, -0.5)
    assert [t.get_text() for t in left.get_yticklabels()] == ["a", "b"]
    made.draw_without_rendering()
    assert not any(t.get_visible() for t in right.get_yticklabels())


@pytest.mark.parametrize(("n", "across"), [(1, 1), (4, 4), (7, 4), (20, 5)])
def test_panels_stand_in_even_rows_that_fit(n: int, across: int):
    made, grid, found = drawing.panels(n, (2.0, 1.0), (0.5, 0.5))
    assert (len(grid), found) == (n, across)
    assert made.get_figwidth() == 2.0 * across + 0.5


def test_a_variants_settings_are_parted_after_a_semicolon():
    assert drawing.wrap("method[encoder=resnet34;steps=500]", 1.8) == "method[encoder=resnet34;\nsteps=500]"


# --- what a page holds -----------------------------------------------------------------------------------------------


def test_ink_and_ground_are_the_pages_so_that_a_figure_is_read_in_the_dark():
    svg = drawn(figure())
    assert "#000000" not in svg and "#ffffff" not in svg
    assert "currentColor" in svg and "var(--quiet)" in svg


def test_letters_stay_letters_and_numbers_in_names_are_not_rounded():
    svg = drawn(figure("erm[learning_rate=0.00031]", "#000000", "$x$"))
    assert {"erm[learning_rate=0.00031]", "#000000", "$x$"} <= set(words(svg))


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a --> b", 'x" onload="y', "]]> &amp; <!--"])
def test_a_name_that_looks_like_markup_is_only_a_name(name: str):
    svg = drawn(figure(name))
    assert name in " ".join(words(svg))
    tags = [element.tag.rpartition("}")[2] for element in ElementTree.fromstring(svg).iter()]
    assert "script" not in tags
    assert not any("onload" in element.attrib for element in ElementTree.fromstring(svg).iter())


def test_two_figures_on_a_page_share_no_id_and_each_finds_its_own():
    one, two = (drawing.svg(figure(), prefix) for prefix in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (one, two)]
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', one)) <= ids[0]


def test_a_figure_loads_nothing_and_is_the_same_each_time():
    assert "http" not in drawn(figure()).replace("http://www.w3.org/", "")
    assert drawn(figure()) == drawn(figure())


def test_a_large_figure_is_an_image():
    content = drawing.png(figure())
    assert Image.open(io.BytesIO(base64.b64decode(content.partition(",")[2]))).format == "PNG"


def test_a_picture_is_not_blank_and_has_150_dpi(tmp_path: Path):
    with Image.open(drawing.save(figure("a"), tmp_path / "m.png")) as image:
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert len(image.getcolors(1 << 16) or []) > 20
        assert not set(image.info) & {"Software", "Creation Time"}


def test_drawing_needs_no_pyplot_and_no_display(root: Path):
    code = "import sys; from dgbench.pages import figures, pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0


@styled
def test_a_name_of_many_lines_pushes_its_neighbours_away():
    settings = (
        "encoder=tf_efficientnet_lite0",
        "initialisation=efficientnet-lite0.pth",
        "augmentation=none",
        "steps=50",
    )
    long = f"erm[{';'.join(settings)};learning_rate=0.0005]"
    figure, (axes,) = drawing.row_per_name(["constant", long, *"abcdefgh"], 1, 3.0, (0.3, 0.3))
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert axes.get_yticklabels()[1].get_text().count("\n") >= 3
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))
