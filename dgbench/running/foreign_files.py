"""Foreign files: which file holds which case, and the mask in it, of predictions that another system wrote.

    FOLDER/<domain>/<case>.png             by the task's names, any file that `images.formats` reads, .npy or .npz
    FOLDER/<case>.nii.gz                   where no other domain has a case of that name
    FOLDER/<domain>/<case>_<structure>.png one file for each structure
    FOLDER/dgbench.toml                    optional: what is stated of the system, see `running.foreign`

A file holds a mask or probabilities on the grid of the case's image, axes (slice, height, width). Of several structures
it is an index mask, or planes, (K, D, H, W), or K + 1 planes that sum to 1, the first of them the background.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dgbench.errors import DataError
from dgbench.images import formats
from dgbench.images.folder_task import FOREIGN
from dgbench.images.volume_formats import member
from dgbench.names import one_form

ARRAYS = (".npy", ".npz")
EXACT = 2**53  # from here on floats skip whole numbers
HEADERS = (".mhd", ".nhdr")  # of voxels in a file beside them
Labels = Mapping[str, Sequence[int]]  # the mask values that belong to each structure
Place = tuple[str, str]  # (domain, case)


@dataclass
class Found:
    """The files of one case: of all structures, or by structure."""

    whole: list[Path] = field(default_factory=list)
    parts: defaultdict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))

    @property
    def paths(self) -> list[Path]:
        """All of them."""
        return [*self.whole, *(p for paths in self.parts.values() for p in paths)]

    def is_clear(self, structures: Sequence[str]) -> bool:
        """One file of all structures, or one of each."""
        return len(self.paths) == 1 if self.whole else [len(self.parts[s]) for s in structures] == [1] * len(structures)


def find(
    folder: Path, cases: Mapping[str, Sequence[str]], structures: Sequence[str]
) -> tuple[dict[Place, Found], dict[str, list[str]]]:
    """The files by (domain, case), and what is wrong with their names, by kind of problem.

    cases: the names of all cases, by domain.
    """
    found: defaultdict[Place, Found] = defaultdict(Found)
    wrong: defaultdict[str, list[str]] = defaultdict(list)
    domains_of: defaultdict[str, list[str]] = defaultdict(list)
    for domain, ids in cases.items():
        for case_id in ids:
            domains_of[case_id].append(domain)
    every = sorted(p for p in folder.rglob("*") if p.is_file())
    voxels = {part for p in every if p.suffix.lower() in HEADERS for part in formats.parts(p) if part != p}
    for path in every:
        inside = path.relative_to(folder)
        if path in voxels or any(part.startswith(".") for part in inside.parts):
            continue
        if not is_prediction(path):
            if FOREIGN.search(path.name):
                wrong["a file of a format that is not read (save NIfTI, PNG, .npy or .npz)"].append(str(inside))
            continue
        *above, _ = inside.parts
        domain = one_form(above[0]) if above else ""
        known = cases.get(domain, ()) if above else domains_of
        name, structure = _split(_stem(path), known, structures)
        among = [domain] if above else domains_of.get(name, [])
        if len(above) > 1 or not name:
            wrong["extra: no case of the task is named so"].append(str(inside))
        elif len(among) > 1:
            where = " and ".join(among)
            wrong["of several domains: put the files of each into a folder <domain>/"].append(f"{inside} ({where})")
        elif structure:
            found[among[0], name].parts[structure].append(path)
        else:
            found[among[0], name].whole.append(path)
    for files in found.values():
        several = [files.paths] if files.whole and files.parts else [files.whole, *files.parts.values()]
        for paths in (p for p in several if len(p) > 1):
            wrong["doubled"].append(" and ".join(str(p.relative_to(folder)) for p in paths))
        for structure in (s for s in structures if files.parts and not files.whole and s not in files.parts):
            wrong[f"missing: no file of {structure} beside"].append(str(files.paths[0].relative_to(folder)))
    return dict(found), wrong


def is_prediction(path: Path) -> bool:
    """Has the file a suffix of an image or of a NumPy array?"""
    return formats.is_image(path) or path.suffix.lower() in ARRAYS


def _stem(path: Path) -> str:
    return one_form(path.stem) if path.suffix.lower() in ARRAYS else formats.stem(path)


def _split(stem: str, known: object, structures: Sequence[str]) -> Place:
    """(case, "") or (case, structure); ("", "") for what is neither. known: holds the names of cases."""
    if stem in known:  # type: ignore[operator]
        return stem, ""
    for structure in structures:
        case_id = stem.removesuffix(f"_{structure}")
        if case_id != stem and case_id in known:  # type: ignore[operator]
            return case_id, structure
    return "", ""


def read_mask(
    files: Found, shape: Sequence[int], structures: Sequence[str], labels: Labels | None, grids: Sequence[np.ndarray]
) -> np.ndarray:
    """bool (D, K, H, W). Raises `DataError` for a file that is none, or no mask of that shape, (D, H, W).

    labels: of index masks; None where nobody said which values belong to which structure. grids: the affines that a
    NIfTI file may have, (4, 4) each; none: any.
    """
    if files.whole:
        values = _values(files.whole[0], shape, len(structures), grids)
        return np.ascontiguousarray(_planes(files.whole[0], values, shape, structures, labels))
    planes = []
    for structure in structures:
        path = files.parts[structure][0]
        planes.append(_plane(path, _sized(path, _values(path, shape, 1, grids), shape)))
    return np.stack(planes, axis=1)


def _values(path: Path, shape: Sequence[int], planes: int, grids: Sequence[np.ndarray]) -> np.ndarray:
    if path.suffix.lower() in ARRAYS:
        values = _array(path, math.prod(shape) * (planes + 1))
    else:
        pixels = _pixels(path)
        if pixels.affine is not None and grids and pixels.values.shape == tuple(shape):
            _check_grid(path, pixels.affine, shape, grids)
        values = pixels.values
    if values.dtype.kind not in "buif":
        raise DataError(f"{path} holds {values.dtype}, no numbers", "save a mask or probabilities")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{path} holds NaN or infinite values", "save a mask or probabilities")
    if values.dtype.kind == "f" and (most := float(np.abs(values).max(initial=0))) >= EXACT:
        raise DataError(f"{path} holds {most:.4g}, no value of a mask and no probability", "save one of both")
    return values


def _pixels(path: Path) -> formats.Pixels:
    """As a mask, of which a palette's indices count; else as numbers, which may be probabilities."""
    try:
        return formats.read(path, mask=True)
    except DataError as error:
        pixels = formats.read(path)
        if pixels.values.dtype.kind != "f":
            raise error
        return pixels


