"""Masks that another system wrote: the mask that a few lines of NumPy make of the numbers, or a refusal by name."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dgbench.running import foreign_files as files
from tests.fuzz.pictures import DAMAGE, Damage, Raster, Volume, rasters, volumes
from tests.fuzz.right_or_refused import Refusal, answer, folder, inputs

LABELS = {"disc": (1, 2), "cup": (2,)}
SHAPES = st.sampled_from([(1, 3, 4), (2, 3, 4), (1, 1, 1), (3, 2, 2)])


def of_plane(plane: np.ndarray) -> np.ndarray:
    return plane != 0 if (plane % 1 == 0).all() else plane >= 0.5


def by_hand(values: np.ndarray, shape: Sequence[int], count: int) -> np.ndarray | None:
    """bool (D, K, H, W); None for what no rule is for."""
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    if values.size == math.prod(shape):
        one = values.reshape(shape)
        return np.stack([of_plane(one)] if count == 1 else [np.isin(one, of) for of in LABELS.values()], axis=1)
    if values.size == count * math.prod(shape):
        return np.stack([of_plane(plane) for plane in values.reshape(count, *shape)], axis=1)
    if values.size == (count + 1) * math.prod(shape):
        winner = values.reshape(count + 1, *shape).argmax(axis=0)
        return np.stack([winner == k for k in range(1, count + 1)], axis=1)
    return None


@st.composite
def arrays(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...], int]:
    """(numbers, shape of the case, structures): masks, planes and probabilities, and what is none."""
    shape, count = draw(SHAPES), draw(st.sampled_from([1, 2]))
    lead = draw(st.sampled_from([(), (), (1,), (count,), (count + 1,), (7,)]))
    size = (*lead, *draw(st.sampled_from([shape, shape, shape[1:] if shape[0] == 1 else shape, shape[::-1], ()])))
    kind = draw(st.sampled_from(["u1", "?", "i2", "i8", "u8", "f2", "f4", ">f8", "c8"]))
    few = st.sampled_from([0, 1, 2, 255, -1, 0.25, 0.5, 0.75, 1e300, math.nan, math.inf, 2**63])
    of = draw(st.sampled_from([[0, 1], [0, 1, 2], [0, 255], [0.25, 0.5, 0.75], []]))
    elements = st.sampled_from(of) if of else few
    if np.dtype(kind).kind not in "fc":
        low, high = (0, 1) if kind == "?" else (np.iinfo(kind).min, np.iinfo(kind).max)
        elements = elements.filter(math.isfinite).map(int).map(lambda n: min(max(n, low), high))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(draw(hnp.arrays("O", size, elements=elements)).tolist()).astype(kind), shape, count


@inputs(30)
@given(arrays(), st.sampled_from(["x.npy", "x.npz"]))
@example((np.full((1, 3, 4), 1e300), (1, 3, 4), 1), "x.npy")
@example((np.full((1, 3, 4), 2**64 - 1, np.uint64), (1, 3, 4), 2), "x.npy")
def test_the_numbers_of_a_file_are_the_mask_that_they_say(drawn: tuple, name: str):
    values, shape, count = drawn
    names = tuple(LABELS)[:count]
    with folder() as box:
        np.save(box.path / name, values) if name.endswith("npy") else np.savez(box.path / name, probabilities=values)
        found = answer(
            lambda: files.read_mask(files.Found([box.path / name]), shape, names, LABELS if count > 1 else None, []),
            box,
        )
    if isinstance(found, Refusal):
        assert name in found.cause and found.code == 3
        plain = values.shape == shape and values.dtype.kind in "?u" and set(values.ravel().tolist()) <= {0, 1}
        assert not plain, found
        return
    expected = by_hand(values, shape, count)
    assert expected is not None and found.dtype == bool
    np.testing.assert_array_equal(found, expected)


@inputs(20)
@given(st.one_of(arrays(), rasters(("png", "tif")), volumes()), st.sampled_from(["npy", "npz"]), DAMAGE)
@example((np.ones((1, 3, 4), np.uint8), (1, 3, 4), 1), "npy", Damage("flipped", 0.07, 6))
def test_a_broken_file_is_refused_by_name_or_is_a_mask_of_the_case(
    drawn: tuple | Raster | Volume, suffix: str, damage: Damage
):
    if isinstance(drawn, tuple):
        stream = io.BytesIO()
        np.save(stream, drawn[0]) if suffix == "npy" else np.savez_compressed(stream, drawn[0])
        content, shape = stream.getvalue(), drawn[1]
    else:
        content, suffix, shape = drawn.content(), drawn.suffix, drawn.values().shape[:3]
    with folder() as box:
        (path := box.path / f"x.{suffix}").write_bytes(damage.of(content))
        found = answer(lambda: files.read_mask(files.Found([path]), shape, ("disc",), None, []), box)
    if isinstance(found, Refusal):
        assert str(path) in found.cause and found.code == 3
    else:
        assert found.shape == (shape[0], 1, *shape[1:]) and found.dtype == bool
        if suffix == "npz":
            np.testing.assert_array_equal(found, by_hand(drawn[0], shape, 1))


CASES = {"A": ["x", "x_cup", "y"], "B": ["x", "é"], "C d": ["z.1"]}
STEMS = st.sampled_from(
    ["x", "x_cup", "x_disc", "x_cup_cup", "y", "y_cup", "é", "e\u0301", "z.1", "z", "w", "", ".x", "x_"]
)
FOLDERS = st.sampled_from(["", "A/", "B/", "C d/", "D/", "A/B/", ".old/"])
SUFFIXES = st.sampled_from([".png", ".npy", ".nii.gz", ".npz", ".txt", ".mhd", ".raw", ".gif", "", ".PNG"])


@inputs(10)
@given(st.sets(st.tuples(FOLDERS, STEMS, SUFFIXES), max_size=6))
def test_every_file_is_of_one_case_or_what_is_wrong_with_it_is_told(names: set):
    with folder() as box:
        for above, stem, suffix in names:
            (box.path / above).mkdir(parents=True, exist_ok=True)
            if stem + suffix not in ("", ".x"):
                (box.path / above / (stem + suffix)).write_bytes(b"ElementDataFile = LOCAL")
        there = {str(p.relative_to(box.path)) for p in box.path.rglob("*") if p.is_file()}
        found, wrong = answer(lambda: files.find(box.path, CASES, ("disc", "cup")), box)
        taken = [str(p.relative_to(box.path)) for of in found.values() for p in of.paths]
        assert len(taken) == len(set(taken)) and set(taken) <= there
        told = "; ".join(f for of in wrong.values() for f in of)
        for name in there - set(taken):
            assert name in told or "/." in f"/{name}" or Path(name).suffix in (".txt", "", ".1", ".raw"), name
        for (domain, case), of in found.items():
            assert case in CASES[domain]
            for path in of.paths:
                above = path.relative_to(box.path).parts[:-1]
                assert above in ((), (domain,)) and (above or sum(case in ids for ids in CASES.values()) == 1)
                assert path.name.replace("e\u0301", "é").startswith(case)
