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

Photographs of 800 x 800 pixels around the disc: these 744 outlined, 717 more not. In a mask 0 is background, 255 the
rim, 128 the cup. Another record, 8009107, has BinRushed and Magrabia under the same names with the values turned round:
the corners of a mask tell which it is, see the task fundus5.
Six raters outlined every photograph; they differ, most of all on the cup, so a number holds for its rater only.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np

from dgbench.datasets._disc_and_cup import DiscAndCup
from dgbench.errors import require
from dgbench.images.fetch import Download
from dgbench.images.mock import Sketch, write_tiff

CASES = {"BinRushed": 195, "Magrabia": 95, "MESSIDOR_Base1": 35, "MESSIDOR_Base2": 30, "MESSIDOR_Base3": 27}
SOURCES = ("BinRushed", "Magrabia")
BASE = (["Labeled/image90"], ["Labeled/image1", "Labeled/image2"])
PLACES = {  # of photographs that are drawn, by domain, of the train and of the test list
    "BinRushed": (["BinRushed1/image1", "BinRushed2/image1", "BinRushed2/image10"], ["BinRushed4/image1"]),
    "Magrabia": (["MagrabiFemale/image1", "MagrabiaMale/image1"], ["MagrabiaMale/image2"]),
    **{f"MESSIDOR_Base{n}": BASE for n in (1, 2, 3)},
}


class Fundus(DiscAndCup):
    """Two structures, the cup inside the disc. A subclass with another `rater` (1 to 6) is another task."""

    domains = tuple(CASES)
    sources = SOURCES
    background = 0
    elsewhere = "these are masks of Zenodo 8009107: `--task fundus5` reads them, this task RIGAPlus.zip"
    parts: ClassVar = {  # the lists of a domain whose cases are used
        **dict.fromkeys(SOURCES, ("train", "test")),
        **dict.fromkeys(domains[2:], ("test",)),
    }
    cases_expected = CASES
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
            inside="*",
        ),
    )

    def targets(self, source: str) -> tuple[str, ...]:
        """The three MESSIDOR bases: the other source is never tested on."""
        return tuple(d for d in self.domains if d not in SOURCES)

    def split(self, source: str) -> tuple[list[str], list[str]]:
        """The distribution's own: its train list and its test list."""
        require(source, SOURCES, "source domain")
        self._cases(source)  # raises when the two lists share a photograph
        return sorted(self._list(source, "train")), sorted(self._list(source, "test"))

    def mock(self, folder: Path, sketch: Sketch) -> None:
        """Lists, photographs and six raters' masks, who differ on the cup. A name is in several sub-folders."""
        for k, (domain, places) in enumerate(PLACES.items()):
            for part, photographs in zip(("train", "test"), places, strict=True):
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
