"""Stored masks compared in another way: numbers worked out by hand on a volume with an empty slice."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dgbench.files import make_folder
from dgbench.images.preparation import prepare
from dgbench.metrics import METRICS
from dgbench.protocol import PROTOCOLS
from dgbench.running import test as testing
from dgbench.running.records import RunRecord
from dgbench.scores.multiverse import of_folder
from dgbench.scores.ranking import rank
from dgbench.scores.remeasure import remeasured
from dgbench.scores.study import Study
from dgbench.task import Case, Task
from tests.toy_runs import COSTS

SDG, DAPSAM = PROTOCOLS["sdg"], PROTOCOLS["dapsam"]
CASES = 7


class Blocks(Task):
    """Two slices of 8 x 16 pixels: a block of 16 in the first, nothing in the second. The network sees 8 x 8."""

    name = "blocks"
    structures = ("block",)
    image_size = 8
    unit = "mm"
    domains = ("A", "B")

    def __init__(self) -> None:
        super().__init__(None)

    def case_ids(self, domain: str) -> list[str]:
        return [f"{domain}-{i}" for i in range(CASES)]

    def load(self, domain: str, case_id: str) -> Case:
        mask = np.zeros((2, 1, 8, 16), bool)
        mask[0, 0, 2:6, 4:8] = True
        return Case(case_id, mask.astype(np.float32) * 0.5, mask, (3.0, 0.5, 1.0))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGBENCH_CACHE", str(tmp_path / "cache"))


def block(wrong: int, lacking: int) -> np.ndarray:
    """The first slice's block without `lacking` of its pixels, and so many wrong ones in the second slice."""
    mask = np.zeros((2, 1, 8, 16), bool)
    mask[0, 0, 2:6, 4:8] = (np.arange(16) >= lacking).reshape(4, 4)
    mask[1, 0].flat[:wrong] = True
    return mask


def store(folder: Path, target: str, prediction: np.ndarray) -> None:
    """The same prediction for every case."""
    tested = [testing.Tested.of(target, f"{target}-{i}", [], prediction) for i in range(CASES)]
    testing.write_predictions(tested, folder / "predictions.npz")


def a_run(results: Path, variant: str, source: str, seed: int, prediction: np.ndarray, dice: float) -> RunRecord:
    """A finished run that predicted the same for every case of the other domain."""
    target = "B" if source == "A" else "A"
    fingerprint = prepare(Blocks(), target, 8).fingerprint[:16]
    told = {
        "task": "blocks", "protocol": "sdg", "method": variant, "variant": variant, "source": source, "seed": seed,
        "domains": ["A", "B"], "targets": [target], "structures": ["block"], "unit": "mm", "metrics_version": 1,
        "image_size": 8, "hparams": {"image_size": None}, "data": {target: fingerprint}, "initialisation": "scratch",
        "needs": {}, "costs": dict.fromkeys(COSTS, 1),
    }  # fmt: skip
    path = make_folder(results / f"blocks/sdg/{variant}/{source}-seed{seed}")
    store(path, target, prediction)
    run = RunRecord(path, told)
    same = {"role": "target", "domain": target, "structure": "block", "asd": 1.0, "assd": 1.0, "hd95": 1.0, "flag": ""}
    rows = [{**same, "case": f"{target}-{i}", "dice": dice, "n_reference": 16, "diagonal": 9.0} for i in range(CASES)]
    vars(run)["cases"] = pd.DataFrame(rows)
    return run


def runs(results: Path, variant: str, wrong: int, lacking: int) -> list[RunRecord]:
    dice = 2 * (16 - lacking) / (32 - lacking + wrong)
    made = itertools.product("AB", (0, 1))
    return [a_run(results, variant, source, seed, block(wrong, lacking), dice) for source, seed in made]


