"""Figures are looked at through their artists: what is drawn where, and in which colour."""

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

from dgbench.errors import UsageError
from dgbench.pages import drawing, figures
from dgbench.protocol import PROTOCOLS
from dgbench.running.records import RunRecord
from dgbench.scores.ranking import rank
from dgbench.scores.study import Study
from tests.scores.test_absent import patients
from tests.scores.test_ranking import BAD, GOOD, board, runs_of
from tests.scores.test_study import DAPSAM, SDG, UNEQUAL, several
from tests.toy_runs import COSTS, run


def heat_map(records: Iterable[RunRecord], metric: str = "dice", protocol=SDG) -> Figure:
    return figures.heat_map(Study(records, protocol), metric)


def target_boxes(records: Iterable[RunRecord], metric: str = "dice", protocol=SDG) -> Figure:
    return figures.target_boxes(Study(records, protocol), metric)


def texts(figure: Figure, panel: int = 0) -> list[str]:
    return [t.get_text() for t in figure.axes[panel].texts]


def titles(figure: Figure) -> list[str]:
    return [a.get_title(loc="left") for a in figure.axes]


# --- heat map --------------------------------------------------------------------------------------------------------


def test_a_heat_map_shows_every_number_of_the_matrix_and_the_validation_cases():
    figure = heat_map([run("erm", "A", UNEQUAL), run("erm", "B", {"A": [0.5], "B": [0.9], "C": [0.5, 0.6, 0.7]})])
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
    figure = heat_map([run("erm", "A", UNEQUAL), run("erm", "B", {"A": [0.5], "B": [0.9], "C": [0.5, 0.6, 0.7]})])
    assert [i for i, cell in enumerate(figure.axes[0].patches) if cell.get_hatch()] == [0, 5]  # A from A, B from B


def test_a_blank_cell_is_white_and_without_a_number():
    figure = heat_map([run("erm", "A", {"A": [0.9], "B": [0.8]})])
    assert texts(figure)[2] == ""
    assert figure.axes[0].patches[2].get_facecolor() == to_rgba("white")


def test_all_variants_share_one_scale_of_colour():
    figure = heat_map([run("one", "A", UNEQUAL), run("two", "A", {**UNEQUAL, "B": [0.7, 0.7]})])
    same = [axes.patches[1].get_facecolor() for axes in figure.axes[:2]]  # target B: 70 in both
    assert same[0] == same[1]
    assert titles(figure)[:2] == ["one", "two"]


def test_a_heat_map_of_twenty_variants_with_long_names_has_a_panel_for_each():
    records = [run(f"method[encoder=resnet34;steps={n}]", "A", UNEQUAL) for n in range(20)]
    figure = heat_map(records)
    assert sorted(t.replace("\n", "").replace(" ", "") for t in titles(figure)[:20]) == sorted(
        r.variant for r in records
    )
    assert figure.get_figwidth() < 16


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_cell_without_any_number_is_no_reason_to_fail(name: str):
    nothing = run("erm", "A", {"A": ["both_empty"], "B": ["both_empty"], "C": ["both_empty"]}, protocol=name)
    figure = heat_map([nothing], "asd", PROTOCOLS[name])
    assert set(texts(figure)) == {""}
    assert all(not math.isnan(v) for v in target_boxes([nothing], "asd", PROTOCOLS[name]).axes[0].get_xlim())


# --- targets ---------------------------------------------------------------------------------------------------------


def test_a_point_is_a_case_and_its_mean_over_sources_and_seeds():
    records = [run("erm", "A", {"A": [0.9], "B": [0.8, 0.6], "C": [c]}, seed) for seed, c in enumerate((0.5, 0.7))]
    records += [run("erm", "B", {"A": [0.4], "B": [0.9], "C": [0.9]}, seed) for seed in (0, 1)]
    figure = target_boxes(records)
    points = {a.get_title(loc="left"): sorted(a.lines[0].get_xdata()) for a in figure.axes}
    assert points == {
        "A": pytest.approx([40]),
        "B": pytest.approx([60, 80]),
        "C": pytest.approx([(50 + 70 + 90 + 90) / 4]),
    }


def test_a_missed_case_is_a_point_at_the_diagonal():
    figure = target_boxes([run("erm", "A", {"A": [0.9], "B": [0.8, "missed"], "C": [0.7]})], "asd")
    assert sorted(figure.axes[0].lines[0].get_xdata()) == pytest.approx([2, 100])


