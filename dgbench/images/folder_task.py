"""A folder of images as a task: users' own data need no code.

PATH/<domain>/images/NAME.png                    PNG, JPEG, TIFF (pages are slices) or NIfTI
PATH/<domain>/masks/NAME.png                     index mask: 0 background, 1..K the structures (only one: 1 or 255)
PATH/<domain>/masks/NAME_<structure>.png         or one binary mask per structure,
PATH/<domain>/masks/<structure>/NAME.png         in either of these two ways
PATH/task.toml                                   optional, see SETTINGS

Of a mask with a palette the indices are read, not the colours.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dgbench import names
from dgbench.errors import DataError, UsageError, require
from dgbench.images.file_task import FileTask
from dgbench.images.formats import NIFTI, Pixels, channels_first, is_image, read, read_case, stem, values_of
from dgbench.images.pixels import Spacing
from dgbench.plausibility import Palettes, of_file
from dgbench.registry import TASKS
from dgbench.task import Case

LAYOUT = "the layout is <domain>/images/NAME.png with <domain>/masks/NAME.png or masks/NAME_<structure>.png"
BINARY = (1, 255)  # values of the only structure: which of the two a mask holds does not matter
MAX_STRUCTURES = 16  # a mask with more values is more likely a photograph
# Image formats that are not read here: told, not passed over as other files are.
FOREIGN = re.compile(r"\.(bmp|gif|webp|jp2|heic|svs|dcm|ima|np[yz]|mat|mh[ad]|raw|nrrd|hdr|img)(\.gz)?$", re.IGNORECASE)


@dataclass
class _Files:
    """All that lies in a domain under one case's name."""

    images: list[Path] = field(default_factory=list)
    index: list[Path] = field(default_factory=list)  # masks of all structures in one file
    binary: defaultdict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))  # masks by structure
    problems: list[str] = field(default_factory=list)


