"""What a run leaves behind: plots as files, the same bytes for the same runs."""

from pathlib import Path

import numpy as np
import pytest

from dgbench.pages import after_run, drawing
from dgbench.pages.pictures import Slice
from dgbench.scores.study import Study
from tests.scores.test_study import SDG, UNEQUAL
from tests.toy_runs import changed, run


def test_the_same_runs_give_the_same_bytes(tmp_path: Path):
    mask = np.zeros((1, 16, 16), bool)
    mask[:, 2:6, 2:6] = True
    slices = {"erm": {"a": Slice(np.zeros((16, 16)), mask, np.roll(mask, 6))}}
    first, second = (
        after_run.write_plots(Study([run("erm", "A", UNEQUAL)], SDG), tmp_path / name, slices, ["dice"])
        for name in ("a", "b")
    )
    assert [p.name for p in first] == [
        f"{name}.{kind}"
        for name in ("matrix-dice", "targets-dice", "learning-curves", "overlays-erm")
        for kind in ("png", "pdf")
    ]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


COMPARE, OVERLAYS = "learning-curves", ["overlays-dsu", "overlays-erm"]


def a_slice(at: int) -> dict[str, Slice]:
    mask = np.zeros((1, 16, 16), bool)
    mask[:, at : at + 4, 2:6] = True
    return {"best": Slice(np.zeros((16, 16)), mask, np.roll(mask, 6))}


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes the plots of two variants into one folder, of the same runs again and again, and names those drawn."""
    saved: list[str] = []
    save = drawing.save
    monkeypatch.setattr(drawing, "save", lambda figure, path: saved.append(path.stem) or save(figure, path))

    def write(score: float = 0.8, at: int = 2, loss: str = "1.0") -> list[str]:
        saved.clear()
        (tmp_path / "history.jsonl").write_text(loss)
        runs = [run("erm", "A", UNEQUAL), changed(run("dsu", "A", {**UNEQUAL, "B": [0.5, score]}), path=tmp_path)]
        slices = {"dsu": a_slice(at), "erm": a_slice(2)}
        paths = after_run.write_plots(Study(runs, SDG), tmp_path / "plots", slices, metrics=())
        assert all(path.stat().st_size > 1000 for path in paths) and len(paths) == 6
        return list(dict.fromkeys(saved))

    return write


def test_plots_of_the_same_runs_stay_and_what_shows_something_else_is_drawn_again(drawn):
    assert drawn() == [COMPARE, *OVERLAYS]
    assert drawn() == []
    assert drawn(score=0.9) == [COMPARE]
    assert drawn(score=0.9, loss="0.9") == [COMPARE]
    assert drawn(score=0.9, loss="0.9", at=3) == ["overlays-dsu"], "those of other variants show what they showed"
    assert drawn(score=0.9, loss="0.9", at=3) == []


def test_a_plot_that_was_changed_or_deleted_is_drawn_again(drawn, tmp_path: Path):
    drawn()
    (tmp_path / "plots/learning-curves.pdf").unlink()
    (tmp_path / "plots/overlays-erm.png").write_bytes((tmp_path / "plots/overlays-erm.png").read_bytes()[:2000])
    assert drawn() == [COMPARE, "overlays-erm"]


@pytest.mark.parametrize("content", ["[]", '{"learning-curves": 3, "overlays-erm": ["", ""]}'])
def test_where_nothing_says_what_plots_show_all_are_drawn(drawn, tmp_path: Path, content: str):
    drawn()
    (tmp_path / "plots" / after_run.DRAWN).write_text(content)
    assert drawn() == [COMPARE, *OVERLAYS] and drawn() == []


def test_other_code_draws_all_of_them(drawn, monkeypatch: pytest.MonkeyPatch):
    drawn()
    monkeypatch.setattr("matplotlib.__version__", "99")
    after_run._code.cache_clear()
    assert drawn() == [COMPARE, *OVERLAYS]
    after_run._code.cache_clear()
