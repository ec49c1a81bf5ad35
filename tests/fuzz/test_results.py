"""Folders of results with files missing, cut off, changed or foreign: told by name, and no number but right ones."""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from dgbench import face, metrics
from dgbench.files import sha256
from dgbench.running import test as testing
from dgbench.running.status import STATES
from dgbench.scores.ranking import Ranking
from dgbench.scores.verify import verify
from tests.fuzz.pictures import DAMAGE, Damage
from tests.fuzz.right_or_refused import Refusal, answer, folder, inputs

RUNS = [f"toy/sdg/{variant}/{source}-seed0" for variant in ("erm", "mixup") for source in "ABC"]
FILES = ("run.json", "cases.csv", "predictions.npz", "history.jsonl", "weights.safetensors", "RESULT.json")


@functools.cache
def whole() -> tuple[dict[str, bytes], dict[tuple[str, str], float]]:
    """({path: content} of six runs, {(run, target): its mean Dice, by hand})."""
    files: dict[str, bytes] = {}
    means: dict[tuple[str, str], float] = {}
    rng = np.random.default_rng(0)
    for run in RUNS:
        variant, source = run.split("/")[2], run.split("/")[3][0]
        tested = []
        for domain in "ABC":
            of_domain = []
            for case in ("x", "y")[: 1 if domain == source else 2]:
                prediction, reference = (rng.random((1, 1, 4, 4)) > 0.4 for _ in range(2))
                scores = metrics.measure(prediction[:, 0], reference[:, 0], (1, 1, 1))
                role = "validation" if domain == source else "target"
                what = {"role": role, "domain": domain, "case": case, "structure": "disc"}
                row = {**what, **scores._asdict(), "diagonal": 5.0}
                tested.append(testing.Tested.of(domain, case, [row], prediction))
                of_domain.append(2 * (prediction & reference).sum() / (prediction.sum() + reference.sum()))
            means[run, domain] = float(sum(of_domain) / len(of_domain))
        record = {
            "schema": 1, "task": "toy", "protocol": "sdg", "method": variant, "variant": variant, "source": source,
            "seed": 0, "hparams": {"steps": 3, "batch_size": 2}, "settings": {}, "checkpoint": None, "steps": 3,
            "domains": list("ABC"), "sources": list("ABC"), "targets": [d for d in "ABC" if d != source],
            "structures": ["disc"], "image_size": 4, "unit": "px", "citation": "", "collections": [], "paper": "",
            "needs": {"needs_batch": False},
            "fingerprint": "f", "code": {}, "data": {d: d * 8 for d in "ABC"}, "metrics_version": metrics.VERSION,
            "environment": {"device": "cpu"}, "started": "2030-01-01", "initialisation": "scratch",
            "costs": {"parameters": 9, "trained": 9, "train_seconds": 1.0, "test_seconds": 1.0, "peak_memory_mb": 10},
        }  # fmt: skip
        with folder() as box:
            testing.write_predictions(tested, box.path / "p.npz")
            predictions = (box.path / "p.npz").read_bytes()
        contents = {
            "run.json": json.dumps(record).encode(), "cases.csv": testing.cases_csv(tested).encode(),
            "predictions.npz": predictions, "history.jsonl": b'{"step": 1, "loss": 1.0, "seconds": 0.1}\n',
            "weights.safetensors": safetensors.numpy.save({"w": np.ones((2, 3), np.float32)}),
        }  # fmt: skip
        files |= {f"{run}/{name}": content for name, content in contents.items()}
        files[f"{run}/RESULT.json"] = sealed(contents)
    return files, means


