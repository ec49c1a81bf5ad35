"""Prepared data: a domain's cases, read once and kept as memory-mapped arrays at network size.

A prepared domain is a folder in the cache, named by the size, a fingerprint of the code that prepares, and one of the
images and masks themselves. Training and testing index its arrays; no image file is decoded again.

That fingerprint is of voxels, spacing and names, as the task gives them: how files are read, and what else stands in
them, may change as long as the same images come out. The task's size and budget are part of it, for what a row called
`erm` was trained with must be one thing in one table. What came out of files is remembered by their content (all their
bytes, see `files.Checksums`), by the code that reads them and by the versions of the libraries that decode them, so
that only the first look decodes, and it prepares at the same time. A task that computes its cases has no files, and its
code is their content: other processors round otherwise, and it stays the same data.

Cases are read by several threads, a few ahead of the one that is written. Of each that is written whole a line is kept,
so that a preparation that is killed goes on after it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
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


Report = Callable[[int, int], None]  # cases that are done, cases in all


def prepare(
    task: Task,
    domain: str,
    size: int,
    cache: Path | None = None,
    report: Report | None = None,
    jobs: int | None = None,
) -> PreparedDomain:
    """The prepared domain, from the cache if its fingerprint is there, else made now.

    report: hears how far it is; None: a line on stderr now and then. jobs: threads that read cases, by default as many
    as there are cores and as memory allows. Raises `DataError` that names every case of the domain that cannot be used.
    """
    root = make_folder((cache or cache_folder()) / "prepared")
    origin, known = _looked_up(task, domain, root)

    def opened(fingerprint: str) -> PreparedDomain | None:
        try:
            if not place(fingerprint).is_dir():
                return None
            with contextlib.suppress(OSError):  # when it was used last; a cache may be one that can only be read
                os.utime(place(fingerprint))
            return PreparedDomain(place(fingerprint))
        except DataError as error:
            print(f"{error.cause}: made again", file=sys.stderr)
            shutil.rmtree(place(fingerprint), ignore_errors=True)
            return None

    def place(fingerprint: str) -> Path:
        return root / f"{task.name}-{size}-{code_fingerprint()[:8]}-{domain}-{fingerprint[:16]}"

    if known and (found := opened(known)):
        return found
    tell = report or _lines(f"{task.name}/{domain}")
    with _building(root, _sha256([origin, size, code_fingerprint()])[:16]) as building:
        fingerprint = _build(task, domain, size, origin if known == origin else None, building, tell, jobs)
        if not known and _looked_up(task, domain, root)[0] == origin:  # no file changed while it was read
            write_json(root / MEMORY, (read_json(root / MEMORY) or {}) | {origin: fingerprint})
        if found := opened(fingerprint):  # of files that gave the same images before, or made by another process
            return found
        with contextlib.suppress(OSError):  # another process was first: its arrays are the same
            os.rename(building, place(fingerprint))
    return PreparedDomain(place(fingerprint))


def _lines(what: str) -> Report:
    """Says how far it is and how long it will take, on stderr, every ten seconds."""
    began: tuple[float, int] | None = None
    told = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal began, told
        if not done:  # until the first case all files of the domain are looked at: no measure of how long a case takes
            return
        now = time.monotonic()
        began = began or (now, done)
        if now - told > PAUSE and began[1] < done < total:
            told = now
            left = (now - began[0]) / (done - began[1]) * (total - done)
            print(f"preparing {what}: {done} of {total} cases, about {duration(left)} left", file=sys.stderr)

    return report


def duration(seconds: float) -> str:
    """ "40 s", "12 min", "3.5 h", "9 days"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} days"


