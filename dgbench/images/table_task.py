"""A table of cases as a task: files stay where they lie, and one row says what belongs together.

case        name; may be used once in each domain
domain      scanner, hospital, ...
image       file, or folder of a DICOM series; all paths are relative to the table, or absolute
mask        index mask: 0 background, 1..K the structures (only one: 1 or 255)
mask_NAME   or one binary mask for each structure NAME
group       patient, where several cases are of one                     optional, as all below
spacing     "slices height width" or "height width", for files that have none
frame       of a 4-D image (and mask): the one to take, counted from 0
intensity   "low high", of the whole domain; modality: see `task_settings`

What task.toml says of a folder stands in NAME.toml beside NAME.csv. Columns may be parted by comma, semicolon or tab.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dgbench import names
from dgbench.errors import DataError
from dgbench.images.formats import KNOWN, is_image, stem
from dgbench.images.own_task import Files, OwnTask
from dgbench.images.task_settings import MODALITIES

TABLES = (".csv", ".tsv")
NEEDED = ("case", "domain", "image")
MORE = ("mask", "group", "spacing", "frame", "intensity", "modality")
MASK_OF = "mask_"
WANTED = f"a table has the columns {', '.join(NEEDED)} and mask, or {MASK_OF}<structure> for each structure"
SHOWN = 30  # problems; a table with one wrong column has as many as rows


class TableTask(OwnTask):
    """Every row is a case. The table is read, and every file looked for, at once."""

    wanted = WANTED

    def __init__(self, path: Path):
        """Raises `DataError` that names all that is wrong with the table, with line numbers."""
        path = Path(path)
        cases, own = _read(path)
        called = path.stem if path.stem.lower() != "cases" else path.resolve().parent.name
        super().__init__(path, called, path.with_suffix(".toml"), cases, **own)

    @property
    def folder(self) -> Path:
        """Where the table lies: paths in it are relative to that folder."""
        return self.root.parent

    def _pairing_problems(self, domain: str, case_id: str, files: Files) -> list[str]:
        problems = super()._pairing_problems(domain, case_id, files)
        if not files.index and not files.binary:
            problems.append(f"case '{case_id}' of domain '{domain}' has no mask in {self.root}")
        return problems


def _read(path: Path) -> tuple[dict[str, dict[str, Files]], dict[str, Any]]:
    """({domain: {case: its files}}, what the table says of its domains)"""
    header, rows = _rows(path)
    problems = _header_problems(header)
    if problems:
        raise DataError(f"{path}, line 1: {'; '.join(problems)}", WANTED)
    cases: defaultdict[str, dict[str, Files]] = defaultdict(dict)
    own: dict[str, dict[str, Any]] = {"intensity": {}, "modality": {}}
    lines: dict[tuple[str, str], int] = {}
    masks: dict[tuple[str, str, Path], tuple[str, Files]] = {}  # the case that each was first given for
    for line, row in rows:
        found: list[str] = []
        if len(row) != len(header):
            problems.append(f"line {line}: {len(row)} cells, and the first line has {len(header)}")
            continue
        cells = {name: cell.strip() for name, cell in zip(header, row, strict=True)}
        domain, case = (names.one_form(cells[kind]) for kind in ("domain", "case"))
        for kind, name in (("domain", domain), ("case", case)):
            if why := names.problem(name, kind):
                found.append(f"{name!r} cannot name a {kind}: {why}")
        if (first := lines.setdefault((domain, case), line)) != line:
            found.append(f"case '{case}' of domain '{domain}' stands in line {first} already")
        files = Files(group=names.one_form(cells.get("group", "")))
        for column, cell in cells.items():
            found += _cell_problems(path.parent, column, cell, files)
        for key, convert in PER_DOMAIN.items():
            if text := cells.get(key, ""):
                value = convert(text)
                if value is None:
                    found.append(f"{key} is {text!r}: {ALLOWED[key]}")
                elif own[key].setdefault(domain, value) != value:
                    found.append(f"{key} is {text!r}, and domain '{domain}' has another one above")
        for structure, mask in [("", p) for p in files.index] + [(s, p) for s, of in files.binary.items() for p in of]:
            other, its = masks.setdefault((domain, structure, mask), (case, files))
            if its.images != files.images and not (files.group and files.group == its.group):
                found.append(f"mask {mask} is that of case '{other}': give both one `group` if they show the same")
        problems += [f"line {line}: {problem}" for problem in found]
        cases[domain][case] = files
    for of in cases.values():
        _group_frames(of)
    if not problems and not cases:
        problems = ["it has no row"]
    if problems:
        more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        told = "\n- ".join([f"{path} cannot be used:", *problems[:SHOWN], *more])
        raise DataError(told, f"correct the table; {WANTED}")
    names.check(sorted(cases), "domain", path)
    return dict(cases), {key: value for key, value in own.items() if value}


def _group_frames(cases: dict[str, Files]) -> None:
    """Cases of one image, its frames, are one patient's, whatever else is not said."""
    by_image: defaultdict[Path, list[Files]] = defaultdict(list)
    for files in cases.values():
        if files.images:
            by_image[files.images[0]].append(files)
    for image, of in by_image.items():
        if len(of) > 1 and not any(files.group for files in of):
            for files in of:
                files.group = stem(image)