def test_a_case_that_is_nan_by_the_protocol_has_no_point_and_the_plot_says_so():
    missed = run("erm", "A", {"A": [0.9], "B": [0.8, "missed"], "C": [0.7]}, protocol="dapsam")
    figure = target_boxes([missed], "asd", DAPSAM)
    assert list(figure.axes[0].lines[0].get_xdata()) == pytest.approx([2])
    assert "a case with NaN has none" in figure.get_suptitle().replace("\n", " ")


def test_every_variant_has_its_row_of_boxes():
    figure = target_boxes(several())
    assert [a.get_title(loc="left") for a in figure.axes] == ["A", "B", "C"]
    names = [t.get_text().replace("\n", "").replace(" ", "") for t in figure.axes[0].get_yticklabels()]
    assert names == ["dapsam[memory=64;steps=500]", "erm", "prompted"]


# --- learning curves -------------------------------------------------------------------------------------------------


def test_a_learning_curve_is_a_line_for_each_run_in_the_colour_of_its_source():
    figure = figures.learning_curves(Study(several(), SDG))
    panels = dict(zip(titles(figure), figure.axes, strict=True))
    assert [line.get_color() for line in panels["erm"].lines] == [drawing.COLOURS[i] for i in (0, 0, 1, 1)]
    assert list(panels["erm"].lines[0].get_ydata()) == [1.0, 0.5, 0.4]


def test_each_of_nine_sources_has_a_look_of_its_own_in_curves_and_points():
    """There are seven colours that colour-blind readers tell apart: the eighth source is the first one's, dashed."""
    sources = [f"S{i}" for i in range(9)]
    scores = {s: [0.7, 0.8] for s in sources}
    study = Study([run("erm", s, scores, domains=sources) for s in sources], SDG)
    curves = figures.learning_curves(study).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in curves}) == 9
    assert [line.get_linestyle() for line in curves] == ["-"] * 7 + ["--"] * 2
    pairs = [("erm", s, t, 0.1, 0.2) for s in sources for t in sources if s != t]
    points = pd.DataFrame(pairs, columns=["variant", "source", "target", "distance", "loss"])
    legend = figures.domain_shift(points, {"erm": 0.5}, sources).legends[0]
    assert len({(line.get_color(), line.get_marker()) for line in legend.get_lines()}) == 9


def test_a_method_that_does_not_train_has_an_empty_panel_that_says_so():
    record = run("constant", "A", UNEQUAL)
    for history in (pd.DataFrame(), pd.DataFrame({"step": [1], "loss": [0.0]})):
        record.__dict__["history"] = history
        assert texts(figures.learning_curves(Study([record], SDG))) == ["no curve"]


# --- intervals -------------------------------------------------------------------------------------------------------

APART = runs_of("apart", 0.3, seeds=(0,))


def test_a_forest_plot_has_a_point_and_its_interval_for_each_variant_and_panel():
    ranking = board(GOOD, BAD, APART)
    found = figures.intervals(ranking)
    assert list(found) == ["mean", "A", "B", "C"]
    assert [i.mean for i in found["mean"]] == [of.row.mean for of in ranking.every]
    assert [i.mean for i in found["B"]] == pytest.approx([of.row.targets["B"] for of in ranking.every])
    assert all(i.low < i.mean < i.high for of in found.values() for i in of)
    for axes, of in zip(figures.forest(ranking).axes, found.values(), strict=True):
        points = [tuple(line.get_xydata()[0]) for line in axes.lines if line.get_marker() == "o"]
        assert [y for _, y in points] == [0, 1, 2]
        assert [x for x, _ in points] == pytest.approx([100 * interval.mean for interval in of])
        spans = np.array([line.get_xdata() for line in axes.lines if line.get_marker() == "None"][:3])
        assert spans == pytest.approx(100 * np.array([interval[1:] for interval in of]))


def test_an_interval_on_a_target_rests_on_the_cases_that_hold_something():
    """Of B one case holds the structure: of a single one no interval is known."""
    scores = {d: [0.7, 0.8, 0.9, 0.6] for d in ("A", "C")} | {"B": [0.7, *["both_empty"] * 3]}
    runs = [run(v, s, scores, seed) for v in ("one", "other") for s in "ABC" for seed in (0, 1)]
    found = figures.intervals(rank(Study(runs, SDG)))
    assert math.isnan(found["B"][0].low) and found["B"][0].mean == pytest.approx(0.7)
    assert not math.isnan(found["C"][0].low)


def test_a_variant_that_is_not_ranked_is_hollow():
    markers = [line for line in figures.forest(board(GOOD, BAD, APART)).axes[0].lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in markers] == [False, False, True]


