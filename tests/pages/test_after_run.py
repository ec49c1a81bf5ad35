"""What a run leaves behind: plots as files, the same bytes for the same runs."""

from pathlib import Path

import numpy as np

from dgbench.pages import after_run
from dgbench.pages.pictures import Slice
from dgbench.scores.study import Study
from tests.scores.test_study import SDG, UNEQUAL
from tests.toy_runs import run


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
