"""Scores: of masks, judged by hand and by MedPy; of tables that others measured, judged by their plain means."""

import csv
import gzip
import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import medpy.metric.binary as medpy
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dgbench import face, metrics
from dgbench.scores.study import Study
from tests.fuzz.pictures import DAMAGE, Damage
from tests.fuzz.right_or_refused import Refusal, answer, folder, inputs

# Masks


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """(prediction, reference, spacing), 2-D or 3-D, sparse, dense, empty or full."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=3, max_side=9))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    share = st.sampled_from([0, 0.02, 0.2, 0.6, 0.95, 1])
    prediction, reference = (rng.random(shape) < draw(share) for _ in range(2))
    spacing = st.sampled_from([0.001, 0.3, 0.5, 1.0, 3.0, 7.5, 1000.0])
    return prediction, reference, tuple(draw(spacing) for _ in shape)


def border(mask: np.ndarray) -> list[tuple[int, ...]]:
    padded = np.pad(mask, 1)
    steps = [sign * step for step in np.eye(mask.ndim, dtype=int) for sign in (1, -1)]
    return [tuple(i) for i in np.argwhere(mask) if not all(padded[tuple(i + 1 + step)] for step in steps)]


def by_hand(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, ...]) -> list[float]:
    """Dice, ASD, ASSD and HD95 from every pair of border voxels."""
    if prediction.ndim == 3 and len(prediction) == 1:  # is measured as the image it is
        return by_hand(prediction[0], reference[0], spacing[1:])
    total = int(prediction.sum()) + int(reference.sum())
    if not total:
        return [math.nan] * 4
    if not (prediction.any() and reference.any()):
        return [0.0, math.inf, math.inf, math.inf]
    p, r = np.array(border(prediction)) * spacing, np.array(border(reference)) * spacing
    table = np.sqrt(((p[:, None] - r[None]) ** 2).sum(axis=2))
    there, back = table.min(axis=1), table.min(axis=0)
    ordered = sorted([*there, *back])
    at = 0.95 * (len(ordered) - 1)
    low, above = ordered[math.floor(at)], ordered[math.ceil(at)]
    hd95 = low + (above - low) * (at - math.floor(at))
    dice = 2 * int((prediction & reference).sum()) / total
    return [dice, math.fsum(there) / len(there), math.fsum(ordered) / len(ordered), hd95]


@inputs(30)
@given(pairs())
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_score_of_two_masks_is_that_of_all_pairs_of_border_voxels_and_medpys(pair: Any):
    prediction, reference, spacing = pair
    found = answer(lambda: metrics.measure(prediction, reference, spacing))
    assert list(found[:4]) == pytest.approx(by_hand(prediction, reference, spacing), rel=1e-9, abs=1e-12, nan_ok=True)
    assert (found.n_prediction, found.n_reference) == (prediction.sum(), reference.sum())
    flat = prediction.ndim == 3 and len(prediction) == 1
    if not found.flag and not flat:
        theirs = [medpy.dc(prediction, reference)]
        theirs += [f(prediction, reference, spacing) for f in (medpy.asd, medpy.assd, medpy.hd95)]
        assert list(found[:4]) == pytest.approx(theirs, rel=1e-9, abs=1e-9)


# Tables

COLUMNS = ["method", "source", "seed", "target", "case", "structure", "dice", "asd", "n_reference"]
CELLS = st.one_of(
    st.sampled_from([
        "A", "B", "E", "x", "NA", "nan", "inf", "-inf", "-0.1", "1.5", "70", "0.5", "1e400", "0x1", "٣", "1_0",
        "prostate",
        "cup", "case00", "true", "=1+1",
    ]),
    st.just(""), st.just(" "), st.just('"'), st.just("a,b"), st.sampled_from(["a\nb", "a\rb", "a\x1b[2J"]),
    st.just("\ufeff"), st.just("\0"),
    st.just("../../up"), st.just("a/b"), st.just("é" * 80), st.text(max_size=4),
)  # fmt: skip
# What becomes of a whole column, as other software writes it.
WHOLE = st.sampled_from(["", "", "", "percent", "comma", "NA", "capitals", "group", "hd95", "assd", "note", "digits"])
EDITS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8), CELLS), max_size=2)
ROWS = st.lists(st.tuples(st.sampled_from(["drop", "twice", "head"]), st.integers(0, 40)), max_size=2)


def table(score: int) -> list[dict[str, str]]:
    """Two methods, sources A and B, one seed, two cases: as others may have written it."""
    rng = np.random.default_rng(score)
    return [
        dict(zip(COLUMNS, (m, s, "0", t, c, "prostate", f"{rng.integers(0, 101) / 100:g}", "1.5", "9"), strict=True))
        for m, (s, t), c in itertools.product(
            ("mine", "older"), itertools.permutations("ABCD", 2), ("case00", "case01")
        )
        if s in "AB"
    ]


def rewritten(rows: list[dict[str, str]], how: str) -> list[dict[str, str]]:
    spelled: dict[str, Callable[[float], str]] = {
        "percent": lambda x: f"{100 * x:g}", "comma": lambda x: f"{x:g}".replace(".", ","), "NA": lambda _: "NA",
        "digits": lambda x: repr(x / 3),
    }  # fmt: skip
    if how in spelled:
        return [row | {"dice": spelled[how](float(row["dice"]))} for row in rows]
    if how == "capitals":
        return [{name.capitalize(): cell for name, cell in row.items()} for row in rows]
    cells = {"group": "7", "hd95": "inf", "assd": "1e-300", "note": "x"}
    return [row | {how: cells[how]} for row in rows] if how else rows


def text_of(rows: list[dict[str, str]], columns: list[str], delimiter: str) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode("utf-8", errors="surrogatepass")


def imported(content: bytes, file: str = "theirs.csv", **told: str) -> None:
    """Import a table: a board whose means are the plain ones of what it holds, or a refusal and no file."""
    with folder() as box:
        path, results = box.path / file, box.path / box.written
        path.write_bytes(content)
        options = {"citation": "Doe 2030", "protocol": "doe", **told}
        board = answer(lambda: face.import_scores(path, "phantom", results=results, **options), box)
        if isinstance(board, Refusal):
            assert not results.exists() or not [p for p in results.rglob("*") if p.is_file()], "refused, yet written"
            return
        assert board.is_relative_to(results) and {p.suffix for p in board.parent.iterdir()} == {".json", ".gz"}
        study = Study.load(results, "phantom", options["protocol"])
        held = gzip.decompress(content) if file.endswith(".gz") else content
        rows = [r for r in csv.DictReader(io.StringIO(held.decode("utf-8-sig"))) if any(filter(None, r.values()))]
        of: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            of.setdefault(row["method"].strip(), []).append(row)
        assert set(study.runs) == {f"{method} (published)" for method in of}
        for method, theirs in of.items():
            ours = study.cells[(study.cells["method"] == method) & (study.cells["metric"] == "dice")]
            for (source, seed, target), cell in ours.groupby(["source", "seed", "target"], observed=True):
                here = [r for r in theirs if (r["source"].strip(), r["target"].strip()) == (source, target)]
                scores = [float(r["dice"]) for r in here if int(r["seed"]) == seed and r["dice"].strip()]
                mean = math.fsum(scores) / len(scores) if scores else math.nan
                assert cell["value"].item() == pytest.approx(mean, nan_ok=True)


@inputs(40)
@given(
    st.integers(0, 99), EDITS, ROWS, st.permutations(COLUMNS), st.sets(st.sampled_from(COLUMNS), max_size=1),
    st.sampled_from(",,,,;\t"), st.sampled_from(["theirs.csv", "theirs.csv", "theirs.csv.gz"]), WHOLE,
)  # fmt: skip
@example(0, [(0, 0, "a\rb")], [], COLUMNS, set(), ",", "theirs.csv", "")
def test_a_table_of_scores_is_kept_with_its_means_or_nothing_is(
    score, edits, moved, order, left_out, delimiter, name, how
):
    rows = rewritten(table(score), how)
    for number, column, cell in edits:
        rows[number % len(rows)][COLUMNS[column]] = cell
    for how, number in moved:
        at = number % len(rows)
        rows = {"drop": rows[:at] + rows[at + 1 :], "twice": [*rows, rows[at]], "head": rows[: at + 1]}[how]
        if not rows:
            break
    more = [c for c in (rows[0] if rows else ()) if c not in COLUMNS]
    columns = more if how == "capitals" else [*(c for c in order if c not in left_out), *more]
    content = text_of(rows, columns, delimiter)
    imported(gzip.compress(content) if name.endswith("gz") else content, name)


@inputs(15)
@given(DAMAGE, st.sampled_from(["theirs.csv", "theirs.csv.gz"]))
@example(Damage("zeroed", 0.5), "theirs.csv")
@example(Damage("flipped", 0.375, 7), "theirs.csv.gz")
def test_a_damaged_table_is_kept_with_its_means_or_nothing_is(damage: Damage, name: str):
    content = text_of(table(0), COLUMNS, ",")
    imported(damage.of(gzip.compress(content, mtime=0) if name.endswith("gz") else content), name)


def test_a_table_with_more_cells_than_columns_is_refused_for_what_would_be_lost():
    with folder() as box:
        (path := box.path / "theirs.csv").write_text("method,source,seed,target,case,dice\nDoe, J,A,0,B,case00,0.5\n")
        found = answer(
            lambda: face.import_scores(path, "phantom", citation="c", protocol="p", results=box.path / "r"), box
        )
        assert isinstance(found, Refusal) and "more cells in some lines than columns" in found.cause


@inputs(10)
@given(st.fixed_dictionaries({"protocol": CELLS, "name": CELLS, "citation": CELLS}))
def test_a_board_of_any_name_is_written_where_it_belongs_or_not_at_all(told: dict[str, str]):
    imported(text_of(table(0), COLUMNS, ","), **told)
