"""Users' own images as a task, however they are listed: what masks hold, which values are structures, what is doubtful.

Of a mask with a palette the indices are read, not the colours. A mask of one structure that was saved as JPEG, or has
soft borders and a `threshold`, is parted there, and the pixels that might be either are counted.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dgbench import names
from dgbench.errors import DataError, UsageError, require
from dgbench.images.file_task import FileTask
from dgbench.images.formats import (
    by_range,
    channels_first,
    has_spacing,
    is_raster,
    may_have_colours,
    parts,
    read,
    read_case,
    values_of,
)
from dgbench.images.pixels import Pixels, Spacing
from dgbench.images.task_settings import read_settings, windows
from dgbench.plausibility import Doubt, Palettes, Told, of_file, of_image
from dgbench.registry import TASKS
from dgbench.task import Case

BINARY = (1, 255)  # values of the only structure: which of the two a mask holds does not matter
MAX_STRUCTURES = 16  # a mask with more values is more likely a photograph
HALF = 128  # where a mask of 0 and 255 that went through JPEG is parted
FAR = 32  # a value this far from 0 and from 255 may be either
REEXPORT = "export the mask again as PNG, TIFF or NIfTI; do not just rename the file"


@dataclass
class Files:
    """All that is listed under one case's name."""

    images: list[Path] = field(default_factory=list)
    index: list[Path] = field(default_factory=list)  # masks of all structures in one file
    binary: defaultdict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))  # masks by structure
    problems: list[str] = field(default_factory=list)
    frame: int | None = None  # of a 4-D file
    spacing: tuple[float, ...] | None = None  # where the file has none
    group: str = ""  # patient; "": the case is a group of its own