@contextlib.contextmanager
def _building(root: Path, key: str) -> Iterator[Path]:
    """The folder to build what `key` stands for in; gone afterwards, unless the process is ended meanwhile.

    What killed processes left is gone on after here, if it is of the same key, and deleted after a week. Whether its
    process lives is told by its lock; while another one builds the same here, it is built in a folder beside.
    """
    unlockable = contextlib.suppress(Taken, UsageError)
    for left in root.glob(".building-*/.lock"):
        if left.parent.name != f".building-{key}" and time.time() - newest(left.parent) > WEEK:
            with unlockable, lock(left.parent):
                shutil.rmtree(left.parent, ignore_errors=True)
    building, stopped = root / f".building-{key}", True
    with contextlib.ExitStack() as held:
        try:
            building.mkdir(exist_ok=True)
            held.enter_context(lock(building))
            if not (building / ".lock").exists():  # renamed or deleted by who had it before
                raise Taken(str(building))
            for half in building.glob(".*.tmp"):  # of a file that a killed process was writing
                half.unlink()
        except (Taken, UsageError):
            building = Path(tempfile.mkdtemp(prefix=f".building-{key}-", dir=root))
            with unlockable:
                held.enter_context(lock(building))
        try:
            yield building
            stopped = False
        except Exception as error:
            stopped = False
            if isinstance(error, OSError):
                error.filename = error.filename or str(root)  # the system does not say which disk is full
            raise
        finally:
            if not stopped:
                shutil.rmtree(building, ignore_errors=True)


def newest(folder: Path) -> float:
    """When a file in it changed last, in seconds since 1970."""
    with contextlib.suppress(OSError):
        return max(path.stat().st_mtime for path in folder.iterdir())
    return time.time()


def code_fingerprint() -> str:
    """sha256 of the code that makes arrays of cases."""
    return of_code("dgbench.images.preparation:_build")


def content_fingerprint(task: Task, domain: str, size: int, cache: Path | None = None) -> str:
    """sha256 of what a domain's images and masks are; where files are new, the domain is prepared at `size` for it."""
    root = make_folder((cache or cache_folder()) / "prepared")
    return _looked_up(task, domain, root)[1] or prepare(task, domain, size, cache).fingerprint


MEMORY = "contents.json"  # {origin: fingerprint}
DECODERS = ("numpy", "pillow", "nibabel", "SimpleITK", "pydicom", "highdicom", "python-gdcm")


def _looked_up(task: Task, domain: str, root: Path) -> tuple[str, str | None]:
    """sha256 of what a domain's cases come from, and their fingerprint, as far as it is known."""
    checksums = Checksums(root / "checksums.json")
    try:
        cases = [
            (i, [checksums.of(p) for p in task.files(domain, i)], *task.said_of(domain, i))
            for i in task.case_ids(domain)
        ]
    except OSError as error:
        missing = "missing file" if isinstance(error, FileNotFoundError) else f"{error.strerror}:"
        raise DataError(f"{missing} {error.filename}", "`dgbench data verify` lists all that is missing") from None
    checksums.save()
    content: list[object] = [task.name, task.code_fingerprint(), list(task.structures), domain, cases]
    if not any(files for _, files, *_ in cases):
        return (origin := _sha256(content)), origin
    content += [[c.__qualname__ for c in type(task).__mro__], _card(task), task.intensity_range]
    content += map(_installed, DECODERS)
    return (origin := _sha256(content)), (read_json(root / MEMORY) or {}).get(origin)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # of an extra: then no file needs it
        return None


