"""Prepared data: a domain's cases, read once and kept as memory-mapped arrays at network size.

A prepared domain is a folder in the cache, named by the size, a fingerprint of the code that prepares, and one of the
images and masks themselves. Training and testing index its arrays; no image file is decoded again.

That fingerprint is of voxels, spacing and names, as the task gives them: how files are read, and what else stands in
them, may change as long as the same images come out. The task's size and budget are part of it, for what a row called
`erm` was trained with must be one thing in one table. What came out of files is remembered by their content (all their
bytes, see `files.Checksums`), by the code that reads them and by the versions of the libraries that decode them, so
that only the first look decodes, and it prepares at the same time. A task that computes its cases has no files, and its
code is their content: other processors round otherwise, and it stays the same data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.errors import DataError, DgbenchError, UsageError
from dgbench.files import Checksums, Taken, cache_folder, lock, make_folder, read_json, sha256, write_json
from dgbench.fingerprint import of_code
from dgbench.method import Batch
from dgbench.plausibility import Doubt, doubt
from dgbench.task import Case, Task, case_problems

LEVELS = 65535  # intensities are stored as uint16: 8-bit images stay exact, 12-bit ones within 1e-5


@dataclass(frozen=True)
class PreparedCase:
    """Where a case lies in its domain's arrays. `shape`: (D, H, W) of the image; `offset`: bytes into reference.npy."""

    id: str
    first: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    offset: int
    foreground: tuple[bool, ...]  # per slice: does the reference hold any structure?

    @property
    def slices(self) -> range:
        """Where its slices lie in the domain's arrays."""
        return range(self.first, self.first + self.shape[0])