def test_all_panels_share_one_scale_which_ends_where_the_metric_does():
    wide = [run("wide", "A", {"A": [0.9], "B": [0.0, 0.02], "C": [1.0, 0.97]}, seed) for seed in (0, 1, 2)]
    for metric, ends in (("dice", (-2, 102)), ("asd", (0, math.inf))):
        (low, high), *others = {axes.get_xlim() for axes in figures.forest(board(wide, metric=metric)).axes}
        assert not others and ends[0] <= low and high <= ends[1]


# --- costs -----------------------------------------------------------------------------------------------------------


def priced(variant: str, level: float, tflop: float | None, seeds=(0, 1, 2)) -> list[RunRecord]:
    """Runs whose training computed so much; None: nobody counted."""
    known = {} if tflop is None else {"train_flops": tflop * 1e12, "train_step_flops": 1e9, "predict_image_flops": 1e6}
    return runs_of(variant, level, seeds, costs=dict.fromkeys(COSTS, 1) | known)


PRICED = board(
    priced("free", 0.3, 0), priced("cheap", 0.6, 1), priced("worse", 0.5, 2), priced("dear", 0.8, 9),
    priced("one_seed", 0.9, 4, seeds=(0,)), priced("old", 0.7, None),
)  # fmt: skip


def test_of_the_ranked_variants_those_are_on_the_front_that_no_cheaper_one_beats():
    assert [of.variant for of in figures.pareto(PRICED)] == ["free", "cheap", "dear"]
    figure = figures.cost(PRICED)
    bold = {t.get_text() for t in figure.axes[0].texts if t.get_fontweight() == "bold"}
    assert bold == {"free (0)", "cheap", "dear"}
    assert "1 variant without counted FLOPs left out" in figure.get_suptitle().replace("\n", " ")


def test_where_something_is_falsely_found_figures_say_that_they_show_means_alone():
    told = {"costs": dict.fromkeys(COSTS, 1) | {"train_flops": 1e12}}
    variants = [patients(name, 0.9, 0.8, in_c, **told) for name, in_c in (("a", "both_empty"), ("b", "false_positive"))]
    found = rank(Study([r for of in variants for r in of], SDG), draws=200)
    assert figures.forest(found).get_supxlabel() == figures.NET
    assert figures.NET in figures.cost(found).get_suptitle().replace("\n", " ")
    assert figures.forest(PRICED).get_supxlabel() == "" and figures.NET not in figures.cost(PRICED).get_suptitle()


def test_a_point_stands_over_what_its_training_computed_and_hollow_if_it_is_not_ranked():
    points = {}
    for line in figures.cost(PRICED).axes[0].lines:
        if line.get_marker() == "o":
            points[round(line.get_xdata()[0], 6)] = line.get_ydata()[0], line.get_markerfacecolor() == "white"
    means = {of.row.train_flops / 1e12: 100 * of.row.mean for of in PRICED.every if of.variant != "old"}
    assert {x: y for x, (y, _) in points.items() if x >= 1} == pytest.approx({x: y for x, y in means.items() if x})
    assert [x for x, (_, hollow) in points.items() if hollow] == [4]
    assert points[0.5][0] == pytest.approx(means[0]), "without any FLOPs: left of all others"


@pytest.mark.parametrize("n", [1, 2, 12])
def test_names_of_points_never_overlap(n: int):
    records = [priced(f"method[encoder=resnet34;steps={i}]", 0.5 + 0.0001 * i, 1 + i) for i in range(n)]
    figure = figures.cost(board(*records, draws=50))
    figure.draw_without_rendering()
    boxes = sorted((Text.get_window_extent(t) for t in figure.axes[0].texts), key=lambda box: box.y0)
    assert len(boxes) == n and boxes[0].y0 >= 0 and boxes[-1].y1 <= figure.bbox.y1
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_where_nothing_was_counted_it_says_what_to_do():
    with pytest.raises(UsageError, match="no variant has both a mean and counted FLOPs"):
        figures.cost(board(GOOD, BAD))


# --- domain shift ----------------------------------------------------------------------------------------------------


def test_the_domain_shift_figure_has_a_point_for_every_source_and_target():
    points = pd.DataFrame(
        [("erm", "A", "B", 0.1, 0.3), ("erm", "B", "A", 0.1, 0.1), ("erm", "A", "C", 0.2, 0.5)],
        columns=["variant", "source", "target", "distance", "loss"],
    )
    figure = figures.domain_shift(points, {"erm": 0.5}, ["A", "B"])
    own = [line.get_xydata().tolist() for line in figure.axes[0].lines if line.get_markersize() == 4.5]
    assert own == [[[0.1, 30.0], [0.2, 50.0]], [[0.1, 10.0]]]
    assert figure.axes[0].get_title(loc="left") == f"erm\n{figures.RHO} = 0.50"