def _array(path: Path, most: int) -> np.ndarray:
    """The array in a .npy or .npz file, no object and no larger than `most` numbers."""
    remedy = "save one array, by numpy.save or numpy.savez_compressed(path, probabilities=...)"
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                names = [n for n in file.files if n == "probabilities"] or file.files
                if len(names) != 1:
                    raise ValueError(f"it holds {len(names)} arrays, and none is named probabilities")
                if file.zip.getinfo(f"{names[0]}.npy").file_size > 16 * most + 4096:
                    raise ValueError("its array is far larger than the case")
                values = member(file, names[0])
        return np.array(values) if values.size <= most else values
    except Exception as error:  # numpy, zipfile, zlib and Python's tokenizer, for a header, raise a dozen kinds
        raise DataError(f"{path} cannot be read: {error or type(error).__name__}", remedy) from None


def _check_grid(path: Path, affine: np.ndarray, shape: Sequence[int], grids: Sequence[np.ndarray]) -> None:
    """Raises `DataError` unless the corners lie where those of one of the grids do, to a tenth of a voxel."""
    far = np.array(shape[::-1]) - 1
    corners = np.array([[x, y, z, 1] for x in (0, far[0]) for y in (0, far[1]) for z in (0, far[2])], dtype=float)
    for grid in grids:
        side = np.linalg.norm(grid[:3, :3], axis=0).min()
        if np.linalg.norm((corners @ (affine - grid).T)[:, :3], axis=1).max() <= 0.1 * side:
            return
    raise DataError(
        f"{path} lies elsewhere in space than its image: spacing, origin or axes in its header are others",
        "save it on the image's grid with the image's header; if the voxels do correspond, save them as .npy",
    )


