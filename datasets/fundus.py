"""Optic disc and optic cup in fundus photographs (RIGA+, outlines of rater 1): two sources, three targets.

Almazroa et al. Retinal fundus images for glaucoma analysis: the RIGA dataset. SPIE Medical Imaging 2018.
Hu, Liao, Xia. Domain Specific Convolution and High Frequency Reconstruction based Unsupervised Domain Adaptation for
Medical Image Segmentation. MICCAI 2022. https://zenodo.org/records/6325549

    domain           train  test   use
    BinRushed        156    39     source: trained on the train list, validated on the test list
    Magrabia         76     19     source: the same
    MESSIDOR_Base1          35     target: the test list, as in DAPSAM (MICCAI 2024)
    MESSIDOR_Base2          30     target
    MESSIDOR_Base3          27     target

Photographs of 800 x 800 pixels around the optic disc. In a mask 255 is the rim, 128 the cup, and the disc is both.
Six raters outlined every photograph; they differ, most of all on the cup, so a number holds for its rater only.
"""

import csv
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from dgbench.errors import DataError, require
from dgbench.images.fetch import Download
from dgbench.images.file_task import FileTask
from dgbench.images.formats import Pixels, read_case, to_unit, values_of
from dgbench.images.mock import Sketch, write_tiff
from dgbench.task import Case

SOURCES = ("BinRushed", "Magrabia")
COUNTS = {  # of the distribution's lists, by domain and list
    "BinRushed": {"train": 156, "test": 39},
    "Magrabia": {"train": 76, "test": 19},
    "MESSIDOR_Base1": {"test": 35},
    "MESSIDOR_Base2": {"test": 30},
    "MESSIDOR_Base3": {"test": 27},
}
BASE = {"train": ["Labeled/image90"], "test": ["Labeled/image1", "Labeled/image2"]}
PLACES = {  # of photographs that are drawn, by domain and list
    "BinRushed": {
        "train": ["BinRushed1/image1", "BinRushed2/image1", "BinRushed2/image10"],
        "test": ["BinRushed4/image1"],
    },
    "Magrabia": {"train": ["MagrabiFemale/image1", "MagrabiaMale/image1"], "test": ["MagrabiaMale/image2"]},
    **{f"MESSIDOR_Base{n}": BASE for n in (1, 2, 3)},
}
MASK_VALUES = {"disc": (128, 255), "cup": (128,)}
Pair = tuple[PurePosixPath, PurePosixPath]  # a photograph and its mask without a rater's number, in the data's folder


class Fundus(FileTask):
    """Two structures, the cup inside the disc. A subclass with another `rater` (1 to 6) is another task."""

    domains = tuple(COUNTS)
    sources = SOURCES
    structures = tuple(MASK_VALUES)
    image_size = 512
    steps = 8000  # as prostate
    unit = "px"
    rater: ClassVar[int] = 1
    intensity = "8-bit RGB divided by 255"
    citation = "Almazroa et al., SPIE 2018 (RIGA); Hu et al., MICCAI 2022 (RIGA+); masks of rater 1 of 6"
    licence = "RIGA: CC BY-NC 4.0; RIGA+: CC BY 4.0"
    collections = ("RIGA", "MESSIDOR")
    download = (
        "download RIGAPlus.zip from https://zenodo.org/records/6325549 and unpack it so that RIGA/, RIGA-mask/ and "
        "<domain>_train.csv, <domain>_test.csv of BinRushed, Magrabia, MESSIDOR_Base1, _Base2 and _Base3 lie there"
    )
    sources_of_data = (
        Download(
            "https://zenodo.org/records/6325549/files/RIGAPlus.zip", "RIGAPlus.zip",
            "f9fa96df2faa70852ccd4c73d0e79ed6eb258b5a37e72292f5efa3f81f195d20", unpack_to="", inside="*",
        ),
    )  # fmt: skip

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
        """[photograph, mask of the rater]."""
        image, mask = self._cases(domain)[require(case_id, self.case_ids(domain), f"case of {domain}")]
        return [self.folder / image, self.folder / mask.with_name(f"{mask.stem}-{self.rater}{mask.suffix}")]

    def load(self, domain: str, case_id: str) -> Case:
        """The photograph and its disc and cup, at the photograph's own resolution."""
        image, mask = self.files(domain, case_id)
        pixels, (values,) = read_case(image, [mask])
        if other := sorted(set(values_of(values)) - {128, 255}):
            raise DataError(
                f"mask {mask} holds the values {other[:5]}", "RIGA+ has 0, 128 (cup), 255 (rim): download again"
            )
        planes = [np.isin(values, MASK_VALUES[s]) for s in self.structures]
        return Case(case_id, self.intensities(pixels), np.stack(planes, axis=1), (1.0, 1.0, 1.0))

    def intensities(self, pixels: Pixels) -> np.ndarray:
        """8-bit colours / 255: float32 (1, 3, H, W)."""
        unit = to_unit(pixels)
        return np.repeat(unit, 3, axis=1) if unit.shape[1] == 1 else unit

    def verify(self) -> list[str]:
        """Also: the lengths of the distribution's lists."""
        problems = super().verify()
        if self.is_mock:
            return problems
        for domain, parts in COUNTS.items():
            for part, count in parts.items():
                try:
                    found = len(self._list(domain, part))
                except DataError:  # said above
                    continue
                if found != count:
                    problems.append(f"{domain}_{part}.csv lists {found} photographs, the distribution {count}")
        return problems

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """Lists, photographs and six raters' masks, who differ on the cup. A name is in several sub-folders."""
        for k, (domain, places) in enumerate(PLACES.items()):
            for part, photographs in places.items():
                rows = ["image,mask", *(f"RIGA/{domain}/{p}.tif,RIGA-mask/{domain}/{p}.tif" for p in photographs)]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{domain}_{part}.csv").write_text("\n".join(rows) + "\n")
                for photograph in photographs:
                    labels = sketch.labels(40, 40, structures=2, nested=True)
                    write_tiff(folder / f"RIGA/{domain}/{photograph}.tif", sketch.photograph(labels, k))
                    for rater in range(1, 7):
                        cup = np.roll(labels == 2, rater - 1, axis=0) & (labels > 0)
                        mask = np.where(cup, 128, 255 * (labels > 0)).astype(np.uint8)
                        write_tiff(folder / f"RIGA-mask/{domain}/{photograph}-{rater}.tif", mask)

    def _cases(self, domain: str) -> dict[str, Pair]:
        """By case id, from all lists of a domain that are used."""
        cases: dict[str, Pair] = {}
        for part in COUNTS[require(domain, self.domains, "domain")]:
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
        case_id = "-".join(image.with_suffix("").parts).removeprefix(f"RIGA-{domain}-")
        if case_id in listed:
            raise DataError(f"{path}, line {number}: '{image}' is listed twice", remedy)
        listed[case_id] = (image, mask)
    if not listed:
        raise DataError(f"the list {path} names no photograph", remedy)
    return listed
