"""What may not name a domain, a structure, a method: words and signs that a table or a path would mix up."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pandas as pd
import pytest

import dgbench
from dgbench.errors import DataError, UsageError
from dgbench.images.find_task import get_task
from dgbench.names import OURS, check, problem
from dgbench.pages import leaderboard, score_tables
from dgbench.protocol import get_protocol
from dgbench.registry import METHODS, TASKS, add_plugin, get_method
from dgbench.running import plan
from dgbench.running.new_method import write_method
from dgbench.scores.comparison import compare
from dgbench.scores.ranking import rank
from dgbench.scores.study import Study
from tests import toy_runs


@pytest.fixture(scope="module")
def study() -> Study:
    def scores(of: float) -> dict[str, list[float]]:
        return {d: [of, of + 0.05, of - 0.02, of + 0.01] for d in "ABC"}

    means = {"x": 0.7, "y": 0.8}
    runs = [toy_runs.run(v, s, scores(of), seed) for v, of in means.items() for s in "ABC" for seed in (0, 1)]
    return Study(runs, get_protocol("sdg"))


@pytest.fixture(scope="module")
def compared(study: Study) -> pd.DataFrame:
    return compare(study, "x", "y").frame()


def test_all_that_heads_a_column_beside_domains_is_no_name_of_a_domain(study: Study, compared: pd.DataFrame):
    """Read off the tables themselves: a new column beside domains must become a word that no domain can have."""
    board = rank(study)
    beside = set(score_tables.matrix_frame([study.matrix("x", "asd")], "mm").columns)
    for table in (
        score_tables.matrix_table(study.matrix("x", "asd")),
        score_tables.sources_table(study, "asd"),
        leaderboard.board_tables(board)[0],
        score_tables.quartiles(study, "dice", {"x": ""}),
    ):
        beside |= set(table.header)
    beside = {name for name in beside if name not in "ABC" and not name.startswith("against ")}
    assert {"mean", "source", "seeds", "worst", "found", "mean_std"} <= beside
    rows = {*study.matrix("x", "dice").values.index, *compared["target"]} - set("ABC")
    assert rows == {"mean", "all targets"}
    assert beside | rows <= OURS["domain"]


def test_all_that_heads_a_column_beside_methods_is_no_name_of_a_method(study: Study, compared: pd.DataFrame):
    columns = set(compared.columns) - {"x", "y"}
    columns |= set(score_tables.hardest(study, ["x", "y"]).header) - {"x", "y", "mean of all"}
    assert {"target", "case", "difference", "low", "verdict"} <= columns <= OURS["method"]


@pytest.mark.parametrize("name", ["mean", "Mean", "tables", "plots", "published", "verdict", "con", "x" * 101])
def test_a_method_of_such_a_name_is_refused_as_a_file_and_by_new(tmp_path: Path, name: str):
    path = tmp_path / f"{name}.py"
    path.write_text("from dgbench.methods.erm import ERM\n")
    with pytest.raises(UsageError, match="cannot be a plug-in: its file name"):
        add_plugin(path)
    with pytest.raises(UsageError, match="cannot name a method"):
        write_method(name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_two_methods_that_differ_by_capitals_only_would_share_a_folder_on_some_systems(tmp_path: Path):
    path = tmp_path / "ERM.py"
    path.write_text("from dgbench.methods.erm import ERM\n")
    add_plugin(path)
    with pytest.raises(UsageError, match="two methods are named 'ERM'"):
        METHODS.names()


@pytest.mark.parametrize("name", ["a+b", "a[b]", "mean", "a=1", "a,b", " a"])
def test_an_installed_method_of_an_unfit_name_is_listed_as_broken_and_stops_no_other(name, monkeypatch):
    """Entry points name what they like; such a name would be read as a combination or a variant."""
    theirs = EntryPoint(name, "dgbench.methods.constant:Constant", "dgbench.methods")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [theirs] if group == theirs.group else [])
    assert METHODS.plugins()[name].summary().startswith("broken: ")
    with pytest.raises(UsageError, match="cannot name a method"):
        METHODS.get(name)
    assert get_method("erm").name == "erm"


@pytest.mark.parametrize(
    ("domains", "structures", "said"),
    [
        (("A", "mean"), ("disc",), "'mean' cannot name a domain"),
        (("A", "a"), ("disc",), "domains 'A' and 'a' are one name"),
        (("A", "A"), ("disc",), "domains 'A' and 'A' are one name"),
        (("A", "B\n"), ("disc",), r"'B\\n' cannot name a domain: it is empty, or has blanks at its ends"),
        (("A", "B\tC"), ("disc",), "it holds a sign"),
        (("A", "B"), ("disc", "Mean"), "'Mean' cannot name a structure"),
    ],
)
def test_a_task_of_ones_own_code_is_held_to_the_same_before_anything_is_written(tmp_path, domains, structures, said):
    task = get_task("phantom")
    task.domains, task.structures = domains, structures
    with pytest.raises(DataError, match=said):
        plan.plan(task, ["constant"], results=tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(("what", "value"), [("steps", 0), ("image_size", 8), ("image_size", "64px")])
def test_the_numbers_of_a_task_are_held_to_the_ranges_of_a_method(tmp_path, what, value):
    task = get_task("phantom")
    setattr(task, what, value)
    with pytest.raises(UsageError, match=f"{what} of task phantom cannot be '{value}': it must be a whole number"):
        plan.plan(task, ["constant"], results=tmp_path)


def test_a_source_may_be_named_in_either_form_of_its_accents(monkeypatch):
    monkeypatch.setattr(TASKS.get("phantom"), "domains", ("A", "S\u00e9vres"))
    (_, run) = dgbench.run("constant", "phantom", source=["A", "Se\u0301vres"], dry_run=True).runs
    assert run.source == "S\u00e9vres"


def test_names_that_people_give_are_fit():
    for name in TASKS.names():
        check(TASKS.get(name).domains, "domain", name)
        check(TASKS.get(name).structures, "structure", name)
    for name in (
        "Site A",
        "S\u00e9vres",
        "\u5317\u4eac",
        "1.5T",
        "c,d",
        "T1+T2",
        "scanner [old]",
        "x=1",
        "Philips (2)",
    ):
        check([name], "domain", "here")
    for name in ("structure", "case", "target", "source"):  # they stand in a column of their own
        assert not problem(name, "structure")
    assert not problem("mean", "case")
