"""Other choices in words, tables and a picture: what holds everywhere, and what hangs on which choice."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgba
from typer.testing import CliRunner

from dgbench import cli
from dgbench.pages import multiverse as pages
from dgbench.pages import report
from dgbench.pages.rank_map import rank_map
from dgbench.scores.multiverse import Multiverse
from dgbench.scores.ranking import rank
from dgbench.scores.study import Study
from tests.scores.test_multiverse import HANGS, SDG, STEADY, look, of
from tests.scores.test_study import on_disk


def seed_matters(*more) -> Multiverse:
    """y is before x but without seed 2."""
    return look(*HANGS["a seed"][:2], *more)


# --- words -----------------------------------------------------------------------------------------------------------


def test_the_sentence_says_what_holds_and_what_depends_on_which_choice():
    found = seed_matters(of("z", lambda s, d, seed: [0.3 + 0.01 * seed]))
    n = len(found.universes)
    words = pages.sentence(found)
    assert words.startswith(f"y is first in {n - 1} of {n} universes. 2 of 3 pairs keep their order everywhere.")
    assert f"y is before x in {n - 1} of {n}: it depends on seed left out (seed 2)." in words
    assert words.endswith("No order changes with: metric, mean.")


def test_an_order_that_hangs_on_nothing_is_said_to_be_the_same_everywhere():
    found = look(of("x", lambda s, d, seed: [0.8, 0.7]), of("y", lambda s, d, seed: [0.6, 0.5]))
    n = len(found.universes)
    expected = f"x is first in all {n} universes. The order of all 2 variants is the same in all {n} universes."
    assert pages.sentence(found) == expected


def test_of_one_variant_there_is_no_order():
    assert "no order that could change" in pages.sentence(look(of("x", STEADY)))


def test_many_pairs_are_counted_and_not_all_named():
    level = {"a": 0.73, "b": 0.72, "c": 0.71, "d": 0.705, "e": 0.702}
    others = [of(v, lambda s, d, n, a=a: [a - 0.3 if d == "A" else a]) for v, a in level.items()]
    words = pages.sentence(look(of("x", STEADY), *others))
    assert words.count("is before") == 3 and "; 2 pairs more." in words


def test_it_is_said_that_many_universes_are_no_evidence_and_what_changed_no_number():
    told = " ".join(pages.notes(seed_matters()))
    assert "no evidence that a difference is real" in told and "weighs no more" in told
    assert "The same numbers as on the leaderboard: cases pooled" in told
    assert "Not looked at: missed structures (every structure was there and found)." in told


# --- tables ----------------------------------------------------------------------------------------------------------


def test_a_row_has_the_rank_its_interval_its_range_and_what_changes_it():
    ranks, pairs = pages.tables(seed_matters())
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in ranks.rows}
    assert rows["y"][0] == "1" and rows["y"][2] == "1-2" and rows["y"][4] == "seed left out 1-2"
    assert rows["x"][0] == "2" and rows["x"][4] == "seed left out 1-2"
    ((name, universes, kept, depends),) = ([cell.text for cell in row] for row in pairs.rows)
    assert (name, depends) == ("y before x", "seed left out (seed 2)")
    n = len(seed_matters().universes)
    assert universes == f"{n - 1} of {n}" and kept.endswith("%")


def test_without_a_pair_that_changes_there_is_no_table_of_pairs():
    (ranks,) = pages.tables(look(of("x", STEADY), of("y", lambda s, d, seed: [0.6])))
    assert [row[4].text for row in ranks.rows] == ["100%", "100%"]


@pytest.mark.parametrize("kind", ["md", "tex", "html"])
def test_every_format_names_the_variants_and_says_what_a_universe_is(kind: str):
    text = pages.render(seed_matters(of("z<b>", lambda s, d, seed: [0.3])), kind)
    assert "no evidence that a difference is real" in text and "<b>" not in text.replace("<br>", "")


def test_the_csv_holds_every_rank_in_full():
    found = seed_matters()
    frame = pd.read_csv(io.StringIO(pages.render(found, "csv")))
    pd.testing.assert_series_equal(frame["mean"], found.frame()["mean"])
    assert len(frame) == 2 * len(found.universes)


# --- the picture -----------------------------------------------------------------------------------------------------


def test_the_picture_shows_every_rank_and_colours_those_that_changed():
    found = seed_matters()
    (axes,) = rank_map(found).axes
    shown = [t.get_text() for t in axes.texts]
    assert shown == [f"{r:.0f}" for r in found.ranks.ravel()]
    cells = [p.get_facecolor() for p in axes.patches[: len(shown)]]
    coloured = np.array([c != to_rgba("white") for c in cells]).reshape(found.ranks.shape)
    assert (coloured == (found.ranks != found.ranks[0])).all() and coloured.any()
    y, x = cells[2 * int(np.flatnonzero(coloured[:, 0])[0]) :][:2]
    assert y[0] > y[2] and x[2] > x[0]  # who fell is orange, who rose is blue


def test_a_row_of_the_picture_stands_under_its_kind_of_choice():
    (axes,) = rank_map(seed_matters()).axes
    labels = [t.get_text() for t in axes.get_yticklabels()]
    at = labels.index("seed left out")
    assert labels[0] == "leaderboard" and labels[at + 1 : at + 4] == ["seed 0", "seed 1", "seed 2"]


def test_a_variant_that_is_not_ranked_somewhere_is_blank_there():
    found = look(*(of(v, lambda s, d, n, a=a: a) for v, a in {"x": [0.7, 0.6], "y": [0.6, 0.5]}.items()),
                 of("z", lambda s, d, n: ["missed", "missed"] if d == "B" else [0.5, 0.4]))  # fmt: skip
    (axes,) = rank_map(found).axes
    assert len(axes.texts) == (~np.isnan(found.ranks)).sum() < found.ranks.size


def test_who_is_last_of_all_and_last_of_two_has_gained_nothing():
    """Of three variants y misses all of B: over what was found it has no mean, and z is second of two, as before."""
    levels = {"x": [0.7], "y": ["missed", 0.9], "z": [0.3]}
    found = look(*(of(v, lambda s, d, n, a=a: [a[0] if d == "B" else a[-1]] * 2) for v, a in levels.items()))
    (partial,) = (i for i, u in enumerate(found.universes) if u.parts == (("missed structures", "left out"),))
    assert found.variants == ["x", "y", "z"] and found.ranks[partial][[0, 2]].tolist() == [1, 2]
    assert found.shifts[partial][[0, 2]].tolist() == [0, 0] and np.isnan(found.shifts[partial][1])
    (axes,) = rank_map(found).axes
    drawn = {round(p.get_xy()[1] + 0.5): [] for p in axes.patches[:-1]}
    for p in axes.patches[:-1]:
        drawn[round(p.get_xy()[1] + 0.5)].append(p.get_facecolor())
    row = [t.get_text() for t in axes.get_yticklabels()].index("left out")
    assert drawn[row] == [to_rgba("white")] * 2


def test_a_picture_of_thirty_variants_with_long_names_fits_a_page():
    many = [of(f"method[encoder=resnet34;steps={i}]", lambda s, d, n, i=i: [0.5 + 0.01 * i]) for i in range(30)]
    figure = rank_map(look(*many))
    assert figure.get_figwidth() < 13 and figure.get_figheight() < 13
    assert len(figure.axes[0].get_xticklabels()) == 30


# --- on the command line and in the report ---------------------------------------------------------------------------


def test_the_command_prints_the_sentence_and_writes_tables_and_picture(tmp_path: Path):
    on_disk(tmp_path, *HANGS["a seed"][0], *HANGS["a seed"][1])
    told = ["multiverse", "-t", "toy", "--results", str(tmp_path)]
    done = CliRunner().invoke(cli.app, told)
    assert done.exit_code == 0 and "y is first in" in done.output
    written = {p.relative_to(tmp_path / "toy/sdg").as_posix() for p in tmp_path.rglob("*/multiverse.*")}
    assert written == {f"tables/multiverse.{k}" for k in ("csv", "md", "tex", "html")} | {
        f"plots/multiverse.{k}" for k in ("png", "pdf")
    }
    text = CliRunner().invoke(cli.app, [*told, "--format", "csv"]).output
    assert text.startswith("kind,universe,same_as,metric,variant,mean,rank\nleaderboard,leaderboard,")


def test_the_report_has_the_sentence_the_picture_and_the_tables():
    first, second, _ = HANGS["a seed"]
    data = [r for runs in (first, second) for r in runs]
    for r in data:
        r.record.update(data={"A": "1f"}, fingerprint="f", hparams={}, settings={})
    page = report.build(None, rank(Study(data, SDG), draws=500))
    assert "What would change the order" in page and "it depends on seed left out (seed 2)" in page
    assert 'aria-label="The rank of each variant in every universe' in page
    assert "no evidence that a difference is real" in page
