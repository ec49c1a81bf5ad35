"""Fundus photographs with lists: two records on Zenodo of one group of authors, whose masks are turned round."""

import csv
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from dgbench.errors import DataError, require
from dgbench.images.file_task import FileTask
from dgbench.images.formats import Pixels, read_case, to_unit, values_of
from dgbench.task import Case

CUP = {0: 128, 255: 0}  # by the background of a record's masks; all that is neither is rim
ABOVE = ("RIGA", "image", "train", "test")  # folders of a list's paths that say nothing of the case
Pair = tuple[PurePosixPath, PurePosixPath]  # a photograph and its mask without a rater's number, in the data's folder


class DiscAndCup(FileTask):
    """Two structures, the cup inside the disc, of one rater (of 6, where masks are TIFF).

    A record has `<domain>_<part>.csv` with the columns image and mask; parts: those of a domain whose cases are used.
    background: of a mask; a mask with other corners is of the record that `elsewhere` names.
    """

    structures = ("disc", "cup")
    image_size = 512
    steps = 8000  # as prostate
    unit = "px"
    intensity = "8-bit RGB divided by 255"
    rater: ClassVar[int] = 1
    background: ClassVar[int]
    elsewhere: ClassVar[str]
    parts: ClassVar[Mapping[str, tuple[str, ...]]]

    def __init__(self, data: Path | None = None):
        super().__init__(data)
        self._lists: dict[Path, dict[str, Pair]] = {}

    def case_ids(self, domain: str) -> list[str]:
        """Of the distribution's lists. Raises `DataError` when a list is missing or names a photograph twice."""
        return sorted(self._cases(domain))

    def files(self, domain: str, case_id: str) -> list[Path]:
        """[photograph, mask of the rater]. Raises `DataError` when all masks are missing: what is to be unpacked."""
        image, mask = self._cases(domain)[require(case_id, self.case_ids(domain), f"case of {domain}")]
        if not (self.folder / mask.parts[0]).is_dir():
            raise DataError(f"no masks: no folder {self.folder / mask.parts[0]}", f"unpack all of it: {self.download}")
        rated = f"-{self.rater}" if mask.suffix == ".tif" else ""
        return [self.folder / image, self.folder / mask.with_name(f"{mask.stem}{rated}{mask.suffix}")]

    def load(self, domain: str, case_id: str) -> Case:
        """The photograph and its disc and cup, at the photograph's own resolution."""
        image, mask = self.files(domain, case_id)
        pixels, (values,) = read_case(image, [mask])
        if other := sorted(set(values_of(values)) - {128, 255}):
            raise DataError(f"mask {mask} holds the values {other[:5]}", "a mask has 0, 128 and 255: download again")
        if (values[:, [0, 0, -1, -1], [0, -1, 0, -1]] != self.background).any():
            raise DataError(f"the corners of mask {mask} are not background, {self.background}", self.elsewhere)
        disc, cup = values != self.background, values == CUP[self.background]
        return Case(case_id, self.intensities(pixels), np.stack([disc, cup], axis=1), (1.0, 1.0, 1.0))

    def intensities(self, pixels: Pixels) -> np.ndarray:
        """8-bit colours / 255: float32 (1, 3, H, W)."""
        unit = to_unit(pixels)
        return np.repeat(unit, 3, axis=1) if unit.shape[1] == 1 else unit

    def _cases(self, domain: str) -> dict[str, Pair]:
        """By case id, from all lists of a domain that are used."""
        cases: dict[str, Pair] = {}
        for part in self.parts[require(domain, self.domains, "domain")]:
            listed = self._list(domain, part)
            if both := sorted(set(cases) & set(listed)):
                raise DataError(f"{domain}_train.csv and {domain}_test.csv both list '{both[0]}'", self.download)
            cases |= listed
        return cases

    def _list(self, domain: str, part: str) -> dict[str, Pair]:
        """One of the distribution's lists, read once."""
        path = self.folder / f"{domain}_{part}.csv"
        if path not in self._lists:
            self._lists[path] = read_list(path, domain, self.download)
        return self._lists[path]


def read_list(path: Path, domain: str, remedy: str) -> dict[str, Pair]:
    """{case id: pair}. A case is named by its path below the domain's folder: image1.tif is in every sub-folder."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the list {path} cannot be read: {error}", remedy) from None
    listed: dict[str, Pair] = {}
    for number, row in enumerate(rows, 2):
        image, mask = (PurePosixPath((row.get(column) or "").strip()) for column in ("image", "mask"))
        if not (image.name and mask.name) or {"..", "/"} & {*image.parts, *mask.parts}:
            raise DataError(f"{path}, line {number}: no image and mask below {path.parent}", remedy)
        case_id = "-".join(p for p in image.with_suffix("").parts if p not in (*ABOVE, domain))
        if case_id in listed:
            raise DataError(f"{path}, line {number}: '{image}' is listed twice", remedy)
        listed[case_id] = (image, mask)
    if not listed:
        raise DataError(f"the list {path} names no photograph", remedy)
    return listed
