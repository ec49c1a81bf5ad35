"""Files as they lie on people's disks -> a table of cases: which file is whose mask, and of which domain.

Understood: the layout of a folder task; nnU-Net's raw imagesTr/labelsTr with dataset.json; folders of images beside
folders of masks, whatever their usual names, above or below the domains; masks beside images with a suffix; BIDS with
its derivatives; folders of DICOM series. Every rule that decided something is told with the number of cases, and what
no rule decides is left to the user: nothing is guessed silently.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgbench import names
from dgbench.errors import DataError, UsageError
from dgbench.files import make_folder, write_atomic
from dgbench.images.dicom import is_dicom, is_segmentation, series_of
from dgbench.images.folder_task import FOREIGN, listing
from dgbench.images.formats import is_image, stem
from dgbench.images.own_task import Files
from dgbench.images.table_task import MASK_OF
from dgbench.images.volume_formats import files_of

WORDS = r"(?:manual|expert|binary|ground|lesion|organ)?[_-]?"
IMAGE_FOLDER = re.compile(
    r"images?|imgs?|images?t[rs]|photos?|scans?|volumes?|originals?|dicom(_anon)?|anat", re.IGNORECASE
)
MASK_FOLDER = re.compile(
    rf"{WORDS}(masks?|labels?t?[rs]?|segs?|segmentations?|gts?|truths?|annotations?|annos?|manual|contours?)",
    re.IGNORECASE,
)
PASSED_FOLDER = re.compile(r"derivatives|rawdata|raw|data|dataset|all", re.IGNORECASE)
SPLIT_FOLDER = re.compile(r"train(ing)?|val(idation)?|test(ing)?", re.IGNORECASE)
MASK_WORD = r"(?:d?seg|masks?|labels?|segmentations?|gt|groundtruth|annotations?|manual)"
MASK_SUFFIX = re.compile(rf"^(.*?)(?:[_\-. ]?{MASK_WORD}(?:-[a-z]+)?)$", re.IGNORECASE)
IMAGE_SUFFIX = re.compile(r"^(.*?)[_\-. ]?(?:images?|img|scan|photo|dicom|0000)$", re.IGNORECASE)
NAME_OF_DOMAIN = re.compile(r"^([A-Za-z][A-Za-z0-9]*?)(?:[_\-. ]|(?=\d))")
SUBJECT = re.compile(r"(sub-[A-Za-z0-9]+|(?:patient|case|subject|pat|p)[_-]?\d+)", re.IGNORECASE)
UNKNOWN = "unknown"
DEEPEST = 8  # folders below the one that is named


@dataclass
class Adoption:
    """What was made of a folder.

    rows: of the table, each {column: text}. rules: sentences on what was understood, with counts. unclear: files that
    no rule takes. decide: what the user must look at or fill in. settings: lines of the TOML file beside the table.
    """

    root: Path
    rows: list[dict[str, str]] = field(default_factory=list)
    rules: list[str] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)
    decide: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)

    def write(self, out: Path) -> list[Path]:
        """Writes the table, with paths relative to it, and its TOML file where there is something to say; never over
        another file. Returns what was written."""
        paths = [out, *([out.with_suffix(".toml")] if self.settings else [])]
        for path in paths:
            if path.exists():
                raise UsageError(f"{path} is there already", "move it away, or name another one with --out")
        columns = list(dict.fromkeys(column for row in self.rows for column in row))
        text = io.StringIO()
        table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        table.writeheader()
        for row in self.rows:
            files = {c: _relative(Path(v), out.parent) for c, v in row.items() if _is_file(c)}
            table.writerow(row | files)
        make_folder(out.parent)
        for path, content in zip(paths, (text.getvalue(), "\n".join([*self.settings, ""])), strict=False):
            write_atomic(path, content)
        return paths


@dataclass(frozen=True)
class _Found:
    """An image or mask file by the folders that say something about it, and what its name says."""

    path: Path
    folders: tuple[str, ...]
    name: str


def adopt(root: Path) -> Adoption:
    """Looks at all files below `root`. Raises `DataError` where there is no folder, or no image with a mask."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"there is no folder {root}", "give the path of a folder of images")
    adoption = Adoption(root)
    folders = {d.name: listing(d) for d in _inside(root) if (d / "images").is_dir() and (d / "masks").is_dir()}
    if folders:
        _as_folder_task(adoption, folders)
    elif sets := [d for d in [root, *_inside(root)] if (d / "imagesTr").is_dir() and (d / "labelsTr").is_dir()]:
        for folder in sets:
            _nnunet(adoption, folder, only=len(sets) == 1)
        called = [(row["case"],) for row in adoption.rows]
        _domains_of(adoption, [(f"{folder.name}",) if len(sets) > 1 else () for folder in sets for _ in _cases(folder)])
        _groups(adoption, called)
    else:
        _paired(adoption)
    _leave_out_unreadable(adoption)
    if not adoption.rows:
        told = "; ".join(adoption.unclear[:5]) or "no image file is there"
        raise DataError(
            f"nothing in {root} is an image with a mask: {told}", "see docs/own-data.md for what is understood"
        )
    adoption.rows.sort(key=lambda row: (row["domain"], row["case"]))
    _check_names(adoption)
    return adoption


