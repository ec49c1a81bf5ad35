"""Optic disc and optic cup in fundus photographs (RIGA+, outlines of rater 1): two sources, three targets.

Almazroa et al. Retinal fundus images for glaucoma analysis: the RIGA dataset. SPIE Medical Imaging 2018.
Hu, Liao, Xia. Domain Specific Convolution and High Frequency Reconstruction based Unsupervised Domain Adaptation for
Medical Image Segmentation. MICCAI 2022. https://zenodo.org/records/6325549

    domain           train  test   use
    BinRushed        156    39     source: trained on the train list, validated on the test list
    Magrabia         76     19     source: the same
    MESSIDOR_Base1   138    35     target: the test list alone, as in DAPSAM (MICCAI 2024)
    MESSIDOR_Base2   118    30     target: the same
    MESSIDOR_Base3   106    27     target: the same

Photographs of 800 x 800 pixels around the optic disc, 744 with outlines and 717 without. In a mask 0 is background,
255 the rim, 128 the cup, and the disc is both. Another record, Zenodo 8009107, has BinRushed and Magrabia under
the same names with the values turned round: the corners of a mask tell which it is, see the task fundus5.
Six raters outlined every photograph; they differ, most of all on the cup, so a number holds for its rater only.
"""

import csv
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from dgbench.errors import DataError, require
from dgbench.images.fetch import Download
from dgbench.images.file_task import FileTask
from dgbench.images.formats import Pixels, read_case, to_unit, values_of
from dgbench.task import Case

SOURCES = ("BinRushed", "Magrabia")
CUP = {0: 128, 255: 0}  # by the background of a record's masks; all that is neither is rim
ABOVE = ("RIGA", "image", "train", "test")  # folders of a list's paths that say nothing of the case
Pair = tuple[PurePosixPath, PurePosixPath]  # a photograph and its mask without a rater's number, in the data's folder


class Fundus(FileTask):
    """Two structures, the cup inside the disc. A subclass with another `rater` (1 to 6) is another task."""

    domains = (*SOURCES, "MESSIDOR_Base1", "MESSIDOR_Base2", "MESSIDOR_Base3")
    sources = SOURCES
    structures = ("disc", "cup")
    image_size = 512
    steps = 8000  # as prostate
    unit = "px"
    rater: ClassVar[int] = 1
    background: ClassVar[int] = 0  # of a mask
    elsewhere: ClassVar[str] = "these are masks of Zenodo 8009107: `--task fundus5` reads them, this task RIGAPlus.zip"
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {  # the lists of a domain whose cases are used
        **dict.fromkeys(SOURCES, ("train", "test")),
        **dict.fromkeys(domains[2:], ("test",)),
    }
    cases_expected: ClassVar = dict(zip(domains, (195, 95, 35, 30, 27), strict=True))
    intensity = "8-bit RGB divided by 255"
    citation = "Almazroa et al., SPIE 2018 (RIGA); Hu et al., MICCAI 2022 (RIGA+); masks of rater 1 of 6"
    licence = "CC BY-NC 4.0 (of RIGA; the record of RIGA+ says CC BY 4.0)"
    collections = ("RIGA", "MESSIDOR")
    download = (
        "download RIGAPlus.zip from https://zenodo.org/records/6325549 and unpack it so that RIGA/, RIGA-mask/ and "
        "<domain>_train.csv, <domain>_test.csv of BinRushed, Magrabia, MESSIDOR_Base1, _Base2 and _Base3 lie there"
    )
    sources_of_data = (
        Download(
            "https://zenodo.org/records/6325549/files/RIGAPlus.zip",
            "RIGAPlus.zip",
            sha256="f9fa96df2faa70852ccd4c73d0e79ed6eb258b5a37e72292f5efa3f81f195d20",
            unpack_to="",
        ),
    )
    access = "open"

    def __init__(self, data: Path | None = None):
        super().__init__(data)
        self._lists: dict[Path, dict[str, Pair]] = {}

    def targets(self, source: str) -> tuple[str, ...]:
        """The three MESSIDOR bases: the other source is never tested on."""
        return tuple(d for d in self.domains if d not in SOURCES)

    def case_ids(self, domain: str) -> list[str]:
        """Of the distribution's lists. Raises `DataError` when a list is missing or names a photograph twice."""
        return sorted(self._cases(domain))

    def split(self, source: str) -> tuple[list[str], list[str]]:
        """The distribution's own: its train list and its test list."""
        require(source, SOURCES, "source domain")
        self._cases(source)  # raises when the two lists share a photograph
        return sorted(self._list(source, "train")), sorted(self._list(source, "test"))

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
