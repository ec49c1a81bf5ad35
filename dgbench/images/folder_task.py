"""A folder of images as a task: users' own data need no code.

PATH/<domain>/images/NAME.png                    any format of `formats`; a DICOM series is a folder NAME
PATH/<domain>/masks/NAME.png                     index mask: 0 background, 1..K the structures (only one: 1 or 255)
PATH/<domain>/masks/NAME_<structure>.png         or one binary mask per structure,
PATH/<domain>/masks/<structure>/NAME.png         in either of these two ways
PATH/task.toml                                   optional, see `task_settings`

All other layouts become a table of cases, see `adopt` and `table_task`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from dgbench import names
from dgbench.errors import DataError, require
from dgbench.images.formats import KNOWN, is_image, stem
from dgbench.images.own_task import Files, OwnTask

LAYOUT = "the layout is <domain>/images/NAME.png with <domain>/masks/NAME.png or masks/NAME_<structure>.png"
ADOPT = "`dgbench data adopt {}` makes a table of files that lie otherwise"
# Image formats that are not read here: told, not passed over as other files are.
FOREIGN = re.compile(r"\.(gif|webp|jp2|heic|svs|mat|z?raw|hdr|img)(\.gz)?$", re.IGNORECASE)
ALIKE = {"image", "img", "imagestr", "mask", "label", "labelstr", "seg", "segmentation", "gt", "annotation"}


class FolderTask(OwnTask):
    """Every sub-folder with images/ or masks/ is a domain, the names of the files in it are its cases."""

    wanted = LAYOUT

    def __init__(self, path: Path):
        """Raises `DataError` when `path` holds no domain, `UsageError` for a mistake in its task.toml."""
        path = Path(path)
        self._folders = _domains(path)
        cases = {domain: listing(folder) for domain, folder in self._folders.items()}
        super().__init__(path, path.resolve().name, path / "task.toml", cases)

    @property
    def folder(self) -> Path:
        """The folder of images itself."""
        return self.root

    def case_ids(self, domain: str) -> list[str]:
        """All names in images/ and masks/; a name that lacks one of the two is a case that cannot be loaded."""
        if not self._cases[require(domain, self.domains, "domain")]:
            missing = next(iter(_missing(self._folders[domain]).values()), f"nothing in its images/ is {KNOWN}")
            raise DataError(f"domain '{domain}' has no case: {missing}", ADOPT.format(self.root))
        return super().case_ids(domain)

    def _pairing_problems(self, domain: str, case_id: str, files: Files) -> list[str]:
        folder = self._folders[domain]
        if missing := _missing(folder):
            return [f"domain '{domain}' has no folder {folder / part}: {seen}" for part, seen in missing.items()][:1]
        found = [*files.index, *(p for paths in files.binary.values() for p in paths)]
        if not files.images:
            return [f"mask {p} has no image: nothing in {folder / 'images'} is named '{case_id}'" for p in found]
        problems = super()._pairing_problems(domain, case_id, files)
        if not found:
            problems.append(f"image {files.images[0]} has no mask: nothing in {folder / 'masks'} is named '{case_id}'")
        return problems


def _missing(folder: Path) -> dict[str, str]:
    """{"images" or "masks", where it is no folder: what is seen in its place}"""
    there = [p.name for p in _visible(folder) if p.is_dir()]
    seen = f"it holds {', '.join(f'{name}/' for name in there[:6]) or 'no folder'}; " + ADOPT.format(folder.parent)
    return {part: seen for part in ("images", "masks") if part not in there}


def _domains(root: Path) -> dict[str, Path]:
    """By name, sub-folders that hold images or masks; also those where a capital or a missing s must be told."""
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", f"give the path of a folder of images; {LAYOUT}")
    inside = {d: {p.name.lower().rstrip("s") for p in _visible(d)} for d in _visible(root) if d.is_dir()}
    found = [folder for folder, parts in inside.items() if parts & {"image", "mask"}]
    own = [folder.name for folder in inside if folder.name.lower().rstrip("s") in ALIKE]
    if not found and own:
        holds = " and ".join(f"{name}/" for name in own[:3])
        remedy = f"give the folder above; {LAYOUT}; {ADOPT.format(root)}"
        raise DataError(f"{root} holds {holds} itself: it is one domain", remedy)
    found = found or [folder for folder, parts in inside.items() if parts & ALIKE]
    if not found:
        raise DataError(f"no sub-folder of {root} holds images/ and masks/", f"{LAYOUT}; {ADOPT.format(root)}")
    names.check((folder.name for folder in found), "domain", root)
    return {names.one_form(folder.name): folder for folder in found}


def listing(folder: Path) -> dict[str, Files]:
    """The files of a domain by case. A mask NAME_<structure> belongs to the longest NAME that is an image."""
    cases: defaultdict[str, Files] = defaultdict(Files)
    images, masks = folder / "images", folder / "masks"
    inner = [p for d in _visible(masks) if d.is_dir() and not is_image(d) for p in _visible(d)]
    heads = {p.with_suffix("") for p in [*_visible(images), *_visible(masks), *inner] if p.suffix.lower() == ".mhd"}
    for path in [*_visible(images), *_visible(masks), *inner]:
        if is_image(path) or path.with_suffix("") in heads:
            continue
        if path.is_dir() and path.parent != masks:
            cases[stem(path)].problems.append(
                f"{path} is no {KNOWN} file, and no folder of a DICOM series: save its slices as the pages of one TIFF"
            )
        elif FOREIGN.search(path.name):
            cases[stem(path)].problems.append(f"{path} is no {KNOWN} file")
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