def _leave_out_unreadable(adoption: Adoption) -> None:
    """Rows with a file's name that is no UTF-8, which no table can hold."""
    rows, adoption.rows = adoption.rows, []
    for row in rows:
        try:
            "".join(row.values()).encode()
            adoption.rows.append(row)
        except UnicodeEncodeError:
            adoption.unclear.append(f"{row['image']}: a name that is no UTF-8 cannot stand in a table: rename the file")


# --- layouts ---------------------------------------------------------------------------------------------------------


def _as_folder_task(adoption: Adoption, folders: dict[str, dict[str, Files]]) -> None:
    for domain, cases in folders.items():
        for case, files in cases.items():
            masks = {"mask": files.index} if files.index else {MASK_OF + s: p for s, p in files.binary.items()}
            if files.problems or not masks or any(len(p) != 1 for p in (files.images, *masks.values())):
                lacking = f"{domain}/{case} has {len(files.images)} images and {sum(map(len, masks.values()))} masks"
                adoption.unclear += files.problems or [lacking]
                continue
            paths = {column: str(found[0]) for column, found in masks.items()}
            adoption.rows.append({"case": case, "domain": domain, "image": str(files.images[0]), **paths})
    _groups(adoption, [(row["case"],) for row in adoption.rows])
    rule = f"<domain>/images with <domain>/masks: {len(adoption.rows)} cases of {len(folders)} domains"
    adoption.rules.append(f"{rule}; --task {adoption.root} reads this without a table")
    if (toml := adoption.root / "task.toml").is_file():
        try:
            adoption.settings += toml.read_text(encoding="utf-8-sig").splitlines()
            adoption.rules.append("task.toml is copied beside the table")
        except (OSError, ValueError) as error:
            adoption.decide.append(f"{toml} cannot be read and is not copied: {error}")
    if left := [d.name for d in _inside(adoption.root) if d.is_dir() and d.name not in folders]:
        adoption.decide.append(f"beside them lie {', '.join(left[:6])}: no domain is made of these")


def _cases(folder: Path) -> Iterator[tuple[str, Path, dict[int, Path]]]:
    """(case, mask, {channel: image}) of a set in nnU-Net's layout."""
    for part in ("Tr", "Ts"):
        channels: defaultdict[str, dict[int, Path]] = defaultdict(dict)
        for path in filter(is_image, _inside(folder / f"images{part}")):
            if found := re.fullmatch(r"(.+)_(\d{4})", stem(path)):
                channels[found[1]][int(found[2])] = path
            else:
                channels[stem(path)][0] = path  # of the Decathlon, whose channels are the fourth axis
        for path in filter(is_image, _inside(folder / f"labels{part}")):
            if stem(path) in channels:
                yield stem(path), path, channels[stem(path)]


def _nnunet(adoption: Adoption, folder: Path, only: bool) -> None:
    """only: it is the only set, so that what its card says holds for all rows."""
    found = list(_cases(folder))
    rows = [
        {"case": case, "domain": "", "image": str(channels[min(channels)]), "mask": str(mask)}
        for case, mask, channels in found
    ]
    adoption.rows += rows
    adoption.rules.append(f"nnU-Net's imagesTr with labelsTr in {folder.name}: {len(found)} cases")
    used = {Path(row[column]) for row in adoption.rows for column in ("image", "mask")}
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        lone = [p for p in _inside(folder / part) if is_image(p) and p not in used]
        others = {path for _, _, channels in found for path in channels.values()}
        if alone := [p for p in lone if p not in others]:
            adoption.unclear.append(
                f"{len(alone)} files of {folder.name}/{part} have no partner, such as {alone[0].name}"
            )
    card = _card(adoption, folder / "dataset.json")
    kinds = card.get("channel_names") or card.get("modality") or {}
    most = max((len(channels) for _, _, channels in found), default=1)
    if most > 1:
        named = ", ".join(f"{int(k):04d} {v}" for k, v in kinds.items() if str(k).isdecimal()) or f"{most} channels"
        adoption.decide.append(
            f"an image has one channel here, and these have {named}: 0000 is taken; change the table"
        )
    elif len(kinds) > 1:
        named = ", ".join(f"{k} {v}" for k, v in kinds.items())
        adoption.decide.append(f"the files hold channels ({named}): add a column `frame` with the one to take")
    if str(next(iter(kinds.values()), "")).lower() == "ct":
        adoption.settings += ['modality = "ct"'] if only else []
        for row in rows if not only else ():
            row["modality"] = "ct"
        adoption.rules.append(
            f"dataset.json of {folder.name} says CT: modality ct, a window from -160 to 240 HU; change it as needed"
        )
    _regions(adoption, card.get("labels") or {})