class FolderTask(FileTask):
    """Every sub-folder with images/ or masks/ is a domain, the names of the files in it are its cases.

    Without task.toml the structures are found by reading all masks once. The default size and budget suit a small
    network on two CPU cores; raise both where there is a GPU.
    """

    image_size = 192
    steps = 200

    def __init__(self, path: Path):
        """Raises `DataError` when `path` holds no domain, `UsageError` for a mistake in its task.toml."""
        super().__init__(path)
        self.root = Path(path)
        self._folders = _domains(self.root)
        self.domains = tuple(self._folders)
        self.toml = self.root / "task.toml"
        own = _settings(self.toml) if self.toml.is_file() else {}
        folder = names.one_form(self.root.resolve().name)
        self.name = own.get("name") or re.sub(r"[^\w.-]+", "_", folder).strip("._-") or "folder"
        if why := names.problem(self.name, "task"):
            remedy = f'write another one into {self.toml}: name = "..."'
            raise UsageError(f"{self.root}: {self.name!r} cannot name a task: {why}", remedy)
        if self.name.casefold() in map(str.casefold, TASKS.names()):
            raise UsageError(
                f"the folder {self.root} would be a second task named '{self.name}'",
                f'write another one into {self.toml}: name = "..."',
            )
        self.sources = own.get("sources")
        for domain in self.sources or ():
            require(domain, self.domains, f"source in {self.toml}: domain")
        self.image_size = own.get("image_size", self.image_size)
        self.steps = own.get("steps", self.steps)
        self.empty_masks = own.get("empty_masks", False)
        self.citation, self.licence = own.get("citation", ""), own.get("licence", "")
        self.collections = own.get("collections", ())
        self.download = f"your own files in {self.root}; {LAYOUT}"
        self.intensity_range = own.get("intensity")
        rule = "8-bit photographs: / 255; others: 0.5th to 99.5th percentile of the file to [0, 1], clipped"
        self.intensity = f"{self.intensity_range} to [0, 1], clipped" if self.intensity_range else rule  # type: ignore[misc]
        self._cases = {domain: _listing(folder) for domain, folder in self._folders.items()}
        self._colours: dict[str, bool] = {}
        self._palettes: Palettes = {}
        self.spacing: tuple[float, ...] | None = own.get("spacing")
        volumes = any(p.name.lower().endswith(NIFTI) for files in self._all() for p in files.images)
        self.unit = own.get("unit", "mm" if self.spacing or volumes else "px")
        self.values: dict[str, tuple[int, ...]] = own.get("structures") or self._found_structures()
        self.structures = tuple(self.values)
        if "structures" in own:
            names.check(self.structures, "structure", self.toml, UsageError)
        names.check(self.structures, "structure", self.root)

    @property
    def folder(self) -> Path:
        """The folder of images itself."""
        return self.root

    @property
    def location(self) -> str:
        """The folder's absolute path."""
        return str(self.root.resolve())

    def targets(self, source: str) -> tuple[str, ...]:
        """All other domains. Raises `DataError` when there is none."""
        if len(self.domains) < 2:
            raise DataError(
                f"{self.root} has one domain only, '{self.domains[0]}': generalization needs at least 2",
                "add a folder with images/ and masks/ from another scanner or hospital",
            )
        return super().targets(source)

    def case_ids(self, domain: str) -> list[str]:
        """All names in images/ and masks/; a name that lacks one of the two is a case that cannot be loaded."""
        return sorted(self._cases[require(domain, self.domains, "domain")])

    def files(self, domain: str, case_id: str) -> list[Path]:
        """The image, its mask or masks in the order of the structures, and task.toml."""
        image, masks = self._case(domain, case_id)
        return [image, *masks, *([self.toml] if self.toml.is_file() else [])]

    def load(self, domain: str, case_id: str) -> Case:
        """Raises `DataError` for a file that is missing, broken, on another grid or with values of no structure."""
        path, mask_paths = self._case(domain, case_id)
        pixels, masks = read_case(path, mask_paths)
        if self._cases[domain][case_id].index:
            planes = self._planes(mask_paths[0], masks[0])
        else:
            planes = [_plane(p, m) for p, m in zip(mask_paths, masks, strict=True)]
        image = self.intensities(pixels)
        if image.shape[1] == 1 and self._has_colours(domain):
            image = np.repeat(image, 3, axis=1)
        seen = self._palettes if self._cases[domain][case_id].index and len(self.structures) > 1 else None
        rasters = [(p, m) for p, m in zip(mask_paths, masks, strict=True) if not p.name.lower().endswith(NIFTI)]
        odd = [told for p, m in rasters for told in of_file(p, m, seen)]
        if tuple(self.values.values()) == (BINARY,) and set(BINARY) <= set(values_of(masks[0])):
            both = f"{mask_paths[0]} holds both 1 and 255, which are read as one structure; 255 often marks doubt"
            odd.append((both, f"save the mask with one of them, or name both in {self.toml}"))
        return Case(case_id, image, np.stack(planes, axis=1), self._spacing(path, pixels), odd)

    def _all(self) -> list[_Files]:
        return [files for cases in self._cases.values() for files in cases.values()]

    def _case(self, domain: str, case_id: str) -> tuple[Path, list[Path]]:
        """(image, masks) of a case whose files are complete; else a `DataError` that says all that is not."""
        files = self._cases[require(domain, self.domains, "domain")].get(case_id)
        if files is None:
            raise DataError(f"domain '{domain}' has no case '{case_id}'", LAYOUT)
        problems = files.problems or self._pairing_problems(self._folders[domain], case_id, files)
        if problems:
            raise DataError("; ".join(problems), LAYOUT)
        return files.images[0], files.index or [files.binary[s][0] for s in self.structures]

    def _pairing_problems(self, folder: Path, case_id: str, files: _Files) -> list[str]:
        for part in ("images", "masks"):
            if not (folder / part).is_dir():
                return [f"domain '{folder.name}' has no folder {folder / part}"]
        found = [*files.index, *(p for paths in files.binary.values() for p in paths)]
        if not files.images:
            return [f"mask {p} has no image: nothing in {folder / 'images'} is named '{case_id}'" for p in found]
        problems = []
        if why := names.problem(case_id, "case"):
            problems.append(f"{files.images[0]}: {case_id!r} cannot name a case, rename the file: {why}")
        if not found:
            problems.append(f"image {files.images[0]} has no mask: nothing in {folder / 'masks'} is named '{case_id}'")
        if files.index and files.binary:
            problems.append(f"'{case_id}' has a mask of its own name and masks of structures: {_names(found)}")
        for paths in (files.images, files.index, *files.binary.values()):
            if len(paths) > 1:
                problems.append(f"case '{case_id}' of domain '{folder.name}' is there twice: {_names(paths)}")
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
        if names := sorted({s for f in self._all() if f.images and not f.index for s in f.binary}):
            return {name: BINARY if len(names) == 1 else () for name in names}
        found: set[int] = set()
        for path in (p for files in self._all() for p in files.index if not _is_jpeg(p)):
            try:
                values = values_of(read(path, mask=True).values)
            except DataError:  # said when the case is loaded
                continue
            found |= set(values) if len(values) <= MAX_STRUCTURES else set()
        if len(found) > MAX_STRUCTURES:
            raise DataError(
                f"the masks in {self.root} hold {len(found)} different values", f"name the structures in {self.toml}"
            )
        if found <= set(BINARY):
            return {"structure": BINARY}
        return {f"structure_{v}" if len(found) > 1 else "structure": (v,) for v in sorted(found)}

    def _planes(self, path: Path, mask: np.ndarray) -> list[np.ndarray]:
        """An index mask -> one bool (D, H, W) for each structure."""
        known = {v for values in self.values.values() for v in values}
        outside = [v for v in values_of(mask) if v not in known]
        if outside and _is_jpeg(path):
            raise DataError(
                f"mask {path} holds {len(outside)} values of no structure: JPEG blurs the borders of a mask",
                "export the mask again as PNG, TIFF or NIfTI; do not just rename the file",
            )
        if outside:
            few = ", ".join(map(str, outside[:5])) + (", ..." if len(outside) > 5 else "")
            of = ", ".join(f"{name} = {list(values)}" for name, values in self.values.items())
            raise DataError(f"mask {path} holds values of no structure: {few}", f"{self.toml} names them; now: {of}")
        return [np.isin(mask, values) for values in self.values.values()]

    def _has_colours(self, domain: str) -> bool:
        """Is any image of the domain in colour? Then its gray ones get three channels too."""
        if domain not in self._colours:
            self._colours[domain] = any(_is_coloured(p) for f in self._cases[domain].values() for p in f.images)
        return self._colours[domain]

    def _spacing(self, path: Path, pixels: Pixels) -> Spacing:
        """The header's in mm; else task.toml's; else 1 px."""
        if self.unit == "mm" and pixels.spacing:
            return pixels.spacing
        slices = len(pixels.values)
        if self.spacing is None and self.unit == "px":
            return (1.0, 1.0, 1.0)
        if self.spacing is None or (len(self.spacing) == 2 and slices > 1):
            raise DataError(
                f"{path} has no spacing in {self.unit}" + (f" between its {slices} slices" if slices > 1 else ""),
                f'write spacing = [slices, height, width] into {self.toml}, or unit = "px"',
            )
        depth, height, width = (1.0, *self.spacing)[-3:]
        return (depth, height, width)