def sealed(contents: dict[str, bytes]) -> bytes:
    with folder() as box:
        sums = {}
        for name, content in contents.items():
            (box.path / name).write_bytes(content)
            sums[name] = sha256(box.path / name)
    return json.dumps({"schema": 1, "run": "r", "fingerprint": "f", "ended": "", "cases": 5, "files": sums}).encode()


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.sampled_from("AB")),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)
FOREIGN = (
    *(f"{RUNS[0]}/{name}" for name in ("FAILED.json", "status.json", "checkpoint-x.safetensors", "notes.txt", ".lock")),
    "toy/sdg/erm/D-seed0/RESULT.json", "toy/sdg/erm/D-seed0/FAILED.json", "toy/sdg/erm/D-seed0/run.json",
    "toy/sdg/erm/D-seed0/status.json", "toy/sdg/erm/D-seed0/checkpoint-7.safetensors", "toy/sdg/published/x.json",
    "toy/sdg/erm/notes-seed.txt", "toy/sdg/.old/RESULT.json", "other/sdg/erm/A-seed0/run.json", ".slurm/7/runs.json",
    "toy/x.csv", "toy/sdg/erm/D-seed0/.lock",
)  # fmt: skip


@dataclass(frozen=True)
class Mishap:
    """What became of a file: damaged, gone, a folder, or anything in JSON."""

    path: str
    how: Damage | str
    content: Any = None

    def happen(self, files: dict[str, bytes]) -> None:
        """To the files, and to the folders, which have no content."""
        if self.how == "gone":
            files.pop(self.path, None)
        elif self.how == "json":
            files[self.path] = json.dumps(self.content).encode()
        elif isinstance(self.how, Damage):
            files[self.path] = self.how.of(files.get(self.path, b"{}"))


MISHAPS = st.builds(
    Mishap,
    st.one_of(st.sampled_from([f"{run}/{name}" for run in RUNS for name in FILES]), st.sampled_from(FOREIGN)),
    st.one_of(DAMAGE, st.sampled_from(["gone", "json", "json"])), JSON,
)  # fmt: skip


def boards_are_right(results: Path, changed: set[str], known: bool = True) -> None:
    """Every number on the board of what is left is that of its cases, and who is not on it is told."""
    files, means = whole()
    found = answer(lambda: (lambda board: (board, board.frame()))(face.ranking("toy", results=results)))
    if isinstance(found, Refusal):
        return
    study = found[0].study
    told = " ".join(study.left_out)
    on_board = {str(r.path.relative_to(results)) for r in study.records if not r.published}
    if known:
        assert not on_board & changed, "a changed run is on the board"
    for run in RUNS:
        if run in on_board:
            values = study.matrix(run.split("/")[2]).values
            for target in "ABC":
                if known and run[-7] != target:
                    assert values.loc[run[-7], target] == pytest.approx(means[run, target])
        elif known and f"{run}/RESULT.json" in files:
            assert f"{results / run}" in told or not (results / run / "RESULT.json").is_file(), f"{run} is not told"


def all_named(results: Path, changed: set[str]) -> None:
    """`verify` names every folder that was changed, and `status` knows where each run stands."""
    _, problems = answer(lambda: verify(results))
    for run in RUNS:
        named = any(problem.startswith(f"{results / run}: ") for problem in problems)
        if (results / run).is_dir():
            assert named or run not in changed, f"{run} is not named"
            assert run in changed or not named, problems
    standings_are_told(results)


def standings_are_told(results: Path) -> None:
    """Unless SLURM's queue must be asked, and does not answer."""
    found = answer(lambda: face.standings(results=results))
    if isinstance(found, Refusal):
        assert found.cause.startswith("squeue") and (results / ".slurm" / "7" / "runs.json").is_file()
    else:
        assert {s.state for s in found} <= set(STATES)


