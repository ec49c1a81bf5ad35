"""What `import dgbench` offers: it comes at once, does what the command line does, and its examples are true."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dgbench
from dgbench import cli, face
from dgbench.errors import UsageError
from tests.discs import write_discs

VERBS = {
    "run": ["--method", "erm", "--task", "phantom"],
    "ranking": ["--task", "phantom"],
    "compare": ["one", "other", "--task", "phantom"],
    "multiverse": ["--task", "phantom"],
    "report": ["--task", "phantom"],
    "import_scores": ["doe.csv", "--task", "phantom", "--citation", "Doe", "--protocol", "doe"],
    "score": ["theirs", "--task", "phantom", "--source", "A"],
    "export": ["nnunet", "--task", "phantom", "--source", "A", "--out", "nnunet"],
    "submit": ["results", "--task", "phantom", "--to", "outbox", "--name", "mine"],
    "review": ["scores-phantom-mine.tar.xz"],
    "merge": ["results", "theirs", "--to", "all"],
    "site": ["--out", "site"],
    "standings": [],
    "queued": [],
}
CALLED = {"ranking": "leaderboard", "import_scores": "import", "standings": "status", "queued": "cancel"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path


# --- importing -------------------------------------------------------------------------------------------------------


def test_importing_it_imports_nothing_slow():
    code = "import sys, dgbench; dir(dgbench); print(*{'torch', 'pandas', 'numpy', 'rich', 'typer'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_it_names_what_it_offers_and_nothing_else_is_made_up():
    for name in dgbench.FACE:
        assert name in dir(dgbench) and callable(getattr(dgbench, name))
    with pytest.raises(AttributeError, match="no attribute 'leaderbord'"):
        dgbench.leaderbord  # noqa: B018


@pytest.mark.parametrize(
    "first",
    ["names = dgbench.methods().index", "import dgbench.methods.constant", "from dgbench.methods import constant"],
)
def test_methods_are_listed_and_imported_from_one_name_in_any_order(first: str):
    code = f"import dgbench\n{first}\nfrom dgbench import methods\nimport dgbench.methods.erm\n"
    code += "assert dgbench.methods is methods and methods.erm.ERM and 'erm' in methods().index"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- the same as the command line ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_it_has_the_defaults_of_the_command_line(monkeypatch: pytest.MonkeyPatch, verb: str):
    """Whatever a command passes on when nothing is asked for is what the function would take by itself."""
    signature, passed = inspect.signature(getattr(face, verb)), {}

    def called(*arguments: Any, **options: Any) -> None:
        passed.update(signature.bind(*arguments, **options).arguments)
        raise UsageError("seen enough")

    monkeypatch.setattr(face, verb, called)
    CliRunner().invoke(cli.app, [CALLED.get(verb, verb), *VERBS[verb]])
    optional = {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty}
    assert passed.keys() >= optional.keys() - {"quiet"}, "an argument that no option sets"
    for name in passed.keys() & optional.keys():
        assert passed[name] == optional[name] or (not passed[name] and not optional[name]), name


def test_leaderboard_takes_what_ranking_takes():
    assert inspect.signature(face.leaderboard).parameters.keys() == inspect.signature(face.ranking).parameters.keys()


def test_status_takes_what_standings_take_and_cancel_what_is_queued():
    assert inspect.signature(face.status).parameters.keys() == inspect.signature(face.standings).parameters.keys()
    assert inspect.signature(face.cancel).parameters.keys() == inspect.signature(face.queued).parameters.keys()


def test_names_come_in_lists_and_with_commas_and_a_known_name_is_not_torn():
    assert face.several("erm,constant") == face.several(["erm", "constant"]) == ["erm", "constant"]
    assert face.several(["a", "b, a", ""]) == ["a", "b"]
    assert face.several("c,d", known=["c,d", "e"]) == ["c,d"]
    assert face.several(["c,d", "e,f"], known=["c,d"]) == ["c,d", "e", "f"]
    assert face.several(0) == ["0"] and face.several(range(2)) == ["0", "1"] and face.several(()) == []


# --- what comes out --------------------------------------------------------------------------------------------------


def test_every_public_function_has_an_example_and_all_examples_are_true(here: Path, root: Path):
    """Beside the scores of two methods that come with dgbench."""
    with tarfile.open(root / "results/scores-phantom.tar.xz") as archive:
        two = ("phantom/sdg/erm/", "phantom/sdg/maxstyle/")
        archive.extractall(here / "results", [m for m in archive if m.name.startswith(two)], filter="data")
    for name in dgbench.FACE:
        assert ">>> " in (getattr(face, name).__doc__ or ""), name
    done = doctest.testmod(face)
    assert done.attempted >= 2 * len(dgbench.FACE) and not done.failed


def test_a_run_that_fails_stops_no_other_and_is_told(here: Path):
    plugin = Path(__file__).parent / "pixels.py"
    write_discs(here / "discs")
    how = {"source": ["dim"], "plugin": plugin, "quiet": True}
    good = dgbench.run("pixels,constant", "discs", jobs=2, **how)
    assert good.frame["status"].tolist() == ["done", "done"]
    assert list(good.study.runs) == ["constant", "pixels"] and all(path.is_file() for path in good.files)
    assert good.figures.keys() == {path.stem for path in good.files if path.suffix == ".png"}
    shown = good._repr_html_()
    assert all(text in shown for text in ("pixels: Dice (%) of disc", "constant: ASD", "All variants", "protocol sdg"))
    assert "not done" not in shown
    bad = dgbench.run("pixels", Path("discs"), settings={"fail_at": 1}, **how)
    (row,) = bad.frame.itertuples()
    assert "Runs that are not done" in (shown := bad._repr_html_()) and "nan at step 1" in shown
    assert (row.variant, row.status) == ("pixels[fail_at=1]", "failed") and "nan at step 1" in row.message
    with pytest.raises(UsageError, match="none of these runs is finished"):
        bad.study  # noqa: B018


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ({"budget": "equal_compute"}, "unknown budget 'equal_compute'"),
        ({"launcher": "SLURM", "slurm": "partition=gpu"}, "unknown launcher 'SLURM'"),
        ({"rerun": "al"}, "unknown choice of runs to make again 'al'"),
    ],
)
def test_a_misspelt_choice_is_met_with_the_right_ones(here: Path, wrong: dict[str, Any], cause: str):
    with pytest.raises(UsageError, match=cause) as told:
        dgbench.run("constant", "phantom", dry_run=True, **wrong)
    assert "did you mean" in told.value.remedy or "known: local, slurm" in told.value.remedy


def test_settings_are_plain_values_and_a_dry_run_makes_nothing(here: Path):
    write_discs(here / "discs")
    ran = dgbench.run("erm", "discs", settings={"width": 4, "learning_rate": 1e-4}, seed=[0, 1], dry_run=True)
    assert len(ran.runs) == 6 and not ran.outcomes and not (here / "results").exists()
    assert set(ran.frame["variant"]) == {"erm[learning_rate=0.0001;width=4]"}
    assert set(ran.frame["status"]) == {"missing"}