def _domains(root: Path) -> dict[str, Path]:
    """By name, sub-folders that hold images or masks; also those where a capital or a missing s must be told."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", f"give the path of a folder of images; {LAYOUT}")
    inside = {d: {p.name.lower().rstrip("s") for p in _visible(d)} for d in _visible(root) if d.is_dir()}
    found = [folder for folder, parts in inside.items() if parts & {"image", "mask"}]
    if not found and {"images", "masks"} & {folder.name for folder in inside}:
        raise DataError(f"{root} holds images/ and masks/ itself: it is one domain", f"give the folder above; {LAYOUT}")
    if not found:
        raise DataError(f"no sub-folder of {root} holds images/ and masks/", LAYOUT)
    names.check((folder.name for folder in found), "domain", root)
    return {names.one_form(folder.name): folder for folder in found}


def _listing(folder: Path) -> dict[str, _Files]:
    """The files of a domain by case. A mask NAME_<structure> belongs to the longest NAME that is an image."""
    cases: defaultdict[str, _Files] = defaultdict(_Files)
    images, masks = folder / "images", folder / "masks"
    inner = [p for d in _visible(masks) if d.is_dir() for p in _visible(d)]
    for path in [*_visible(images), *_visible(masks), *inner]:
        if not is_image(path) and (FOREIGN.search(path.name) or (path.is_dir() and path.parent != masks)):
            cases[stem(path)].problems.append(f"{path} is no PNG, JPEG, TIFF or NIfTI file")
    for path in filter(is_image, _visible(images)):
        cases[stem(path)].images.append(path)
    known = {name for name, files in cases.items() if files.images}
    for path in filter(is_image, inner):
        cases[stem(path)].binary[names.one_form(path.parent.name)].append(path)
    for path in filter(is_image, _visible(masks)):
        parts = stem(path).split("_")
        prefixes = (("_".join(parts[:i]), "_".join(parts[i:])) for i in range(len(parts), 0, -1))
        name, structure = next((p for p in prefixes if p[0] in known), (stem(path), ""))
        if structure:
            cases[name].binary[structure].append(path)
        else:
            cases[name].index.append(path)
    return dict(cases)


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def _plane(path: Path, mask: np.ndarray) -> np.ndarray:
    """A mask of one structure -> bool (D, H, W)."""
    values = values_of(mask)
    if len(values) > 1:
        why = "JPEG blurs the borders of a mask: export it as PNG" if _is_jpeg(path) else "0 and one other are allowed"
        raise DataError(f"mask {path} of one structure holds {len(values)} values besides 0", why)
    return mask != 0


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in (".jpg", ".jpeg")


def _is_coloured(path: Path) -> bool:
    try:
        return not path.name.lower().endswith(NIFTI) and channels_first(read(path).values).shape[1] == 3
    except DataError:  # said when the case is loaded
        return False


def _names(paths: Sequence[Path]) -> str:
    return " and ".join(map(str, paths))


def _settings(path: Path) -> dict[str, Any]:
    """task.toml, checked; lists as tuples and `structures` as {name: mask values}."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}", 'a line looks like name = "my_task"') from None
    for key, value in table.items():
        is_valid, meaning = SETTINGS[require(key, list(SETTINGS), f"key in {path}:")]
        if not is_valid(value):
            raise UsageError(f"{path}: {key} = {value!r} is no valid setting", f"{key}: {meaning}")
    table |= {key: [*map(names.one_form, table[key])] for key in ("sources",) if key in table}
    structures = table.get("structures")
    if isinstance(structures, list):
        structures = {name: [i] if len(structures) > 1 else [1, 255] for i, name in enumerate(structures, 1)}
    if structures:
        named = {names.one_form(name): values for name, values in structures.items()}
        table["structures"] = {n: tuple(v) if isinstance(v, list) else (v,) for n, v in named.items()}
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