@inputs(35)
@given(st.lists(MISHAPS, max_size=3))
@example([Mishap("toy/sdg/erm/D-seed0/FAILED.json", "json", {})])
@example([Mishap(f"toy/sdg/erm/D-seed0/{name}", "json", {}) for name in ("checkpoint-x.safetensors", "run.json")])
@example([Mishap(f"{RUNS[0]}/RESULT.json", "json", [1])])
@example([Mishap(".slurm/7/runs.json", "json", {"": None})])
@example([Mishap(".slurm/7/runs.json", "json", {"7_0": "toy/sdg/erm/D-seed0"})])
def test_results_after_mishaps_are_named_and_what_is_whole_is_right(mishaps: list[Mishap]):
    files = dict(whole()[0])
    for mishap in mishaps:
        mishap.happen(files)
    hurt = {name for name, content in whole()[0].items() if files.get(name) != content}
    changed, tables, results = (
        {run for run in RUNS if hurt & {f"{run}/{name}" for name in names}}
        for names in (FILES[:-1], ("run.json", "cases.csv"), FILES[-1:])
    )
    with folder() as box:
        for name, content in files.items():
            (box.path / name).parent.mkdir(parents=True, exist_ok=True)
            (box.path / name).write_bytes(content)
        before = box.held()
        boards_are_right(box.path, tables)
        if not results:
            all_named(box.path, changed)
        else:
            answer(lambda: verify(box.path))
            standings_are_told(box.path)
        after = box.held()
        assert {n: c for n, c in after.items() if ".lock" not in n} == {
            n: c for n, c in before.items() if ".lock" not in n
        }


KEYS = list(json.loads(whole()[0][f"{RUNS[0]}/run.json"]))


@inputs(25)
@given(st.sampled_from(RUNS), st.sampled_from(KEYS), st.one_of(st.just(...), JSON))
@example(RUNS[0], "costs", {})
@example(RUNS[0], "needs", 3)
@example(RUNS[5], "domains", "ABC")
@example(RUNS[5], "targets", [])
@example(RUNS[5], "data", {"A": None})
@example(RUNS[0], "initialisation", [None])
def test_a_record_that_says_something_else_is_left_out_or_stands_by_its_cases(run: str, key: str, value: Any):
    """As another version may have written it: the checksums are right."""
    files = dict(whole()[0])
    record = json.loads(files[f"{run}/run.json"])
    record.pop(key) if value is ... else record.update({key: value})
    contents = {name: files[f"{run}/{name}"] for name in FILES[:-1]} | {"run.json": json.dumps(record).encode()}
    files |= {f"{run}/{n}": c for n, c in contents.items()} | {f"{run}/RESULT.json": sealed(contents)}
    with folder() as box:
        for name, content in files.items():
            (box.path / name).parent.mkdir(parents=True, exist_ok=True)
            (box.path / name).write_bytes(content)
        boards_are_right(box.path, set(), known=False)
        assert not isinstance(answer(lambda: verify(box.path), box), Refusal)


CELLS = st.one_of(
    st.sampled_from(["", "nan", "inf", "-1", "2", "x", "A", "D", "missed", "target", "1e400", '"', "\n", "\0"]),
    st.text(max_size=3),
)


@inputs(25)
@given(st.sampled_from(RUNS), st.integers(0, 5), st.integers(0, 11), CELLS)
@example(RUNS[0], 1, 9, "inf")
def test_cases_that_say_something_else_are_refused_or_are_in_the_means(run: str, line: int, column: int, cell: str):
    """Their checksum is right: they are what that run measured, as far as they can be."""
    files = dict(whole()[0])
    rows = [row.split(",") for row in files[f"{run}/cases.csv"].decode().split("\n")]
    rows[line][column] = cell
    contents = {name: files[f"{run}/{name}"] for name in FILES[:-1]}
    contents["cases.csv"] = "\n".join(map(",".join, rows)).encode(errors="surrogatepass")
    files |= {f"{run}/{n}": c for n, c in contents.items()} | {f"{run}/RESULT.json": sealed(contents)}
    with folder() as box:
        for name, content in files.items():
            (box.path / name).parent.mkdir(parents=True, exist_ok=True)
            (box.path / name).write_bytes(content)
        found = answer(lambda: face.ranking("toy", results=box.path), box)
        assert isinstance(found, Refusal | Ranking)
        assert not isinstance(answer(lambda: verify(box.path), box), Refusal)
        if isinstance(found, Ranking):
            mean = found.study.matrix(found.study.variants[0]).mean
            assert math.isnan(mean) or 0 <= mean <= 1