class OwnTask(FileTask):
    """Cases by domain, with their files; a TOML file says the rest.

    Without that file the structures are found by reading all masks once. The default size and budget suit a small
    network on two CPU cores; raise both where there is a GPU.
    """

    image_size = 192
    steps = 200
    wanted: ClassVar[str] = ""  # how the files must be listed, in one sentence

    def __init__(self, root: Path, called: str, toml: Path, cases: Mapping[str, Mapping[str, Files]], **own: Any):
        """root: what the user named. called: the task's name unless the TOML file says another. own: further settings.

        Raises `UsageError` for a mistake in the TOML file, `DataError` where the files of no case can be understood.
        """
        super().__init__(root)
        self.root, self.toml, self._cases = root, toml, cases
        self.domains = tuple(cases)
        said: dict[str, Any] = own | (read_settings(toml) if toml.is_file() else {})
        self.name = said.get("name") or re.sub(r"[^\w.-]+", "_", names.one_form(called)).strip("._-") or "folder"
        if why := names.problem(self.name, "task"):
            remedy = f'write another one into {toml}: name = "..."'
            raise UsageError(f"{root}: {self.name!r} cannot name a task: {why}", remedy)
        if self.name.casefold() in map(str.casefold, TASKS.names()):
            raise UsageError(
                f"{root} would be a second task named '{self.name}'", f'write another one into {toml}: name = "..."'
            )
        self.sources = said.get("sources")
        for domain in self.sources or ():
            require(domain, self.domains, f"source in {toml}: domain")
        for key in ("intensity", "modality"):
            for domain in said[key] if isinstance(said.get(key), dict) else ():
                require(domain, self.domains, f"domain of {key} in {toml}:")
        self.image_size = said.get("image_size", self.image_size)
        self.steps = said.get("steps", self.steps)
        self.empty_masks = said.get("empty_masks", False)
        self.citation, self.licence = said.get("citation", ""), said.get("licence", "")
        self.collections = said.get("collections", ())
        self.threshold = said.get("threshold")
        self.paired = said.get("paired", False)
        self.download = f"your own files in {root}; {self.wanted}"
        self.windows = windows(said, self.domains)
        same = len(set(self.windows.values())) == 1
        self.intensity_range = self.windows[self.domains[0]] if same else self.windows  # type: ignore[assignment]
        self.intensity = self._rule()  # type: ignore[misc]
        self._colours: dict[str, bool] = {}
        self._palettes: Palettes = {}
        self.spacing: tuple[float, ...] | None = said.get("spacing")
        whole = [files for files in self._all() if files.index or files.binary]
        measured = any(has_spacing(p) for files in whole for p in files.images)
        known = self.spacing or measured or any(files.spacing for files in self._all())
        self.unit = said.get("unit", "mm" if known else "px")
        self.values: dict[str, tuple[int, ...]] = said.get("structures") or self._found_structures()
        self.structures = tuple(self.values)
        if "structures" in said:
            names.check(self.structures, "structure", toml, UsageError)
        names.check(self.structures, "structure", root)

    @property
    def location(self) -> str:
        """The absolute path."""
        return str(self.root.resolve())

    def targets(self, source: str) -> tuple[str, ...]:
        """All other domains. Raises `DataError` when there is none."""
        if len(self.domains) < 2:
            raise DataError(
                f"{self.root} has one domain only, '{self.domains[0]}': generalization needs at least 2",
                f"add images from another scanner or hospital: {self.wanted}",
            )
        return super().targets(source)

    def case_ids(self, domain: str) -> list[str]:
        """All cases that are listed, those too that lack an image or a mask and cannot be loaded."""
        return sorted(self._cases[require(domain, self.domains, "domain")])

    def group(self, domain: str, case_id: str) -> str:
        """The patient, where the list says it."""
        return self._cases[domain][case_id].group or case_id

    def said_of(self, domain: str, case_id: str) -> Sequence[Any]:
        """The frame to take and the spacing, where the list says them."""
        files = self._cases[domain][case_id]
        return () if files.frame is None and files.spacing is None else (files.frame, files.spacing)

    def verify(self) -> list[str]:
        """Also: patients of several domains, where they are not stated to be the same, are odd."""
        problems = super().verify()
        domains_of: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for domain, cases in self._cases.items():
            for group in filter(None, (files.group for files in cases.values())):
                domains_of[group][domain] = None
        both = [group for group, of in domains_of.items() if len(of) > 1]
        if both and not self.paired:
            few = ", ".join(both[:3]) + (f" and {len(both) - 3} more" if both[3:] else "")
            told = f"group {few} is in several domains ({', '.join(domains_of[both[0]])}): trained on and tested on"
            remedy = f"write paired = true into {self.toml} if these are the same patients, or rename the groups"
            self.doubts = [*self.doubts, Doubt("", told, remedy)]
        return problems

    def files(self, domain: str, case_id: str) -> list[Path]:
        """The image, its mask or masks in the order of the structures, and the TOML file."""
        image, masks = self._case(domain, case_id)
        return [*(p for path in (image, *masks) for p in parts(path)), *([self.toml] if self.toml.is_file() else [])]

    def load(self, domain: str, case_id: str) -> Case:
        """Raises `DataError` for a file that is missing, broken, on another grid or with values of no structure."""
        path, mask_paths = self._case(domain, case_id)
        files = self._cases[domain][case_id]
        pixels, masks = read_case(path, mask_paths, frame=files.frame)
        odd: list[Told] = list(of_image(path, pixels.values))
        if files.index and not (tuple(self.values.values()) == (BINARY,) and self._parted(mask_paths[0], masks[0])):
            planes = self._planes(mask_paths[0], masks[0])
        else:
            planes = [self._plane(p, m, odd) for p, m in zip(mask_paths, masks, strict=True)]
        image = by_range(pixels, self.windows[domain])
        if image.shape[1] == 1 and self._has_colours(domain):
            image = np.repeat(image, 3, axis=1)
        seen = self._palettes if files.index and len(self.structures) > 1 else None
        rasters = [(p, m) for p, m in zip(mask_paths, masks, strict=True) if is_raster(p)]
        odd += [told for p, m in rasters for told in of_file(p, m, seen)]
        if tuple(self.values.values()) == (BINARY,) and {1, 255} == set(values_of(masks[0])):
            both = f"{mask_paths[0]} holds both 1 and 255, which are read as one structure; 255 often marks doubt"
            odd.append((both, f"save the mask with one of them, or name both in {self.toml}"))
        return Case(case_id, image, np.stack(planes, axis=1), self._spacing(path, pixels, files.spacing), odd)

    def _rule(self) -> str:
        plain = "8-bit photographs: / 255; others: 0.5th to 99.5th percentile of the file to [0, 1], clipped"
        told = {d: f"{list(w)} to [0, 1], clipped" if w else plain for d, w in self.windows.items()}
        one = next(iter(told.values()))
        return one if len(set(told.values())) == 1 else "; ".join(f"{d}: {rule}" for d, rule in told.items())

    def _all(self) -> list[Files]:
        return [files for cases in self._cases.values() for files in cases.values()]

    def _case(self, domain: str, case_id: str) -> tuple[Path, list[Path]]:
        """(image, masks) of a case whose files are complete; else a `DataError` that says all that is not."""
        files = self._cases[require(domain, self.domains, "domain")].get(case_id)
        if files is None:
            raise DataError(f"domain '{domain}' has no case '{case_id}'", self.wanted)
        problems = files.problems or self._pairing_problems(domain, case_id, files)
        if problems:
            raise DataError("; ".join(problems), self.wanted)
        return files.images[0], files.index or [files.binary[s][0] for s in self.structures]

    def _pairing_problems(self, domain: str, case_id: str, files: Files) -> list[str]:
        found = [*files.index, *(p for paths in files.binary.values() for p in paths)]
        problems = []
        if why := names.problem(case_id, "case"):
            problems.append(f"{files.images[0]}: {case_id!r} cannot name a case, rename the file: {why}")
        if files.index and files.binary:
            problems.append(f"'{case_id}' has a mask of its own name and masks of structures: {_names(found)}")
        for paths in (files.images, files.index, *files.binary.values()):
            if len(paths) > 1:
                problems.append(f"case '{case_id}' of domain '{domain}' is there twice: {_names(paths)}")
        known = ", ".join(self.structures)
        for structure, paths in files.binary.items():
            if structure not in self.structures:
                problems.append(f"mask {paths[0]}: '{structure}' is no structure of the task ({known})")
        for structure in self.structures if files.binary else ():
            if structure not in files.binary:
                problems.append(f"image {files.images[0]} has no mask of '{structure}'")
        return problems

    def _found_structures(self) -> dict[str, tuple[int, ...]]:
        """From the masks' names where there is one for each structure, else from the values in all of them."""
        if found_names := sorted({s for f in self._all() if f.images and not f.index for s in f.binary}):
            return {name: BINARY if len(found_names) == 1 else () for name in found_names}
        if self.threshold is not None:
            return {"structure": BINARY}
        of_domain: dict[str, set[int]] = {domain: set() for domain in self.domains}
        every = ((domain, files) for domain, cases in self._cases.items() for files in cases.values())
        masks = ((domain, p, files.frame) for domain, files in every for p in files.index if not _is_jpeg(p))
        for domain, path, frame in masks:
            try:
                values = values_of(read(path, mask=True, frame=frame).values)
            except DataError:  # said when the case is loaded
                continue
            of_domain[domain] |= set(values) if len(values) <= MAX_STRUCTURES else set()
        found = set().union(*of_domain.values())
        if len(found) > MAX_STRUCTURES:
            raise DataError(
                f"the masks in {self.root} hold {len(found)} different values", f"name the structures in {self.toml}"
            )
        if found <= set(BINARY):
            return {"structure": BINARY}
        self._check_shared({domain: values for domain, values in of_domain.items() if values})
        return {f"structure_{v}" if len(found) > 1 else "structure": (v,) for v in sorted(found)}

    def _check_shared(self, of_domain: Mapping[str, set[int]]) -> None:
        """Raises `DataError` where two domains have no value in common: what one teaches the other never shows."""
        for one, other in itertools.combinations(of_domain, 2):
            if not of_domain[one] & of_domain[other]:
                a, b = (", ".join(map(str, sorted(of_domain[d]))) for d in (one, other))
                raise DataError(
                    f"the masks of {one} hold {a}, those of {other} {b}: no value is in both",
                    f"name them in {self.toml}, e.g. structures = {{ structure = [{a}, {b}] }}",
                )

    def _planes(self, path: Path, mask: np.ndarray) -> list[np.ndarray]:
        """An index mask -> one bool (D, H, W) for each structure."""
        known = {v for values in self.values.values() for v in values}
        outside = [v for v in values_of(mask) if v not in known]
        if outside and _is_jpeg(path):
            raise DataError(
                f"mask {path} holds {len(outside)} values of no structure: JPEG blurs the borders of a mask", REEXPORT
            )
        if outside:
            few = ", ".join(map(str, outside[:5])) + (", ..." if len(outside) > 5 else "")
            of = ", ".join(f"{name} = {list(values)}" for name, values in self.values.items())
            soft, remedy = _soft(mask), f"{self.toml} names them; now: {of}"
            if soft and len(self.values) == 1:
                raise DataError(
                    f"mask {path} holds values of no structure: {few}; {soft}",
                    f"write threshold = {HALF} into {self.toml}, or save the mask without smoothing; or {remedy}",
                )
            raise DataError(f"mask {path} holds values of no structure: {few}", remedy)
        return [np.isin(mask, values) for values in self.values.values()]

    def _parted(self, path: Path, mask: np.ndarray) -> bool:
        """Is it read by its threshold rather than by its values?"""
        return self.threshold is not None or (_is_jpeg(path) and not set(values_of(mask)) <= set(BINARY))

    def _plane(self, path: Path, mask: np.ndarray, odd: list[Told]) -> np.ndarray:
        """A mask of one structure -> bool (D, H, W); what is doubtful about it is added to `odd`."""
        values = values_of(mask)
        if len(values) <= 1 and (self.threshold is None or set(values) <= {1}):
            return mask != 0
        if not self._parted(path, mask):
            told, remedy = f"mask {path} of one structure holds {len(values)} values besides 0", "0 and one are allowed"
            if soft := _soft(mask):
                told = f"{told}: {soft}"
                remedy = f"write threshold = {HALF} into {self.toml}, or save the mask without smoothing"
            raise DataError(told, remedy)
        level = HALF if self.threshold is None else self.threshold
        inside = mask >= level
        if _is_jpeg(path):
            doubtful = int(np.count_nonzero((mask > FAR) & (mask < 255 - FAR)))
            if doubtful > np.count_nonzero(inside):
                told = f"mask {path} holds {len(values)} values of no structure: it is no mask, or JPEG blurs it"
                raise DataError(told, REEXPORT)
            if doubtful:
                cause = f"{doubtful} of the {mask.size} pixels of {path} are neither black nor white"
                odd.append((f"{cause}, as JPEG blurs the borders of a mask: they are parted at {level}", REEXPORT))
        return inside

    def _has_colours(self, domain: str) -> bool:
        """Is any image of the domain in colour? Then its gray ones get three channels too."""
        if domain not in self._colours:
            self._colours[domain] = any(_is_coloured(p) for f in self._cases[domain].values() for p in f.images)
        return self._colours[domain]

    def _spacing(self, path: Path, pixels: Pixels, listed: tuple[float, ...] | None) -> Spacing:
        """The header's in mm; else the list's or the TOML file's; else 1 px."""
        if self.unit == "mm" and pixels.spacing:
            return pixels.spacing
        slices, said = len(pixels.values), listed or self.spacing
        if said is None and self.unit == "px":
            return (1.0, 1.0, 1.0)
        if said is None or (len(said) == 2 and slices > 1):
            raise DataError(
                f"{path} has no spacing in {self.unit}" + (f" between its {slices} slices" if slices > 1 else ""),
                f'write spacing = [slices, height, width] into {self.toml}, or unit = "px"',
            )
        depth, height, width = (1.0, *said)[-3:]
        return (depth, height, width)


def _soft(mask: np.ndarray) -> str:
    """Says so where values between 0 and 255 lie along a border, as smoothing and resampling leave them; else ""."""
    between = (mask > 0) & (mask < 255)
    inside = mask == 255
    if not between.any() or not inside.any() or np.count_nonzero(between) > 2 * np.count_nonzero(inside):
        return ""
    near = inside.copy()
    for axis in (-2, -1):
        for step in (-4, -3, -2, -1, 1, 2, 3, 4):  # a border is seldom softer
            near |= np.roll(inside, step, axis)
    if np.count_nonzero(between & near) < 0.5 * np.count_nonzero(between):
        return ""
    return f"its borders are soft, with {np.count_nonzero(between)} pixels between 1 and 254"


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg")


def _is_coloured(path: Path) -> bool:
    try:
        coloured = is_raster(path) and may_have_colours(path)
        return coloured and channels_first(read(path).values).shape[1] == 3
    except DataError:  # said when the case is loaded
        return False


def _names(paths: Sequence[Path]) -> str:
    return " and ".join(map(str, paths))