class PreparedDomain:
    """A domain as memory maps. images: uint16 (S, C, n, n); masks: uint8 (S, K, n, n), 0 or 1; S slices in all.

    doubts: what was odd in its masks when they were read.
    """

    def __init__(self, folder: Path):
        """Open and verify. Raises `DataError` when a file is missing or its checksum differs."""
        index = read_json(folder / "index.json")
        if index is None:
            raise DataError(f"prepared data {folder} is incomplete", "delete that folder: it is made again")
        for name, checksum in index["files"].items():
            if not (folder / name).is_file() or sha256(folder / name) != checksum:
                raise DataError(f"prepared data {folder / name} is damaged", "delete that folder: it is made again")
        self.folder, self.name, self.fingerprint = folder, index["domain"], index["fingerprint"]
        self.structures: int = index["structures"]
        self.in_part: bool = index.get("in_part", False)  # are predictions scored in a part of each image only?
        self.doubts = [Doubt(*told) for told in index.get("doubts", ())]
        self.cases = {
            c["id"]: PreparedCase(
                c["id"], c["first"], tuple(c["shape"]), tuple(c["spacing"]), c["offset"], tuple(c["foreground"])
            )
            for c in index["cases"]
        }
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        self.masks = np.load(folder / "masks.npy", mmap_mode="r")
        self._reference = np.load(folder / "reference.npy", mmap_mode="r")
        self._kept: tuple[Tensor, Tensor] | None = None
        self._ends = np.array([(c.slices[0], c.slices[-1]) for c in self.cases.values() for _ in c.slices])

    def reference(self, case_id: str) -> np.ndarray:
        """The reference mask at the image's own resolution: bool (D, K, H, W)."""
        return self._planes(case_id)[:, : self.structures]

    def scored(self, case_id: str) -> np.ndarray | None:
        """Where predictions count, at the image's own resolution: bool (D, 1, H, W); None: everywhere."""
        return self._planes(case_id)[:, self.structures :] if self.in_part else None

    def _planes(self, case_id: str) -> np.ndarray:
        """bool (D, K, H, W), or (D, K + 1, H, W), the last plane being where predictions count."""
        case = self.cases[case_id]
        shape = (case.shape[0], self.structures + self.in_part, *case.shape[1:])
        count = int(np.prod(shape))
        packed = self._reference[case.offset : case.offset + (count + 7) // 8]
        return np.unpackbits(packed, count=count).view(bool).reshape(shape)

    def slice_indices(self, case_ids: Sequence[str], foreground: bool) -> np.ndarray:
        """Indices of the slices of some cases, only those with any structure if `foreground`."""
        cases = [self.cases[i] for i in case_ids]
        chosen = [s for c in cases for s, f in zip(c.slices, c.foreground, strict=True) if f or not foreground]
        return np.array(chosen, dtype=np.int64)

    def batch(self, indices: np.ndarray | slice, device: torch.device | str = "cpu", neighbours: int = 0) -> Batch:
        """The slices at `indices` as float32 on a device; one gray channel is expanded to three, not copied.

        With `neighbours` n the image is (N, 3 (2n + 1), H, W): the n slices of the same case before it, the slice, the
        n after it. Where the volume ends its last slice is repeated.
        """
        shown: np.ndarray | slice = indices
        if neighbours:
            near = np.arange(len(self._ends))[indices][:, None] + np.arange(-neighbours, neighbours + 1)
            shown = near.clip(self._ends[indices, :1], self._ends[indices, 1:])
        if self._kept is None:
            image = _sent(restored(self.images[shown]), device)
            mask = _sent(self.masks[indices].astype(np.float32), device)
        else:
            images, masks = self._kept
            divisor = torch.full((), LEVELS, device=images.device)  # by a plain number a GPU multiplies, and rounds
            image = (images[_index(shown, device)].int() & LEVELS) / divisor
            mask = masks[_index(indices, device)].float()
        if neighbours:
            return Batch(side_by_side(image), mask)
        return Batch(image.expand(-1, 3, -1, -1) if image.shape[1] == 1 else image, mask)

    def keep_on(self, device: torch.device | str, most: int) -> bool:
        """Copy all slices to a device where `batch` takes them from then on, the same to the bit.

        Nothing happens, and it is False, if they take more than `most` bytes.
        """
        if self.images.nbytes + self.masks.nbytes > most:
            return False
        images = torch.from_numpy(np.array(self.images).view(np.int16))  # torch knows little of uint16
        self._kept = images.to(device), torch.from_numpy(np.array(self.masks)).to(device)
        return True

    def case_of(self, index: int) -> str:
        """The id of the case that a slice belongs to."""
        return next(c.id for c in self.cases.values() if index in c.slices)


def _sent(array: np.ndarray, device: torch.device | str) -> Tensor:
    """An array on a device; the processor goes on while a GPU fetches it."""
    tensor = torch.from_numpy(array)
    return (
        tensor.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else tensor.to(device)
    )


def _index(indices: np.ndarray | slice, device: torch.device | str) -> Tensor | slice:
    return indices if isinstance(indices, slice) else _sent(indices, device)


def side_by_side(stack: Tensor) -> Tensor:
    """(N, M, 1 or 3, H, W), M slices for each image -> (N, 3 M, H, W), three channels for each slice."""
    return stack.expand(-1, -1, 3, -1, -1).flatten(1, 2)


def with_neighbours(image: Tensor, neighbours: int) -> Tensor:
    """A volume (D, 1 or 3, H, W) -> (D, 3 (2 neighbours + 1), H, W), as `PreparedDomain.batch` gives its slices."""
    depth = torch.arange(len(image))
    near = (depth[:, None] + torch.arange(-neighbours, neighbours + 1)).clamp(0, len(image) - 1)
    return side_by_side(image[near])


def network_box(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) of an image inside the square the network sees: aspect kept, the rest is zero padding."""
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def to_network(image: np.ndarray, size: int) -> np.ndarray:
    """float32 (D, C, H, W) in [0, 1] -> (D, C, size, size): bicubic with antialiasing, padded below and at the right.

    With `size` the image's own side it is the identity. The same filter as Pillow's bicubic resize.
    """
    h, w = network_box(image.shape[-2], image.shape[-1], size)
    resized = torch.from_numpy(image)
    if (h, w) != image.shape[-2:]:
        resized = F.interpolate(resized, (h, w), mode="bicubic", antialias=True, align_corners=False).clamp_(0, 1)
    return F.pad(resized, (0, size - w, 0, size - h)).numpy()


def stored(image: np.ndarray, size: int) -> np.ndarray:
    """float32 (D, C, H, W) in [0, 1] -> uint16 (D, C, size, size), as images are kept."""
    return np.rint(to_network(image, size) * LEVELS).astype(np.uint16)


def restored(images: np.ndarray) -> np.ndarray:
    """Undo `stored` but for its rounding: float32 in [0, 1]."""
    return np.divide(images, LEVELS, dtype=np.float32)


def mask_to_network(mask: np.ndarray, size: int) -> np.ndarray:
    """bool (D, K, H, W) -> uint8 (D, K, size, size): nearest neighbour, padded with zeros as the image is."""
    h, w = network_box(mask.shape[-2], mask.shape[-1], size)
    resized = torch.from_numpy(mask.astype(np.uint8))
    if (h, w) != mask.shape[-2:]:
        resized = F.interpolate(resized, (h, w), mode="nearest-exact")
    return F.pad(resized, (0, size - w, 0, size - h)).numpy()


def to_image(probability: Tensor, height: int, width: int) -> Tensor:
    """(N, K, n, n) -> (N, K, height, width): the padding is cut off, then bilinear back to the image's resolution."""
    h, w = network_box(height, width, probability.shape[-1])
    cut = probability[..., :h, :w]
    if (h, w) == (height, width):
        return cut
    return F.interpolate(cut, (height, width), mode="bilinear", align_corners=False)


def prepare(task: Task, domain: str, size: int, cache: Path | None = None) -> PreparedDomain:
    """The prepared domain, from the cache if its fingerprint is there, else made now.

    Raises `DataError` that names every case of the domain that cannot be used.
    """
    root = make_folder((cache or cache_folder()) / "prepared")
    origin, known = _looked_up(task, domain, root)

    def opened(fingerprint: str) -> PreparedDomain | None:
        try:
            return PreparedDomain(place(fingerprint)) if place(fingerprint).is_dir() else None
        except DataError as error:
            print(f"{error.cause}: made again", file=sys.stderr)
            shutil.rmtree(place(fingerprint), ignore_errors=True)
            return None

    def place(fingerprint: str) -> Path:
        return root / f"{task.name}-{size}-{code_fingerprint()[:8]}-{domain}-{fingerprint[:16]}"

    if known and (found := opened(known)):
        return found
    with _building(root) as building:
        fingerprint = _build(task, domain, size, origin if known == origin else None, building)
        if not known and _looked_up(task, domain, root)[0] == origin:  # no file changed while it was read
            write_json(root / MEMORY, (read_json(root / MEMORY) or {}) | {origin: fingerprint})
        if found := opened(fingerprint):  # of files that gave the same images before, or made by another process
            return found
        with contextlib.suppress(OSError):  # another process was first: its arrays are the same
            os.rename(building, place(fingerprint))
    return PreparedDomain(place(fingerprint))


@contextlib.contextmanager
def _building(root: Path) -> Iterator[Path]:
    """A folder to build in, gone afterwards; and so is what a process that was killed has left of its own.

    Whether its process lives is told by its lock, which it has before it gets the name that others look for.
    """
    unlockable = contextlib.suppress(Taken, UsageError)
    for left in root.glob(".building-*/.lock"):
        with unlockable, lock(left.parent):
            shutil.rmtree(left.parent, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=".new-", dir=root))
    building = new.with_name(new.name.replace("new", "building", 1))
    with contextlib.ExitStack() as held:
        with unlockable:
            held.enter_context(lock(new))
        os.rename(new, building)
        try:
            yield building
        except OSError as error:
            error.filename = error.filename or str(root)  # the system does not say which disk is full
            raise
        finally:
            shutil.rmtree(building, ignore_errors=True)