def _rows(path: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The header, and the rows that are not empty with the number of the line that each ends on."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"there is no table {path}", f"give its path; {WANTED}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", "save it as CSV in UTF-8") from None
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}", "save it as CSV in UTF-8") from None
    if not rows:
        raise DataError(f"{path} is empty", WANTED)
    return [names.one_form(cell.strip()) for cell in rows[0][1]], iter(rows[1:])


def _header_problems(header: list[str]) -> list[str]:
    known = [*NEEDED, *MORE]
    masks = [name for name in header if name == "mask" or name.startswith(MASK_OF)]
    problems = [f"no column '{name}'" for name in NEEDED if name not in header]
    problems += [f"two columns '{name}'" for name in sorted({n for n in header if n and header.count(n) > 1})]
    for name in header:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.8)
        if near and name not in known and not name.startswith(MASK_OF):  # others are notes of the user's own
            problems.append(f"unknown column '{name}': did you mean '{near[0]}'?")
    if not masks:
        problems.append("no column 'mask'")
    elif "mask" in masks and len(masks) > 1:
        problems.append(f"both 'mask' and {', '.join(repr(m) for m in masks if m != 'mask')}: one or the other")
    return problems


def _cell_problems(folder: Path, column: str, cell: str, files: Files) -> Iterator[str]:
    """Puts the cell where it belongs; what is wrong with it."""
    is_mask = column == "mask" or column.startswith(MASK_OF)
    if is_mask or column == "image":
        path = folder / cell.replace("\\", "/")
        if not cell:
            yield f"no {column}"
        elif not os.path.exists(path):  # which is False, too, for what can be no path
            yield f"there is no {column} {path}"
        elif not is_image(path):
            yield f"{column} {path} is no {KNOWN} file" + (", and no DICOM series" if path.is_dir() else "")
        elif column == "image":
            files.images.append(path)
        elif column == "mask":
            files.index.append(path)
        else:
            files.binary[column.removeprefix(MASK_OF)].append(path)
    elif column == "spacing" and cell:
        files.spacing = _numbers(cell, (2, 3))
        if files.spacing is None or min(files.spacing) <= 0:
            yield f"spacing is {cell!r}: give 2 or 3 numbers above 0, slices height width, parted by blanks"
    elif column == "frame" and cell:
        if cell.isdecimal():
            files.frame = int(cell)
        else:
            yield f"frame is {cell!r}: give a whole number, 0 for the first"


def _numbers(text: str, lengths: tuple[int, ...]) -> tuple[float, ...] | None:
    try:
        found = tuple(float(part) for part in text.replace("[", " ").replace("]", " ").replace(",", " ").split())
    except ValueError:
        return None
    return found if len(found) in lengths and all(map(math.isfinite, found)) else None


def _window(text: str) -> tuple[float, ...] | None:
    found = _numbers(text, (2,))
    return found if found and found[0] < found[1] else None


PER_DOMAIN: dict[str, Callable[[str], Any]] = {
    "intensity": _window,
    "modality": lambda text: text.lower() if text.lower() in MODALITIES else None,
}
ALLOWED = {"intensity": "give two numbers, low high, parted by a blank", "modality": f"give {', '.join(MODALITIES)}"}