def test_on_slices_with_a_structure_what_is_found_elsewhere_costs_nothing(tmp_path: Path):
    """16 + 16 pixels against 16: Dice 2 x 16 / 48; of the first slice alone it is perfect."""
    study = Study(runs(tmp_path, "x", wrong=16, lacking=0), SDG)
    again, missing = remeasured(study, METRICS["dice"], Blocks())
    assert study.matrix("x").mean == pytest.approx(2 / 3)
    assert again["slices", "only those with a structure"].matrix("x").mean == 1
    assert list(again) == [("slices", "only those with a structure"), ("resolution", "the network's")] and not missing


def test_at_the_networks_resolution_masks_are_those_the_network_saw(tmp_path: Path):
    """8 x 16 becomes 4 x 8, of every second row and column: of the block's rows 2 to 5 there are 3 and 5. A prediction
    without row 2, which is 4 of its pixels, loses none of them."""
    again, _ = remeasured(Study(runs(tmp_path, "x", wrong=0, lacking=4), SDG), METRICS["dice"], Blocks())
    assert again["resolution", "the network's"].matrix("x").mean == 1


def test_distances_in_voxels_forget_the_spacing(tmp_path: Path):
    """Without its last row of four (0.5 mm high) the mask ends one row early: HD95 is 0.5 mm, or one voxel."""
    prediction = block(0, 0)
    prediction[0, 0, 5] = False
    made = [a_run(tmp_path, "x", source, 0, prediction, 0.9) for source in "AB"]
    again, _ = remeasured(Study(made, SDG), METRICS["hd95"], Blocks())
    assert again["distances", "in voxels"].matrix("x", "hd95").mean == pytest.approx(1)
    assert again["slices", "only those with a structure"].matrix("x", "hd95").mean == pytest.approx(0.5)
    # Half as many rows and columns, each twice as high and wide: rows 1 to 2 are both there.
    assert again["resolution", "the network's"].matrix("x", "hd95").mean == pytest.approx(1.0)


def test_an_order_that_hangs_on_the_slices_changes_with_them(tmp_path: Path):
    """y lacks 4 of 16: 2 x 12 / 28 = 0.857 on all slices and on those with a structure; x has 0.667, and there 1."""
    board = rank(Study([*runs(tmp_path, "x", 16, 0), *runs(tmp_path, "y", 0, 3)], SDG), draws=500)
    found = of_folder(board, Blocks(), tmp_path)
    (pair,) = found.pairs
    assert (pair.one, pair.other) == ("y", "x")
    assert pair.changed["slices"] == ("only those with a structure",)


def test_without_masks_or_with_other_images_it_is_said_why(tmp_path: Path):
    study = Study(runs(tmp_path, "x", 16, 0), SDG)
    assert remeasured(study, METRICS["dice"], None)[1]["slices"] == "the task's images are not at hand"

    class Moved(Blocks):
        def code_fingerprint(self) -> str:
            return "another"

    assert "others than these runs saw" in remeasured(study, METRICS["dice"], Moved())[1]["slices"]
    (study.records[0].path / "predictions.npz").unlink()
    again, missing = remeasured(study, METRICS["dice"], Blocks())
    assert not again and missing["resolution"] == "of 1 of 4 runs only the scores are at hand"


def test_slices_that_were_not_predicted_cannot_be_had_back(tmp_path: Path):
    made = runs(tmp_path, "x", 16, 0)
    records = []
    for r in made:
        store(r.path, *r.record["targets"], np.zeros((1, 1, 8, 8), bool))
        records.append(RunRecord(r.path, {**r.record, "protocol": "dapsam"}))
        vars(records[-1])["cases"] = r.cases
    again, missing = remeasured(Study(records, DAPSAM), METRICS["dice"], Blocks())
    assert missing["slices"] == "other slices than those of this protocol were not predicted"
    assert list(again) == [("resolution", "the image's own")]
    assert again["resolution", "the image's own"].matrix("x").mean == 0  # nothing was predicted