def _card(adoption: Adoption, path: Path) -> dict[str, Any]:
    if not path.is_file():
        adoption.unclear.append(f"there is no {path}: the structures have no names")
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8-sig"))
        return card if isinstance(card, dict) else {}
    except (OSError, ValueError) as error:
        adoption.unclear.append(f"{path} cannot be read: {error}")
        return {}


def _regions(adoption: Adoption, labels: dict[str, Any]) -> None:
    """Both forms of nnU-Net: {"1": "prostate"}, {"prostate": 1}; regions are {"whole": [1, 2, 3]}."""
    structures: dict[str, list[int]] = {}
    for key, value in labels.items():
        name, values = (str(value), key) if str(key).isdecimal() and isinstance(value, str) else (str(key), value)
        numbers = [int(v) for v in (values if isinstance(values, list) else [values]) if str(v).isdecimal()]
        if numbers and any(numbers) and name.lower() not in ("background", "ignore"):
            structures[re.sub(r"[^\w .-]+", "_", name).strip()] = numbers
    line = "structures = {{ {} }}".format(", ".join(f"{json.dumps(n)} = {v}" for n, v in structures.items()))
    if structures and line not in adoption.settings:
        if any(text.startswith("structures") for text in adoption.settings):
            adoption.decide.append(f"the sets name other structures: {line}")
            return
        adoption.settings.append(line)
        adoption.rules.append(f"structures of dataset.json: {', '.join(structures)}")


def _paired(adoption: Adoption) -> None:
    """Images and masks that lie in any way: a mask belongs to the image of the same folders and name."""
    files = list(_walk(adoption, adoption.root, 0))
    images: dict[tuple[tuple[str, ...], str], list[_Found]] = defaultdict(list)
    masks: list[tuple[_Found, str]] = []
    for path in files:
        found, why = _seen(adoption.root, path)
        if why:
            masks.append((found, why))
        else:
            images[found.folders, found.name].append(found)
    of: defaultdict[_Found, dict[str, Path]] = defaultdict(dict)
    rules: Counter[str] = Counter()
    for found, why in masks:
        image, structure, how = _owner(found, images)
        if image is None:
            adoption.unclear.append(f"mask {found.path}: {how}")
        elif structure in of[image]:
            adoption.unclear.append(f"masks {of[image][structure]} and {found.path} would both be of {image.path}")
        else:
            of[image][structure] = found.path
            rules[f"{why}; {how}"] += 1
    alone = [f for found in images.values() for f in found if f not in of]
    adoption.unclear += [f"image {f.path} has no mask" for f in alone]
    adoption.rules += [f"{rule}: {count} masks" for rule, count in rules.most_common()]
    taken = [image for image in of if of[image]]
    for image in taken:
        columns = {MASK_OF + s if s else "mask": str(p) for s, p in sorted(of[image].items())}
        case = image.name or image.folders[-1]
        adoption.rows.append({"case": case, "domain": "", "image": str(image.path), **columns})
    if any("mask" in row for row in adoption.rows) and any(len(row) > 4 or "mask" not in row for row in adoption.rows):
        adoption.decide.append("some cases have one mask and others one for each structure: make them alike")
    folders = [image.folders if image.name else image.folders[:-1] for image in taken]
    _domains_of(adoption, folders)
    _groups(adoption, [(*image.folders, image.name) for image in taken])


