"""Optic disc and optic cup in fundus photographs of five sets: every domain may be the source.

Chen et al. Treasure in Distribution: A Domain Randomization based Multi-Source Domain Generalization for 2D Medical
Image Segmentation. MICCAI 2023. "A Fundus Image Dataset for Domain Generalization in Joint Segmentation of Optic Disc
and Optic Cup", https://zenodo.org/records/8009107

    domain      cases  validation  from
    BinRushed   195    19          RIGA, rater 1
    Magrabia    95     10          RIGA, rater 1
    REFUGE      400    40          the challenge's training set
    ORIGA       650    65          Singapore Eye Research Institute
    Drishti_GS  101    10          Aravind, India

A domain is all that its two lists name. As a source its validation cases are those of ConStyX (2025), listed beside
this file, where TriD trains on all. In a mask 255 is background, 128 the rim, 0 the cup: RIGA+ has them turned round.
Which photographs are of one patient is not published.
"""

import csv
from pathlib import Path
from typing import ClassVar

import numpy as np

from dgbench.datasets._disc_and_cup import DiscAndCup
from dgbench.errors import require
from dgbench.images.mock import Sketch, write_jpg, write_png, write_tiff

CASES = {"BinRushed": 195, "Magrabia": 95, "REFUGE": 400, "ORIGA": 650, "Drishti_GS": 101}
MOCKED = {  # some of either side of the split
    "BinRushed": ("BinRushed1/image1", "BinRushed1/image19", "BinRushed2/image1", "BinRushed2/image10"),
    "Magrabia": ("MagrabiFemale/image1", "MagrabiaMale/image1", "MagrabiFemale/image8"),
    "REFUGE": ("train/{}/g0003", "train/{}/n0001", "test/{}/g0001"),
    "ORIGA": ("train/{}/001", "train/{}/002", "test/{}/501"),
    "Drishti_GS": ("train/{}/gdrishtiGS_002", "test/{}/gdrishtiGS_001", "test/{}/gdrishtiGS_005"),
}
VALUES = np.array([255, 128, 0], np.uint8)  # of background, rim, cup


class Fundus5(DiscAndCup):
    """Two structures, the cup inside the disc."""

    domains = tuple(CASES)
    background = 255
    elsewhere = "these are masks of RIGA+: `--task fundus` reads them, this task those of Zenodo 8009107"
    parts: ClassVar = dict.fromkeys(CASES, ("train", "test"))
    cases_expected = CASES
    citation = "Chen et al., MICCAI 2023 (TriD); Almazroa et al. 2018; Orlando et al. 2020; Zhang et al. 2010"
    licence = "the record says CC BY; RIGA is CC BY-NC 4.0; REFUGE, ORIGA, Drishti-GS: research"
    collections = ("RIGA", "REFUGE", "ORIGA", "Drishti-GS")
    download = (
        "download https://zenodo.org/records/8009107 and unpack it so that RIGA/, RIGA-mask/, REFUGE/, ORIGA/, "
        "Drishti_GS/ and <domain>_train.csv, <domain>_test.csv of the five domains lie there"
    )
    steps_to_get = (
        "download all files of https://zenodo.org/records/8009107",
        "unpack them so that RIGA, RIGA-mask, REFUGE, ORIGA, Drishti_GS and the ten lists lie in the task's folder",
    )

    def split(self, source: str) -> tuple[list[str], list[str]]:
        """That of ConStyX, which parts all photographs of a domain anew."""
        require(source, self.domains, "source domain")
        with open(Path(__file__).with_suffix(".csv"), newline="", encoding="utf-8") as file:
            listed = {row["domain"]: set(row["validation"].split()) for row in csv.DictReader(file)}
        ids = self.case_ids(source)
        return [i for i in ids if i not in listed[source]], [i for i in ids if i in listed[source]]

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """RIGA's in TIFF with six raters' masks, the others in PNG, ORIGA's photographs in JPEG; and their lists."""
        for k, (domain, names) in enumerate(MOCKED.items()):
            pairs = []
            for name in names:
                labels = sketch.labels(40, 40, structures=2, nested=True)
                photograph, mask = sketch.photograph(labels, k), VALUES[labels]
                if domain in ("BinRushed", "Magrabia"):
                    image, masked = f"RIGA/{domain}/{name}.tif", f"RIGA-mask/{domain}/{name}.tif"
                    write_tiff(folder / image, photograph)
                    for rater in range(1, 7):
                        write_tiff(folder / masked.replace(".tif", f"-{rater}.tif"), mask)
                else:
                    ending, write = (".jpg", write_jpg) if domain == "ORIGA" else (".png", write_png)
                    image, masked = f"{domain}/{name.format('image')}{ending}", f"{domain}/{name.format('mask')}.png"
                    write(folder / image, photograph)
                    write_png(folder / masked, mask)
                pairs.append(f"{image},{masked}\n")
            (folder / f"{domain}_train.csv").write_text("image,mask\n" + "".join(pairs[:2]))
            (folder / f"{domain}_test.csv").write_text("image,mask\n" + "".join(pairs[2:]))
