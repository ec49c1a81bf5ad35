"""Figures are looked at through their artists: what is drawn where, in which colour, and that files stay the same."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from dgbench.pages import plots
from dgbench.protocol import PROTOCOLS
from tests.scores.test_tables import DAPSAM, SDG, UNEQUAL, run, several


def texts(figure: Figure, panel: int = 0) -> list[str]:
    return [t.get_text() for t in figure.axes[panel].texts]


def titles(figure: Figure) -> list[str]:
    return [a.get_title(loc="left") for a in figure.axes]


# --- heat map --------------------------------------------------------------------------------------------------------


def test_a_heat_map_shows_every_number_of_the_matrix_and_the_validation_cases():
    figure = plots.heat_map(
        [run("erm", "A", UNEQUAL), run("erm", "B", {"A": [0.5], "B": [0.9], "C": [0.5, 0.6, 0.7]})], SDG
    )
    assert texts(figure) == [
        "95.0",
        "70.0",
        "90.0",
        "80.0",
        "50.0",
        "90.0",
        "60.0",
        "55.0",
        "50.0",
        "70.0",
        "75.0",
        "67.5",
    ]


def test_only_the_sources_own_cells_are_hatched():
    figure = plots.heat_map(
        [run("erm", "A", UNEQUAL), run("erm", "B", {"A": [0.5], "B": [0.9], "C": [0.5, 0.6, 0.7]})], SDG
    )
    assert [i for i, cell in enumerate(figure.axes[0].patches) if cell.get_hatch()] == [0, 5]  # A from A, B from B


def test_a_blank_cell_is_white_and_without_a_number():
    figure = plots.heat_map([run("erm", "A", {"A": [0.9], "B": [0.8]})], SDG)
    assert texts(figure)[2] == ""
    assert figure.axes[0].patches[2].get_facecolor() == to_rgba("white")


def test_all_variants_share_one_scale_of_colour():
    figure = plots.heat_map([run("one", "A", UNEQUAL), run("two", "A", {**UNEQUAL, "B": [0.7, 0.7]})], SDG)
    same = [axes.patches[1].get_facecolor() for axes in figure.axes[:2]]  # target B: 70 in both
    assert same[0] == same[1]
    assert titles(figure)[:2] == ["one", "two"]


def test_a_heat_map_of_twenty_variants_with_long_names_has_a_panel_for_each():
    records = [run(f"method[encoder=resnet34;steps={n}]", "A", UNEQUAL) for n in range(20)]
    figure = plots.heat_map(records, SDG)
    assert sorted(t.replace("\n", "").replace(" ", "") for t in titles(figure)[:20]) == sorted(
        r.variant for r in records
    )
    assert figure.get_figwidth() < 16


# --- targets ---------------------------------------------------------------------------------------------------------


def test_a_point_is_a_case_and_its_mean_over_sources_and_seeds():
    records = [run("erm", "A", {"A": [0.9], "B": [0.8, 0.6], "C": [c]}, seed) for seed, c in enumerate((0.5, 0.7))]
    records += [run("erm", "B", {"A": [0.4], "B": [0.9], "C": [0.9]}, seed) for seed in (0, 1)]
    figure = plots.target_boxes(records, SDG)
    points = {a.get_title(loc="left"): sorted(a.lines[0].get_xdata()) for a in figure.axes}
    assert points == {
        "A": pytest.approx([40]),
        "B": pytest.approx([60, 80]),
        "C": pytest.approx([(50 + 70 + 90 + 90) / 4]),
    }


def test_a_missed_case_is_a_point_at_the_diagonal():
    figure = plots.target_boxes([run("erm", "A", {"A": [0.9], "B": [0.8, "missed"], "C": [0.7]})], SDG, "asd")
    assert sorted(figure.axes[0].lines[0].get_xdata()) == pytest.approx([2, 100])


def test_a_case_that_is_nan_by_the_protocol_has_no_point_and_the_plot_says_so():
    missed = run("erm", "A", {"A": [0.9], "B": [0.8, "missed"], "C": [0.7]}, protocol="dapsam")
    figure = plots.target_boxes([missed], DAPSAM, "asd")
    assert list(figure.axes[0].lines[0].get_xdata()) == pytest.approx([2])
    assert "a case with NaN has none" in figure.get_suptitle().replace("\n", " ")


def test_every_variant_has_its_row_of_boxes():
    figure = plots.target_boxes(several(), SDG)
    assert [a.get_title(loc="left") for a in figure.axes] == ["A", "B", "C"]
    names = [t.get_text().replace("\n", "").replace(" ", "") for t in figure.axes[0].get_yticklabels()]
    assert names == ["dapsam[memory=64;steps=500]", "erm", "prompted"]


# --- learning curves -------------------------------------------------------------------------------------------------


def test_a_learning_curve_is_a_line_for_each_run_in_the_colour_of_its_source():
    figure = plots.learning_curves(several())
    panels = dict(zip(titles(figure), figure.axes, strict=True))
    assert [line.get_color() for line in panels["erm"].lines] == [plots.COLOURS[i] for i in (0, 0, 1, 1)]
    assert list(panels["erm"].lines[0].get_ydata()) == [1.0, 0.5, 0.4]


def test_a_method_that_does_not_train_has_an_empty_panel_that_says_so():
    record = run("constant", "A", UNEQUAL)
    for history in (pd.DataFrame(), pd.DataFrame({"step": [1], "loss": [0.0]})):
        record.__dict__["history"] = history
        assert texts(plots.learning_curves([record])) == ["no curve"]


# --- overlays --------------------------------------------------------------------------------------------------------


def square(at: int, size: int = 4, k: int = 1) -> np.ndarray:
    mask = np.zeros((k, 16, 16), bool)
    mask[:, at : at + size, at : at + size] = True
    return mask


def test_the_prediction_is_drawn_in_its_own_colour_around_the_mask():
    figure = plots.overlays([plots.Panel("a", np.zeros((16, 16)), square(2), square(8))])
    reference, prediction = figure.axes[0].collections
    assert reference.get_edgecolor()[0] == pytest.approx(to_rgba(plots.REFERENCE))
    assert prediction.get_edgecolor()[0] == pytest.approx(to_rgba(plots.PREDICTION))
    vertices = prediction.get_paths()[0].vertices
    assert (vertices.min(), vertices.max()) == (7.5, 11.5)  # pixels 8 to 11, each half a pixel wide to both sides


def test_the_contour_of_a_mask_at_the_edge_of_the_image_is_closed():
    figure = plots.overlays([plots.Panel("a", np.zeros((16, 16)), square(0), square(0, 16))])
    vertices = figure.axes[0].collections[1].get_paths()[0].vertices
    assert (vertices.min(), vertices.max()) == (-0.5, 15.5)
    assert tuple(vertices[0]) == tuple(vertices[-1])


@pytest.mark.filterwarnings("error")
def test_an_empty_prediction_draws_no_contour():
    figure = plots.overlays([plots.Panel("missed", np.zeros((16, 16, 3)), square(2, k=2), square(2, k=2) & False)])
    assert len(figure.axes[0].collections) == 2  # the two structures of the reference


def test_best_median_and_worst_cases_are_chosen_over_all_runs_of_a_variant():
    records = [
        run("erm", "A", {"A": [0.99], "B": [0.8, "missed"], "C": [0.7]}),
        run("erm", "B", {"A": [0.5], "B": [0.01], "C": [0.9]}),
    ]
    chosen = [(title.partition(":")[0], r.source, domain, case) for title, r, domain, case in plots.notable(records)]
    assert chosen == [("best", "B", "C", "C-0"), ("median", "A", "C", "C-0"), ("worst", "A", "B", "B-1")]
    assert plots.notable(records)[0][0] == "best: Dice 90.00\nB → C, C-0, seed 0"


def test_one_case_is_shown_once():
    assert len(plots.notable([run("erm", "A", {"A": [0.9], "B": [0.8]})])) == 1


def test_the_slice_shown_is_the_one_with_most_of_the_structures():
    reference = np.zeros((3, 1, 8, 8), bool)
    reference[1, :, 2:5], reference[2, :, 2:4] = True, True
    image = np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 8, 8), np.float32) / 2
    shown = plots.panel("t", image, reference, reference)
    assert shown.image.shape == (8, 8, 3)
    assert (shown.image == 0.5).all()  # slice 1
    assert plots.panel("t", image[:, :1], reference & False, reference).image.shape == (8, 8)


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_same_runs_give_the_same_bytes(tmp_path: Path):
    panels = {"erm": [plots.Panel("a", np.zeros((16, 16)), square(2), square(8))]}
    first, second = (
        plots.write([run("erm", "A", UNEQUAL)], SDG, tmp_path / name, panels, ["dice"]) for name in ("a", "b")
    )
    assert [p.name for p in first] == [
        f"{name}.{kind}"
        for name in ("matrix-dice", "targets-dice", "learning-curves", "overlays-erm")
        for kind in ("png", "pdf")
    ]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_a_picture_is_not_blank_and_has_150_dpi(tmp_path: Path):
    path = plots.save(plots.heat_map([run("erm", "A", UNEQUAL)], SDG), tmp_path / "m.png")
    with Image.open(path) as image:
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert len(image.getcolors(1 << 16) or []) > 20
        assert not set(image.info) & {"Software", "Creation Time"}


def test_plotting_needs_no_pyplot_and_no_display():
    code = "import sys; from dgbench import plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_cell_without_any_number_is_no_reason_to_fail(name: str):
    nothing = run("erm", "A", {"A": ["both_empty"], "B": ["both_empty"], "C": ["both_empty"]}, protocol=name)
    figure = plots.heat_map([nothing], PROTOCOLS[name], "asd")
    assert set(texts(figure)) == {""}
    assert all(not math.isnan(v) for v in plots.target_boxes([nothing], PROTOCOLS[name], "asd").axes[0].get_xlim())