def _card(task: Task) -> list[object]:
    return [list(task.structures), task.unit, task.image_size, task.steps]


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _build(
    task: Task, domain: str, size: int, computed: str | None, folder: Path, report: Report, jobs: int | None
) -> str:
    """Read every case of a domain; memory is bounded by the largest few. Returns the domain's fingerprint.

    computed: that of a task whose cases are computed; None: it is that of the voxels.
    """
    problems: list[str] = []
    ids = task.case_ids(domain)
    if not ids:
        raise DataError(f"domain '{domain}' of task '{task.name}' has no case", "add cases, or leave the domain out")
    with contextlib.ExitStack() as stack:
        arrays = stack.enter_context(contextlib.closing(_Arrays(folder, ids)))
        report(len(arrays.lines), len(ids))
        rest = ids[len(arrays.lines) :]
        cases = stack.enter_context(contextlib.closing(_read(task, domain, size, rest, jobs)))
        for count, ready in enumerate(cases, len(ids) - len(rest) + 1):
            if not ready.problems and (told := arrays.odd(ready)):
                ready.problems.append(f"{domain}/{ready.id}: {told}")
            problems += ready.problems
            if not problems:
                arrays.add(ready)
            report(count, len(ids))
    if problems:
        more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
        raise DataError("; ".join(problems[:5]) + more, "mend or remove these cases; `dgbench data verify` lists all")
    lines = arrays.lines
    slices, channels = sum(line["case"]["shape"][0] for line in lines), lines[0]["channels"]
    shapes: dict[str, tuple[type, tuple[int, ...]]] = {
        "images": (np.uint16, (slices, channels, size, size)),
        "masks": (np.uint8, (slices, len(task.structures), size, size)),
        "reference": (np.uint8, (lines[-1]["ends"]["reference"] - HEADER,)),
    }
    for name, (dtype, shape) in shapes.items():
        with open(folder / f"{name}.npy", "r+b") as file:
            file.write(_npy_header(dtype, shape))
    fingerprint = computed or _sha256([*_card(task), *(line["seen"] for line in lines)])
    record = {
        "domain": domain,
        "fingerprint": fingerprint,
        "structures": len(task.structures),
        "in_part": lines[0]["in_part"],
        "files": {f"{n}.npy": sha256(folder / f"{n}.npy") for n in shapes},
        "cases": [line["case"] for line in lines],
        "doubts": [line["doubt"] for line in lines if line["doubt"]],
    }
    write_json(folder / "index.json", record)
    (folder / JOURNAL).unlink()
    return fingerprint


HEADER = 192  # bytes of an array's file before its voxels, whose number is not known while they are written
JOURNAL = "done.jsonl"
PAUSE, WEEK = 10.0, 7 * 86400.0  # seconds


@dataclass
class _Ready:
    """A case as it is written. in_part: is it scored in a part of its image? parts: the bytes for each array."""

    id: str
    problems: list[str]
    shape: tuple[int, ...] = ()  # of the image
    case: PreparedCase | None = None
    seen: Sequence[object] = ()
    doubt: Doubt | None = None
    in_part: bool = False
    parts: dict[str, bytes] = field(default_factory=dict)


def _ready(task: Task, domain: str, size: int, case_id: str) -> _Ready:
    """Read a case; what is wrong with it is told by `problems`."""
    try:
        case = task.load(domain, case_id)
    except DgbenchError as error:
        return _Ready(case_id, [error.cause])
    if found := case_problems(case, task, f"{domain}/{case_id}"):
        return _Ready(case_id, found)
    prepared = _prepared(case)
    planes = case.mask if case.scored is None else np.concatenate([case.mask, case.scored[:, None]], axis=1)
    parts = {
        "images": stored(case.image, size).tobytes(),
        "masks": mask_to_network(case.mask, size).tobytes(),
        "reference": np.packbits(planes).tobytes(),
    }
    seen: list[object] = [case.id, list(prepared.spacing), _voxels(case.image), _voxels(planes)]
    odd = doubt(domain, case_id, task.structures, case.mask, case.odd)
    return _Ready(case_id, [], case.image.shape, prepared, seen, odd, case.scored is not None, parts)


def _read(task: Task, domain: str, size: int, ids: Sequence[str], jobs: int | None) -> Generator[_Ready, None, None]:
    """The cases in their order, read by threads a few ahead. What computes its cases is asked by one thread."""
    load = functools.partial(_ready, task, domain, size)
    first = [load(case_id) for case_id in ids[:1]]
    yield from first
    rest = ids[1:]
    if jobs is None:
        jobs = 1 if type(task).files is Task.files or len(rest) < 4 else min(8, len(os.sched_getaffinity(0)))
        taken = 32 * int(np.prod(first[0].shape)) if first and first[0].shape else 1 << 20  # at its most, in bytes
        jobs = max(1, min(jobs, int(psutil.virtual_memory().available / 4 / taken) - 1))
    if jobs == 1:
        yield from map(load, rest)
        return
    threads, waiting = torch.get_num_threads(), deque[Future[_Ready]]()
    torch.set_num_threads(1)  # of each of ours
    pool = ThreadPoolExecutor(jobs)
    try:
        with warnings.catch_warnings():  # that of a reader is put back by this one, whichever thread is the last
            for case_id in rest:
                waiting.append(pool.submit(load, case_id))
                if len(waiting) > jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