def code_fingerprint() -> str:
    """sha256 of the code that makes arrays of cases."""
    return of_code("dgbench.images.preparation:_build")


def content_fingerprint(task: Task, domain: str, size: int, cache: Path | None = None) -> str:
    """sha256 of what a domain's images and masks are; where files are new, the domain is prepared at `size` for it."""
    root = make_folder((cache or cache_folder()) / "prepared")
    return _looked_up(task, domain, root)[1] or prepare(task, domain, size, cache).fingerprint


MEMORY = "contents.json"  # {origin: fingerprint}
DECODERS = ("numpy", "pillow", "nibabel")


def _looked_up(task: Task, domain: str, root: Path) -> tuple[str, str | None]:
    """sha256 of what a domain's cases come from, and their fingerprint, as far as it is known."""
    checksums = Checksums(root / "checksums.json")
    try:
        cases = [(i, [checksums.of(p) for p in task.files(domain, i)]) for i in task.case_ids(domain)]
    except OSError as error:
        missing = "missing file" if isinstance(error, FileNotFoundError) else f"{error.strerror}:"
        raise DataError(f"{missing} {error.filename}", "`dgbench data verify` lists all that is missing") from None
    checksums.save()
    content: list[object] = [task.name, task.code_fingerprint(), list(task.structures), domain, cases]
    if not any(files for _, files in cases):
        return (origin := _sha256(content)), origin
    content += [[c.__qualname__ for c in type(task).__mro__], _card(task), task.intensity_range]
    content += [version(name) for name in DECODERS]
    return (origin := _sha256(content)), (read_json(root / MEMORY) or {}).get(origin)