def _planes(
    path: Path, values: np.ndarray, shape: Sequence[int], structures: Sequence[str], labels: Labels | None
) -> np.ndarray:
    """The mask in a file of all structures: bool (D, K, H, W)."""
    count = len(structures)
    if values.size == math.prod(shape) and (values.ndim <= 3 or count == 1):
        values = _sized(path, values, shape)
        if count == 1 and (labels is None or not _is_whole(values)):
            return _plane(path, values)[:, None]
        return _of_index(path, values, structures, labels)
    sizes = [tuple(shape), *([tuple(shape[1:])] if shape[0] == 1 else [])]
    given = {(n, *size): n for n in (count, count + 1) for size in sizes}.get(values.shape)
    if given is None:
        return _of_index(path, _sized(path, values, shape), structures, labels)
    values = values.reshape(given, *shape)
    if given == count:
        return np.stack([_plane(path, plane) for plane in values], axis=1)
    if not np.allclose(values.sum(axis=0, dtype=np.float64), 1, atol=0.01):
        raise DataError(
            f"{path} holds {given} planes that do not sum to 1, for {count} structures",
            "save one plane for each structure, or probabilities with the background as the first of them",
        )
    return np.moveaxis(np.arange(1, given)[:, None, None, None] == values.argmax(axis=0), 0, 1)


def _sized(path: Path, values: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """`values` as (D, H, W)."""
    flat = [n for n in values.shape if n != 1]
    if values.ndim > 4 or values.size != math.prod(shape) or flat != [n for n in shape if n != 1]:
        sizes = [" x ".join(map(str, of)) for of in (values.shape, shape)]
        raise DataError(f"{path} is {sizes[0]}, its case {sizes[1]} (slices x height x width)", "save it on that grid")
    return values.reshape(tuple(shape))


def _is_whole(values: np.ndarray) -> bool:
    return values.dtype.kind != "f" or not (values % 1).any()


def _plane(path: Path, values: np.ndarray) -> np.ndarray:
    """Of one structure, bool: 0 and another number; or probabilities, found from 0.5 on."""
    if _is_whole(values):
        if len(found := formats.values_of(values.astype(np.int64))) > 1:
            raise DataError(
                f"{path} holds {len(found)} values besides 0 of one structure: {_few(found)}",
                "save a mask with one, or probabilities as float numbers in [0, 1]",
            )
        return values != 0
    if values.min() < 0 or values.max() > 1:
        raise DataError(
            f"{path} holds numbers from {values.min():.4g} to {values.max():.4g}, no probabilities",
            "save them after the sigmoid or softmax, in [0, 1]",
        )
    return values >= 0.5


def _of_index(path: Path, values: np.ndarray, structures: Sequence[str], labels: Labels | None) -> np.ndarray:
    """An index mask -> bool (D, K, H, W)."""
    if not _is_whole(values):
        raise DataError(
            f"{path} holds one plane of probabilities, for {len(structures)} structures", "save one plane for each"
        )
    if labels is None:
        example = ", ".join(f"{s} = {list(range(i, len(structures) + 1))}" for i, s in enumerate(structures, 1))
        raise DataError(
            f"{path} is an index mask, and structures of the task overlap",
            f"state which values belong to which, e.g. labels={{ {example} }}, or save one file or plane for each",
        )
    values = values.astype(np.int64)
    known = {v for of in labels.values() for v in of}
    if outside := [v for v in formats.values_of(values) if v not in known]:
        means = ", ".join(f"{name} = {list(labels[name])}" for name in structures)
        raise DataError(f"{path} holds values of no structure: {_few(outside)}", f"known: {means}; state other labels")
    return np.stack([np.isin(values, labels[name]) for name in structures], axis=1)


def _few(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")


def lines(wrong: Mapping[str, Sequence[str]], most: int = 20) -> Iterator[str]:
    """A sentence for each kind of problem, with the files it is of."""
    for kind, names in wrong.items():
        more = f" and {len(names) - most} more" if len(names) > most else ""
        yield f"{kind} ({len(names)}): {', '.join(names[:most])}{more}"