class _Arrays:
    """The files of a domain while they grow, and a journal: a line for each case that lies whole in all of them.

    What a process that was killed has left is gone on after, as far as its checksums are right.
    """

    NAMES = ("images", "masks", "reference")

    def __init__(self, folder: Path, ids: Sequence[str]):
        self.lines = self._whole(folder, ids)
        self.ends = dict(self.lines[-1]["ends"]) if self.lines else dict.fromkeys(self.NAMES, HEADER)
        with contextlib.ExitStack() as stack:
            self.files = {name: stack.enter_context(open(folder / f"{name}.npy", "ab")) for name in self.NAMES}
            for name, file in self.files.items():
                file.truncate(self.ends[name])  # which fills the header's place with zeros at first
            self.journal = stack.enter_context(open(folder / JOURNAL, "wb"))
            for line in self.lines:
                self.journal.write(json.dumps(line).encode() + b"\n")
            self.close = stack.pop_all().close

    def _whole(self, folder: Path, ids: Sequence[str]) -> list[dict[str, Any]]:
        """The lines of the journal whose cases lie in the files as they were written."""
        found: list[dict[str, Any]] = []
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            written = (folder / JOURNAL).read_bytes().splitlines()
            files = {name: stack.enter_context(open(folder / f"{name}.npy", "rb")) for name in self.NAMES}
            for name in self.NAMES:
                files[name].seek(HEADER)
            for case_id, text in zip(ids, written, strict=False):
                line = json.loads(text)
                parts = {n: files[n].read(line["ends"][n] - files[n].tell()) for n in self.NAMES}
                if line["case"]["id"] != case_id or {n: zlib.crc32(p) for n, p in parts.items()} != line["crc32"]:
                    break
                found.append(line)
        return found

    def odd(self, ready: _Ready) -> str:
        """Why a case does not fit those before; "" where it does."""
        if not self.lines:
            return ""
        if (before := self.lines[0]["channels"]) != ready.shape[1]:
            return f"{ready.shape[1]} channels where the cases before have {before}"
        alike = self.lines[0]["in_part"] == ready.in_part
        return "" if alike else "some cases of the domain are scored in a part, others everywhere"

    def add(self, ready: _Ready) -> None:
        """Write a case, then its line."""
        assert ready.case is not None
        first = sum(line["case"]["shape"][0] for line in self.lines[-1:]) + (
            self.lines[-1]["case"]["first"] if self.lines else 0
        )
        case = replace(ready.case, first=first, offset=self.ends["reference"] - HEADER)
        for name, part in ready.parts.items():
            self.files[name].write(part)
            self.files[name].flush()
            self.ends[name] += len(part)
        self.lines.append(
            {
                "case": asdict(case),
                "seen": ready.seen,
                "doubt": ready.doubt,
                "channels": ready.shape[1],
                "in_part": ready.in_part,
                "ends": dict(self.ends),
                "crc32": {name: zlib.crc32(part) for name, part in ready.parts.items()},
            }
        )
        self.journal.write(json.dumps(self.lines[-1]).encode() + b"\n")
        self.journal.flush()


def _voxels(array: np.ndarray) -> tuple[list[int], str]:
    """Shape, and sha256 of the values in order."""
    return list(array.shape), hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _prepared(case: Case) -> PreparedCase:
    """But for its place in the arrays."""
    depth, _, height, width = case.image.shape
    foreground = tuple(bool(plane.any()) for plane in case.mask)
    spacing = (float(case.spacing[0]), float(case.spacing[1]), float(case.spacing[2]))
    return PreparedCase(case.id, 0, (depth, height, width), spacing, 0, foreground)


def _npy_header(dtype: type, shape: tuple[int, ...]) -> bytes:
    """NumPy's header, version 1.0, of always the same length."""
    told = repr({"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + told.ljust(HEADER - 11) + b"\n"