def _card(task: Task) -> list[object]:
    return [list(task.structures), task.unit, task.image_size, task.steps]


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _build(task: Task, domain: str, size: int, computed: str | None, folder: Path) -> str:
    """Read every case of a domain, case by case: memory is bounded by the largest one. Returns its fingerprint.

    computed: that of a task whose cases are computed; None: it is that of the voxels.
    """
    problems: list[str] = []
    index: list[PreparedCase] = []
    seen: list[object] = _card(task)
    doubts: list[Doubt | None] = []
    first = offset = channels = 0
    in_part: bool | None = None
    ids = task.case_ids(domain)
    if not ids:
        raise DataError(f"domain '{domain}' of task '{task.name}' has no case", "add cases, or leave the domain out")
    with contextlib.ExitStack() as stack:
        streams = {n: stack.enter_context(open(folder / f"{n}.raw", "wb")) for n in ("images", "masks", "reference")}
        for case_id in ids:
            try:
                case = task.load(domain, case_id)
            except DgbenchError as error:
                problems.append(error.cause)
                continue
            found = case_problems(case, task, f"{domain}/{case_id}")
            if channels and not found and case.image.shape[1] != channels:
                found = [f"{domain}/{case_id}: {case.image.shape[1]} channels where the cases before have {channels}"]
            if in_part not in (None, case.scored is not None) and not found:
                found = [f"{domain}/{case_id}: some cases of the domain are scored in a part, others everywhere"]
            problems += found
            if problems:
                continue
            channels, in_part = case.image.shape[1], case.scored is not None
            index.append(_prepared(case, first, offset))
            planes = case.mask if case.scored is None else np.concatenate([case.mask, case.scored[:, None]], axis=1)
            seen.append([case.id, list(index[-1].spacing), _voxels(case.image), _voxels(planes)])
            doubts.append(doubt(domain, case_id, task.structures, case.mask, case.odd))
            first += case.image.shape[0]
            streams["images"].write(stored(case.image, size).tobytes())
            streams["masks"].write(mask_to_network(case.mask, size).tobytes())
            packed = np.packbits(planes)
            streams["reference"].write(packed.tobytes())
            offset += packed.size
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise DataError("; ".join(problems[:5]) + more, "mend or remove these cases; `dgbench data verify` lists all")
    shapes = {
        "images": (np.uint16, (first, channels, size, size)),
        "masks": (np.uint8, (first, len(task.structures), size, size)),
        "reference": (np.uint8, (offset,)),
    }
    for name, (dtype, shape) in shapes.items():
        _to_npy(folder / f"{name}.raw", folder / f"{name}.npy", dtype, shape)
    fingerprint = computed or _sha256(seen)
    record = {
        "domain": domain,
        "fingerprint": fingerprint,
        "structures": len(task.structures),
        "in_part": bool(in_part),
        "files": {f"{n}.npy": sha256(folder / f"{n}.npy") for n in shapes},
        "cases": [asdict(c) for c in index],
        "doubts": [d for d in doubts if d],
    }
    write_json(folder / "index.json", record)
    return fingerprint


def _voxels(array: np.ndarray) -> tuple[list[int], str]:
    """Shape, and sha256 of the values in order."""
    return list(array.shape), hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _prepared(case: Case, first: int, offset: int) -> PreparedCase:
    depth, _, height, width = case.image.shape
    foreground = tuple(bool(plane.any()) for plane in case.mask)
    spacing = (float(case.spacing[0]), float(case.spacing[1]), float(case.spacing[2]))
    return PreparedCase(case.id, first, (depth, height, width), spacing, offset, foreground)


def _to_npy(raw: Path, path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    """Put NumPy's header before raw bytes whose number of slices was not known while they were written."""
    with open(path, "wb") as file, open(raw, "rb") as content:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, header)
        shutil.copyfileobj(content, file, 1 << 20)
    raw.unlink()