def _walk(adoption: Adoption, folder: Path, depth: int) -> Iterator[Path]:
    """All images below; a folder with DICOM files is one, unless several series lie in it; segmentations are apart."""
    inside = _inside(folder)
    plain = [p for p in inside if p.is_file()]
    series = [p for p in plain if is_dicom(p)]
    beside = {other for p in plain for other in files_of(p)[1:]}
    lone = len(series) == 1  # an enhanced file, a segmentation, or a radiograph
    if series and not lone:
        try:
            several = series_of(folder)
        except DataError as error:
            adoption.unclear.append(error.cause)
            several = {}
        if len(several) == 1:
            series = [p for files in several.values() for p in files]
            yield folder
        elif several:
            told = ", ".join(f"'{text}' ({len(files)} files)" for text, files in several.items())
            adoption.unclear.append(f"{folder} holds several DICOM series: {told}; give each a folder of its own")
    for path in plain:
        if path in beside or (path in series and not lone):
            continue
        if is_image(path):
            yield path
        elif FOREIGN.search(path.name):
            adoption.unclear.append(f"{path} is of a format that is not read")
    if depth < DEEPEST:
        for path in inside:
            if path.is_dir():
                yield from _walk(adoption, path, depth + 1)


def _seen(root: Path, path: Path) -> tuple[_Found, str]:
    """A file by what its folders and its name say; with the rule that makes it a mask, "" for an image."""
    parents = path.relative_to(root).parts[:-1]
    told = next((p for p in reversed(parents) if MASK_FOLDER.fullmatch(p) or IMAGE_FOLDER.fullmatch(p)), "")
    silent = (IMAGE_FOLDER, MASK_FOLDER, PASSED_FOLDER, SPLIT_FOLDER)
    folders = tuple(names.one_form(p) for p in parents if not any(word.fullmatch(p) for word in silent))
    name = stem(path)
    in_masks = bool(MASK_FOLDER.fullmatch(told)) or "derivatives" in map(str.lower, parents)
    if in_masks:
        return _Found(path, folders, name), f"files in {told or 'derivatives'}/ are masks"
    if _segmentation(path):  # named by the folder that holds it, as a series is
        named = int(folders[-1:] == tuple(map(names.one_form, parents[-1:])))
        above = folders[: len(folders) - named]
        return _Found(path, above, "".join(folders[len(above) :])), "a DICOM-SEG is a mask"
    if not IMAGE_FOLDER.fullmatch(told) or told.lower() == "anat":
        if (found := MASK_SUFFIX.fullmatch(name)) and (not found[1] or name[len(found[1])] in "_-. "):
            return _Found(path, folders, found[1]), f"names that end in {name[len(found[1]) :]} are masks"
        if path.is_dir() and IMAGE_FOLDER.fullmatch(name):
            return _Found(path, folders, ""), ""
        if not told and (found := IMAGE_SUFFIX.fullmatch(name)):
            return _Found(path, folders, found[1]), ""
    if path.is_dir() and IMAGE_FOLDER.fullmatch(name):
        return _Found(path, folders, ""), ""
    return _Found(path, folders, name), ""


def _segmentation(path: Path) -> bool:
    try:
        return is_dicom(path) and is_segmentation(path)
    except DataError:  # said where it is read
        return False


def _owner(mask: _Found, images: dict[tuple[tuple[str, ...], str], list[_Found]]) -> tuple[_Found | None, str, str]:
    """(the mask's image or None, the structure that names say or "", the rule or why there is none)"""
    short = MASK_SUFFIX.fullmatch(mask.name)
    named = [mask.name, *([short[1].rstrip("_-. ")] if short and short[1] else [])]
    tries: list[tuple[tuple[str, ...], str, str, str]] = [
        (mask.folders, name, "", "a mask has the name of its image") for name in named
    ]
    for i, folder in enumerate(mask.folders):
        rest = mask.folders[:i] + mask.folders[i + 1 :]
        tries += [(rest, name, folder, "a folder of masks is a structure") for name in named]
    for name in named[::-1]:
        ends = [m.start() for m in re.finditer(r"[_\-. ]", name)][::-1]
        tries += [(mask.folders, name[:i], name[i + 1 :], "what a mask's name has more is the structure") for i in ends]
    if mask.name == "":
        tries.append((mask.folders, "", "", "a mask lies beside its image"))
    for folders, name, structure, how in tries:
        found = images.get((folders, name), [])
        if len(found) == 1:
            return found[0], structure, how
        if found:
            return None, "", f"{len(found)} images could be its own: {' and '.join(str(f.path) for f in found[:2])}"
    within = [f for (folders, _), found in images.items() if folders == mask.folders for f in found]
    if len(within) == 1 and mask.folders and (not mask.name or _alone(mask.name)):
        return within[0], "", "a mask is of the only image in its folder"
    return None, "", f"{len(within)} images lie in its folder, none with its name" if within else "it has no image"


def _alone(name: str) -> bool:
    """Does the name say that it is a mask, and no more?"""
    return bool(re.fullmatch(MASK_WORD, name, re.IGNORECASE))


# --- domains and patients --------------------------------------------------------------------------------------------


