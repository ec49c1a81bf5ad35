"""NumPy, NRRD, MetaImage and DICOM files, whole and broken: the voxels that were written, or a refusal by name."""

import functools
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import example, given
from hypothesis import strategies as st

from dgbench.images.formats import Pixels, parts, read
from tests.fuzz.pictures import DAMAGE, DTYPES, Damage
from tests.fuzz.right_or_refused import Refusal, answer, folder, inputs
from tests.images.test_dicom import slice_file

ITK = ("nrrd", "nhdr", "mha", "mhd")


@dataclass(frozen=True)
class Grid:
    """A file of numbers. shape: (D, H, W), (H, W), or with a last axis of three colours."""

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    seed: int
    packed: bool = True
    colours: bool = False

    def values(self) -> np.ndarray:
        """As they lie in the file."""
        kind = np.dtype(self.dtype)
        top = min(30000, np.iinfo(kind).max) if kind.kind in "iu" else 2 if kind.kind == "b" else 100
        return np.random.default_rng(self.seed).integers(0, top, self.shape).astype(self.dtype)

    def write(self, path: Path) -> None:
        """By another library."""
        if self.suffix in ITK:
            image = SimpleITK.GetImageFromArray(self.values(), isVector=self.colours)
            image.SetSpacing((0.5, 0.75, 3.0)[: image.GetDimension()])
            SimpleITK.WriteImage(image, str(path), useCompression=self.packed)
        elif self.suffix == "npy":
            np.save(path, self.values())
        else:
            (np.savez_compressed if self.packed else np.savez)(path, self.values())

    def expected(self) -> np.ndarray:
        """(D, H, W), or (D, H, W, 3)."""
        values = self.values()
        return values if values.ndim == 3 + self.colours else values[None]


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    suffix = draw(st.sampled_from(("npy", "npz", *ITK)))
    numpy = suffix.startswith("np")
    dtype = draw(st.sampled_from([*DTYPES, *(("?", ">i2", ">f4", "<f2") if numpy else ())]))
    colours = draw(st.booleans()) and dtype == "u1"
    axis = st.integers(2, 9) if draw(st.integers(0, 9)) else st.integers(12, 40)
    depth = draw(st.sampled_from([(), (1,), (2,), (5,)]))
    if depth == () and not colours and dtype == "u1":
        depth = (2,)  # whose last axis, if it is of three, holds colours
    shape = (*depth, max(5, draw(axis)), max(5, draw(axis)), *((3,) if colours else ()))
    return Grid(suffix, dtype, shape, draw(st.integers(0, 99)), draw(st.booleans()), colours)


@inputs(20)
@given(grids())
def test_a_grid_of_numbers_is_read_as_it_was_written(grid: Grid):
    with folder() as box:
        grid.write(path := box.path / f"a.{grid.suffix}")
        found = answer(lambda: read(path), box)
        assert isinstance(found, Pixels), found
        np.testing.assert_array_equal(found.values, grid.expected())
        if grid.suffix in ITK:
            assert found.spacing == ((3.0, 0.75, 0.5) if len(grid.shape) - grid.colours == 3 else (1.0, 0.75, 0.5))


@inputs(35)
@given(grids(), DAMAGE, st.booleans())
@example(Grid("nhdr", "u1", (2, 12, 12), 0), Damage("flipped", 0.0, 0), False)
@example(Grid("mhd", "u1", (2, 12, 12), 0), Damage("flipped", 0.5, 0), False)
@example(Grid("npy", "u1", (2, 5, 5), 0), Damage("flipped", 0.25, 0), False)
def test_a_broken_grid_is_refused_or_was_not_hurt(grid: Grid, damage: Damage, header: bool):
    """Only what is packed has a checksum. header: it is the file's beginning that is hurt."""
    with folder() as box:
        grid.write(path := box.path / f"a.{grid.suffix}")
        hurt = parts(path)[0 if header else -1]
        content, size = hurt.read_bytes(), 400 if header else 1 << 30
        hurt.write_bytes(damage.of(content[:size]) + (b"" if damage.kind == "cut" else content[size:]))
        found = answer(lambda: read(path), box)
        if isinstance(found, Refusal):
            assert str(path) in found.cause and found.code == 3
            return
        assert found.values.ndim in (3, 4) and found.values.size and np.isfinite(found.values).all()
        if grid.suffix == "npz" or (grid.packed and len(parts(path)) > 1 and not header):
            np.testing.assert_array_equal(found.values, grid.expected())
        else:
            held = sum(p.stat().st_size for p in box.path.iterdir())
            assert grid.packed or found.values.nbytes <= held, "voxels from nowhere"
        assert found.spacing is None or all(0 < s < math.inf for s in found.spacing)


@functools.cache
def series() -> dict[str, bytes]:
    """Three slices of a CT."""
    with folder() as box:
        for i in range(3):
            slice_file(box.path / f"{i}.dcm", i)
        return {p.name: p.read_bytes() for p in box.path.iterdir()}


def told(name: str) -> np.ndarray:
    with folder() as box:
        for file, content in series().items():
            (box.path / file).write_bytes(content)
        return read(box.path if name == "" else box.path / name).values


NUMBERS = st.one_of(
    st.sampled_from([
        "", "0", "-1", "1", "nan", "inf", "1e400", "x", "0.5", "1\\2", "1\\2\\3\\4\\5\\6", "0\\0", "-0.5\\0.75", "\\",
    ]),
    st.floats(-1000, 1000).map(lambda x: f"{x:.6g}"),
)  # fmt: skip
FIELDS = st.sampled_from([
    "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness", "RescaleSlope",
    "InstanceNumber", "RescaleIntercept", "NumberOfFrames", "SpacingBetweenSlices",
])  # fmt: skip


def spelled(content: bytes, field: str, text: str) -> bytes:
    """A file with another text in one of its fields, as no library would write it."""
    import pydicom

    data = pydicom.dcmread(io.BytesIO(content))
    stored = pydicom.dataelem.RawDataElement(
        pydicom.tag.Tag(field), pydicom.datadict.dictionary_VR(field), len(text), text.encode(), 0, False, True
    )
    data._dict[pydicom.tag.Tag(field)] = stored
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@inputs(20)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(series())), st.one_of(DAMAGE, st.sampled_from(["gone", "again", "note"]))),
        max_size=2,
    ),
    st.lists(st.tuples(st.sampled_from(sorted(series())), FIELDS, NUMBERS), max_size=2),
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom, as it writes what is no number
def test_a_series_after_mishaps_is_a_volume_of_its_slices_or_is_refused(mishaps: list, words: list):
    files = dict(series())
    for name, field, text in words:
        try:
            files[name] = spelled(files[name], field, text)
        except Exception:  # of pydicom: it does not write that
            return
    for name, how in mishaps:
        if isinstance(how, Damage):
            files[name] = how.of(files.get(name, b""))
        elif how == "gone":
            files.pop(name, None)
        else:
            files[f"{name}.{how}" if how == "note" else f"{how}-{name}"] = files.get(name, b"")
    with folder() as box:
        for name, content in files.items():
            (box.path / name).write_bytes(content)
        found = answer(lambda: read(box.path), box)
        if isinstance(found, Refusal):
            assert str(box.path) in found.cause and found.code == 3
            assert mishaps or words
            return
        assert found.values.ndim == 3 and np.isfinite(found.values).all()
        assert found.spacing is None or all(0 < s < math.inf for s in found.spacing)
        assert found.affine is None or np.isfinite(found.affine).all()
        if not mishaps and not words:
            np.testing.assert_array_equal(found.values, told(""))