def _is_number(value: Any, low: float, high: float = math.inf, whole: bool = False) -> bool:
    return type(value) in ((int,) if whole else (int, float)) and low < value < high


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _are_structures(value: Any) -> bool:
    if not value or not isinstance(value, list | dict) or not all(map(_is_text, value)):
        return False
    if isinstance(value, list):
        return len(set(value)) == len(value)
    groups = [v if isinstance(v, list) else [v] for v in value.values()]
    return all(group and all(_is_number(v, 0, 1 << 31, whole=True) for v in group) for group in groups)


def _are_numbers(value: Any, low: float, lengths: Sequence[int]) -> bool:
    return isinstance(value, list) and len(value) in lengths and all(_is_number(v, low) for v in value)


# The keys of task.toml: (is the value valid?, what it means).
SETTINGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (
        lambda v: _is_text(v) and bool(re.fullmatch(r"\w[\w.-]*\w|\w", v)),
        "the task's name in tables and paths: letters, digits, _ - and . (default: the folder's)",
    ),
    "structures": (
        _are_structures,
        "names in the order of the mask values 1..K, or a table of values such as {disc = [1, 2], cup = 2}",
    ),
    "spacing": (
        lambda v: _are_numbers(v, 0, (2, 3)),
        "[slices, height, width] or [height, width] between voxel centres, each above 0, for files that have none",
    ),
    "unit": (lambda v: v in ("mm", "px"), 'of the spacing: "mm" or "px"'),
    "image_size": (
        lambda v: _is_number(v, 15, 4097, whole=True),
        "side of the square the network sees, 16 to 4096 pixels",
    ),
    "steps": (lambda v: _is_number(v, 0, whole=True), "training steps of a run, at least 1"),
    "intensity": (
        lambda v: _are_numbers(v, -math.inf, (2,)) and v[0] < v[1],
        "[low, high]: the numbers in the files that become 0 and 1",
    ),
    "sources": (lambda v: isinstance(v, list) and bool(v) and all(map(_is_text, v)), "the domains to train on"),
    "empty_masks": (lambda v: isinstance(v, bool), "true when a case may hold no structure at all"),
    "citation": (_is_text, "text: the paper to cite"),
    "licence": (_is_text, "text: the terms of the images"),
    "collections": (
        lambda v: isinstance(v, list) and all(map(_is_text, v)),
        'the public collections that the images are from, such as ["BUSI"]: pretrained weights may have seen them',
    ),
}