def _domains_of(adoption: Adoption, folders: Sequence[tuple[str, ...]]) -> None:
    """Of a folder whose values are shared by cases; else of the beginning of names; else left to the user."""
    rows = adoption.rows
    for level in range(max(map(len, folders), default=0)):
        values = [f[level] if len(f) > level else "" for f in folders]
        counts = Counter(values)
        if len(counts) > 1 and all(counts) and not all(SUBJECT.fullmatch(value) for value in values):
            if len(counts) == len(values) and len(values) > 6:
                continue  # a folder for each case
            _set(adoption, values)
            adoption.rules.append(f"the domain is the {_ordinal(level)} folder: {_counted(counts)}")
            _qualify(rows, folders, level)
            return
    found = [NAME_OF_DOMAIN.match(row["case"]) for row in rows]
    values = [f[1] if f else "" for f in found]
    counts = Counter(values)
    _qualify(rows, folders, None)
    if len(counts) > 1 and all(counts) and min(counts.values()) > 1:
        _set(adoption, values)
        adoption.rules.append(f"the domain is the beginning of the names: {_counted(counts)}")
        adoption.decide.append("do the beginnings of the names stand for scanners or hospitals? if not, edit `domain`")
        return
    _set(adoption, [UNKNOWN] * len(rows))
    adoption.decide.append(
        f"no folder and no name says which scanner or hospital a case is from: write it into the column `domain` of "
        f"all {len(rows)} rows, which now says '{UNKNOWN}'"
    )


def _set(adoption: Adoption, values: Sequence[str]) -> None:
    for row, value in zip(adoption.rows, values, strict=True):
        row["domain"] = value


def _qualify(rows: Sequence[dict[str, str]], folders: Sequence[tuple[str, ...]], level: int | None) -> None:
    """Where a domain would have two cases of one name, their other folders go before it."""
    counts = Counter((row["domain"], row["case"]) for row in rows)
    twice = [counts[row["domain"], row["case"]] > 1 for row in rows]
    for row, parents, is_twice in zip(rows, folders, twice, strict=True):
        others = [f for i, f in enumerate(parents) if i != level and f != row["case"]]
        if is_twice and others:
            row["case"] = "_".join([*others, row["case"]])


def _groups(adoption: Adoption, told: Sequence[Sequence[str]]) -> None:
    """Patients, where a folder or name says sub-..., patient..., and one has several cases in a domain; by row."""
    found = [next(filter(None, map(SUBJECT.match, of)), None) for of in told]
    values = [m[1] if m else "" for m in found]
    counts = Counter((row["domain"], v) for row, v in zip(adoption.rows, values, strict=True) if v)
    if counts and max(counts.values()) > 1:
        for row, value in zip(adoption.rows, values, strict=True):
            row["group"] = value
        adoption.rules.append(f"the group is the patient that a folder or name gives: {len(counts)} patients")
        if silent := values.count(""):
            adoption.decide.append(f"{silent} cases name no patient: fill in `group` where they are of one")


def _check_names(adoption: Adoption) -> None:
    for row in adoption.rows:
        for kind in ("domain", "case"):
            if why := names.problem(row[kind], kind):
                adoption.decide.append(f"{kind} {row[kind]!r} of {row['image']} must be renamed in the table: {why}")
    counts = Counter((row["domain"], row["case"]) for row in adoption.rows)
    adoption.decide += [f"{n} cases of '{d}' are named '{c}': rename them" for (d, c), n in counts.items() if n > 1]


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())) + " cases"


def _ordinal(level: int) -> str:
    return ("first", "second", "third", "fourth")[level] if level < 4 else f"{level + 1}th"


def _inside(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "._"))) if folder.is_dir() else []


def _is_file(column: str) -> bool:
    return column in ("image", "mask") or column.startswith(MASK_OF)


def _relative(path: Path, folder: Path) -> str:
    # A link is kept: what it leads to may have a name that says nothing.
    return Path(os.path.relpath(path.parent.resolve() / path.name, folder.resolve())).as_posix()


def told(adoption: Adoption, most: int = 10) -> Iterable[str]:
    """What a user should read, a line each: what was understood, what was not, and what to decide."""
    yield f"{len(adoption.rows)} cases of {len({row['domain'] for row in adoption.rows})} domains in {adoption.root}"
    for title, lines in (
        ("understood", adoption.rules),
        ("not understood", adoption.unclear),
        ("decide", adoption.decide),
    ):
        if lines:
            yield f"{title}:"
            yield from (f"  - {line}" for line in lines[:most])
            if lines[most:]:
                yield f"  - ... and {len(lines) - most} more"
